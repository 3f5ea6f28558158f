// Package circuit tells what leads through a relay from what is direct. A relay
// carries little, for a short time, and is there for two nodes to agree on how to
// reach each other directly, so nothing of ours is sent through one.
package circuit

import (
	"errors"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// ErrRelayed says that a node was reached through a relay, and that no direct
// connection to it came about.
var ErrRelayed = errors.New("only reached through a relay, no direct connection")

// Is tells whether the address leads through a relay.
func Is(a ma.Multiaddr) bool {
	for _, c := range a {
		if c.Code() == ma.P_CIRCUIT {
			return true
		}
	}
	return false
}

// Relay returns the relay of an address of the form ADDR/p2p/RELAY/p2p-circuit,
// with or without /p2p/ID behind it, and false for any other.
func Relay(a ma.Multiaddr) (id peer.ID, addr ma.Multiaddr, ok bool) {
	a, _ = peer.SplitAddr(a)
	if len(a) == 0 || a[len(a)-1].Code() != ma.P_CIRCUIT {
		return "", nil, false
	}
	addr, id = peer.SplitAddr(a[:len(a)-1])
	return id, addr, id != "" && len(addr) > 0 && !Is(addr)
}

// Direct tells whether there is a connection to p that leads through no relay.
func Direct(n network.Network, p peer.ID) bool {
	for _, c := range n.ConnsToPeer(p) {
		if !Is(c.RemoteMultiaddr()) {
			return true
		}
	}
	return false
}

// Only tells whether p is connected, and through relays only.
func Only(n network.Network, p peer.ID) bool {
	return len(n.ConnsToPeer(p)) > 0 && !Direct(n, p)
}
