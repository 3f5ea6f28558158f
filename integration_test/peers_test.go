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
		t.Error("a lone node has peers")
	}
	var ids []peer.ID
	for _, name := range []string{"b", "c", "d"} {
		n := l.start(cluster.Spec{Name: name, Limits: manual})
		if a.Peers().Full() || a.Peer(n.ID()).Linked() || a.Peers().Get(n.ID()) != nil {
			t.Errorf("Full, or has %s, too early", name)
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

// TestHandleOfAnUnknownPeer shows that a handle of a peer that nobody has met has no
// address, and that events to it are an error.
func TestHandleOfAnUnknownPeer(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	p := a.Peer(l.create(cluster.Spec{Name: "unknown"}).ID())
	if p == nil || p.Linked() || p.Addr() != nil || p.AddrPort().IsValid() || p.RTT() != 0 {
		t.Errorf("a handle on an unknown node: %+v", p)
	}
	if err := p.Emit(within(t, soon), "x"); err == nil {
		t.Error("an event to a node without an address was accepted")
	}
	if err := p.Disconnect(); err != nil {
		t.Errorf("closing it: %v", err)
	}
}

// TestDisconnectedPeersStayApart shows that Disconnect ends the link on both sides, and
// that neither node links again by itself.
func TestDisconnectedPeersStayApart(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	c := l.start(cluster.Spec{Name: "c", Limits: manual}) // so that nobody is alone
	l.link(a, c)
	l.link(b, c)
	l.fault(a, checker.FaultLink)
	if err := a.Peer(b.ID()).Disconnect(); err != nil {
		t.Error(err)
	}
	l.wait(soon, "told", func(s *checker.State) bool {
		return s.Proc("a").Counts[checker.PeerClose] == 1 && s.Proc("b").Counts[checker.PeerClose] == 1
	})
	l.never(2*time.Second, "back without being asked", func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerAdded] > 2 })
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed b", "remove b", "close b")
	l.wantStory(b, "connect", "peer added a", "add a", "peer added c", "add c", "peer removed a", "remove a", "close a")
	if a.Peer(b.ID()).Linked() || !a.Connected() {
		t.Error("a has b, or nobody")
	}
	l.link(a, b) // by hand it may come back at any time
}

// TestPeersHaveAddressesAndCloseOnce shows that each side knows the address of the
// other, and that OnClose runs once.
func TestPeersHaveAddressesAndCloseOnce(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	for _, side := range []struct{ n, other *smokesignal.Node }{{a, b}, {b, a}} {
		p := side.n.Peer(side.other.ID())
		if at := p.AddrPort(); !at.IsValid() || at.Addr().String() != "127.0.0.1" || at.Port() == 0 {
			t.Errorf("%s has %s at %v", l.name(side.n), l.name(side.other), at)
		}
		if p.Addr() == nil {
			t.Errorf("%s has no multiaddr for %s", l.name(side.n), l.name(side.other))
		}
	}
	if at, want := a.Peer(b.ID()).AddrPort().String(), addr(b); !strings.Contains(want, fmt.Sprint(a.Peer(b.ID()).AddrPort().Port())) {
		t.Errorf("a dialled %s and says %s", want, at)
	}
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
	l.wait(soon, "closed on both sides", func(s *checker.State) bool {
		return s.Proc("a").Counts[checker.PeerClose] > 0 && s.Proc("b").Counts[checker.PeerClose] > 0
	})
	l.close(a)
	l.close(b)
	if closes[0].Load() != 1 || closes[1].Load() != 1 {
		t.Errorf("close was told %d and %d times, want once each", closes[0].Load(), closes[1].Load())
	}
	l.check(checker.Config{})
}

// TestBothSidesMeasureTheRoundTrip shows that both sides of a link know their
// round-trip time after a while.
func TestBothSidesMeasureTheRoundTrip(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	for _, side := range []struct{ n, other *smokesignal.Node }{{a, b}, {b, a}} {
		deadline := time.Now().Add(soon)
		p := side.n.Peer(side.other.ID())
		for p.RTT() == 0 && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond) // nothing announces a measurement
		}
		if rtt := p.RTT(); rtt <= 0 || rtt > 5*time.Second {
			t.Errorf("the round trip takes %v", rtt)
		}
	}
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
	idleHears := listen(t, idle.Direct(), "*")
	var closedB, closedC atomic.Int32
	a.Peer(b.ID()).OnClose(func(context.Context, error) { closedB.Add(1) })
	a.Peer(c.ID()).OnClose(func(context.Context, error) { closedC.Add(1) })
	emitNumbers(t, b.Peer(a.ID()), "x", 3)
	wantNumbers(t, "a, from b", fromB.wait(3, soon), 3)
	emitNumbers(t, c.Peer(a.ID()), "x", 2)
	wantNumbers(t, "a, from c", fromC.wait(2, soon), 2)
	wantNumbers(t, "a, from b", fromB.wait(3, soon), 3)
	l.close(b)
	l.wait(soon, "b is gone at a", func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerClose] == 1 })
	if closedB.Load() != 1 || closedC.Load() != 0 {
		t.Errorf("close was told %d times for b and %d times for c, want 1 and 0", closedB.Load(), closedC.Load())
	}
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed b", "remove b", "close b")
	l.wantStory(c, "connect", "peer added a", "add a")
	l.wantStory(idle)
	if n := idleHears.count(); n != 0 {
		t.Errorf("a node that was not started heard %d events", n)
	}
}
