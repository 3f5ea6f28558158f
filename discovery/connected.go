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
		return // on the node's own host, only the driver dials nodes, so it knows their addresses already
	}
	c := d.host.dialedByOthers(p)
	if c == nil {
		return // p has dialed this host, so the remote address of the connection is not one at which p listens
	}
	d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
	d.learn(overlay.Contact{ID: p, Addrs: []ma.Multiaddr{c.RemoteMultiaddr()}})
}
