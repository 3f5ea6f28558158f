package discovery

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// TestGuardSparesThirdParties: an address which nobody was reached at is dialled
// three times in ten minutes, whoever claims it; its proven owner is not bound.
func TestGuardSparesThirdParties(t *testing.T) {
	g := dialGuard{dials: map[string]*dialled{}}
	addr := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/80")}
	now := time.Unix(1e9, 0)
	dials := func(n int) (total int) {
		for i := range n {
			total += len(g.allow(peer.ID(fmt.Sprint("id", i)), addr, now))
		}
		return total
	}
	if n := dials(100); n != unprovedDials {
		t.Errorf("%d dials for a hundred identities, want %d", n, unprovedDials)
	}
	now = now.Add(unprovedWindow)
	if n := dials(100); n != unprovedDials {
		t.Errorf("%d dials after the window, want %d", n, unprovedDials)
	}
	g.proved("owner", addr[0], now)
	for range 100 {
		if len(g.allow("owner", addr, now)) != 1 {
			t.Fatal("the owner of an address was refused")
		}
	}
	if n := dials(100); n != unprovedDials {
		t.Errorf("%d dials to others at an address with an owner, want %d", n, unprovedDials)
	}
}

// TestGuardIsBounded: addresses that strangers make up take a bounded place.
func TestGuardIsBounded(t *testing.T) {
	g := dialGuard{dials: map[string]*dialled{}}
	for i := range 3 * maxGuarded {
		g.allow("x", []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/%d", i%256, 1+i/256))}, time.Unix(1e9, 0))
	}
	if len(g.dials) > maxGuarded {
		t.Errorf("%d addresses are kept", len(g.dials))
	}
}

// TestNeighboursMayBeDialledAgain: a node that dialled us, and was linked, may be
// dialled after a cut as often as the overlay likes, also when no dial has proved yet
// where it is. Somebody else may not be dialled there.
func TestNeighboursMayBeDialledAgain(t *testing.T) {
	a := newTester(t, testConfig{max: 4}).start()
	b := newTester(t, testConfig{max: 4}).start()
	if _, err := b.d.AddPeer(t.Context(), a.addr()); err != nil {
		t.Fatal(err)
	}
	a.until("linked", a.hasLinks(1))
	for i := range 2 * unprovedDials {
		if n := len(a.d.allowed(b.d.host.ID(), b.d.host.Addrs())); n != 1 {
			t.Fatalf("dial %d: %d of the neighbour's addresses may be dialled, want 1", i+1, n)
		}
	}
	allowed := 0
	for range 2 * unprovedDials {
		allowed += len(a.d.allowed("stranger", b.d.host.Addrs()))
	}
	if allowed != unprovedDials {
		t.Errorf("%d dials to a stranger at the neighbour's address, want %d", allowed, unprovedDials)
	}
}

// TestClaimsOfSeveralCountForNobody: of nodes that are linked at the same time, and say
// that they are at one address, nobody is believed; of one after the other each is.
func TestClaimsOfSeveralCountForNobody(t *testing.T) {
	g := dialGuard{dials: map[string]*dialled{}}
	addr := ma.StringCast("/ip4/192.0.2.1/tcp/80")
	now := time.Unix(1e9, 0)
	dials := func(p peer.ID) (n int) {
		for range 2 * unprovedDials {
			n += len(g.allow(p, []ma.Multiaddr{addr}, now))
		}
		return n
	}
	linked := map[peer.ID]bool{"a": true}
	isLinked := func(p peer.ID) bool { return linked[p] }
	g.claim("a", addr, now, isLinked)
	linked["a"], linked["b"] = false, true
	g.claim("b", addr, now, isLinked) // a was restarted
	if n := dials("b"); n != 2*unprovedDials {
		t.Errorf("%d dials to who is there now, want all", n)
	}
	linked["c"] = true
	g.claim("c", addr, now, isLinked)
	g.claim("b", addr, now, isLinked)
	if n := dials("b") + dials("c"); n != unprovedDials {
		t.Errorf("%d dials to two who say that they are there, want %d", n, unprovedDials)
	}
	g.proved("c", addr, now)
	g.claim("b", addr, now, isLinked)
	if n := dials("c"); n != 2*unprovedDials {
		t.Errorf("%d dials to who was reached there, want all", n)
	}
}
