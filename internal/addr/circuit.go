package addr

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// A relay of libp2p ("circuit") limits the data and the duration of a connection. Two nodes use
// a relayed connection only to agree on how to connect directly, not for the protocols of this
// library.

// IsRelayed reports whether the address leads through a relay.
func IsRelayed(a ma.Multiaddr) bool {
	for _, c := range a {
		if c.Code() == ma.P_CIRCUIT {
			return true
		}
	}
	return false
}

// SplitRelay splits an address of the form AT/p2p/RELAY/p2p-circuit, with or without /p2p/ID
// at its end. It returns the id of the relay and the address at which the relay is dialed, and
// false for any other address.
func SplitRelay(a ma.Multiaddr) (relay peer.ID, at ma.Multiaddr, ok bool) {
	a, _ = peer.SplitAddr(a)
	if len(a) == 0 || a[len(a)-1].Code() != ma.P_CIRCUIT {
		return "", nil, false
	}
	at, relay = peer.SplitAddr(a[:len(a)-1])
	return relay, at, relay != "" && len(at) > 0 && !IsRelayed(at)
}

// HasDirect reports whether n has a connection to p that does not lead through a relay.
func HasDirect(n network.Network, p peer.ID) bool {
	for _, c := range n.ConnsToPeer(p) {
		if !IsRelayed(c.RemoteMultiaddr()) {
			return true
		}
	}
	return false
}

// HasOnlyRelayed reports whether n is connected to p, and only through relays.
func HasOnlyRelayed(n network.Network, p peer.ID) bool {
	return len(n.ConnsToPeer(p)) > 0 && !HasDirect(n, p)
}

// RelayedPeers returns the peers to which n is connected only through relays.
func RelayedPeers(n network.Network) (list []peer.ID) {
	for _, p := range n.Peers() {
		if HasOnlyRelayed(n, p) {
			list = append(list, p)
		}
	}
	return list
}
