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
	// libp2p goes on dialling these addresses when there is a connection by another
	// one, or from there.
	dial, cancel := context.WithCancel(ctx)
	defer cancel()
	defer d.whenConnected(p, func(c network.Conn) {
		if c.Stat().Direction == network.DirInbound || !ma.Contains(addrs, c.RemoteMultiaddr()) {
			cancel()
		}
	})()
	err := d.host.Connect(dial, peer.AddrInfo{ID: p})
	if err != nil && d.host.Network().Connectedness(p) != network.Connected {
		return err
	}
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.Stat().Direction == network.DirOutbound {
			d.guard.proved(p, c.RemoteMultiaddr(), time.Now())
		}
	}
	return nil
}

// whenConnected calls f for each connection that there is to p until stop is
// called. f must not block.
func (d *Driver) whenConnected(p peer.ID, f func(network.Conn)) (stop func()) {
	hears := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == p {
			f(c)
		}
	}}
	d.host.Network().Notify(hears)
	for _, c := range d.host.Network().ConnsToPeer(p) {
		f(c)
	}
	return func() { d.host.Network().StopNotify(hears) }
}
