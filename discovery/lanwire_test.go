package discovery

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/net/dns/dnsmessage"
)

func lanPacket(t testing.TB, network string, ttl uint32, addrs ...string) []byte {
	t.Helper()
	var list []ma.Multiaddr
	for _, a := range addrs {
		list = append(list, ma.StringCast(a))
	}
	ips := []netip.Addr{netip.MustParseAddr("10.77.1.1"), netip.MustParseAddr("fd00::1")}
	return lanAnnouncement(randomLabel(), networkTag(network), ips, list, ttl)
}

func TestLANPacketsSayWhoIsHere(t *testing.T) {
	tag := networkTag("home")
	here := "/ip4/10.77.1.1/tcp/8495/p2p/" + testID
	quic := "/ip4/10.77.1.1/udp/8495/quic-v1/p2p/" + testID

	if asked, nodes := parseLAN(lanQuery(), tag); !asked || nodes != nil {
		t.Errorf("the question: asked %v, nodes %v", asked, nodes)
	}
	asked, nodes := parseLAN(lanPacket(t, "home", lanTTL, here, quic), tag)
	if asked || len(nodes) != 1 || nodes[0].ID.String() != testID || len(nodes[0].Addrs) != 2 ||
		nodes[0].Addrs[0].String() != "/ip4/10.77.1.1/tcp/8495" {
		t.Errorf("the announcement: asked %v, nodes %v", asked, nodes)
	}
	for name, packet := range map[string][]byte{
		"of another network": lanPacket(t, "lab", lanTTL, here),
		"good-bye":           lanPacket(t, "home", 0, here),
		"without addresses":  lanPacket(t, "home", lanTTL),
		"without an id":      lanPacket(t, "home", lanTTL, "/ip4/10.77.1.1/tcp/8495"),
	} {
		if asked, nodes := parseLAN(packet, tag); asked || len(nodes) > 0 {
			t.Errorf("%s: asked %v, nodes %v", name, asked, nodes)
		}
	}
}

func TestLANPacketsAreBounded(t *testing.T) {
	tag := networkTag("home")
	var many []string
	for _, a := range manyAddrs(100, "/p2p/"+testID) {
		many = append(many, a.String())
	}
	packet := lanPacket(t, "home", lanTTL, many...)
	if len(packet) > 1400 {
		t.Errorf("an announcement of %d bytes does not fit an Ethernet frame", len(packet))
	}
	if _, nodes := parseLAN(packet, tag); len(nodes) != 1 || len(nodes[0].Addrs) != maxLANAddrs {
		t.Errorf("nodes %v", nodes)
	}

	// A packet full of nodes.
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true})
	b.EnableCompression()
	check(b.StartAnswers())
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("x." + lanService), Class: dnsmessage.ClassINET, TTL: 120}
	for range 500 {
		check(b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{tag, dnsaddrPrefix + many[0]}}))
	}
	if _, nodes := parseLAN(finish(b), tag); len(nodes) != maxLANRecords {
		t.Errorf("%d nodes of one packet", len(nodes))
	}

	// Strings with two ids, or no address: the first id counts.
	if info, ok := readNode([]string{"dnsaddr=/p2p/" + testID, tag, "dnsaddr=", "dnsaddr=/nonsense", "x", dnsaddrPrefix + many[0],
		"dnsaddr=/ip4/10.77.1.1/tcp/1/p2p/" + strings.Replace(testID, "f", "g", 1)}, tag); !ok || len(info.Addrs) != 1 {
		t.Errorf("%v %v", info, ok)
	}
}

func TestLANReportsOnlyWhatIsNear(t *testing.T) {
	var found []peer.AddrInfo
	l := &lan{
		host: newHost(t), tag: networkTag("home"), told: map[peer.ID]time.Time{},
		found: func(info peer.AddrInfo) { found = append(found, info) },
	}
	place := lanPlace{prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fe80::/64")}}
	id, err := peer.Decode(testID)
	if err != nil {
		t.Fatal(err)
	}
	far := peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{
		ma.StringCast("/ip4/8.8.8.8/tcp/1"), ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/10.77.2.1/tcp/1"),
		ma.StringCast("/ip6/fe80::1/tcp/1"), ma.StringCast("/dns4/victim.example/tcp/1"), ma.StringCast("/ip4/10.77.1.1/tcp/22"),
	}}
	l.report(place, far)
	if len(found) > 0 {
		t.Fatalf("led away to %v", found)
	}
	near := far
	near.Addrs = append(near.Addrs, ma.StringCast("/ip4/10.77.1.9/tcp/8495"), ma.StringCast("/ip4/10.77.1.9/tcp/8495"), ma.StringCast("/ip4/10.77.1.9/tcp/80/ws"))
	l.report(place, near)
	l.report(place, near) // too soon
	l.report(place, peer.AddrInfo{ID: l.host.ID(), Addrs: near.Addrs})
	if len(found) != 1 || len(found[0].Addrs) != 1 || found[0].Addrs[0].String() != "/ip4/10.77.1.9/tcp/8495" {
		t.Fatalf("found %v", found)
	}
	for range 2 * maxLANPeers {
		l.report(place, peer.AddrInfo{ID: idOf(t, newKey(t)), Addrs: near.Addrs})
	}
	if len(found) != maxLANPeers || len(l.told) != maxLANPeers {
		t.Errorf("a crowd of %d was reported, %d remembered, want %d", len(found), len(l.told), maxLANPeers)
	}
	for id := range l.told {
		l.told[id] = time.Now().Add(-lanRepeat)
	}
	l.report(place, near)
	if len(l.told) != 1 {
		t.Errorf("%d remembered after the pause", len(l.told))
	}
}

func TestLANSearchesNowhereOnLoopback(t *testing.T) {
	for _, h := range []struct{ listen []string }{{nil}, {[]string{"/ip4/127.0.0.1/tcp/0"}}} {
		closer, err := startLAN(newHost(t, h.listen...), "home", func(peer.AddrInfo) {}, slog.New(slog.DiscardHandler))
		if err != errLANLoopback {
			t.Errorf("listening on %v: %v", h.listen, err)
		}
		closer.Close()
		if n := len(closer.(*lan).links); n > 0 {
			t.Errorf("listening on %v: %d links", h.listen, n)
		}
	}
}

func FuzzParseLAN(f *testing.F) {
	f.Add(lanQuery())
	f.Add(lanPacket(f, "home", lanTTL, "/ip4/10.77.1.1/tcp/8495/p2p/"+testID))
	tag := networkTag("home")
	f.Fuzz(func(t *testing.T, packet []byte) {
		_, nodes := parseLAN(packet, tag)
		if len(nodes) > maxLANRecords {
			t.Fatalf("%d nodes", len(nodes))
		}
		for _, n := range nodes {
			if n.ID == "" || len(n.Addrs) == 0 || len(n.Addrs) > maxLANAddrs {
				t.Fatalf("node %v", n)
			}
			for _, a := range n.Addrs {
				if addrPort(a).Addr().Is4In6() {
					t.Fatalf("address %v", a)
				}
			}
		}
	})
}
