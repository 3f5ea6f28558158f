package dialguard

import (
	"fmt"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func manyAddrs(n int) (addrs []ma.Multiaddr) {
	for i := range n {
		addrs = append(addrs, ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d", 1000+i)))
	}
	return addrs
}

// The three columns say whether a peer reached on this machine, in a private network and on the
// internet may name the address.
func TestFilterByClassOfSource(t *testing.T) {
	const y, n = true, false
	vias := []ma.Multiaddr{
		ma.StringCast("/ip4/127.0.0.1/tcp/4001"),
		ma.StringCast("/ip4/192.168.2.7/udp/4001/quic-v1"),
		ma.StringCast("/ip4/93.184.215.14/tcp/4001"),
	}
	table := []struct {
		addr string
		want [3]bool
	}{
		// This machine.
		{"/ip4/127.0.0.1/tcp/4001", [3]bool{y, n, n}},
		{"/ip4/127.255.0.3/udp/4001/quic-v1", [3]bool{y, n, n}},
		{"/ip6/::1/tcp/4001", [3]bool{y, n, n}},
		{"/ip6/::ffff:127.0.0.1/tcp/4001", [3]bool{y, n, n}},
		// Private networks.
		{"/ip4/10.1.2.3/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/172.16.0.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/172.31.255.254/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/192.168.2.100/tcp/8495", [3]bool{y, y, n}},
		{"/ip4/192.168.2.100/udp/8495/quic-v1", [3]bool{y, y, n}},
		{"/ip4/192.168.2.100/tcp/8495/ws", [3]bool{y, y, n}},
		{"/ip4/100.64.1.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/192.0.2.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/198.51.100.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/203.0.113.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/198.18.0.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip4/192.0.0.8/tcp/4001", [3]bool{y, y, n}},
		{"/ip6/fd00::1/tcp/4001", [3]bool{y, y, n}},
		{"/ip6/fc00::1/udp/4001/quic-v1", [3]bool{y, y, n}},
		{"/ip6/2001:db8::1/tcp/4001", [3]bool{y, y, n}},
		{"/ip6/::ffff:10.0.0.1/tcp/4001", [3]bool{y, y, n}},
		{"/ip6/64:ff9b::a00:1/tcp/4001", [3]bool{y, y, n}},  // NAT64 of 10.0.0.1
		{"/ip6/2002:c0a8:1::1/tcp/4001", [3]bool{y, y, n}},  // 6to4 of 192.168.0.1
		{"/ip6/2002:7f00:1::1/tcp/4001", [3]bool{y, n, n}},  // 6to4 of 127.0.0.1
		{"/ip6/64:ff9b::7f00:1/tcp/4001", [3]bool{y, n, n}}, // NAT64 of 127.0.0.1
		// The internet.
		{"/ip4/8.8.8.8/tcp/4001", [3]bool{y, y, y}},
		{"/ip4/172.32.0.1/tcp/4001", [3]bool{y, y, y}},
		{"/ip4/11.0.0.1/tcp/4001", [3]bool{y, y, y}},
		{"/ip4/100.128.0.1/tcp/4001", [3]bool{y, y, y}},
		{"/ip4/1.1.1.1/udp/443/quic-v1", [3]bool{y, y, y}},
		{"/ip4/1.1.1.1/udp/443/quic-v1/webtransport", [3]bool{y, y, y}},
		{"/ip4/1.1.1.1/udp/443/webrtc-direct", [3]bool{y, y, y}},
		{"/ip4/1.1.1.1/tcp/443/tls/ws", [3]bool{y, y, y}},
		{"/ip4/1.1.1.1/tcp/443/tls/sni/a.example/ws", [3]bool{y, y, y}},
		{"/ip6/2606:4700:4700::1111/tcp/4001", [3]bool{y, y, y}},
		{"/ip6/::ffff:8.8.8.8/tcp/4001", [3]bool{y, y, y}},
		{"/ip6/64:ff9b::808:808/tcp/4001", [3]bool{y, y, y}},
		// Nobody's, or everybody's.
		{"/ip4/0.0.0.0/tcp/4001", [3]bool{}},
		{"/ip4/0.1.2.3/tcp/4001", [3]bool{}},
		{"/ip6/::/tcp/4001", [3]bool{}},
		{"/ip4/224.0.0.251/udp/4001/quic-v1", [3]bool{}},
		{"/ip4/239.1.1.1/tcp/4001", [3]bool{}},
		{"/ip4/255.255.255.255/udp/4001/quic-v1", [3]bool{}},
		{"/ip4/240.0.0.1/tcp/4001", [3]bool{}},
		{"/ip6/ff02::fb/udp/4001/quic-v1", [3]bool{}},
		{"/ip4/169.254.169.254/tcp/80", [3]bool{}}, // a cloud's metadata service
		{"/ip6/fe80::1/tcp/4001", [3]bool{}},
		{"/ip6zone/eth0/ip6/fe80::1/tcp/4001", [3]bool{}},
		{"/ip6/fec0::1/tcp/4001", [3]bool{}},
		{"/ip6/::127.0.0.1/tcp/4001", [3]bool{}},
		{"/ip6/2001:0:4136:e378:8000:63bf:3fff:fdd2/tcp/4001", [3]bool{}}, // Teredo
		{"/ip6/64:ff9b:1::7f00:1/tcp/4001", [3]bool{}},
		{"/ip6/2002:0:1::1/tcp/4001", [3]bool{}}, // 6to4 of 0.0.0.1
		// No IP address, no port, no transport of ours.
		{"/dns4/localhost/tcp/4001", [3]bool{}},
		{"/dns/seed.example.org/tcp/443/wss", [3]bool{}},
		{"/dnsaddr/bootstrap.libp2p.io", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/4001/p2p/" + testID + "/p2p-circuit", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/4001/p2p/" + testID, [3]bool{}},
		{"/p2p/" + testID + "/p2p-circuit", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/0", [3]bool{}},
		{"/ip4/8.8.8.8/udp/0/quic-v1", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/22", [3]bool{}},
		{"/ip4/8.8.8.8/udp/53", [3]bool{}},
		{"/ip4/8.8.8.8/udp/4001/quic", [3]bool{}},
		{"/ip4/8.8.8.8", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/4001/http", [3]bool{}},
		{"/unix/run/docker.sock", [3]bool{}},
		{"/memory/1", [3]bool{}},
	}
	if len(table) < 60 {
		t.Errorf("the table has %d addresses", len(table))
	}
	for _, row := range table {
		for i, via := range vias {
			got := Filter([]ma.Multiaddr{ma.StringCast(row.addr)}, via)
			if (len(got) == 1) != row.want[i] {
				t.Errorf("%s named by a peer at %s: kept is %v", row.addr, via, got)
			}
		}
	}
}

// Of the addresses that a source without an IP address names, only public ones are kept.
func TestFilterKeepsPublicAddressesOfAnUnknownSource(t *testing.T) {
	addrs := []ma.Multiaddr{
		ma.StringCast("/ip4/127.0.0.1/tcp/4001"), ma.StringCast("/ip4/10.0.0.1/tcp/4001"), ma.StringCast("/ip4/8.8.8.8/tcp/4001"),
	}
	for _, via := range []ma.Multiaddr{
		nil,
		ma.StringCast("/memory/1"),
		ma.StringCast("/dns4/localhost/tcp/4001"),
		ma.StringCast("/p2p/" + testID + "/p2p-circuit"),
		ma.StringCast("/ip4/0.0.0.0/tcp/4001"),
	} {
		if got := Filter(addrs, via); len(got) != 1 || !got[0].Equal(addrs[2]) {
			t.Errorf("via %v: %v", via, got)
		}
	}
	if got := Filter(addrs, ma.StringCast("/ip6/::ffff:127.0.0.1/tcp/1")); len(got) != 3 {
		t.Errorf("via a mapped Loopback address: %v", got)
	}
}

// The filter keeps a limited number of addresses.
func TestFilterIsBounded(t *testing.T) {
	via := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	var addrs []ma.Multiaddr
	for range 3 {
		addrs = append(addrs, nil, ma.Multiaddr{})
		addrs = append(addrs, manyAddrs(6)...)
	}
	if got := Filter(addrs, via); len(got) != 6 {
		t.Errorf("duplicates: %v", got)
	}
	got := Filter(manyAddrs(50), via)
	if len(got) != maxDirect || !got[0].Equal(manyAddrs(1)[0]) {
		t.Errorf("%d kept, the first is %v", len(got), got[0])
	}
}
