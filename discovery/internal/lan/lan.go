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

// The reasons for which a search cannot find any node at present.
var (
	// ErrLoopback is returned when the host listens on loopback addresses only.
	ErrLoopback = errors.New("discovery: no search of the local network: the node listens on loopback only")
	// ErrNoMulticast is returned when the host has no interface that can send multicast
	// packets and has an address at which the host listens.
	ErrNoMulticast = errors.New("discovery: no search of the local network: no interface the node listens on does multicast")
)

const (
	// refreshInterval is the time between two looks at the network interfaces of this
	// machine, which change when a laptop joins another network.
	refreshInterval = 10 * time.Second
	// repeatInterval is the least time between two reports of the same node.
	repeatInterval = 30 * time.Second
	// maxPeers bounds the nodes that are reported within repeatInterval. So a machine that
	// announces made-up nodes cannot cause endless calls of the function found.
	maxPeers = 256
)

// Start announces the host h on the local network by mDNS, and calls found for each node
// that announces itself there as a node of network, which is the name of a smokesignal
// network. It calls found at most once in 30 s for each node, and not from several goroutines
// at once. Close of the result ends the search and waits for a running call of found.
//
// Start uses only the interfaces on which the host listens, and announces on each of them
// only the addresses that the host has there. It reports only addresses in the subnet of the
// interface, so that a packet from the local network cannot make this node dial elsewhere.
// libp2p's own mDNS is not used. It cannot be limited to some interfaces, it answers
// questions from other interfaces, it writes to stderr, and it stores received records for
// as long as their sender wants.
//
// The error is ErrLoopback, ErrNoMulticast, or says which interface fails. The search goes
// on even after an error, since an interface may appear later, so the caller must always
// close it.
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
	case !searches && err == nil: // no interface can be used, and update reports no error about that
		err = ErrNoMulticast
	case searches && err != nil: // some interfaces work, and others failed
		log.Warn("not looking for peers everywhere on the local network", "error", err)
		err = nil
	}
	return l, err
}

// update opens and closes sockets, so that they match the present network interfaces.
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

	sockets map[socketKey]*mdnsSocket // used by Start first, and later only by refresh

	mu       sync.Mutex // held during each call of found
	reported map[peer.ID]time.Time
}

// A socketKey names one socket: one address family on one interface.
type socketKey struct {
	index int
	v6    bool
}

// A place is an interface, and the addresses to announce on it.
type place struct {
	ifi      net.Interface
	prefixes []netip.Prefix // the subnets of the interface
	ips      []netip.Addr   // those addresses of the interface at which the host listens
	addrs    []ma.Multiaddr // the addresses to announce, each with /p2p/ID at the end
}

// same reports whether p and q have the same addresses, so that a socket for one serves for
// the other.
func (p place) same(q place) bool {
	return fmt.Sprint(p.prefixes, p.ips, p.addrs) == fmt.Sprint(q.prefixes, q.ips, q.addrs)
}

// Close announces that the host leaves, and waits until all goroutines have ended. It may
// be called more than once.
func (l *finder) Close() error {
	l.cancel()
	l.tasks.Wait()
	return nil
}

// refresh calls update regularly until Close is called, and then closes all sockets.
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

// apply closes and opens sockets so that exactly the wanted ones are open. Its error names
// the interfaces on which a socket could not be opened.
func (l *finder) apply(wanted map[socketKey]place) error {
	for key, sock := range l.sockets {
		// The interface is gone, or what is announced on it has changed.
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

// wanted returns the sockets that should be open. An interface gets sockets if it can send
// multicast packets and has an address at which the host listens. The error is ErrLoopback
// if the host listens on loopback addresses only, or says why the interfaces cannot be
// listed.
func (l *finder) wanted() (map[socketKey]place, error) {
	listens := l.host.Network().ListenAddresses()
	if len(listens) == 0 {
		return nil, ErrLoopback
	}
	// The swarm's own InterfaceListenAddresses would be simpler, but its result may be a
	// minute old.
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
			continue // the interface is down, is loopback or cannot multicast, so it is of no use
		}
		place := place{ifi: ifi}
		v4, v6 := false, false
		nets, _ := ifi.Addrs() // an error means that the interface has just disappeared
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

// forLAN reports whether a should be announced: it must be TCP or QUIC, at an address that
// others in the local network can dial. Other transports are for browsers, which do not use
// mDNS.
func forLAN(a ma.Multiaddr) bool {
	if !dialguard.Dialable(a, dialguard.Private) {
		return false
	}
	tcp := len(a) == 2 && a[1].Code() == ma.P_TCP
	quic := len(a) == 3 && a[2].Code() == ma.P_QUIC_V1
	return tcp || quic
}

// report calls found with info, a node that has announced itself on the interface of place.
// It does nothing if the node was reported less than repeatInterval ago.
func (l *finder) report(place place, info peer.AddrInfo) {
	var near []ma.Multiaddr
	for _, a := range info.Addrs {
		// An address outside the subnet could be that of a third party.
		if forLAN(a) && dialguard.In(ipOf(a), place.prefixes) && !ma.Contains(near, a) {
			near = append(near, a)
		}
	}
	// This host receives its own announcements, too. Without an address, a node cannot be
	// dialed.
	if info.ID == l.host.ID() || len(near) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.reported[info.ID]; ok && now.Sub(last) < repeatInterval {
		return
	}
	// Make space by removing nodes that were reported at least repeatInterval ago.
	if len(l.reported) >= maxPeers {
		for id, last := range l.reported {
			if now.Sub(last) >= repeatInterval {
				delete(l.reported, id)
			}
		}
		if len(l.reported) >= maxPeers {
			return // more than maxPeers nodes are on the local network, or a program announces made-up ones
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

// randomLabel returns 32 random characters. A node announces itself by mDNS under such a
// name, since libp2p's specification wants a name without a meaning.
func randomLabel() string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 32)
	for i := range b {
		b[i] = alphabet[rand.IntN(len(alphabet))]
	}
	return string(b)
}
