package dialguard

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	testID  = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
	otherID = "12D3KooWJ4ct7gS3fLiVcQ7pgTTYG1kCHUEfLdmHXeWSBpwJHVJz"
)

// A peer may name an address behind a relay if it may name the relay's address as its own.
func TestFilterRelayedByClassOfSource(t *testing.T) {
	const y, n = true, false
	vias := []string{"/ip4/127.0.0.1/tcp/4001", "/ip4/192.168.2.7/udp/4001/quic-v1", "/ip4/93.184.215.14/tcp/4001"}
	behind := "/p2p/" + testID + "/p2p-circuit"
	for _, c := range []struct {
		addr string
		want [3]bool
	}{
		{"/ip4/8.8.8.8/udp/4001/quic-v1" + behind, [3]bool{y, y, y}},
		{"/ip6/2606:4700:4700::1111/tcp/4001" + behind, [3]bool{y, y, y}},
		{"/ip4/192.168.2.1/tcp/4001" + behind, [3]bool{y, y, n}},
		{"/ip4/127.0.0.1/tcp/4001" + behind, [3]bool{y, n, n}},
		{"/ip4/8.8.8.8/tcp/22" + behind, [3]bool{}},
		{"/ip4/8.8.8.8/tcp/0" + behind, [3]bool{}},
		{"/ip4/8.8.8.8/udp/4001" + behind, [3]bool{}},
		{"/ip4/224.0.0.1/udp/4001/quic-v1" + behind, [3]bool{}},
		{"/dns4/relay.example.org/tcp/4001" + behind, [3]bool{}},
		{"/ip4/8.8.8.8/tcp/4001", [3]bool{}}, // for Filter
		{"/ip4/8.8.8.8/tcp/4001/p2p-circuit", [3]bool{}},
		{behind, [3]bool{}},
		{"/p2p-circuit", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/4001" + behind + "/ip4/127.0.0.1/tcp/4001", [3]bool{}},
		{"/ip4/8.8.8.8/tcp/4001" + behind + "/p2p/" + otherID + "/p2p-circuit", [3]bool{}},
	} {
		for i, via := range vias {
			got := FilterRelayed([]ma.Multiaddr{ma.StringCast(c.addr)}, ma.StringCast(via))
			if (len(got) == 1) != c.want[i] {
				t.Errorf("%s named from %s: kept is %v", c.addr, via, got)
			}
		}
	}
	var many []ma.Multiaddr
	for i := range 40 {
		many = append(many, ma.StringCast(fmt.Sprintf("/ip4/8.8.8.8/tcp/%d%s", 4000+i/2, behind)))
	}
	if got := FilterRelayed(many, ma.StringCast(vias[0])); len(got) != maxRelayed || got[0].Equal(got[1]) {
		t.Errorf("of twenty, twice each, %v are kept", got)
	}
}

// An address that is called a relay is dialed no more often than one that a peer calls its own. Many
// dials go through a relay that was reached, but not any number.
func TestAddressThatIsCalledARelayIsDialedNoMoreOften(t *testing.T) {
	var g Guard
	at := ma.StringCast("/ip4/192.0.2.1/udp/80/quic-v1")
	behind := func(relay string) ma.Multiaddr {
		return at.Encapsulate(ma.StringCast("/p2p/" + relay + "/p2p-circuit"))
	}
	now := time.Unix(1e9, 0)
	dials := func(n int) (total int) {
		for i := range n {
			relay := []string{testID, otherID}[i%2]
			total += len(g.Allow(peer.ID(fmt.Sprint("id", i)), []ma.Multiaddr{behind(relay), at}, now))
		}
		return total
	}
	if n := dials(100); n != MaxUnproved {
		t.Errorf("%d dials, want %d", n, MaxUnproved)
	}
	g.Reached("x", behind(testID), now)
	var through int
	for i := range 1000 {
		through += len(g.Allow(peer.ID(fmt.Sprint("id", i)), []ma.Multiaddr{behind(testID)}, now))
	}
	if through != MaxBehindRelay {
		t.Errorf("%d dials through a relay, want %d", through, MaxBehindRelay)
	}
	if !g.AllowBehindRelay("x", behind(testID), now) || g.AllowBehindRelay("y", behind(testID), now) {
		t.Error("the peer that was reached behind the relay is limited, or others are not")
	}
}
