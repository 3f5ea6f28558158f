package discovery

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// maxAnswerDials bounds the dials at once that are made only to answer a peer that is not
// connected any more. Strangers that ask and hang up use up none of the other slots.
const maxAnswerDials = 8

var (
	// errBusy is returned when a dial was given up before it began.
	errBusy = errors.New("discovery: not dialed, because too many dials were under way")
	// errNoAddress is returned when the guard allows none of a peer's addresses.
	errNoAddress = errors.New("discovery: no address that may be dialed")
)

// slots bounds the dials that are under way.
type slots chan struct{}

// acquire waits for a slot, for dialTimeout at most.
func (s slots) acquire(ctx context.Context) (release func(), err error) {
	select {
	case s <- struct{}{}:
		return func() { <-s }, nil
	case <-time.After(dialTimeout):
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reach returns when there is a direct connection to p. If there is none, it dials the
// addresses that the guard allows, if need be through a relay at first. The addresses come
// from other nodes. reach waits for a slot for dialTimeout at most, and dials for as long.
// The slot is free again when the dial has ended, which may be seconds after reach has
// returned. It is called in one of tasks.
func (d *Driver) reach(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, slots slots) error {
	if addr.HasDirect(d.host.Network(), p) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // acquire might choose a free slot all the same
	}
	release, err := slots.acquire(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs = d.allowed(p, addrs)
	// A connection through a relay may become a direct one without a dial of ours.
	if len(addrs) == 0 && !addr.HasOnlyRelayed(d.host.Network(), p) {
		release()
		return errNoAddress
	}
	release = d.dialing.begin(p, release, func() { d.forgetUnvouched(p) })
	if len(addrs) > 0 {
		closeStale(d.host, p, staleAfter)
		// The state machine and the guard decide how often a peer is tried. The swarm's own
		// back-off would forbid dials for half a minute after a cut of a minute.
		clearBackoff(d.host, p)
	}
	d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	err = d.connect(ctx, p, addrs, release)
	if err != nil && !addr.HasDirect(d.host.Network(), p) {
		return err
	}
	err = awaitDirect(ctx, d.host, p)
	d.recordReached(p)
	return err
}

// recordReached tells the guard at which addresses p was reached.
func (d *Driver) recordReached(p peer.ID) {
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
		}
	}
}

// dialing counts the dials under way to each peer.
type dialing struct {
	mu     sync.Mutex
	byPeer map[peer.ID]int
}

// begin counts a dial until the returned function is called, which also calls release. If
// no other dial to p is under way, begin calls first.
func (x *dialing) begin(p peer.ID, release, first func()) (end func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byPeer[p]++; x.byPeer[p] == 1 {
		first()
	}
	return func() {
		release()
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.byPeer[p]--; x.byPeer[p] == 0 {
			delete(x.byPeer, p)
		}
	}
}

// forgetUnvouched drops the addresses from the peerstore that p itself named while it was
// connected. libp2p would dial them as well, and the guard has not seen them. On a lent host
// they stay, since the application may want them.
func (d *Driver) forgetUnvouched(p peer.ID) {
	if d.node.Lent {
		return
	}
	for _, ttl := range []time.Duration{peerstore.RecentlyConnectedAddrTTL, peerstore.TempAddrTTL} {
		d.host.Peerstore().UpdateAddrs(p, ttl, 0)
	}
}

// connect dials p. It returns before the dial has ended if a direct connection comes about
// in another way: p has dialed us, or was reached at an address that is not in addrs. The
// dial then goes on. If it were given up in the middle of its handshake, the other side might
// take it for a connection and use it, or hold it for half a minute.
func (d *Driver) connect(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, release func()) error {
	connected := notify.NewSignal()
	defer whenConnected(d.host.Network(), p, func(c network.Conn) {
		direct := !addr.IsRelayed(c.RemoteMultiaddr())
		if direct && (c.Stat().Direction == network.DirInbound || !ma.Contains(addrs, c.RemoteMultiaddr())) {
			connected.Set()
		}
	})()
	dialed := make(chan error, 1)
	d.tasks.Go(func() {
		defer release()
		ctx, cancel := context.WithTimeout(network.WithDialPeerTimeout(d.ctx, dialTimeout), dialTimeout)
		defer cancel()
		err := d.host.Connect(ctx, peer.AddrInfo{ID: p})
		d.recordReached(p) // also after an error: p may have been reached in another way
		dialed <- err
	})
	select {
	case err := <-dialed:
		return err
	case <-connected:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// recordClaims tells the guard where a neighbor says to be, of its addresses on the machine
// from which it speaks. A neighbor that dialed us may never have been dialed itself, but after
// a cut both sides have to be able to dial.
func (d *Driver) recordClaims(p peer.ID, addrs []ma.Multiaddr) {
	now := time.Now()
	for _, c := range d.host.Network().ConnsToPeer(p) {
		ip, err := manet.ToIP(c.RemoteMultiaddr())
		if err != nil || addr.IsRelayed(c.RemoteMultiaddr()) {
			continue
		}
		for _, a := range addrs {
			if at, err := manet.ToIP(a); err == nil && at.Equal(ip) && !addr.IsRelayed(a) {
				d.guard.Claim(p, a, now, d.linked)
			}
		}
	}
}

// allowed returns the addresses at which p may be dialed now.
func (d *Driver) allowed(p peer.ID, addrs []ma.Multiaddr) (list []ma.Multiaddr) {
	now := time.Now()
	for _, a := range addrs {
		relay, _, relayed := addr.SplitRelay(a)
		switch {
		case relayed && relay == d.host.ID():
			// A peer behind this node is connected to it, or gone.
		case relayed && addr.HasDirect(d.host.Network(), relay):
			if d.guard.AllowBehindRelay(p, a, now) {
				list = append(list, a)
			}
		default:
			list = append(list, d.guard.Allow(p, []ma.Multiaddr{a}, now)...)
		}
	}
	return list
}

// whenConnected calls f for each connection to p, present or new, until stop is called. f
// must not block.
func whenConnected(n network.Network, p peer.ID, f func(network.Conn)) (stop func()) {
	notifiee := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == p {
			f(c)
		}
	}}
	n.Notify(notifiee)
	for _, c := range n.ConnsToPeer(p) {
		f(c)
	}
	return func() { n.StopNotify(notifiee) }
}
