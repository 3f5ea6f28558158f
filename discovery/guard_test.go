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
