package host

import (
	"cmp"

	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	libp2pwebrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	libp2pwebtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/quic-go/quic-go"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/limits"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/testhook"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// ErrClosed is returned by [Host.Listen] after Close.
var ErrClosed = errs.ErrClosed

var errListening = errors.New("host: already listening")

// Config configures a [Host]. The zero value is a host with a new identity that listens
// on a free port of all interfaces.
type Config struct {
	// Key is the identity. Nil means a new Ed25519 key.
	Key crypto.PrivKey

	// Listen holds the addresses to listen on. Empty means ":0". "host:port" means TCP
	// and QUIC on the same number, where host is an IP address or a name of this machine.
	// ":port" and "port" mean all interfaces, with IPv4 and, if the machine has it, IPv6.
	// Port 0 means a free one. A multiaddr means one transport: TCP, QUIC, WebSocket,
	// WebTransport or WebRTC-direct.
	Listen []string

	// Subnet, if valid, restricts "all interfaces" to the addresses of this machine in
	// the subnet. Listening on an address outside of it is then an error.
	Subnet netip.Prefix

	// Advertise, if not empty, holds the addresses to announce in place of those that the
	// host listens on: multiaddrs, or "host:port" for TCP and QUIC, as far as the host
	// listens on them.
	Advertise []string

	// NAT configures how the host is reached behind a router.
	NAT NAT

	// Log defaults to the logger "smokesignal/host" of go-log.
	Log *slog.Logger

	// Node connects the host to the other parts of a node. Package smokesignal sets it;
	// every other program leaves it nil.
	Node *wiring.HostParts
}

// A configError says which value of a [Config] is invalid, and why.
type configError struct {
	Option string // the field of [Config]
	Value  string
	Err    error
}

func (e *configError) Error() string {
	return fmt.Sprintf("host: %s %q: %v", e.Option, e.Value, e.Err)
}

func (e *configError) Unwrap() error { return e.Err }

// A Host makes and closes a libp2p host that dials over all transports and listens on the
// addresses of its [Config]. See the package documentation for what it promises. Its methods
// may be called from several goroutines.
type Host struct {
	basic corehost.Host // made by libp2p
	face  corehost.Host // basic with another method Close, which closes this Host

	// Parts of the libp2p host.
	log     *slog.Logger
	swarm   *swarm.Swarm
	quic    *quicreuse.ConnManager
	sockets sockets
	nat     runningNAT

	// The parsed configuration.
	requests []listenRequest
	subnet   netip.Prefix
	announce []ma.Multiaddr // the addresses of Config.Advertise; if empty, the host announces the addresses that it listens on

	mu        sync.Mutex // held while Listen runs
	closed    bool
	listening atomic.Bool
	close     func() error // shutdown, once
}

// New makes a host that does not listen yet, so that handlers can be registered before
// anybody connects. The error names the field of the configuration that is wrong: a bad text
// in Listen, Advertise or NAT.Relays, or a Subnet without an address of this machine. Names in
// Listen are looked up later, by [Host.Listen].
func New(cfg Config) (*Host, error) {
	var listen testhook.Listener
	if cfg.Node != nil {
		listen = cfg.Node.ListenUDP
	}
	logging.Dependencies()
	h := &Host{
		log: cmp.Or(cfg.Log, logging.Package("host", nil)), subnet: cfg.Subnet, nat: runningNAT{cfg: cfg.NAT}, sockets: sockets{listen: listen},
	}
	key := cfg.Key
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return nil, err
		}
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("host: key: %w", err)
	}
	if err := h.parse(cfg, id); err != nil {
		return nil, err
	}
	if err := h.build(key, id); err != nil {
		return nil, fmt.Errorf("host: make libp2p host: %w", err)
	}
	h.close = sync.OnceValue(h.shutdown)
	h.face = &closingHost{h.basic, h}
	if cfg.Node != nil {
		cfg.Node.Relays = h.relays
	}
	return h, nil
}

// parse parses the texts of the configuration.
func (h *Host) parse(cfg Config, id peer.ID) error {
	if h.subnet.IsValid() {
		h.subnet = h.subnet.Masked()
		ips, err := interfaceIPs()
		if err != nil {
			return err
		}
		if _, err := ipsIn(h.subnet, ips); err != nil {
			return &configError{"Subnet", h.subnet.String(), err}
		}
	}
	texts := cfg.Listen
	if len(texts) == 0 {
		texts = []string{":0"}
	}
	var listening []kind
	for _, text := range texts {
		r, err := parseListen(text)
		// If the entry is a name or means all interfaces, its addresses are found
		// only by Listen, which checks them against the subnet.
		if err == nil && h.subnet.IsValid() && r.ip.IsValid() && !r.ip.IsUnspecified() && !h.subnet.Contains(r.ip.WithZone("")) {
			err = outside(r.ip, h.subnet)
		}
		if err != nil {
			return &configError{"Listen", text, err}
		}
		h.requests = append(h.requests, r)
		listening = append(listening, r.kinds...)
	}
	for _, text := range cfg.Advertise {
		a, err := parseAdvertise(text, id)
		if err != nil {
			return &configError{"Advertise", text, err}
		}
		addrs := a.expand(listening)
		// host:port stands for TCP and QUIC only.
		if len(addrs) == 0 {
			return &configError{"Advertise", text, errors.New("this node listens on neither TCP nor QUIC; give a multiaddr")}
		}
		h.announce = append(h.announce, addrs...)
	}
	var err error
	h.nat.relays, err = parseRelays(cfg.NAT.Relays, id)
	return err
}

// build makes the libp2p host from its parts. libp2p.New does the same by reflection,
// which takes three times as long (3 ms), registers metrics globally even when they are
// disabled, and does not give the access to UDP sockets that Listen needs.
func (h *Host) build(key crypto.PrivKey, id peer.ID) (err error) {
	var undo []func() error
	defer func() {
		// After an error, nobody will close these.
		if err != nil {
			for _, f := range slices.Backward(undo) {
				f()
			}
		}
	}()

	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return err
	}
	undo = append(undo, store.Close)
	if err := errors.Join(store.AddPrivKey(id, key), store.AddPubKey(id, key.GetPublic())); err != nil {
		return err
	}
	limits, err := limits.ResourceManager()
	if err != nil {
		return err
	}
	undo = append(undo, limits.Close)
	bus := eventbus.NewBus()
	// libp2p's black hole detectors are left out. After a hundred failed dials they allow
	// only one dial in a hundred, so a seed on QUIC that was down for some minutes would be
	// found again only after many more.
	h.swarm, err = swarm.NewSwarm(id, store, bus, swarm.WithResourceManager(limits), swarm.WithDialRanker(h.nat.cfg.ranker()),
		swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil))
	if err != nil {
		return err
	}
	undo = append(undo, h.swarm.Close)
	if h.quic, err = h.newQUIC(key, limits); err != nil {
		return err
	}
	undo = append(undo, h.quic.Close)
	up, err := newUpgrader(key, limits)
	if err != nil {
		return err
	}
	if err := h.addTransports(key, up, limits); err != nil {
		return err
	}
	conns, err := connmgr.NewConnManager(160, 192) // libp2p's defaults
	if err != nil {
		return err
	}
	undo = append(undo, conns.Close)
	opts := &basichost.HostOpts{
		EventBus:     bus,
		ConnManager:  conns,
		UserAgent:    "smokesignal",
		EnablePing:   true,
		AddrsFactory: h.announced,
	}
	undo = append(undo, h.closeNAT)
	if err := h.prepareNAT(opts, limits); err != nil {
		return err
	}
	basic, err := basichost.NewHost(h.swarm, opts)
	if err != nil {
		return err
	}
	if err := h.addNAT(basic, up); err != nil {
		return err
	}
	basic.Start()
	if h.nat.cfg.enabled() && !h.nat.cfg.RelayService {
		// Without RelayService this host asks others whether it can be dialed, but does not
		// answer such requests.
		basic.RemoveStreamHandler(autonatv2.DialProtocol)
	}
	h.basic = basic
	return nil
}

// newQUIC returns the manager of UDP sockets and QUIC connections that all transports over
// UDP share. As libp2p.New does, it lets the resource manager refuse a connection before its
// handshake.
func (h *Host) newQUIC(key crypto.PrivKey, limits network.ResourceManager) (*quicreuse.ConnManager, error) {
	resetKey, err := config.PrivKeyToStatelessResetKey(key)
	if err != nil {
		return nil, err
	}
	tokenKey, err := config.PrivKeyToTokenGeneratorKey(key)
	if err != nil {
		return nil, err
	}
	options := []quicreuse.Option{
		quicreuse.OverrideListenUDP(h.sockets.listenUDP),
		quicreuse.VerifySourceAddress(limits.VerifySourceAddress),
		quicreuse.ConnContext(func(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
			addr, err := quicreuse.ToQuicMultiaddr(client.RemoteAddr, quic.Version1)
			if err != nil {
				addr = nil // the resource manager decides
			}
			scope, err := limits.OpenConnection(network.DirInbound, false, addr)
			if err != nil {
				return ctx, err
			}
			ctx = network.WithConnManagementScope(ctx, scope)
			context.AfterFunc(ctx, scope.Done)
			return ctx, nil
		}),
	}
	if h.sockets.listen != nil {
		options = append(options, quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) {
			return &h.sockets, nil // a test opens these sockets by the function listen, so this machine's routes do not apply to them
		}))
	}
	return quicreuse.NewConnManager(resetKey, tokenKey, options...)
}

// newUpgrader returns the upgrader, which adds encryption and streams to a TCP
// connection.
func newUpgrader(key crypto.PrivKey, limits network.ResourceManager) (transport.Upgrader, error) {
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	tlsSecurity, err := tls.New(tls.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	noiseSecurity, err := noise.New(noise.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	return upgrader.New([]sec.SecureTransport{tlsSecurity, noiseSecurity}, muxers, nil, limits, nil)
}

// addTransports adds all transports, because a node must be able to dial every other node.
// WebSocket, WebTransport and WebRTC together add 0.2 ms.
func (h *Host) addTransports(key crypto.PrivKey, up transport.Upgrader, limits network.ResourceManager) error {
	add := func(t transport.Transport, err error) error {
		if err != nil {
			return err
		}
		return h.swarm.AddTransport(t)
	}
	// SO_REUSEPORT is off. With it, a second node could listen on the same port, and
	// each node would get half of the connections.
	tcpTransport, err := tcp.NewTCPTransport(up, limits, nil, tcp.DisableReuseport())
	if err := add(tcpTransport, err); err != nil {
		return err
	}
	if err := add(libp2pquic.NewTransport(key, h.quic, nil, nil, limits)); err != nil {
		return err
	}
	webSocket, err := websocket.New(up, limits, nil)
	if err := add(webSocket, err); err != nil {
		return err
	}
	if err := add(libp2pwebtransport.New(key, nil, h.quic, nil, limits)); err != nil {
		return err
	}
	webRTC, err := libp2pwebrtc.New(key, nil, nil, limits, h.socketForWebRTC)
	return add(webRTC, err)
}

// socketForWebRTC returns a UDP socket at the address at for WebRTC: the one of a QUIC
// listener at the same address, or a new one if there is no such listener. netw is the
// network name of package net.
func (h *Host) socketForWebRTC(netw string, at *net.UDPAddr) (net.PacketConn, error) {
	for _, a := range h.swarm.ListenAddresses() {
		bound, k, ok := splitAddr(a)
		if ok && strings.HasPrefix(k.rest, kindQUIC.rest) && at.Port == int(bound.Port()) && at.IP.Equal(bound.Addr().AsSlice()) {
			return h.quic.SharedNonQUICPacketConn(netw, at)
		}
	}
	return h.sockets.listenUDP(netw, at)
}

// announced returns the addresses that the host announces. listening has the addresses that
// it listens on.
func (h *Host) announced(listening []ma.Multiaddr) []ma.Multiaddr {
	if len(listening) == 0 || len(h.announce) == 0 {
		return listening
	}
	// The addresses behind relays are announced always. Config.Advertise cannot contain
	// them, because they depend on which relays have granted a reservation.
	return append(slices.Clone(h.announce), onlyRelayed(listening)...)
}

// Listen binds every configured address and begins to accept connections. If an address
// cannot be bound, it returns a [*ListenError] that names each such address. Nothing
// stays bound then, and Listen may be called again. After a successful call it returns
// an error, after Close [ErrClosed].
//
// It blocks only to look up host names, for at most five seconds each.
func (h *Host) Listen() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	if h.listening.Load() {
		return errListening
	}
	m, err := thisMachine()
	if err != nil {
		return err
	}
	groups, failed := m.plan(h.requests, h.subnet)
	if len(failed) == 0 {
		b := binder{sw: h.swarm, sockets: &h.sockets}
		failed = b.bind(groups)
	}
	if len(failed) > 0 {
		return &ListenError{failed}
	}
	if err := h.startNAT(); err != nil {
		return fmt.Errorf("host: relays: %w", err)
	}
	h.listening.Store(true)
	h.log.Info("listening", "id", h.basic.ID(), "addrs", h.swarm.ListenAddresses())
	h.logBuffers()
	return nil
}

// logBuffers logs the warning that quic-go would print to stderr.
func (h *Host) logBuffers() {
	for _, c := range h.sockets.listening() {
		if size, ok := receiveBuffer(c); ok && size < wantReceiveBuffer {
			h.log.Debug("UDP receive buffer is small; a fast QUIC sender may be slowed down, see https://github.com/quic-go/quic-go/wiki/UDP-Buffer-Sizes",
				"addr", c.LocalAddr(), "bytes", size, "want", wantReceiveBuffer)
		}
	}
}

// wantReceiveBuffer is the size in bytes of the receive buffer that quic-go requests from
// the system for each socket.
const wantReceiveBuffer = 7 << 20

// A closingHost is the libp2p host of a Host. Its Close closes the Host, which has sockets and
// services that libp2p does not close.
type closingHost struct {
	corehost.Host
	owner *Host
}

func (h *closingHost) Close() error { return h.owner.Close() }

// Host returns the libp2p host. Close of the libp2p host is the same as Close of h.
func (h *Host) Host() corehost.Host { return h.face }

// Dialable returns the addresses at which others can dial this host, each with /p2p/ID:
// first public ones, then those behind a public relay, private ones, and loopback. It
// returns none before Listen. "All interfaces" is replaced by the address of each
// interface, and port 0 by the real port.
func (h *Host) Dialable() []ma.Multiaddr {
	if !h.listening.Load() {
		return nil // even after a Listen that has failed, libp2p returns addresses for a short time
	}
	return addr.Dialable(h.basic.Addrs(), h.basic.ID())
}

// Close closes all connections and listeners and waits until the goroutines of the host
// have ended. It may be called more than once; every call returns the same error.
func (h *Host) Close() error { return h.close() }

func (h *Host) shutdown() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.stopNAT()
	// Connections are closed before the host. Otherwise libp2p tells each peer which
	// protocols are removed, and waits five seconds for a peer that is frozen.
	var conns sync.WaitGroup
	for _, c := range h.basic.Network().Conns() {
		conns.Go(func() { c.Close() })
	}
	conns.Wait()
	// The sockets are closed last, because swarm and transports use them to tell peers that
	// connections end.
	return errors.Join(h.basic.Close(), h.closeNAT(), h.quic.Close())
}
