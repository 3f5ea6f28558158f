package host

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	blankhost "github.com/libp2p/go-libp2p/p2p/host/blank"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// NAT configures how a host behind a router or firewall is reached, and how it helps
// others to be reached. With the zero value it does nothing.
//
// With any of the options, the host also asks others at which address they see it. It
// asks those that offer AutoNAT v2 whether its public addresses can be dialed, and stops
// announcing an address that cannot.
type NAT struct {
	// HolePunching makes the host dial others through their relays, and makes both ends
	// turn a relayed connection into a direct one (DCUtR). That works only over QUIC, from
	// the port that the host listens on: its TCP listeners do not share their port.
	HolePunching bool

	// Relays holds the multiaddrs, with /p2p/ID, of relays (circuit v2). The host keeps
	// a reservation at each of them, which is the right to be reached through the
	// relay. It announces its address there as long as none of its own addresses is
	// known to be dialable. Relays includes HolePunching.
	Relays []string

	// RelayService makes the host a relay for others, within libp2p's default limits (two
	// minutes or 128 KiB per connection), and makes it answer peers that ask whether they
	// can be dialed. It includes HolePunching. It is useful on a host that can be dialed.
	RelayService bool

	// PortMapping asks the router by UPnP to forward the ports that the host listens on.
	// NAT-PMP is tried as well, but on Linux libp2p does not find the router for it.
	PortMapping bool
}

// punches reports whether n makes the host punch holes.
func (n NAT) punches() bool { return n.HolePunching || len(n.Relays) > 0 || n.RelayService }

// enabled reports whether n makes the host do anything.
func (n NAT) enabled() bool { return n.punches() || n.PortMapping }

// punchTimeout limits one attempt at a direct connection. The five seconds of a dial have to
// be enough for the dial through the relay and two attempts.
const punchTimeout = 2 * time.Second

// tcpHandicap is added to the delay after which libp2p dials TCP, if the peer also has QUIC.
const tcpHandicap = time.Second

// ranker returns the rule by which libp2p orders the addresses of a peer for dialing. A host
// that punches holes needs QUIC connections, because they show it the address at which
// others see it. So TCP is dialed later than usual; otherwise it could win by a few
// milliseconds on a slow network.
func (n NAT) ranker() network.DialRanker {
	if !n.punches() {
		return swarm.DefaultDialRanker
	}
	return func(addrs []ma.Multiaddr) []network.AddrDelay {
		isQUIC := func(a ma.Multiaddr) bool {
			_, err := a.ValueForProtocol(ma.P_QUIC_V1)
			return err == nil && !addr.IsRelayed(a)
		}
		quic := slices.ContainsFunc(addrs, isQUIC)
		ranked := swarm.DefaultDialRanker(addrs)
		for i := range ranked {
			if a := ranked[i].Addr; quic && !isQUIC(a) && !addr.IsRelayed(a) {
				ranked[i].Delay += tcpHandicap
			}
		}
		return ranked
	}
}

// circuitListen is the address that makes libp2p accept relayed connections.
var circuitListen = ma.StringCast("/p2p-circuit")

// A runningNAT holds the parts that carry out the NAT configuration of a running host.
type runningNAT struct {
	cfg          NAT
	relays       []peer.AddrInfo
	closers      []func() error // close those parts that libp2p does not close; they are called in this order
	reservations *reservations
	service      *relay.Relay
}

// parseRelays parses the texts of NAT.Relays. Texts with the same id become one relay with
// several addresses.
func parseRelays(texts []string, self peer.ID) ([]peer.AddrInfo, error) {
	var list []peer.AddrInfo
	for _, text := range texts {
		addr, id, err := parseRelay(text, self)
		if err != nil {
			return nil, &configError{"Relays", text, err}
		}
		i := slices.IndexFunc(list, func(r peer.AddrInfo) bool { return r.ID == id })
		if i < 0 {
			i, list = len(list), append(list, peer.AddrInfo{ID: id})
		}
		list[i].Addrs = append(list[i].Addrs, addr)
	}
	return list, nil
}

const relayForms = "want a multiaddr with the relay's id, as /ip4/192.0.2.1/udp/8495/quic-v1/p2p/ID"

func parseRelay(text string, self peer.ID) (ma.Multiaddr, peer.ID, error) {
	whole, err := ma.NewMultiaddr(text)
	if err != nil {
		return nil, "", errors.New(relayForms)
	}
	a, id := peer.SplitAddr(whole)
	switch {
	case addr.IsRelayed(whole):
		return nil, "", errors.New("it is an address behind a relay; give the address of the relay itself")
	case id == "" || len(a) < 2:
		return nil, "", errors.New(relayForms)
	case id == self:
		return nil, "", errors.New("it is this node itself")
	}
	switch a[0].Code() {
	case ma.P_IP4, ma.P_IP6:
		if ip, ok := netip.AddrFromSlice(a[0].RawValue()); !ok || ip.IsUnspecified() {
			return nil, "", errors.New("an address of all interfaces cannot be dialed")
		}
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
	default:
		return nil, "", errors.New(relayForms)
	}
	if c := a[1]; c.Code() != ma.P_TCP && c.Code() != ma.P_UDP || c.Value() == "0" {
		return nil, "", errors.New("the port is missing, as in /udp/8495/quic-v1")
	}
	return a, id, nil
}

// prepareNAT adds the options for NATs to opts, from which the libp2p host will be made.
func (h *Host) prepareNAT(opts *basichost.HostOpts, limits network.ResourceManager) (err error) {
	cfg := h.nat.cfg
	if !cfg.enabled() {
		return nil
	}
	if cfg.PortMapping {
		opts.NATManager = func(n network.Network) basichost.NATManager { return basichost.NewNATManager(n) }
	}
	if cfg.punches() {
		opts.EnableHolePunching = true
		opts.HolePunchingOptions = []holepunch.Option{holepunch.DirectDialTimeout(punchTimeout)}
	}
	observed, err := observedaddrs.NewManager(opts.EventBus, h.swarm)
	if err != nil {
		return err
	}
	observed.Start(h.swarm)
	h.nat.closers = append(h.nat.closers, observed.Close)
	opts.ObservedAddrsManager = observed
	dialer, err := h.newDialer(limits)
	if err != nil {
		return err
	}
	opts.AutoNATv2, err = autonatv2.New(dialer)
	return err
}

// newDialer returns a second host, which AutoNAT uses to dial the peers that ask whether they
// can be dialed. It has an identity of its own and does not listen. Without RelayService such
// peers are not answered, so it has no transports.
func (h *Host) newDialer(limits network.ResourceManager) (*blankhost.BlankHost, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	closers := []func() error{store.Close}
	defer func() { h.nat.closers = append(h.nat.closers, closers...) }()
	if err := errors.Join(store.AddPrivKey(id, key), store.AddPubKey(id, key.GetPublic())); err != nil {
		return nil, err
	}
	bus := eventbus.NewBus()
	sw, err := swarm.NewSwarm(id, store, bus, swarm.WithResourceManager(limits),
		swarm.WithDialRanker(swarm.NoDelayDialRanker),
		swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil))
	if err != nil {
		return nil, err
	}
	closers = slices.Insert(closers, 0, sw.Close)
	if h.nat.cfg.RelayService {
		quic, err := h.newQUIC(key, limits)
		if err != nil {
			return nil, err
		}
		closers = slices.Insert(closers, 1, quic.Close)
		up, err := newUpgrader(key, limits)
		if err != nil {
			return nil, err
		}
		tcpTransport, err := tcp.NewTCPTransport(up, limits, nil, tcp.DisableReuseport())
		if err != nil {
			return nil, err
		}
		quicTransport, err := libp2pquic.NewTransport(key, quic, nil, nil, limits)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(sw.AddTransport(tcpTransport), sw.AddTransport(quicTransport)); err != nil {
			return nil, err
		}
	}
	return blankhost.NewBlankHost(sw, blankhost.WithEventBus(bus)), nil
}

// addNAT adds the relay transport to the libp2p host, which is not started yet.
func (h *Host) addNAT(basic *basichost.BasicHost, up transport.Upgrader) error {
	if !h.nat.cfg.punches() {
		return nil
	}
	c, err := client.New(basic, up)
	if err != nil {
		return err
	}
	if err := h.swarm.AddTransport(c); err != nil {
		return err
	}
	c.Start()
	return nil
}

// startNAT starts the reservations at relays and the relay service, as far as they are
// configured. Listen calls it after all addresses were bound.
func (h *Host) startNAT() error {
	cfg := h.nat.cfg
	if !cfg.punches() {
		return nil
	}
	if err := h.swarm.Listen(circuitListen); err != nil {
		return err
	}
	if cfg.RelayService {
		service, err := relay.New(h.basic)
		if err != nil {
			return err
		}
		h.nat.service = service
	}
	if len(h.nat.relays) == 0 {
		return nil
	}
	emitter, err := h.basic.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return err
	}
	h.nat.reservations = startReservations(h.basic, h.nat.relays, emitter, h.log)
	return nil
}

// stopNAT stops the parts for NATs that use the libp2p host. It is called before that host is
// closed.
func (h *Host) stopNAT() {
	if h.nat.reservations != nil {
		h.nat.reservations.close()
	}
	if h.nat.service != nil {
		h.nat.service.Close()
	}
}

// closeNAT closes the parts for NATs that libp2p does not close. It is called after the
// libp2p host was closed.
func (h *Host) closeNAT() error {
	var errs []error
	for _, f := range h.nat.closers {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// onlyRelayed returns the addresses behind relays among addrs.
func onlyRelayed(addrs []ma.Multiaddr) (list []ma.Multiaddr) {
	for _, a := range addrs {
		if addr.IsRelayed(a) {
			list = append(list, a)
		}
	}
	return list
}

// relays returns the state of each relay of NAT.Relays, in that order: whether it has
// granted a reservation.
func (h *Host) relays() []wiring.RelayStatus {
	if !h.listening.Load() || h.nat.reservations == nil {
		return nil
	}
	return h.nat.reservations.status()
}
