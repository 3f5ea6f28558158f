package integration_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestPeerListGrowsWithEachLink shows that the list of peers, Full, Connected and
// Linked follow each new link.
func TestPeerListGrowsWithEachLink(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: &[2]int{0, 3}})
	if a.Connected() || a.Peers().Len() != 0 {
		t.Error("a node that has no links has peers")
	}
	var ids []peer.ID
	for _, name := range []string{"b", "c", "d"} {
		n := l.start(cluster.Spec{Name: name, Limits: manual})
		if a.Peers().Full() || a.Peer(n.ID()).Linked() || a.Peers().Get(n.ID()) != nil {
			t.Errorf("the list is full or has %s before the link", name)
		}
		l.link(a, n)
		ids = append(ids, n.ID())
	}
	var got []peer.ID
	for p := range a.Peers().All() {
		got = append(got, p.ID())
	}
	if !slices.Equal(got, ids) || a.Peers().Len() != 3 || !a.Connected() || !a.Peers().Full() {
		t.Errorf("peers %v, want %v", got, ids)
	}
	for _, id := range ids {
		if p := a.Peers().Get(id); p == nil || p.ID() != id || !p.Linked() || !a.Peer(id).Linked() {
			t.Errorf("Get(%s) returned %v", id, p)
		}
	}
}

// TestHandleOfAnUnknownPeer shows that a handle of an unknown peer has no
// address, and that events to it are an error.
func TestHandleOfAnUnknownPeer(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	p := a.Peer(unknownID(t))
	if p == nil || p.Linked() || p.Addr() != nil || p.AddrPort().IsValid() || p.RTT() != 0 {
		t.Errorf("the handle of an unknown peer is %+v", p)
	}
	if err := p.Emit(within(t, soon), "x"); err == nil {
		t.Error("an event to a node without an address was accepted")
	}
	if err := p.Disconnect(); err != nil {
		t.Errorf("Disconnect of it: %v", err)
	}
}

// TestDisconnectedPeersStayApart shows that Disconnect ends the link on both sides, and
// that neither node links again by itself.
func TestDisconnectedPeersStayApart(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a, b := v.pair()
		c := v.startOn(2, cluster.Spec{Name: "c", Limits: manual}) // a node that is alone would look for peers
		v.link(a, c)
		v.link(b, c)
		v.fault(a, checker.FaultLink)
		if err := a.Peer(b.ID()).Disconnect(); err != nil {
			t.Error(err)
		}
		v.wait(soon, "closed on both sides", closedBy("a", "b"))
		v.never(time.Minute, "a new link", func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerAdded] > 2 })
		v.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed b", "remove b", "close b")
		v.wantStory(b, "connect", "peer added a", "add a", "peer added c", "add c", "peer removed a", "remove a", "close a")
		if a.Peer(b.ID()).Linked() || !a.Connected() {
			t.Errorf("a has a link to b=%v, is connected=%v; want false, true", a.Peer(b.ID()).Linked(), a.Connected())
		}
		v.link(a, b) // Connect is allowed at any time
	})
}

// closedBy is a condition: OnClose has run at each of these nodes.
func closedBy(names ...string) func(*checker.State) bool {
	return func(s *checker.State) bool {
		for _, name := range names {
			if s.Proc(name).Counts[checker.PeerClose] == 0 {
				return false
			}
		}
		return true
	}
}

// TestPeersHaveAddresses shows that each side of a link knows the address of the other.
func TestPeersHaveAddresses(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
		p := n.Peer(other.ID())
		if at := p.AddrPort(); !at.IsValid() || at.Addr().String() != "127.0.0.1" || at.Port() == 0 {
			t.Errorf("%s has %s at %v", l.name(n), l.name(other), at)
		}
		if p.Addr() == nil {
			t.Errorf("%s has no multiaddr for %s", l.name(n), l.name(other))
		}
	}
	if at, want := a.Peer(b.ID()).AddrPort(), addr(b); !strings.Contains(want, fmt.Sprint(at.Port())) {
		t.Errorf("a dialed %s and returns %s", want, at)
	}
}

// TestOnCloseRunsOnce shows that OnClose runs once on each side, with a reason, also if
// both nodes are closed after the link ended.
func TestOnCloseRunsOnce(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	var closes [2]atomic.Int32
	a.Peer(b.ID()).OnClose(func(_ context.Context, reason error) {
		if reason == nil {
			t.Error("close without a reason")
		}
		closes[0].Add(1)
	})
	b.Peer(a.ID()).OnClose(func(context.Context, error) { closes[1].Add(1) })
	l.fault(a, checker.FaultLink)
	if err := a.Peer(b.ID()).Disconnect(); err != nil {
		t.Error(err)
	}
	l.wait(soon, "closed on both sides", closedBy("a", "b"))
	l.close(a)
	l.close(b)
	if closes[0].Load() != 1 || closes[1].Load() != 1 {
		t.Errorf("OnClose ran %d and %d times, want once each", closes[0].Load(), closes[1].Load())
	}
	l.check(checker.Config{})
}

// TestBothSidesMeasureTheRoundTrip shows that both sides of a link know the round-trip
// time between them after the first keepalive.
func TestBothSidesMeasureTheRoundTrip(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a, b := v.pair()
		time.Sleep(15 * time.Second) // a keepalive is sent every five seconds
		for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
			if rtt := n.Peer(other.ID()).RTT(); rtt < 10*time.Millisecond || rtt > 100*time.Millisecond {
				t.Errorf("%s measured a round trip of %v over a path of 5 to 50 ms each way", v.name(n), rtt)
			}
		}
	})
}

// TestNodesOfOneProcessAreSeparate shows that handlers and callbacks of one node or
// peer get nothing of another in the same process.
func TestNodesOfOneProcessAreSeparate(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	idle := l.create(cluster.Spec{Name: "idle"}) // never started
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(a, c)
	fromB, fromC := listen(t, a.Peer(b.ID()), "x"), listen(t, a.Peer(c.ID()), "x")
	atIdle := listen(t, idle.Direct(), "*")
	var closedB, closedC atomic.Int32
	a.Peer(b.ID()).OnClose(func(context.Context, error) { closedB.Add(1) })
	a.Peer(c.ID()).OnClose(func(context.Context, error) { closedC.Add(1) })
	emitNumbers(t, b.Peer(a.ID()), "x", 3)
	wantNumbers(t, "a, from b", fromB.wait(3, soon), 3)
	emitNumbers(t, c.Peer(a.ID()), "x", 2)
	wantNumbers(t, "a, from c", fromC.wait(2, soon), 2)
	wantNumbers(t, "a, from b", fromB.wait(3, soon), 3)
	l.close(b)
	l.wait(soon, "b is gone at a", closedBy("a"))
	if closedB.Load() != 1 || closedC.Load() != 0 {
		t.Errorf("OnClose ran %d times for b and %d times for c, want 1 and 0", closedB.Load(), closedC.Load())
	}
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed b", "remove b", "close b")
	l.wantStory(c, "connect", "peer added a", "add a")
	l.wantStory(idle)
	if n := atIdle.count(); n != 0 {
		t.Errorf("a node that was not started got %d events", n)
	}
}
