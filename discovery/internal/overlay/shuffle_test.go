package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// nodes returns a node for each letter.
func nodes(letters string) (list []peer.ID) {
	for _, r := range letters {
		list = append(list, peer.ID(r))
	}
	return list
}

// newPasser is a script of a node that sends no shuffles of its own, and compares all
// messages.
func newPasser(t *testing.T, neighbors ...peer.ID) *script {
	c := newSeedless(t, 0, 5, 1, neighbors...)
	c.all = true
	return c
}

// A shuffle is passed on with its path, and answered at its end, or where there is no
// other neighbor. The reply returns along the path.
func TestShuffleIsPassedOn(t *testing.T) {
	c := newPasser(t, "a", "b")
	m := Shuffle{Path: nodes("oa"), TTL: 3, Origin: node("o"), Contacts: []Contact{node("n")}}
	c.receive("a", m, "shuffle b by [o a me] for 2")
	c.receive("b", ShuffleReply{Path: nodes("oa")}, "shufflereply a by [o]")
	if got := len(c.s.Known()); got != 2 {
		t.Errorf("%d known, want the neighbors alone: what is passed on is others' business", got)
	}
	m.Path = nodes("oba")
	c.receive("a", m, "shufflereply a by [o b]") // b has passed it on before
	m.Path, m.TTL = nodes("oa"), 0
	c.receive("a", m, "shufflereply a by [o]")
	for _, id := range nodes("on") {
		if findEntry(c.s.book.known, id) == nil {
			t.Errorf("%s is not known after the exchange", id)
		}
	}
	if !findEntry(c.s.book.known, "o").lastCheck.IsZero() {
		t.Error("the origin counts as heard; only a sent it")
	}
}

// A path that does not end at the sender, contains this node, or is too long or empty, is
// dropped.
func TestBadPathsAreDropped(t *testing.T) {
	c := newPasser(t, "a", "b")
	long := append(slices.Repeat(nodes("o"), maxPath), "a")
	for _, p := range [][]peer.ID{nodes("ob"), {"o", "me", "a"}, long, nil} {
		c.receive("a", Shuffle{Path: p, TTL: 3, Origin: node("o")})
		c.receive("a", Lookup{Path: p, TTL: 3, Origin: node("o"), Target: "b"})
	}
	c.receive("a", Shuffle{Path: long[1:], TTL: 3, Origin: node("o")}, fmt.Sprintf("shuffle b by %s for 2", names(append(slices.Clone(long[1:]), "me"))))
}

// A walk travels over links only, but a check of a peer without a link is answered and
// shows that the peer lives.
func TestCheckWithoutLinkIsAnswered(t *testing.T) {
	c := newPasser(t, "a")
	c.receive("x", Shuffle{Path: nodes("ox"), TTL: 3, Origin: node("o")})
	c.receive("x", Shuffle{Path: nodes("x"), TTL: 3, Origin: node("x")}, "shufflereply x by []")
	if e := findEntry(c.s.book.known, "x"); e == nil || !e.lastCheck.Equal(c.now) {
		t.Errorf("x is %v in the book, want heard now", e)
	}
	if findEntry(c.s.book.known, "o") != nil {
		t.Error("o is known")
	}
	c.receive("x", ShuffleReply{Path: nodes("a")})
	c.receive("a", ShuffleReply{Path: nodes("x")})
	c.receive("a", ShuffleReply{Path: nodes("a")})
}

// A reply without a shuffle brings no addresses.
func TestUnaskedReplyIsDropped(t *testing.T) {
	c := newSeedless(t, 0, 5, 1, "a")
	reply := func(from peer.ID, contact peer.ID) bool {
		c.s.Step(c.now, Received{From: Contact{ID: from}, Message: ShuffleReply{Contacts: []Contact{node(contact)}}})
		return c.s.book.find(contact) != nil
	}
	if reply("a", "n") || reply("x", "n") {
		t.Error("learned without asking")
	}
	c.s.cfg.Min = 1
	if _, got := sends[Shuffle](c.advance(0, "a")); len(got) != 1 {
		t.Fatalf("%d shuffles, want one at once", len(got))
	}
	if reply("x", "m") || !reply("a", "n") || reply("a", "m") {
		t.Error("want the addresses of the first reply over a link, and no others")
	}
}

// The known node that has not been heard for the longest time is checked. The pause
// doubles when it answers and halves when not.
func TestStalestNodeIsChecked(t *testing.T) {
	for _, alive := range []bool{true, false} {
		c := newSeedless(t, 1, 5, 1, "a")
		c.addKnown(60)
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
		c.advance(0, "a")
		c.s.swaps.next = c.now.Add(24 * time.Hour)
		times, got := sends[Shuffle](c.advance(8*time.Minute, "a"))
		var checks []time.Time
		for i, send := range got {
			if send.To.ID != "a" {
				checks = append(checks, times[i])
			}
		}
		if alive {
			// The first pause was drawn before the first answer.
			c.wantPauses(checks, 0, 20, 40, 60, 60, 60)
			if len(asked) != len(checks) {
				t.Errorf("%d checks of %d nodes", len(checks), len(asked))
			}
		} else if findEntry(c.s.book.known, "p59") != nil || len(c.s.book.lost) != 60 {
			t.Errorf("%d of 60 lost after minutes", len(c.s.book.lost))
		}
	}
}

// A former neighbor that answers a check is linked again; another node is not.
func TestLostNeighborIsLinkedAgain(t *testing.T) {
	for neighbor, want := range map[bool][]string{true: {"request x"}, false: nil} {
		c := newSeedless(t, 1, 5, 1, "a")
		c.addLost("x", neighbor)
		for len(sentTo("x", c.advance(time.Second, "a"))) == 0 {
		}
		c.receive("x", ShuffleReply{}, want...)
	}
}
