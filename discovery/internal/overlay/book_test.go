package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// unreachable makes the dials to these nodes fail.
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

// addLost makes x a lost address, of a former neighbor or of another node.
func (c *script) addLost(x peer.ID, neighbor bool) {
	c.s.book.learn(node(x))
	c.s.book.find(x).wasNeighbor = neighbor
	c.s.book.markFailed(x, c.now, c.s.spread)
}

// Unsigned addresses come before the signed ones of an older record, and only the last
// unsigned ones count. A new record replaces them.
func TestHearsayComesBesideSignedAddresses(t *testing.T) {
	c := newSeedless(t, 0, 5, 1)
	at := func(port int) ma.Multiaddr { return ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)) }
	contact := func(seq uint64, ports ...int) Contact {
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
		learned Contact
		want    []int
	}{
		{contact(0, 1), []int{1}},
		{contact(0, 2), []int{2}},
		{contact(1, 3, 4), []int{3, 4}},
		{contact(0, 5), []int{5, 3, 4}},
		{contact(0, 4, 6), []int{4, 6, 3}},
		{contact(0), []int{4, 6, 3}},
		{contact(2, 7), []int{7}},
		{contact(1, 8), []int{7}},
	} {
		c.step(Learned{Contact: step.learned})
		var want []ma.Multiaddr
		for _, p := range step.want {
			want = append(want, at(p))
		}
		if got := c.s.book.findKnown("x").Addrs; !slices.EqualFunc(got, want, ma.Multiaddr.Equal) {
			t.Errorf("learned %v as of %d: %v, want %v", step.learned.Addrs, step.learned.Seq, got, want)
		}
	}
}

// Hearsay about a lost address brings its record up to date, but does not make it known.
// A message of the node itself does.
func TestHearsayDoesNotReviveLostNodes(t *testing.T) {
	newer := node("x")
	newer.Seq = 2
	for name, in := range map[string]Message{
		"contacts": Reject{Contacts: []Contact{newer}},
		"a walk":   Walk{Origin: newer, TTL: 3},
		"shuffle":  Shuffle{Path: []peer.ID{"x", "a"}, Origin: newer},
		"handover": Handover{To: newer},
	} {
		c := newSeedless(t, 0, 5, 1, "a")
		c.addLost("x", true)
		c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: in})
		if e := findEntry(c.s.book.lost, "x"); e == nil || e.Seq != 2 || findEntry(c.s.book.known, "x") != nil {
			t.Errorf("%s: lost is %v, want x as of 2", name, e)
		}
	}
	for name, in := range map[string]Message{
		"request": Request{Session: protocol.Session{2}, Network: "home", Degree: 1, Record: []byte("x")},
		"shuffle": Shuffle{Path: []peer.ID{"x"}, Origin: newer},
	} {
		c := newSeedless(t, 0, 5, 1, "a")
		c.addLost("x", true)
		c.s.Step(c.now, Received{From: Contact{ID: "x"}, Message: in})
		if e := findEntry(c.s.book.known, "x"); e == nil || e.fails != 0 || findEntry(c.s.book.lost, "x") != nil {
			t.Errorf("its own %s: known is %v, want x without failures", name, e)
		}
	}
}

// Former neighbors are checked after eight seconds to a minute, others after half a
// minute to ten.
func TestLostNodesAreCheckedAgain(t *testing.T) {
	for neighbor, want := range map[bool][]int{
		true:  {8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32, 64, 64, 64},
		false: {60, 120, 240, 480, 600, 600},
	} {
		c := newSeedless(t, 1, 5, 1, "a")
		c.addLost("x", neighbor)
		c.react = unreachable("x")
		times, _ := sends[Shuffle](sentTo("x", c.advance(time.Hour, "a")))
		c.wantPauses(times, 0, want...)
	}
}

// sentTo returns the messages to one node.
func sentTo(to peer.ID, log []event) (list []event) {
	for _, e := range log {
		if send, ok := e.Output.(Send); ok && send.To.ID == to {
			list = append(list, e)
		}
	}
	return list
}

// One lost address is checked in two seconds, however many are due.
func TestLostNodesAreCheckedOneByOne(t *testing.T) {
	c := newSeedless(t, 1, 5, 1, "a")
	for _, x := range []peer.ID{"x", "y", "z"} {
		c.addLost(x, true)
	}
	c.s.book.retryLost(c.now)
	times, got := sends[Shuffle](c.advance(6*time.Second, "a"))
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

// A node that has lost its last link tries lost addresses at once and after 1, 2, 4, 8, 8
// seconds, and a node that has no room every two seconds.
func TestIsolatedNodeTriesEverybody(t *testing.T) {
	c := newSeedless(t, 1, 5, 1, "a")
	c.addLost("x", false)
	c.s.book.learn(node("y"))
	answer := unreachable("a", "x")
	c.react = func(o Output) Input {
		if send, ok := o.(Send); ok && send.To.ID == "y" {
			return refuse(o)
		}
		return answer(o)
	}
	log := append(c.feed(Disconnected{Peer: "a"}), c.advance(time.Minute)...)
	x, _ := sends[Request](sentTo("x", log))
	c.wantPauses(x, 0, 1, 2, 4, 8, 8)
	y, _ := sends[Request](sentTo("y", log))
	c.wantPauses(y, 0, 2, 2, 2, 2)

	c.link("b", 1)
	x, _ = sends[Request](sentTo("x", append(c.feed(Disconnected{Peer: "b"}), c.advance(time.Minute)...)))
	c.wantPauses(x, 0, 1, 2, 4, 8, 8) // the next loss begins anew
}
