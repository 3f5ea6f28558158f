package discovery

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/circuit"
)

// dialSlot waits until fewer than maxDials dials are under way. Who gets a slot
// calls release.
func (d *Driver) dialSlot(ctx context.Context) (release func(), err error) {
	select {
	case d.dials <- struct{}{}:
		return func() { <-d.dials }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reach makes a direct connection to p, through a relay if there is no other way,
// unless there is one: at those of the addresses which the guard allows. They are
// what others told us.
func (d *Driver) reach(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
	if circuit.Direct(d.host.Network(), p) {
		return nil
	}
	addrs = d.allowed(p, addrs)
	if len(addrs) == 0 && !circuit.Only(d.host.Network(), p) {
		return errNoAddress
	}
	d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	if err := d.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil && !circuit.Direct(d.host.Network(), p) {
		return err // and p has not called us meanwhile
	}
	err := awaitDirect(ctx, d.host, p)
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			d.guard.proved(p, c.RemoteMultiaddr(), time.Now())
		}
	}
	return err
}

// allowed returns those of addrs that may be dialled now to reach p.
func (d *Driver) allowed(p peer.ID, addrs []ma.Multiaddr) (list []ma.Multiaddr) {
	now := time.Now()
	for _, a := range addrs {
		relay, _, relayed := circuit.Relay(a)
		switch {
		case relayed && relay == d.host.ID(): // who is behind us is connected, or gone
		case relayed && circuit.Direct(d.host.Network(), relay):
			if d.guard.allowBehind(p, a, now) {
				list = append(list, a)
			}
		default:
			list = append(list, d.guard.allow(p, []ma.Multiaddr{a}, now)...)
		}
	}
	return list
}
