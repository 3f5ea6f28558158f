package addr

import (
	"cmp"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Dialable returns a sorted copy of addrs in which each address ends in /p2p/id. The order is:
// public addresses, addresses behind a public relay, private, link-local and loopback
// addresses. Within these groups, IPv4 comes before IPv6, and then the order of transports is
// TCP, QUIC, WebSocket, WebTransport, WebRTC.
func Dialable(addrs []ma.Multiaddr, id peer.ID) []ma.Multiaddr {
	suffix := ma.StringCast("/p2p/" + id.String())
	sorted := slices.Clone(addrs)
	slices.SortStableFunc(sorted, func(a, b ma.Multiaddr) int {
		return cmp.Or(
			cmp.Compare(distance(a), distance(b)),
			cmp.Compare(family(a), family(b)),
			cmp.Compare(preference(a), preference(b)),
		)
	})
	for i, a := range sorted {
		sorted[i] = a.Encapsulate(suffix)
	}
	return sorted
}

// distance returns a number that is smaller for addresses that more peers can dial.
func distance(a ma.Multiaddr) int {
	switch {
	case manet.IsPublicAddr(a) && !IsRelayed(a):
		return 0
	case manet.IsPublicAddr(a):
		return 1
	case manet.IsIPLoopback(a):
		return 4
	}
	if ip, err := manet.ToIP(a); err == nil && ip.IsLinkLocalUnicast() {
		return 3
	}
	return 2
}

func family(a ma.Multiaddr) int {
	if _, err := a.ValueForProtocol(ma.P_IP6); err == nil {
		return 1
	}
	return 0
}

// transports lists the transports by which a node can be dialed, the preferred one first.
var transports = []struct{ network, rest string }{
	{"/tcp/", ""},
	{"/udp/", "/quic-v1"},
	{"/tcp/", "/ws"},
	{"/udp/", "/quic-v1/webtransport"},
	{"/udp/", "/webrtc-direct"},
}

func preference(a ma.Multiaddr) int {
	text := a.String()
	// The list is searched backward, because the text of a WebSocket address, which has
	// /tcp/ in it, would also match plain TCP.
	for i, t := range slices.Backward(transports) {
		if strings.Contains(text, t.network) && strings.Contains(text, t.rest) {
			return i
		}
	}
	return len(transports)
}
