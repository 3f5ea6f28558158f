package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A neighbor is found at once. A node without links answers with what its book has.
func TestFindAnswersAtOnceWhatIsCertain(t *testing.T) {
	c := newPasser(t, "a")
	c.step(Find{Target: "a", Token: 1}, "located 1: a done")
	c.step(Find{Target: "me", Token: 2}, "located 2:  done")

	c = newPasser(t)
	c.s.book.learn(node("x"))
	c.step(Find{Target: "x", Token: 3}, "located 3: x done")
	c.step(Find{Target: "z", Token: 4}, "located 4:  done")
}

// A known address is an answer, which may be out of date, so others are asked three
// seconds later. For a lost address they are asked at once.
func TestFindAsksOthersAboutKnownAddresses(t *testing.T) {
	c := newPasser(t, "a")
	c.s.book.learn(node("x"))
	c.addLost("y", false)
	c.step(Find{Target: "x", Token: 1}, "located 1: x")
	c.step(Find{Target: "y", Token: 2}, "located 2: y", "lookup a of y by [me] for 4", "lookup a of y by [me] for 4")
	c.step(EndFind{Token: 2})
	if _, got := sends[Lookup](c.advance(answerPause-time.Millisecond, "a")); len(got) != 0 {
		t.Errorf("asked too early: %v", got)
	}
	if _, got := sends[Lookup](c.advance(time.Millisecond, "a")); len(got) != 2 {
		t.Errorf("%d asked, want 2 walks over the one link", len(got))
	}
}

// A search has five rounds of more and longer walks, and then ends.
func TestSearchSendsMoreAndLongerWalks(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a", "b", "c", "d")
	start := c.now
	log := append(c.feed(Find{Target: "x", Token: 1}), c.advance(9*time.Second, "a", "b", "c", "d")...)
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

// Only some searches run at once; the others wait until those have ended. A known address
// is an answer in any case, and no search ends without having asked.
func TestSearchesWaitForTheirTurn(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	c.s.book.learn(node("known"))
	for i := range maxSearches {
		c.feed(Find{Target: peer.ID(fmt.Sprint("x", i)), Token: uint64(i)})
	}
	c.step(Find{Target: "known", Token: 1000}, "located 1000: known")
	c.step(Find{Target: "y", Token: 1001})
	if next := c.s.lookupsDue(); next.IsZero() {
		t.Error("nothing is due")
	}
	c.step(EndFind{Token: 3})
	c.step(EndFind{Token: 4}, "lookup a of y by [me] for 4", "lookup a of y by [me] for 4")
}

// After EndFind nothing more is sent or reported.
func TestEndFindEndsTheSearch(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	c.feed(Find{Target: "x", Token: 1})
	c.step(EndFind{Token: 1})
	log := c.advance(9*time.Second, "a")
	if _, got := sends[Lookup](log); len(got) != 0 {
		t.Errorf("sent %v", got)
	}
	c.receive("a", Found{Token: 1, Target: node("x")})
}

// An answer is reported and delays the next round. An answer to another question, or
// about another node, is dropped.
func TestAnswerDelaysTheNextRound(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	c.feed(Find{Target: "x", Token: 1})
	c.receive("a", Found{Token: 2, Target: node("x")})
	c.receive("a", Found{Token: 1, Target: node("y")})
	if c.s.book.find("y") != nil {
		t.Error("learned from an answer to no question")
	}
	c.receive("a", Found{Token: 1, Target: node("x")}, "located 1: x")
	if _, got := sends[Lookup](c.advance(answerPause-time.Millisecond, "a")); len(got) != 0 {
		t.Errorf("the next round came at once: %v", got)
	}
	if _, got := sends[Lookup](c.advance(time.Millisecond, "a")); len(got) == 0 {
		t.Error("no next round")
	}
	c.receive("a", Found{Token: 1, Target: node("x")}, "located 1: x")
}

// A node answers what it knows, and passes the walk on to the target if that is a
// neighbor, or else to any neighbor. The target answers for itself and dials back. A walk
// without a link, or whose path does not begin at its origin, is dropped.
func TestLookupIsAnsweredOrPassedOn(t *testing.T) {
	c := newPasser(t, "a", "b")
	c.s.book.learn(node("x"))
	c.addLost("y", true)
	ask := func(target peer.ID, ttl int) Lookup {
		return Lookup{Path: nodes("oa"), TTL: ttl, Token: 7, Target: target, Origin: node("o")}
	}
	c.receive("a", ask("me", 3), "found a me by [o]", "call o")
	c.receive("a", ask("x", 3), "found a x by [o]")
	c.receive("a", ask("b", 1), "lookup b of b by [o a me] for 0")
	c.receive("a", ask("y", 3), "lookup b of y by [o a me] for 2")
	c.receive("a", ask("z", 2), "lookup b of z by [o a me] for 1")
	c.receive("a", ask("z", 1))
	c.receive("b", Found{Path: nodes("oa"), Token: 7, Target: node("z")}, "found a z by [o]")
	c.receive("b", Found{Path: nodes("ob"), Token: 7, Target: node("z")})
	c.receive("s", Found{Path: nodes("oa"), Token: 7, Target: node("z")})
	c.receive("s", Lookup{Path: nodes("os"), TTL: 3, Target: "me", Origin: node("o")})
	other := ask("me", 3)
	other.Origin = node("s")
	c.receive("a", other)
}

// A lookup counts as a quarter of a walk.
func TestLookupsAreBounded(t *testing.T) {
	c := newPasser(t, "a", "b")
	passed := 0
	for range 1000 {
		m := Lookup{Path: nodes("oa"), TTL: 3, Target: "z", Origin: node("o")}
		passed += len(c.feed(Received{From: Contact{ID: "a"}, Message: m}))
	}
	if want := walkBurst / lookupCost; passed != want {
		t.Errorf("%d lookups passed on, want %d", passed, want)
	}
}
