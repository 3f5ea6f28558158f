package discovery

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
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

// reach connects to p, unless it is connected, at those of the addresses which the
// guard allows. They are what others told us.
func (d *Driver) reach(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
	if d.host.Network().Connectedness(p) == network.Connected {
		return nil
	}
	addrs = d.guard.allow(p, addrs, time.Now())
	if len(addrs) == 0 {
		return errNoAddress
	}
	d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	if err := d.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		return err
	}
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			d.guard.proved(p, c.RemoteMultiaddr(), time.Now())
		}
	}
	return nil
}
