package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// TestFindAtOnce: a neighbour, and when there is nobody to ask, what is known.
func TestFindAtOnce(t *testing.T) {
	c := newPasser(t, "a")
	c.in(Find{Target: "a", Token: 1}, "located 1: a done")
	c.in(Find{Target: "me", Token: 2}, "located 2:  done")

	c = newPasser(t)
	c.s.book.learn(node("x"))
	c.in(Find{Target: "x", Token: 3}, "located 3: x done")
	c.in(Find{Target: "z", Token: 4}, "located 4:  done")
}

// TestFindKnown: what is known is told at once, and others are asked three seconds
// later, as it may be out of date; of a lost one at once.
func TestFindKnown(t *testing.T) {
	c := newPasser(t, "a")
	c.s.book.learn(node("x"))
	c.lose("y", false)
	c.in(Find{Target: "x", Token: 1}, "located 1: x")
	c.in(Find{Target: "y", Token: 2}, "located 2: y", "lookup a of y by [me] for 4", "lookup a of y by [me] for 4")
	c.in(EndFind{Token: 2})
	if _, got := sends[Lookup](c.pass(answerPause-time.Millisecond, "a")); len(got) != 0 {
		t.Errorf("asked too early: %v", got)
	}
	if _, got := sends[Lookup](c.pass(time.Millisecond, "a")); len(got) != 2 {
		t.Errorf("%d asked, want 2 walks over the one link", len(got))
	}
}

// TestSearch: five rounds of walks, more and longer ones, and an end.
func TestSearch(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a", "b", "c", "d")
	start := c.now
	log := append(c.feed(Find{Target: "x", Token: 1}), c.pass(9*time.Second, "a", "b", "c", "d")...)
	times, got := sends[Lookup](log)
	var rounds []string
	for i, n := 0, 0; i < len(got); i += n {
		for n = 1; i+n < len(got) && times[i+n].Equal(times[i]); n++ {
		}
		rounds = append(rounds, fmt.Sprintf("%v: %d for %d", times[i].Sub(start), n, got[i].Message.(Lookup).TTL))
	}
	if want := []string{"0s: 3 for 4", "750ms: 4 for 8", "2s: 8 for 16", "4s: 8 for 16", "6s: 8 for 16"}; !slices.Equal(rounds, want) {
		t.Errorf("rounds %q, want %q", rounds, want)
	}
	var ends []string
	for _, e := range log {
		if _, ok := e.Output.(Located); ok {
			ends = append(ends, fmt.Sprintf("%v: %s", e.at.Sub(start), describe(e.Output)))
		}
	}
	if want := []string{"8s: located 1:  done"}; !slices.Equal(ends, want) {
		t.Errorf("ends %q, want %q", ends, want)
	}
}

// TestSearchesWaitForTheirTurn: of many at once some wait until others have ended; what
// is known of their targets is told at once, and none is given up unasked.
func TestSearchesWaitForTheirTurn(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	c.s.book.learn(node("known"))
	for i := range maxSearches {
		c.feed(Find{Target: peer.ID(fmt.Sprint("x", i)), Token: uint64(i)})
	}
	c.in(Find{Target: "known", Token: 1000}, "located 1000: known")
	c.in(Find{Target: "y", Token: 1001})
	if next := c.s.lookupsDue(); next.IsZero() {
		t.Error("nothing is due")
	}
	c.in(EndFind{Token: 3})
	c.in(EndFind{Token: 4}, "lookup a of y by [me] for 4", "lookup a of y by [me] for 4")
}

// TestEnoughEndsTheSearch: nothing more is sent, or said.
func TestEnoughEndsTheSearch(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	c.feed(Find{Target: "x", Token: 1})
	c.in(EndFind{Token: 1})
	log := c.pass(9*time.Second, "a")
	if _, got := sends[Lookup](log); len(got) != 0 {
		t.Errorf("sent %v", got)
	}
	c.from("a", Found{Token: 1, Target: node("x")})
}

// TestFound: an answer is told and puts off the next round; others may follow. One
// to another question, or about another node, is not.
func TestFound(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	c.feed(Find{Target: "x", Token: 1})
	c.from("a", Found{Token: 2, Target: node("x")})
	c.from("a", Found{Token: 1, Target: node("y")})
	if c.s.book.find("y") != nil {
		t.Error("learned from an answer to no question")
	}
	c.from("a", Found{Token: 1, Target: node("x")}, "located 1: x")
	if _, got := sends[Lookup](c.pass(answerPause-time.Millisecond, "a")); len(got) != 0 {
		t.Errorf("the next round came at once: %v", got)
	}
	if _, got := sends[Lookup](c.pass(time.Millisecond, "a")); len(got) == 0 {
		t.Error("no next round")
	}
	c.from("a", Found{Token: 1, Target: node("x")}, "located 1: x")
}

// TestLookedUp: a node answers what it knows, passes the walk on to a neighbour that
// is the target, or to any; it answers for itself and calls back. Walks without a
// link or from another origin go nowhere.
func TestLookedUp(t *testing.T) {
	c := newPasser(t, "a", "b")
	c.s.book.learn(node("x"))
	c.lose("y", true)
	ask := func(target peer.ID, ttl int) Lookup {
		return Lookup{Path: way("oa"), TTL: ttl, Token: 7, Target: target, Origin: node("o")}
	}
	c.from("a", ask("me", 3), "found a me by [o]", "call o")
	c.from("a", ask("x", 3), "found a x by [o]")
	c.from("a", ask("b", 1), "lookup b of b by [o a me] for 0")
	c.from("a", ask("y", 3), "lookup b of y by [o a me] for 2")
	c.from("a", ask("z", 2), "lookup b of z by [o a me] for 1")
	c.from("a", ask("z", 1))
	c.from("b", Found{Path: way("oa"), Token: 7, Target: node("z")}, "found a z by [o]")
	c.from("b", Found{Path: way("ob"), Token: 7, Target: node("z")})
	c.from("s", Found{Path: way("oa"), Token: 7, Target: node("z")})
	c.from("s", Lookup{Path: way("os"), TTL: 3, Target: "me", Origin: node("o")})
	other := ask("me", 3)
	other.Origin = node("s")
	c.from("a", other)
}

// TestLookupsAreBounded as walks are, at a quarter of the cost.
func TestLookupsAreBounded(t *testing.T) {
	c := newPasser(t, "a", "b")
	passed := 0
	for range 1000 {
		m := Lookup{Path: way("oa"), TTL: 3, Target: "z", Origin: node("o")}
		passed += len(c.feed(Received{From: Contact{ID: "a"}, Message: m}))
	}
	if want := walkBurst / lookupCost; passed != want {
		t.Errorf("%d lookups passed on, want %d", passed, want)
	}
}
