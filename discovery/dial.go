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
	"github.com/go-smokesignal/smokesignal/internal/backoff"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// maxAnswerDials bounds the dials under way that serve only to send an answer to a peer
// which has disconnected. These dials have slots of their own, so that peers which ask and
// disconnect cannot use up the slots of the other dials.
const maxAnswerDials = 8

var (
	// errBusy is returned when no slot for a dial became free in time.
	errBusy = errors.New("discovery: not dialed, because too many dials were under way")
	// errNoAddress is returned when the guard forbids a dial to all addresses of a peer.
	errNoAddress = errors.New("discovery: no address that may be dialed")
)

// slots is a semaphore that bounds the dials under way.
type slots chan struct{}

// acquire waits for a free slot and takes it. The caller frees the slot by release. The
// error is errBusy if no slot became free within dialTimeout, or the cause of ctx if ctx
// has ended.
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

// reach makes sure that there is a direct connection to p. If there is none, it dials those
// of addrs, which come from other nodes, that the guard allows. A dial through a relay
// counts when it leads to a direct connection. reach waits for one of slots for at most
// dialTimeout, and then dials for at most dialTimeout. The slot becomes free when the dial
// has ended, which may be after reach has returned. The error is errBusy, errNoAddress,
// ErrRelayed, that of the dial, or that of ctx. reach must be called on a goroutine of
// d.tasks.
func (d *Driver) reach(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, slots slots) error {
	if addr.HasDirect(d.host.Network(), p) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // if a slot is free, acquire may succeed although ctx has ended
	}
	release, err := slots.acquire(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs = d.allowed(p, addrs)
	// If there is a connection through a relay, it may lead to a direct one without a dial.
	if len(addrs) == 0 && !addr.HasOnlyRelayed(d.host.Network(), p) {
		release()
		return errNoAddress
	}
	release = d.dialing.begin(p, release, func() { d.forgetUnvouched(p) })
	if len(addrs) > 0 {
		closeStale(d.host, p, staleAfter)
		// The state machine of the overlay and the guard decide how often to dial a
		// peer. The swarm has a back-off of its own, which after a cut of the
		// network for one minute would forbid dials to p for another half a minute.
		backoff.Clear(d.host, p)
	}
	d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	err = d.connect(ctx, p, addrs, release)
	// A failed dial does not matter if the peer has connected in another way.
	if err != nil && !addr.HasDirect(d.host.Network(), p) {
		return err
	}
	err = awaitDirect(ctx, d.host, p)
	d.recordReached(p)
	return err
}

// recordReached tells the guard, which limits the dials to unproved addresses, at which
// addresses this node has reached p.
func (d *Driver) recordReached(p peer.ID) {
	for _, c := range d.host.Network().ConnsToPeer(p) {
		// The remote address of an inbound connection is not one at which p listens.
		if c.Stat().Direction == network.DirOutbound {
			d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
		}
	}
}

// dialing counts the dials that are under way to each peer.
type dialing struct {
	mu     sync.Mutex
	byPeer map[peer.ID]int
}

// begin counts a dial to p. If no other dial to p is under way, begin calls the function
// first. The caller must call end when the dial has ended; end also calls release.
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

// forgetUnvouched removes from the peerstore the addresses that p itself stated while it was
// connected. libp2p would dial them as well, although the guard has not checked them. On the
// host of an application they stay, since the application may need them.
func (d *Driver) forgetUnvouched(p peer.ID) {
	if d.node.Lent {
		return
	}
	for _, ttl := range []time.Duration{peerstore.RecentlyConnectedAddrTTL, peerstore.TempAddrTTL} {
		d.host.Peerstore().UpdateAddrs(p, ttl, 0)
	}
}

// connect dials p at addrs, and calls release when the dial has ended. connect returns
// earlier if a direct connection comes about in another way: p has dialed this node, or was
// reached at an address that is not in addrs. Then the dial goes on in the background. It
// is not canceled: if it were, during its handshake, the peer might already use its
// connection, or keep the dead connection for half a minute.
func (d *Driver) connect(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, release func()) error {
	connected := notify.NewSignal()
	defer whenConnected(d.host.Network(), p, func(c network.Conn) {
		direct := !addr.IsRelayed(c.RemoteMultiaddr())
		// A direct connection that does not meet this condition was made by the
		// dial below, which reports its own end.
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
		d.recordReached(p) // even after an error, since p may be connected in another way
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

// recordClaims tells the guard which of addrs, the addresses that the neighbor p states,
// are on the machine from which the connection of p comes. The guard then allows dials to p
// at these addresses even if this node never dialed p before. This node needs that when a
// cut of the network has ended the connection.
func (d *Driver) recordClaims(p peer.ID, addrs []ma.Multiaddr) {
	now := time.Now()
	for _, c := range d.host.Network().ConnsToPeer(p) {
		ip, err := manet.ToIP(c.RemoteMultiaddr())
		if err != nil || addr.IsRelayed(c.RemoteMultiaddr()) {
			continue // the address of a relay shows nothing about the machine of p
		}
		for _, a := range addrs {
			if at, err := manet.ToIP(a); err == nil && at.Equal(ip) && !addr.IsRelayed(a) {
				d.guard.Claim(p, a, now, d.linked)
			}
		}
	}
}

// allowed returns those of addrs at which this node may dial p now, and counts the dials to
// them.
func (d *Driver) allowed(p peer.ID, addrs []ma.Multiaddr) (list []ma.Multiaddr) {
	now := time.Now()
	for _, a := range addrs {
		relay, _, relayed := addr.SplitRelay(a)
		switch {
		case relayed && relay == d.host.ID():
			// This node is the relay itself, so it does not dial p: a peer that
			// uses this relay is connected to this node, or gone.
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

// whenConnected calls f for each existing connection to p, and then for each new one until
// stop is called. f must not block.
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
