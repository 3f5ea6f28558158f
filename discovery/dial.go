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
)

// maxAnswerDials bounds the dials at once whose only purpose is to answer somebody who is
// not connected any more: strangers who ask and hang up take none of the other slots.
const maxAnswerDials = 8

var (
	// errBusy is returned when a dial was given up before it began.
	errBusy = errors.New("discovery: not dialed, because too many dials were under way")
	// errNoAddress is returned when the guard allows none of a peer's addresses.
	errNoAddress = errors.New("discovery: no address that may be dialed")
)

// slots bounds the dials that are under way.
type slots chan struct{}

// take waits for a slot, for dialTimeout at most.
func (s slots) take(ctx context.Context) (release func(), err error) {
	select {
	case s <- struct{}{}:
		return func() { <-s }, nil
	case <-time.After(dialTimeout):
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reach makes a direct connection to p, through a relay if there is no other way,
// unless there is one: at those of the addresses which the guard allows. They are
// what others told us. It waits for one of the slots, and then dials, for dialTimeout
// each; the slot is taken until the dial has ended, which may be some seconds after it
// has returned. It runs in one of tasks.
func (d *Driver) reach(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, slots slots) error {
	if addr.HasDirect(d.host.Network(), p) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // slots.take might find a free one all the same
	}
	release, err := slots.take(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs = d.allowed(p, addrs)
	if len(addrs) == 0 && !addr.HasOnlyRelayed(d.host.Network(), p) {
		release()
		return errNoAddress
	}
	release = d.dialling.begin(p, release, func() { d.forgetTold(p) })
	if len(addrs) > 0 {
		dropStale(d.host, p, staleAfter)
		// How often somebody is tried is decided by the overlay and the guard. After a
		// cut of a minute the swarm would not dial for another half.
		clearBackoff(d.host, p)
	}
	d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	err = d.connect(ctx, p, addrs, release)
	if err != nil && !addr.HasDirect(d.host.Network(), p) {
		return err
	}
	err = awaitDirect(ctx, d.host, p)
	d.Reached(p)
	return err
}

// proved notes at which addresses p was reached.
func (d *Driver) Reached(p peer.ID) {
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
		}
	}
}

// dialling counts the dials to a peer.
type dialling struct {
	mu sync.Mutex
	to map[peer.ID]int
}

// begin counts a dial until the function that it returns is called, which calls release.
// It calls first before the first one.
func (x *dialling) begin(p peer.ID, release, first func()) (end func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.to[p]++; x.to[p] == 1 {
		first()
	}
	return func() {
		release()
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.to[p]--; x.to[p] == 0 {
			delete(x.to, p)
		}
	}
}

// forgetTold drops from the peerstore what p, when it was connected, said of where it
// is: it would be dialled as well, and the guard has not seen it. On a host that is lent
// the application may want it.
func (d *Driver) forgetTold(p peer.ID) {
	if d.cfg.Lent {
		return
	}
	for _, ttl := range []time.Duration{peerstore.RecentlyConnectedAddrTTL, peerstore.TempAddrTTL} {
		d.host.Peerstore().UpdateAddrs(p, ttl, 0)
	}
}

// connect dials p, and returns before libp2p does when there is a connection at another
// address than those, or from there. The dial then goes on by itself: one that is given
// up in the middle of its handshake is a connection for the other side, which may be
// using it already, or holds it for half a minute.
func (d *Driver) connect(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, release func()) error {
	connected := make(chan struct{}, 1)
	defer whenConnected(d.host.Network(), p, func(c network.Conn) {
		direct := !addr.IsRelayed(c.RemoteMultiaddr())
		if direct && (c.Stat().Direction == network.DirInbound || !ma.Contains(addrs, c.RemoteMultiaddr())) {
			select {
			case connected <- struct{}{}:
			default:
			}
		}
	})()
	dialled := make(chan error, 1)
	d.tasks.Go(func() {
		defer release()
		ctx, cancel := context.WithTimeout(network.WithDialPeerTimeout(d.ctx, dialTimeout), dialTimeout)
		defer cancel()
		err := d.host.Connect(ctx, peer.AddrInfo{ID: p})
		d.Reached(p) // also if p has called meanwhile
		dialled <- err
	})
	select {
	case err := <-dialled:
		return err
	case <-connected:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// claimed notes where a neighbour is: at those of its addresses that are on the
// machine from which it speaks. It may never have been dialled there, if it dialled
// us; and after a cut both sides have to.
func (d *Driver) claimed(p peer.ID, addrs []ma.Multiaddr) {
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

// allowed returns those of addrs that may be dialled now to reach p.
func (d *Driver) allowed(p peer.ID, addrs []ma.Multiaddr) (list []ma.Multiaddr) {
	now := time.Now()
	for _, a := range addrs {
		relay, _, relayed := addr.SplitRelay(a)
		switch {
		case relayed && relay == d.host.ID(): // who is behind us is connected, or gone
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

// whenConnected calls f for each connection that there is to p until stop is
// called. f must not block.
func whenConnected(n network.Network, p peer.ID, f func(network.Conn)) (stop func()) {
	hears := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == p {
			f(c)
		}
	}}
	n.Notify(hears)
	for _, c := range n.ConnsToPeer(p) {
		f(c)
	}
	return func() { n.StopNotify(hears) }
}
