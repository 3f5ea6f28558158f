package overlay

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// learn tells the node of n others, p0 and on, before it does anything.
func (c *script) learn(n int) {
	for i := range n {
		c.s.book.learn(node(peer.ID(fmt.Sprint("p", i))))
	}
}

// refuse answers all requests with no room.
func refuse(o Output) Input {
	if send, ok := o.(Send); ok {
		if _, ok := send.Message.(Request); ok {
			return Received{From: Contact{ID: send.To.ID}, Message: Reject{Reason: ReasonFull}}
		}
	}
	return nil
}

// TestSuspectIsReplaced: after 7.5 seconds of silence others are asked, and the link
// stays.
func TestSuspectIsReplaced(t *testing.T) {
	c := newSeedless(t, 1, 2, 1, "a")
	c.s.book.learn(node("x"))
	if _, got := sends[Request](c.pass(suspectTimeout - time.Millisecond)); len(got) != 0 {
		t.Errorf("asked before: %v", got)
	}
	c.after(time.Millisecond, "request x")
	if c.s.Degree() != 1 {
		t.Error("the suspect is no neighbour any more")
	}
	c.from("x", Accept{Session: Session{2}}, "pending x")
	c.from("a", Keepalive{})
	if got := c.s.occupied(); got != 2 {
		t.Errorf("%d places taken when the suspect is back, want 2", got)
	}
}

// TestSuspectsLeaveRoomUpToMaxAndTwo: places of suspects are free, but all together
// stay within max+2.
func TestSuspectsLeaveRoomUpToMaxAndTwo(t *testing.T) {
	c := newSeedless(t, 0, 3, 1, "a", "b", "c")
	c.pass(suspectTimeout)
	c.link("d", 1)
	c.link("e", 1)
	c.from("f", Request{Session: Session{2}, Network: "home", Degree: 0}, "reject f (its peer list is full) 2")
	if c.s.Degree() != 5 || c.s.occupied() != 2 {
		t.Errorf("%d links, %d places taken; want 5 and 2", c.s.Degree(), c.s.occupied())
	}
}

// TestSlowRequestHoldsBackNoOther: without an answer more are asked each second, as
// many as links are missing and one, until eight requests are under way; or 24, by a
// node without links, until it has tried everybody.
func TestSlowRequestHoldsBackNoOther(t *testing.T) {
	for _, test := range []struct {
		neighbours []peer.ID
		known      int
		want       []int // asked each second
		most       int
	}{
		{[]peer.ID{"a"}, 40, []int{3, 3, 2, 0, 0}, maxDials},
		{nil, 40, []int{4, 4, 4, 4, 4, 4, 0}, MaxDials},
		{nil, 10, []int{4, 4, 2, 0, 0, 0, 0}, 10},
	} {
		c := newSeedless(t, 3, 5, 1, test.neighbours...)
		c.learn(test.known)
		for i, want := range test.want {
			if i > 0 {
				if _, early := sends[Request](c.pass(hedgeDelay-time.Millisecond, test.neighbours...)); len(early) != 0 {
					t.Errorf("%d links, second %d: %d asked early", len(test.neighbours), i, len(early))
				}
			}
			pause := time.Duration(min(i, 1)) * time.Millisecond
			if _, got := sends[Request](c.pass(pause, test.neighbours...)); len(got) != want {
				t.Errorf("%d links, second %d: %d asked, want %d", len(test.neighbours), i, len(got), want)
			}
		}
		if n := c.s.count(requested); n != test.most {
			t.Errorf("%d links: %d under way, want %d", len(test.neighbours), n, test.most)
		}
	}
}

// TestLoneNodeCalmsDown: who has tried everybody in vain asks no more than eight at
// once.
func TestLoneNodeCalmsDown(t *testing.T) {
	c := newSeedless(t, 3, 5, 0)
	c.learn(60)
	for range 30 {
		c.pass(time.Second)
	}
	most := 0
	for range 60 {
		c.pass(time.Second)
		most = max(most, c.s.count(requested))
	}
	if most != maxDials {
		t.Errorf("%d under way, want %d", most, maxDials)
	}
}

// TestRefusalsSlowDown: after eight refusals one node is asked in two seconds, and
// by a node without links four a second.
func TestRefusalsSlowDown(t *testing.T) {
	for _, neighbours := range [][]peer.ID{{"a", "b"}, nil} {
		c := newSeedless(t, 3, 5, 1, neighbours...)
		c.learn(100)
		c.react = refuse
		first, _ := sends[Request](c.pass(0, neighbours...))
		later, _ := sends[Request](c.pass(10*time.Second, neighbours...))
		want := 5
		if neighbours == nil {
			want = 40
		}
		// Requests that crossed with the eighth refusal count against the time after.
		total := len(first) + len(later)
		if len(first) < maxRefusals || len(first) > maxRefusals+3 || total < maxRefusals+want-1 || total > maxRefusals+want+3 {
			t.Errorf("%d links: asked %d at once and %d later, want %d and %d", len(neighbours), len(first), len(later), maxRefusals, want)
		}
	}
}

// TestNeedyAsksUrgently: a node with one neighbour asks urgently once four full nodes
// have refused it; a node with two has time.
func TestNeedyAsksUrgently(t *testing.T) {
	for _, neighbours := range [][]peer.ID{{"a"}, {"a", "b"}} {
		c := newSeedless(t, 3, 5, 1, neighbours...)
		c.learn(20)
		refused := 0
		c.react = func(o Output) Input {
			if send, ok := o.(Send); ok {
				if m, ok := send.Message.(Request); ok && m.Urgent != (refused >= maxVainRequests && len(neighbours) == 1) {
					t.Errorf("%d links: urgent is %v after %d refusals", len(neighbours), m.Urgent, refused)
				}
			}
			if _, ok := o.(Refused); ok {
				refused++
			}
			return refuse(o)
		}
		c.pass(4*time.Second, neighbours...)
		if refused < maxRefusals {
			t.Errorf("%d refusals, want %d", refused, maxRefusals)
		}
	}
}

// TestAskedToMakeRoom: a node which is asked to leave does so only if it can spare
// the link; a suspect is no link to count on.
func TestAskedToMakeRoom(t *testing.T) {
	c := newSeedless(t, 2, 5, 3, "a", "b")
	c.from("a", Handover{})
	c.link("c", 3)
	c.pass(suspectTimeout, "a", "b")
	c.from("a", Handover{}) // c is silent
	c.from("c", Keepalive{Degree: 3})
	c.from("a", Handover{}, "leave a (its peer list is full)", "unlinked a (its peer list is full)")
}
