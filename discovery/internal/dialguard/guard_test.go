package dialguard

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Whatever identities claim it. The limit does not bind the peer that was reached there.
func TestUnprovedAddressIsDialedThreeTimesInTenMinutes(t *testing.T) {
	var g Guard
	addr := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/80")}
	now := time.Unix(1e9, 0)
	dials := func(n int) (total int) {
		for i := range n {
			total += len(g.Allow(peer.ID(fmt.Sprint("id", i)), addr, now))
		}
		return total
	}
	if n := dials(100); n != MaxUnproved {
		t.Errorf("%d dials for a hundred identities, want %d", n, MaxUnproved)
	}
	now = now.Add(Window)
	if n := dials(100); n != MaxUnproved {
		t.Errorf("%d dials after the window, want %d", n, MaxUnproved)
	}
	g.Reached("owner", addr[0], now)
	for range 100 {
		if len(g.Allow("owner", addr, now)) != 1 {
			t.Fatal("the owner of an address was refused")
		}
	}
	if n := dials(100); n != MaxUnproved {
		t.Errorf("%d dials to others at an address with an owner, want %d", n, MaxUnproved)
	}
}

// Invented addresses use a limited amount of memory.
func TestMadeUpAddressesUseBoundedMemory(t *testing.T) {
	var g Guard
	for i := range 3 * maxAddrs {
		g.Allow("x", []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/%d", i%256, 1+i/256))}, time.Unix(1e9, 0))
	}
	if len(g.dials) > maxAddrs {
		t.Errorf("%d addresses are kept", len(g.dials))
	}
}

// Two nodes that are linked at the same time cannot both be at one address, so neither is believed.
// Of two nodes that are linked one after the other, each is.
func TestClaimOfAnAddressCountsUnlessItIsDisputed(t *testing.T) {
	var g Guard
	addr := ma.StringCast("/ip4/192.0.2.1/tcp/80")
	now := time.Unix(1e9, 0)
	dials := func(p peer.ID) (n int) {
		for range 2 * MaxUnproved {
			n += len(g.Allow(p, []ma.Multiaddr{addr}, now))
		}
		return n
	}
	linked := map[peer.ID]bool{"a": true}
	isLinked := func(p peer.ID) bool { return linked[p] }
	g.Claim("a", addr, now, isLinked)
	linked["a"], linked["b"] = false, true
	g.Claim("b", addr, now, isLinked) // a was restarted
	if n := dials("b"); n != 2*MaxUnproved {
		t.Errorf("%d dials to the node that is there now, want all", n)
	}
	linked["c"] = true
	g.Claim("c", addr, now, isLinked)
	g.Claim("b", addr, now, isLinked)
	if n := dials("b") + dials("c"); n != MaxUnproved {
		t.Errorf("%d dials to two who say that they are there, want %d", n, MaxUnproved)
	}
	g.Reached("c", addr, now)
	g.Claim("b", addr, now, isLinked)
	if n := dials("c"); n != 2*MaxUnproved {
		t.Errorf("%d dials to the node that was reached there, want all", n)
	}
}
