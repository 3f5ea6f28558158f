// Package backoff gives access to the back-off of libp2p's swarm: after a dial to a peer has
// failed, the swarm refuses dials to the same address for five seconds, and after more
// failures for up to five minutes.
package backoff

import (
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

// Clear makes the swarm of h forget that dials to p failed. It does nothing if h does not
// give access to its swarm; see CanClear.
func Clear(h corehost.Host, p peer.ID) {
	if b := find(h); b != nil {
		b.Clear(p)
	}
}

// CanClear reports whether h gives access to its swarm, so that Clear works. A host that
// wraps another host may hide the swarm.
func CanClear(h corehost.Host) bool { return find(h) != nil }

func find(h corehost.Host) *swarm.DialBackoff {
	if s, ok := h.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
		return s.Backoff()
	}
	return nil
}
