package discovery

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// nodeConnected tells the driver that the host is connected to p, which is a node. If the host
// is lent and the application has dialed p, the driver learns p's address: two hosts that are
// connected need no seed to find each other. It is called for each new connection, and by
// Start for each node that was connected before.
func (d *Driver) nodeConnected(p peer.ID) {
	d.mu.Lock()
	started := d.started
	d.mu.Unlock()
	if !started || !d.node.Lent {
		return // a host of our own dials only relays by itself
	}
	c := d.host.dialedByOthers(p)
	if c == nil {
		return // an inbound connection does not show where p listens
	}
	d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
	d.learn(overlay.Contact{ID: p, Addrs: []ma.Multiaddr{c.RemoteMultiaddr()}})
}
