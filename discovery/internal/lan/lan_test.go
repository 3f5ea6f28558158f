package lan

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

const testID = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"

func randomID(t *testing.T) peer.ID {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// manyAddrs returns n addresses of the node testID.
func manyAddrs(n int) (addrs []ma.Multiaddr) {
	for i := range n {
		addrs = append(addrs, ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d/p2p/%s", 1000+i, testID)))
	}
	return addrs
}

func packetOf(t testing.TB, network string, ttl uint32, addrs ...string) []byte {
	t.Helper()
	var list []ma.Multiaddr
	for _, a := range addrs {
		list = append(list, ma.StringCast(a))
	}
	ips := []netip.Addr{netip.MustParseAddr("10.77.1.1"), netip.MustParseAddr("fd00::1")}
	return announcement(randomLabel(), networkTag(network), ips, list, ttl)
}

// A packet announces the id and the addresses of the node.
func TestPacketsAnnounceTheNode(t *testing.T) {
	tag := networkTag("home")
	here := "/ip4/10.77.1.1/tcp/8495/p2p/" + testID
	quic := "/ip4/10.77.1.1/udp/8495/quic-v1/p2p/" + testID

	if asked, nodes := parsePacket(query(), tag); !asked || nodes != nil {
		t.Errorf("the question: asked %v, nodes %v", asked, nodes)
	}
	asked, nodes := parsePacket(packetOf(t, "home", ttlSeconds, here, quic), tag)
	if asked || len(nodes) != 1 || nodes[0].ID.String() != testID || len(nodes[0].Addrs) != 2 ||
		nodes[0].Addrs[0].String() != "/ip4/10.77.1.1/tcp/8495" {
		t.Errorf("the announcement: asked %v, nodes %v", asked, nodes)
	}
	for name, packet := range map[string][]byte{
		"of another network": packetOf(t, "lab", ttlSeconds, here),
		"good-bye":           packetOf(t, "home", 0, here),
		"without addresses":  packetOf(t, "home", ttlSeconds),
		"without an id":      packetOf(t, "home", ttlSeconds, "/ip4/10.77.1.1/tcp/8495"),
	} {
		if asked, nodes := parsePacket(packet, tag); asked || len(nodes) > 0 {
			t.Errorf("%s: asked %v, nodes %v", name, asked, nodes)
		}
	}
}

// The size of a packet and the number of its addresses are limited.
func TestPacketsAreBounded(t *testing.T) {
	tag := networkTag("home")
	var many []string
	for _, a := range manyAddrs(100) {
		many = append(many, a.String())
	}
	packet := packetOf(t, "home", ttlSeconds, many...)
	if len(packet) > 1400 {
		t.Errorf("an announcement of %d bytes does not fit an Ethernet frame", len(packet))
	}
	if _, nodes := parsePacket(packet, tag); len(nodes) != 1 || len(nodes[0].Addrs) != maxAddrs {
		t.Errorf("nodes %v", nodes)
	}

	// A packet full of nodes.
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true})
	b.EnableCompression()
	check(b.StartAnswers())
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("x." + serviceName), Class: dnsmessage.ClassINET, TTL: 120}
	for range 500 {
		check(b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{tag, dnsaddrPrefix + many[0]}}))
	}
	if _, nodes := parsePacket(finish(b), tag); len(nodes) != maxRecords {
		t.Errorf("%d nodes of one packet", len(nodes))
	}

	// Strings with two ids, or no address: the first id counts.
	if info, ok := readNode([]string{"dnsaddr=/p2p/" + testID, tag, "dnsaddr=", "dnsaddr=/nonsense", "x", dnsaddrPrefix + many[0],
		"dnsaddr=/ip4/10.77.1.1/tcp/1/p2p/" + strings.Replace(testID, "f", "g", 1)}, tag); !ok || len(info.Addrs) != 1 {
		t.Errorf("%v %v", info, ok)
	}
}

// Only addresses of the local network are reported.
func TestOnlyNearAddressesAreReported(t *testing.T) {
	var found []peer.AddrInfo
	l := &finder{
		host: hosttest.New(t), tag: networkTag("home"), reported: map[peer.ID]time.Time{},
		found: func(info peer.AddrInfo) { found = append(found, info) },
	}
	place := place{prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fe80::/64")}}
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
	for range 2 * maxPeers {
		l.report(place, peer.AddrInfo{ID: randomID(t), Addrs: near.Addrs})
	}
	if len(found) != maxPeers || len(l.reported) != maxPeers {
		t.Errorf("a crowd of %d was reported, %d remembered, want %d", len(found), len(l.reported), maxPeers)
	}
	for id := range l.reported {
		l.reported[id] = time.Now().Add(-repeatInterval)
	}
	l.report(place, near)
	if len(l.reported) != 1 {
		t.Errorf("%d remembered after the pause", len(l.reported))
	}
}

// A host on loopback only does not search the local network.
func TestNothingIsSearchedOnLoopback(t *testing.T) {
	for _, h := range []struct{ listen []string }{{nil}, {[]string{"/ip4/127.0.0.1/tcp/0"}}} {
		closer, err := Start(hosttest.New(t, libp2p.ListenAddrStrings(h.listen...)), "home", func(peer.AddrInfo) {}, slog.New(slog.DiscardHandler))
		if err != ErrLoopback {
			t.Errorf("listening on %v: %v", h.listen, err)
		}
		closer.Close()
		if n := len(closer.(*finder).sockets); n > 0 {
			t.Errorf("listening on %v: %d sockets", h.listen, n)
		}
	}
}

// No packet makes the parser panic or return more than its limits.
func FuzzParsePacket(f *testing.F) {
	f.Add(query())
	f.Add(packetOf(f, "home", ttlSeconds, "/ip4/10.77.1.1/tcp/8495/p2p/"+testID))
	tag := networkTag("home")
	f.Fuzz(func(t *testing.T, packet []byte) {
		_, nodes := parsePacket(packet, tag)
		if len(nodes) > maxRecords {
			t.Fatalf("%d nodes", len(nodes))
		}
		for _, n := range nodes {
			if n.ID == "" || len(n.Addrs) == 0 || len(n.Addrs) > maxAddrs {
				t.Fatalf("node %v", n)
			}
			for _, a := range n.Addrs {
				if ipOf(a).Is4In6() {
					t.Fatalf("address %v", a)
				}
			}
		}
	})
}
