package addr_test

import (
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// Dialable sorts addresses by how far they reach, public ones first.
func TestDialablePutsTheMostReachableFirst(t *testing.T) {
	const id = peer.ID("\x00\x01x")
	want := []string{
		"/ip4/8.8.8.8/tcp/1",
		"/ip4/8.8.8.8/udp/1/quic-v1",
		"/ip4/8.8.8.8/tcp/2/ws",
		"/ip4/8.8.8.8/udp/1/quic-v1/webtransport",
		"/ip4/8.8.8.8/udp/1/webrtc-direct",
		"/ip6/2600::1/tcp/1",
		"/ip4/192.168.2.1/tcp/1",
		"/ip4/192.168.2.1/udp/1/quic-v1",
		"/ip6/fd00::1/tcp/1",
		"/ip4/169.254.1.1/tcp/1",
		"/ip6zone/eth0/ip6/fe80::1/tcp/1",
		"/ip4/127.0.0.1/tcp/1",
		"/ip4/127.0.0.1/udp/1/quic-v1",
		"/ip6/::1/tcp/1",
	}
	var addrs []ma.Multiaddr
	for _, s := range want {
		addrs = append(addrs, ma.StringCast(s))
	}
	slices.Reverse(addrs)
	for i, got := range addr.Dialable(addrs, id) {
		if got.String() != want[i]+"/p2p/"+id.String() {
			t.Errorf("%d: %v, want %s", i, got, want[i])
		}
	}
}
