package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// unreachable lets the dials to these nodes fail.
func unreachable(ids ...peer.ID) func(Output) Input {
	return func(o Output) Input {
		if send, ok := o.(Send); ok {
			for _, id := range ids {
				if send.To.ID == id {
					return Unreachable{Peer: id, Reason: ReasonUnreachable}
				}
			}
		}
		return nil
	}
}

// lose makes x a lost address, and a former neighbour if it was one.
func (c *script) lose(x peer.ID, neighbour bool) {
	c.s.book.learn(node(x))
	c.s.book.find(x).wasNeighbor = neighbour
	c.s.book.markFailed(x, c.now, c.s.spread)
}

// TestHearsayDoesNotReplaceWhatIsSigned: where somebody else says that a node is comes
// before the addresses it has signed, for the last of those who say so; a record is the
// end of it.
func TestHearsayDoesNotReplaceWhatIsSigned(t *testing.T) {
	c := newSeedless(t, 0, 5, 1)
	at := func(port int) ma.Multiaddr { return ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)) }
	told := func(seq uint64, ports ...int) Contact {
		x := Contact{ID: "x"}
		if seq > 0 {
			x.Record, x.Seq = []byte("x"), seq
		}
		for _, p := range ports {
			x.Addrs = append(x.Addrs, at(p))
		}
		return x
	}
	for _, step := range []struct {
		told Contact
		want []int
	}{
		{told(0, 1), []int{1}},
		{told(0, 2), []int{2}},
		{told(1, 3, 4), []int{3, 4}},
		{told(0, 5), []int{5, 3, 4}},
		{told(0, 4, 6), []int{4, 6, 3}},
		{told(0), []int{4, 6, 3}},
		{told(2, 7), []int{7}},
		{told(1, 8), []int{7}},
	} {
		c.in(Learned{Contact: step.told})
		var want []ma.Multiaddr
		for _, p := range step.want {
			want = append(want, at(p))
		}
		if got := c.s.book.findKnown("x").Addrs; !slices.EqualFunc(got, want, ma.Multiaddr.Equal) {
			t.Errorf("told %v as of %d: %v, want %v", step.told.Addrs, step.told.Seq, got, want)
		}
	}
}

// TestHearsayDoesNotRaiseTheDead: what others tell of a lost address brings its
// record up to date and no more. Its own word makes it known again.
func TestHearsayDoesNotRaiseTheDead(t *testing.T) {
	newer := node("x")
	newer.Seq = 2
	for name, in := range map[string]Message{
		"contacts": Reject{Contacts: []Contact{newer}},
		"a walk":   Walk{Origin: newer, TTL: 3},
		"shuffle":  Shuffle{Path: []peer.ID{"x", "a"}, Origin: newer},
		"handover": Handover{To: newer},
	} {
		c := newSeedless(t, 0, 5, 1, "a")
		c.lose("x", true)
		c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: in})
		if e := findEntry(c.s.book.lost, "x"); e == nil || e.Seq != 2 || findEntry(c.s.book.known, "x") != nil {
			t.Errorf("%s: lost is %v, want x as of 2", name, e)
		}
	}
	for name, in := range map[string]Message{
		"request": Request{Session: Session{2}, Network: "home", Degree: 1, Record: []byte("x")},
		"shuffle": Shuffle{Path: []peer.ID{"x"}, Origin: newer},
	} {
		c := newSeedless(t, 0, 5, 1, "a")
		c.lose("x", true)
		c.s.Step(c.now, Received{From: Contact{ID: "x"}, Message: in})
		if e := findEntry(c.s.book.known, "x"); e == nil || e.fails != 0 || findEntry(c.s.book.lost, "x") != nil {
			t.Errorf("its own %s: known is %v, want x without failures", name, e)
		}
	}
}

// TestLostAreTriedAgain: former neighbours after eight seconds to a minute, others
// after half a minute to ten.
func TestLostAreTriedAgain(t *testing.T) {
	for neighbour, want := range map[bool][]int{
		true:  {8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32, 64, 64, 64},
		false: {60, 120, 240, 480, 600, 600},
	} {
		c := newSeedless(t, 1, 5, 1, "a")
		c.lose("x", neighbour)
		c.react = unreachable("x")
		times, _ := sends[Shuffle](only("x", c.pass(time.Hour, "a")))
		c.pauses(times, 0, want...)
	}
}

// only picks what was sent to one node.
func only(to peer.ID, log []event) (list []event) {
	for _, e := range log {
		if send, ok := e.Output.(Send); ok && send.To.ID == to {
			list = append(list, e)
		}
	}
	return list
}

// TestLostTakeTurns: one lost address is tried in two seconds, however many are due.
func TestLostTakeTurns(t *testing.T) {
	c := newSeedless(t, 1, 5, 1, "a")
	for _, x := range []peer.ID{"x", "y", "z"} {
		c.lose(x, true)
	}
	c.s.book.retryLost(c.now)
	times, got := sends[Shuffle](c.pass(6*time.Second, "a"))
	tried := map[peer.ID]bool{}
	var last time.Time
	for i, send := range got {
		if send.To.ID == "a" {
			continue
		}
		if pause := times[i].Sub(last); pause < lostCheckInterval {
			t.Errorf("the next after %v, want %v", pause, lostCheckInterval)
		}
		tried[send.To.ID], last = true, times[i]
	}
	if len(tried) != 3 {
		t.Errorf("tried %v, want all three", tried)
	}
}

// TestLoneNodeTriesEverybody: a node that has lost its last link tries lost addresses
// at once and after 1, 2, 4, 8, 8 seconds; one that has no room after two.
func TestLoneNodeTriesEverybody(t *testing.T) {
	c := newSeedless(t, 1, 5, 1, "a")
	c.lose("x", false)
	c.s.book.learn(node("y"))
	answer := unreachable("a", "x")
	c.react = func(o Output) Input {
		if send, ok := o.(Send); ok && send.To.ID == "y" {
			return refuse(o)
		}
		return answer(o)
	}
	log := append(c.feed(Disconnected{Peer: "a"}), c.pass(time.Minute)...)
	x, _ := sends[Request](only("x", log))
	c.pauses(x, 0, 1, 2, 4, 8, 8)
	y, _ := sends[Request](only("y", log))
	c.pauses(y, 0, 2, 2, 2, 2)

	c.link("b", 1)
	x, _ = sends[Request](only("x", append(c.feed(Disconnected{Peer: "b"}), c.pass(time.Minute)...)))
	c.pauses(x, 0, 1, 2, 4, 8, 8) // the next time anew
}
