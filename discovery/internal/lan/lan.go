// Package lan finds the nodes of a network on the local network by mDNS.
package lan

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

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// Why a search finds nobody at present.
var (
	// ErrLoopback is returned when the host listens on loopback addresses only.
	ErrLoopback = errors.New("discovery: no search of the local network: the node listens on loopback only")
	// ErrNoMulticast is returned when no interface on which the host listens can send
	// multicast packets.
	ErrNoMulticast = errors.New("discovery: no search of the local network: no interface the node listens on does multicast")
)

const (
	// refreshInterval is how often the interfaces are read again: a laptop joins another
	// network while the program runs.
	refreshInterval = 10 * time.Second
	// repeatInterval is how soon the same node is reported again.
	repeatInterval = 30 * time.Second
	// maxPeers bounds the nodes remembered for repeatInterval, and so the calls of found
	// that strangers can cause in that time.
	maxPeers = 256
)

// Start announces the host on the local network by mDNS, and calls found for each node of
// the same network that announces itself there. It calls found for one node once in 30 s at
// most, and from one goroutine at a time. Close ends the search and waits for a running
// call of found.
//
// Start uses only interfaces on which the host listens, and announces on each interface only
// the addresses that the host has there. An address is reported only if it is in the
// interface's own subnet: a packet from the local network must not make us dial elsewhere.
// libp2p's own mDNS is not used, because it cannot be told which interfaces to use,
// answers questions that came in on others, writes to stderr, and remembers what strangers
// sent for as long as they say.
//
// The error is ErrLoopback, ErrNoMulticast, or says which interface fails. The search goes
// on all the same, since an interface may come later. The caller must close it in any case.
func Start(h corehost.Host, network string, found func(peer.AddrInfo), log *slog.Logger) (io.Closer, error) {
	l := &finder{
		host: h, tag: networkTag(network), found: found, log: log,
		instance: randomLabel(),
		sockets:  map[socketKey]*mdnsSocket{},
		reported: map[peer.ID]time.Time{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	err := l.update()
	searches := len(l.sockets) > 0
	l.tasks.Go(l.refresh)
	switch {
	case !searches && err == nil: // there was nothing to open
		err = ErrNoMulticast
	case searches && err != nil: // some interfaces fail, others work
		log.Warn("not looking for peers everywhere on the local network", "error", err)
		err = nil
	}
	return l, err
}

// update opens and closes sockets to match the present interfaces.
func (l *finder) update() error {
	wanted, err := l.wanted()
	if err != nil {
		return err
	}
	return l.apply(wanted)
}

// A finder is one running search. It owns a socket for each address family on each
// interface.
type finder struct {
	host     corehost.Host
	tag      string
	instance string
	found    func(peer.AddrInfo)
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	sockets map[socketKey]*mdnsSocket // owned by Start, then by refresh

	mu       sync.Mutex // held while found runs
	reported map[peer.ID]time.Time
}

// A socketKey names one socket: one address family on one interface.
type socketKey struct {
	index int
	v6    bool
}

// A place says what to announce on an interface.
type place struct {
	ifi      net.Interface
	prefixes []netip.Prefix // of the interface
	ips      []netip.Addr   // on which the host listens
	addrs    []ma.Multiaddr // with /p2p/ID
}

func (p place) same(q place) bool {
	return fmt.Sprint(p.prefixes, p.ips, p.addrs) == fmt.Sprint(q.prefixes, q.ips, q.addrs)
}

// Close announces that the host leaves, and waits until everything has ended. It may be
// called more than once.
func (l *finder) Close() error {
	l.cancel()
	l.tasks.Wait()
	return nil
}

// refresh follows the interfaces until Close, and then closes the sockets.
func (l *finder) refresh() {
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := l.update(); err != nil {
				l.log.Debug("cannot search the local network", "error", err)
			}
		case <-l.ctx.Done():
			l.apply(nil)
			return
		}
	}
}

// apply closes and opens sockets until exactly the wanted ones are open. The error names
// those that cannot be opened.
func (l *finder) apply(wanted map[socketKey]place) error {
	for key, sock := range l.sockets {
		if place, ok := wanted[key]; !ok || !place.same(sock.place) {
			sock.close()
			delete(l.sockets, key)
		}
	}
	var failed []error
	for key, place := range wanted {
		if l.sockets[key] != nil {
			continue
		}
		sock, err := openSocket(l, key, place)
		if err != nil {
			failed = append(failed, fmt.Errorf("discovery: mDNS on %s: %w", place.ifi.Name, err))
			continue
		}
		l.sockets[key] = sock
	}
	return errors.Join(failed...)
}

// wanted returns the sockets to open: on the interfaces that can send multicast packets and
// have an address on which the host listens.
func (l *finder) wanted() (map[socketKey]place, error) {
	listens := l.host.Network().ListenAddresses()
	if len(listens) == 0 {
		return nil, ErrLoopback
	}
	// Not the swarm's own InterfaceListenAddresses, which may be a minute old.
	addrs, err := manet.ResolveUnspecifiedAddresses(listens, nil)
	if err != nil {
		return nil, fmt.Errorf("discovery: no search of the local network: %w", err)
	}
	listening := map[netip.Addr][]ma.Multiaddr{}
	for _, a := range addrs {
		if ip := ipOf(a); forLAN(a) {
			whole := a.Encapsulate(ma.StringCast("/p2p/" + l.host.ID().String()))
			listening[ip] = append(listening[ip], whole)
		}
	}
	if len(listening) == 0 {
		return nil, ErrLoopback
	}
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("discovery: no search of the local network: %w", err)
	}
	wanted := map[socketKey]place{}
	for _, ifi := range ifis {
		const usable = net.FlagUp | net.FlagMulticast
		if ifi.Flags&usable != usable || ifi.Flags&net.FlagLoopback != 0 {
			continue
		}
		place := place{ifi: ifi}
		v4, v6 := false, false
		nets, _ := ifi.Addrs() // an error means that the interface has just gone
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
			wanted[socketKey{ifi.Index, false}] = place
		}
		if v6 {
			wanted[socketKey{ifi.Index, true}] = place
		}
	}
	return wanted, nil
}

// forLAN reports whether a is worth announcing: TCP or QUIC at an address that others in
// the local network can dial. The other transports are for browsers, which have no mDNS.
func forLAN(a ma.Multiaddr) bool {
	if !dialguard.Dialable(a, dialguard.Private) {
		return false
	}
	tcp := len(a) == 2 && a[1].Code() == ma.P_TCP
	quic := len(a) == 3 && a[2].Code() == ma.P_QUIC_V1
	return tcp || quic
}

// report calls found for a node that was announced at a place, unless that was done less
// than repeatInterval ago.
func (l *finder) report(place place, info peer.AddrInfo) {
	var near []ma.Multiaddr
	for _, a := range info.Addrs {
		if forLAN(a) && dialguard.In(ipOf(a), place.prefixes) && !ma.Contains(near, a) {
			near = append(near, a)
		}
	}
	// Our own announcement comes back to us.
	if info.ID == l.host.ID() || len(near) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.reported[info.ID]; ok && now.Sub(last) < repeatInterval {
		return
	}
	if len(l.reported) >= maxPeers {
		for id, last := range l.reported {
			if now.Sub(last) >= repeatInterval {
				delete(l.reported, id)
			}
		}
		if len(l.reported) >= maxPeers {
			return // a crowd, or a stranger that makes up ids
		}
	}
	l.reported[info.ID] = now
	l.found(peer.AddrInfo{ID: info.ID, Addrs: near})
}

// ipOf returns the IP address that a begins with.
func ipOf(a ma.Multiaddr) netip.Addr {
	ap, _ := addr.AddrPort(a)
	return ap.Addr()
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
