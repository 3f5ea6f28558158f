package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// addKnown adds n known addresses, p0 and on.
func (c *script) addKnown(n int) {
	for i := range n {
		c.s.book.learn(node(peer.ID(fmt.Sprint("p", i))))
	}
}

// refuse answers every request with a refusal for want of room.
func refuse(o Output) Input {
	if send, ok := o.(Send); ok {
		if _, ok := send.Message.(Request); ok {
			return Received{From: Contact{ID: send.To.ID}, Message: Reject{Reason: ReasonFull}}
		}
	}
	return nil
}

// After 7.5 seconds of silence other nodes are asked, while the link stays.
func TestSuspectIsReplaced(t *testing.T) {
	c := newSeedless(t, 1, 2, 1, "a")
	c.s.book.learn(node("x"))
	if _, got := sends[Request](c.advance(suspectTimeout - time.Millisecond)); len(got) != 0 {
		t.Errorf("asked before: %v", got)
	}
	c.tick(time.Millisecond, "request x")
	if c.s.Degree() != 1 {
		t.Error("the suspect is no neighbor any more")
	}
	c.receive("x", Accept{Session: protocol.Session{2}}, "pending x")
	c.receive("a", Keepalive{})
	if got := c.s.occupied(); got != 2 {
		t.Errorf("%d places in use when the suspect is back, want 2", got)
	}
}

// The places of suspects are free, but all links together stay within Max+2.
func TestSuspectsLeaveRoomUpToMaxPlusTwo(t *testing.T) {
	c := newSeedless(t, 0, 3, 1, "a", "b", "c")
	c.advance(suspectTimeout)
	c.link("d", 1)
	c.link("e", 1)
	c.receive("f", Request{Session: protocol.Session{2}, Network: "home", Degree: 0}, "reject f (its peer list is full) 2")
	if c.s.Degree() != 5 || c.s.occupied() != 2 {
		t.Errorf("%d links, %d places in use; want 5 and 2", c.s.Degree(), c.s.occupied())
	}
}

// While requests are not answered, more are sent every second, as many as links are
// missing and one more, until eight are under way; or 24 in the case of a node without
// links that has not tried everybody yet.
func TestSlowRequestDoesNotDelayOthers(t *testing.T) {
	for _, test := range []struct {
		neighbors []peer.ID
		known     int
		want      []int // requests in each second
		most      int
	}{
		{[]peer.ID{"a"}, 40, []int{3, 3, 2, 0, 0}, maxDials},
		{nil, 40, []int{4, 4, 4, 4, 4, 4, 0}, MaxDials},
		{nil, 10, []int{4, 4, 2, 0, 0, 0, 0}, 10},
	} {
		c := newSeedless(t, 3, 5, 1, test.neighbors...)
		c.addKnown(test.known)
		for i, want := range test.want {
			if i > 0 {
				if _, early := sends[Request](c.advance(hedgeDelay-time.Millisecond, test.neighbors...)); len(early) != 0 {
					t.Errorf("%d links, second %d: %d asked early", len(test.neighbors), i, len(early))
				}
			}
			pause := time.Duration(min(i, 1)) * time.Millisecond
			if _, got := sends[Request](c.advance(pause, test.neighbors...)); len(got) != want {
				t.Errorf("%d links, second %d: %d asked, want %d", len(test.neighbors), i, len(got), want)
			}
		}
		if n := c.s.count(requested); n != test.most {
			t.Errorf("%d links: %d under way, want %d", len(test.neighbors), n, test.most)
		}
	}
}

// A node without links that has tried everybody in vain has no more than eight requests
// under way.
func TestIsolatedNodeThatTriedEverybodySlowsDown(t *testing.T) {
	c := newSeedless(t, 3, 5, 0)
	c.addKnown(60)
	for range 30 {
		c.advance(time.Second)
	}
	most := 0
	for range 60 {
		c.advance(time.Second)
		most = max(most, c.s.count(requested))
	}
	if most != maxDials {
		t.Errorf("%d under way, want %d", most, maxDials)
	}
}

// After eight refusals one node is asked in two seconds; a node without links asks four
// per second.
func TestRefusalsSlowDown(t *testing.T) {
	for _, neighbors := range [][]peer.ID{{"a", "b"}, nil} {
		c := newSeedless(t, 3, 5, 1, neighbors...)
		c.addKnown(100)
		c.react = refuse
		first, _ := sends[Request](c.advance(0, neighbors...))
		later, _ := sends[Request](c.advance(10*time.Second, neighbors...))
		want := 5
		if neighbors == nil {
			want = 40
		}
		// Requests that crossed the eighth refusal count against the time after it.
		total := len(first) + len(later)
		if len(first) < maxRefusals || len(first) > maxRefusals+3 || total < maxRefusals+want-1 || total > maxRefusals+want+3 {
			t.Errorf("%d links: asked %d at once and %d later, want %d and %d", len(neighbors), len(first), len(later), maxRefusals, want)
		}
	}
}

// A node with one neighbor sends urgent requests once four full nodes have refused it. A
// node with two does not.
func TestNodeWithOneNeighborAsksUrgently(t *testing.T) {
	for _, neighbors := range [][]peer.ID{{"a"}, {"a", "b"}} {
		c := newSeedless(t, 3, 5, 1, neighbors...)
		c.addKnown(20)
		refused := 0
		c.react = func(o Output) Input {
			if send, ok := o.(Send); ok {
				if m, ok := send.Message.(Request); ok && m.Urgent != (refused >= maxRefusalsInRow && len(neighbors) == 1) {
					t.Errorf("%d links: urgent is %v after %d refusals", len(neighbors), m.Urgent, refused)
				}
			}
			if _, ok := o.(Refused); ok {
				refused++
			}
			return refuse(o)
		}
		c.advance(4*time.Second, neighbors...)
		if refused < maxRefusals {
			t.Errorf("%d refusals, want %d", refused, maxRefusals)
		}
	}
}

// A node that is asked to leave does so only if it can spare the link, and a link to a
// suspect does not count.
func TestNodeLeavesOnlyIfItCanSpareTheLink(t *testing.T) {
	c := newSeedless(t, 2, 5, 3, "a", "b")
	c.receive("a", Handover{})
	c.link("c", 3)
	c.advance(suspectTimeout, "a", "b")
	c.receive("a", Handover{}) // c is silent
	c.receive("c", Keepalive{Degree: 3})
	c.receive("a", Handover{}, "leave a (its peer list is full)", "unlinked a (its peer list is full)")
}

// A full node that accepted an isolated one asks another neighbor to link to that, and is
// back at Max when the neighbor leaves.
func TestHandoverBringsAFullNodeBackToMax(t *testing.T) {
	c := newOverfull(t, 2, func(c *script) {
		c.link("a", 2)
		c.link("b", 1)
	})
	c.tick(2*degreeDelay, "keepalive a", "keepalive b", "keepalive j")
	c.tick(2*handoverDelay, "handover a to j")
	c.receive("a", Leave{Reason: ReasonMoved}, "unlinked a (the link was handed over to another peer)")
}

// newOverfull is a script of a node that accepted j, which had no links, beyond Max.
func newOverfull(t *testing.T, maxPeers int, link func(*script)) *script {
	t.Helper()
	c := newScript(t, 0, maxPeers)
	link(c)
	c.receive("j", Request{Session: protocol.Session{2}, Network: "home", Record: []byte("j")}, "pending j", "accept j")
	c.step(OnTopic{Peer: "j", Present: true}, "ready j")
	c.receive("j", Ready{}, "linked j")
	return c
}

// If nobody follows a handover, the full node leaves a neighbor before thirty seconds are
// over. A neighbor that is above Max itself is asked to leave within two seconds, as
// neither misses the link.
func TestFullNodeGetsRidOfALink(t *testing.T) {
	for _, degree := range []int{1, 4} {
		c := newOverfull(t, 1, func(c *script) { c.link("a", degree) })
		left := time.Duration(0)
		for d := time.Second; d <= relinkCooldown && left == 0; d += time.Second {
			c.now = c.now.Add(time.Second)
			for _, p := range []peer.ID{"a", "j"} {
				m := Keepalive{Degree: 1}
				if p == "a" {
					m.Degree = degree
				}
				for _, o := range slices.Clone(c.s.Step(c.now, Received{From: Contact{ID: p}, Message: m})) {
					send, _ := o.(Send)
					if h, ok := send.Message.(Handover); ok && h.To.ID == "" && p == "a" && degree > 1 {
						c.receive("a", Leave{Reason: ReasonFull}, "unlinked a (its peer list is full)") // it can spare the link
						left = d
					}
					if _, ok := o.(Unlinked); ok {
						left = d
					}
				}
			}
		}
		if c.s.Degree() != 1 || (degree > 1) != (left <= 2*time.Second) {
			t.Errorf("over max beside a neighbor with %d links: left after %v, degree %d", degree, left, c.s.Degree())
		}
	}
}

// A node that is asked for a handover leaves the other only when the new link stands.
func TestHandoverLeavesOnlyForAStandingLink(t *testing.T) {
	c := newScript(t, 1, 2)
	c.step(Tick{}, "ask seed")
	c.link("s", 3)
	c.receive("s", Handover{To: Contact{ID: "j", Record: []byte("j")}}, "request j")
	c.receive("j", Accept{Session: protocol.Session{4}}, "pending j")
	c.step(OnTopic{Peer: "j", Present: true}, "ready j")
	c.receive("j", Ready{}, "linked j", "leave s (the link was handed over to another peer)", "unlinked s (the link was handed over to another peer)")
}

// A neighbor cannot send walks through this node without limit, and a walk of a peer
// without a link is dropped.
func TestWalksAreBounded(t *testing.T) {
	c := newScript(t, 0, 2)
	c.link("a", 1)
	c.link("b", 1)
	walk := Walk{Origin: Contact{ID: "z", Record: []byte("z")}, TTL: 3}
	c.receive("x", walk)
	forwarded := 0
	for range 100 {
		c.now = c.now.Add(time.Millisecond)
		forwarded += len(c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: walk}))
	}
	if forwarded != walkBurst/walkCost {
		t.Errorf("%d walks forwarded, want %d", forwarded, walkBurst/walkCost)
	}
}
