package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// way makes one node of each letter.
func way(letters string) (list []peer.ID) {
	for _, r := range letters {
		list = append(list, peer.ID(r))
	}
	return list
}

// newPasser is a script of a node that shuffles not itself, with neighbours, which
// compares everything.
func newPasser(t *testing.T, neighbours ...peer.ID) *script {
	c := newSeedless(t, 0, 5, 1, neighbours...)
	c.all = true
	return c
}

// TestShuffleIsPassedOn with the way it came, and answered at the end, or where it
// has nowhere to go. The reply goes back that way.
func TestShuffleIsPassedOn(t *testing.T) {
	c := newPasser(t, "a", "b")
	m := Shuffle{Path: way("oa"), TTL: 3, Origin: node("o"), Contacts: []Contact{node("n")}}
	c.from("a", m, "shuffle b by [o a me] for 2")
	c.from("b", ShuffleReply{Path: way("oa")}, "shufflereply a by [o]")
	if got := len(c.s.Known()); got != 2 {
		t.Errorf("%d known, want the neighbours alone: what is passed on is others' business", got)
	}
	m.Path = way("oba")
	c.from("a", m, "shufflereply a by [o b]") // b had it
	m.Path, m.TTL = way("oa"), 0
	c.from("a", m, "shufflereply a by [o]")
	for _, id := range way("on") {
		if findEntry(c.s.book.known, id) == nil {
			t.Errorf("%s is not known after the exchange", id)
		}
	}
	if !findEntry(c.s.book.known, "o").lastCheck.IsZero() {
		t.Error("the origin counts as heard; only a told of it")
	}
}

// TestBadPathsAreDropped: those that do not end at the sender, have us in them, are
// too long or empty.
func TestBadPathsAreDropped(t *testing.T) {
	c := newPasser(t, "a", "b")
	long := append(slices.Repeat(way("o"), maxPath), "a")
	for _, p := range [][]peer.ID{way("ob"), {"o", "me", "a"}, long, nil} {
		c.from("a", Shuffle{Path: p, TTL: 3, Origin: node("o")})
		c.from("a", Lookup{Path: p, TTL: 3, Origin: node("o"), Target: "b"})
	}
	c.from("a", Shuffle{Path: long[1:], TTL: 3, Origin: node("o")}, fmt.Sprintf("shuffle b by %s for 2", names(append(slices.Clone(long[1:]), "me"))))
}

// TestStrangersShuffle: a walk goes over links, but a node that asks for itself is
// answered, and was heard.
func TestStrangersShuffle(t *testing.T) {
	c := newPasser(t, "a")
	c.from("x", Shuffle{Path: way("ox"), TTL: 3, Origin: node("o")})
	c.from("x", Shuffle{Path: way("x"), TTL: 3, Origin: node("x")}, "shufflereply x by []")
	if e := findEntry(c.s.book.known, "x"); e == nil || !e.lastCheck.Equal(c.now) {
		t.Errorf("x is %v in the book, want heard now", e)
	}
	if findEntry(c.s.book.known, "o") != nil {
		t.Error("o is known")
	}
	c.from("x", ShuffleReply{Path: way("a")})
	c.from("a", ShuffleReply{Path: way("x")})
	c.from("a", ShuffleReply{Path: way("a")})
}

// TestReplyNobodyAskedFor brings no addresses.
func TestReplyNobodyAskedFor(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	reply := func(from peer.ID, contact peer.ID) bool {
		c.s.Step(c.now, Received{From: Contact{ID: from}, Message: ShuffleReply{Contacts: []Contact{node(contact)}}})
		return c.s.book.find(contact) != nil
	}
	if reply("a", "n") || reply("x", "n") {
		t.Error("learned without asking")
	}
	c.s.cfg.Min = 1
	if _, got := sends[Shuffle](c.pass(0, "a")); len(got) != 1 {
		t.Fatalf("%d shuffles, want one at once", len(got))
	}
	if reply("x", "m") || !reply("a", "n") || reply("a", "m") {
		t.Error("want the addresses of the first reply over a link, and no others")
	}
}

// TestChecks: the known one of which nothing was heard for longest is asked. The
// pause doubles when it answers and halves when not.
func TestChecks(t *testing.T) {
	for _, alive := range []bool{true, false} {
		c := newSeedless(t, 1, 5, 1, "a")
		c.learn(60)
		asked := map[peer.ID]int{}
		c.react = func(o Output) Input {
			send, _ := o.(Send)
			m, ok := send.Message.(Shuffle)
			switch {
			case !ok || send.To.ID == "a":
				return nil
			case m.TTL != 0 || len(m.Path) != 1:
				t.Errorf("a check is %s", describe(o))
			}
			asked[send.To.ID]++
			if alive {
				return Received{From: send.To, Message: ShuffleReply{}}
			}
			return Unreachable{Peer: send.To.ID, Reason: ReasonUnreachable}
		}
		c.s.cfg.Max = -1 // no swaps
		c.pass(0, "a")
		c.s.swaps.next = c.now.Add(24 * time.Hour)
		times, got := sends[Shuffle](c.pass(8*time.Minute, "a"))
		var checks []time.Time
		for i, send := range got {
			if send.To.ID != "a" {
				checks = append(checks, times[i])
			}
		}
		if alive {
			// The first pause was drawn before the first answer.
			c.pauses(checks, 0, 20, 40, 60, 60, 60)
			if len(asked) != len(checks) {
				t.Errorf("%d checks of %d nodes", len(checks), len(asked))
			}
		} else if findEntry(c.s.book.known, "p59") != nil || len(c.s.book.lost) != 60 {
			t.Errorf("%d of 60 lost after minutes", len(c.s.book.lost))
		}
	}
}

// TestLostNeighbourIsLinkedAgain when it answers a check, a stranger is not.
func TestLostNeighbourIsLinkedAgain(t *testing.T) {
	for neighbour, want := range map[bool][]string{true: {"request x"}, false: nil} {
		c := newSeedless(t, 1, 5, 1, "a")
		c.lose("x", neighbour)
		for len(only("x", c.pass(time.Second, "a"))) == 0 {
		}
		c.from("x", ShuffleReply{}, want...)
	}
}
