package addr

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// A relay of libp2p ("circuit") carries little, for a short time. It is there for two
// nodes to agree on how to reach each other directly, so a node sends none of its own
// protocols through one.

// IsRelayed reports whether the address leads through a relay.
func IsRelayed(a ma.Multiaddr) bool {
	for _, c := range a {
		if c.Code() == ma.P_CIRCUIT {
			return true
		}
	}
	return false
}

// SplitRelay returns the relay of an address of the form ADDR/p2p/RELAY/p2p-circuit,
// with or without /p2p/ID at its end: the id and the address at which the relay is
// dialed. It returns false for any other address.
func SplitRelay(a ma.Multiaddr) (relay peer.ID, at ma.Multiaddr, ok bool) {
	a, _ = peer.SplitAddr(a)
	if len(a) == 0 || a[len(a)-1].Code() != ma.P_CIRCUIT {
		return "", nil, false
	}
	at, relay = peer.SplitAddr(a[:len(a)-1])
	return relay, at, relay != "" && len(at) > 0 && !IsRelayed(at)
}

// HasDirect reports whether a connection to p exists that does not lead through a
// relay.
func HasDirect(n network.Network, p peer.ID) bool {
	for _, c := range n.ConnsToPeer(p) {
		if !IsRelayed(c.RemoteMultiaddr()) {
			return true
		}
	}
	return false
}

// HasOnlyRelayed reports whether p is connected through relays only.
func HasOnlyRelayed(n network.Network, p peer.ID) bool {
	return len(n.ConnsToPeer(p)) > 0 && !HasDirect(n, p)
}

// RelayedPeers returns the peers to which n is connected through relays only.
func RelayedPeers(n network.Network) (list []peer.ID) {
	for _, p := range n.Peers() {
		if HasOnlyRelayed(n, p) {
			list = append(list, p)
		}
	}
	return list
}
