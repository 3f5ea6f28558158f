package discovery

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// NodeConnected takes that the host is connected to p, which has said that it is a node.
// If the host was lent, and the application has dialed p, the driver learns p's address:
// two hosts that are connected need no seed to find each other. It is called for each
// new connection, and after Start once for each node that was connected before.
func (d *Driver) NodeConnected(p peer.ID) {
	d.mu.Lock()
	started := d.started
	d.mu.Unlock()
	if !started || !d.cfg.Lent {
		return // what a host of our own dials by itself are relays
	}
	c := d.host.given(p)
	if c == nil {
		return // inbound connections do not say where p listens
	}
	d.guard.Reached(p, c.RemoteMultiaddr(), time.Now())
	d.Learn(overlay.Contact{ID: p, Addrs: []ma.Multiaddr{c.RemoteMultiaddr()}})
}
