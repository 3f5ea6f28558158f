package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Why startLAN finds nobody at present.
var (
	errLANLoopback = errors.New("discovery: no search of the local network: the node listens on loopback only")
	errNoMulticast = errors.New("discovery: no search of the local network: no interface the node listens on does multicast")
)

const (
	// lanRefresh is how often the interfaces are looked at again: a laptop joins
	// another network while we run.
	lanRefresh = 10 * time.Second
	// lanRepeat is how soon the same node is reported again.
	lanRepeat = 30 * time.Second
	// maxLANPeers bounds the nodes remembered for lanRepeat, and so how many
	// strangers can make us call found in that time.
	maxLANPeers = 256
)

// startLAN announces the host on the local network by mDNS and calls found for
// every node of the same network that announces itself there, again after 30 s
// at the earliest, from one goroutine at a time. It ends with Close, which waits
// for a call of found that is under way.
//
// It uses those interfaces only on which the host listens, and announces on
// each only the addresses it has there. libp2p's own mDNS cannot be told which
// interfaces to use (it takes all that can multicast), answers questions on
// others besides, writes to stderr, and keeps for as long as a stranger says
// what he sent; hence this one. An address is reported only if it is in the
// interface's own subnet: a packet from the local network must not make us
// dial elsewhere.
//
// The error says why it searches nowhere at present. It goes on looking for interfaces
// all the same: a laptop joins a network later.
func startLAN(h corehost.Host, network string, found func(peer.AddrInfo), log *slog.Logger) (io.Closer, error) {
	l := &lan{
		host: h, tag: networkTag(network), found: found, log: log,
		instance: randomLabel(),
		links:    map[lanKey]*lanLink{},
		told:     map[peer.ID]time.Time{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	err := l.look()
	searches := len(l.links) > 0
	l.tasks.Go(l.refresh)
	switch {
	case !searches && err == nil:
		err = errNoMulticast
	case searches && err != nil: // of some interfaces
		log.Warn("not looking for peers everywhere on the local network", "err", err)
		err = nil
	}
	return l, err
}

// look searches on the interfaces that there are now.
func (l *lan) look() error {
	wanted, err := l.wanted()
	if err != nil {
		return err
	}
	return l.apply(wanted)
}

type lan struct {
	host     corehost.Host
	tag      string
	instance string
	found    func(peer.AddrInfo)
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	links map[lanKey]*lanLink // owned by startLAN, then by refresh

	mu   sync.Mutex // held while found runs
	told map[peer.ID]time.Time
}

// A lanKey names one socket: one family on one interface.
type lanKey struct {
	index int
	v6    bool
}

// A lanPlace is what to announce there.
type lanPlace struct {
	ifi      net.Interface
	prefixes []netip.Prefix // of the interface
	ips      []netip.Addr   // those listened on
	addrs    []ma.Multiaddr // with /p2p/ID
}

func (p lanPlace) same(q lanPlace) bool {
	return fmt.Sprint(p.prefixes, p.ips, p.addrs) == fmt.Sprint(q.prefixes, q.ips, q.addrs)
}

// Close says good-bye and waits until everything has ended. It may be called
// more than once.
func (l *lan) Close() error {
	l.cancel()
	l.tasks.Wait()
	return nil
}

// refresh follows the interfaces until Close, then closes the sockets.
func (l *lan) refresh() {
	ticker := time.NewTicker(lanRefresh)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := l.look(); err != nil {
				l.log.Debug("local network search", "err", err)
			}
		case <-l.ctx.Done():
			l.apply(nil)
			return
		}
	}
}

// apply opens and closes sockets so that those wanted are open. Its error is
// of those that could not be opened.
func (l *lan) apply(wanted map[lanKey]lanPlace) error {
	for key, link := range l.links {
		if place, ok := wanted[key]; !ok || !place.same(link.place) {
			link.close()
			delete(l.links, key)
		}
	}
	var failed []error
	for key, place := range wanted {
		if l.links[key] != nil {
			continue
		}
		link, err := openLANLink(l, key, place)
		if err != nil {
			failed = append(failed, fmt.Errorf("discovery: mDNS on %s: %w", place.ifi.Name, err))
			continue
		}
		l.links[key] = link
	}
	return errors.Join(failed...)
}

// wanted returns where to search: the interfaces which can multicast and have
// an address the host listens on.
func (l *lan) wanted() (map[lanKey]lanPlace, error) {
	listens := l.host.Network().ListenAddresses()
	if len(listens) == 0 {
		return nil, errLANLoopback
	}
	// The swarm's own InterfaceListenAddresses may be a minute old.
	addrs, err := manet.ResolveUnspecifiedAddresses(listens, nil)
	if err != nil {
		return nil, fmt.Errorf("discovery: no search of the local network: %w", err)
	}
	listening := map[netip.Addr][]ma.Multiaddr{}
	for _, a := range addrs {
		if ip := addrPort(a).Addr(); forLAN(a) {
			whole := a.Encapsulate(ma.StringCast("/p2p/" + l.host.ID().String()))
			listening[ip] = append(listening[ip], whole)
		}
	}
	if len(listening) == 0 {
		return nil, errLANLoopback
	}
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("discovery: no search of the local network: %w", err)
	}
	wanted := map[lanKey]lanPlace{}
	for _, ifi := range ifis {
		const usable = net.FlagUp | net.FlagMulticast
		if ifi.Flags&usable != usable || ifi.Flags&net.FlagLoopback != 0 {
			continue
		}
		place := lanPlace{ifi: ifi}
		v4, v6 := false, false
		nets, _ := ifi.Addrs() // an interface that has just gone has none
		for _, n := range nets {
			prefix, err := netip.ParsePrefix(n.String())
			if err != nil {
				continue
			}
			place.prefixes = append(place.prefixes, prefix.Masked())
			ip := prefix.Addr()
			if addrs := listening[ip]; len(addrs) > 0 {
				place.ips = append(place.ips, ip)
				place.addrs = append(place.addrs, addrs...)
				v4, v6 = v4 || ip.Is4(), v6 || ip.Is6()
			}
		}
		if v4 {
			wanted[lanKey{ifi.Index, false}] = place
		}
		if v6 {
			wanted[lanKey{ifi.Index, true}] = place
		}
	}
	return wanted, nil
}

// forLAN reports whether a is worth announcing: TCP or QUIC at an address that
// others in the network can dial. Browsers do not use mDNS.
func forLAN(a ma.Multiaddr) bool {
	if !dialable(a, private) {
		return false
	}
	tcp := len(a) == 2 && a[1].Code() == ma.P_TCP
	quic := len(a) == 3 && a[2].Code() == ma.P_QUIC_V1
	return tcp || quic
}

// report calls found for a node announced at place, unless that was done
// lately.
func (l *lan) report(place lanPlace, info peer.AddrInfo) {
	var near []ma.Multiaddr
	for _, a := range info.Addrs {
		if forLAN(a) && within(addrPort(a).Addr(), place.prefixes) && !ma.Contains(near, a) {
			near = append(near, a)
		}
	}
	if info.ID == l.host.ID() || len(near) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.told[info.ID]; ok && now.Sub(last) < lanRepeat {
		return
	}
	if len(l.told) >= maxLANPeers {
		for id, last := range l.told {
			if now.Sub(last) >= lanRepeat {
				delete(l.told, id)
			}
		}
		if len(l.told) >= maxLANPeers {
			return // a crowd, or somebody who makes up ids
		}
	}
	l.told[info.ID] = now
	l.found(peer.AddrInfo{ID: info.ID, Addrs: near})
}

// randomLabel returns the 32 random characters under which a node appears.
func randomLabel() string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 32)
	for i := range b {
		b[i] = alphabet[rand.IntN(len(alphabet))]
	}
	return string(b)
}
