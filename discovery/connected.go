package discovery

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// nodeConnected notes that the host is connected to p, which is a node. If the host belongs to
// an application that has dialed p, the driver learns the address of p, so that it needs no
// seed to find p. It is called for each new connection, and by Start for each node that was
// connected before.
func (d *Driver) nodeConnected(p peer.ID) {
	d.mu.Lock()
	started := d.started
	d.mu.Unlock()
	if !started || !d.node.Lent {
		return // a host that is not lent makes no connections to nodes without the driver
	}
	c := d.host.dialedByOthers(p)
	if c == nil {
		return // the remote address of an inbound connection is not one at which p listens
	}
	d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
	d.learn(overlay.Contact{ID: p, Addrs: []ma.Multiaddr{c.RemoteMultiaddr()}})
}
