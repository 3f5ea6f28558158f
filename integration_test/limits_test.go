package integration_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestNodeBelowItsMinimumFindsPeers shows that four nodes that know one hub find three
// peers each.
func TestNodeBelowItsMinimumFindsPeers(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	// At first, each node knows only the hub.
	hub := l.start(cluster.Spec{Name: "hub", Limits: &[2]int{0, 10}})
	for i := range 4 {
		l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Seeds: []string{addr(hub)}})
	}
	took := l.wait(gatherWithin, "each has three peers", func(s *checker.State) bool { return s.Gathered(5) })
	t.Logf("three peers each after %v", took.Round(time.Millisecond))
	for _, n := range l.nodes {
		if !n.Peers().Sufficient() {
			t.Errorf("%s: Sufficient is false with %d peers", l.name(n), n.Peers().Len())
		}
	}
	l.check(checker.Config{Whole: true})
}

// TestNodeWithoutMinimumSearchesNoPeers shows that a node with a minimum of zero keeps the
// peers that it was given.
func TestNodeWithoutMinimumSearchesNoPeers(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a, b := v.pair()
		c := v.startOn(2, cluster.Spec{Name: "c", Limits: manual})
		v.link(b, c)
		v.never(time.Minute, "a node without a minimum looked for peers", func(s *checker.State) bool { return len(s.Proc("a").Peers) > 1 || len(s.Proc("c").Peers) > 1 })
		if !a.Peers().Sufficient() {
			t.Error("Sufficient is false without a minimum")
		}
	})
}

// TestMaximumHoldsBothWays shows that a full node gets no more peers, neither by its
// own Connect nor by that of others.
func TestMaximumHoldsBothWays(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: &[2]int{0, 2}})
	var others []*smokesignal.Node
	for i := range 4 {
		n := l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual})
		if i > 1 { // a full node would accept a node that is alone
			l.link(n, others[0])
		}
		others = append(others, n)
	}
	l.link(a, others[0])
	l.link(others[1], a)
	if _, err := a.Connect(within(t, soon), addr(others[2])); !errors.Is(err, smokesignal.ErrFull) {
		t.Errorf("Connect of a full node returned %v, want ErrFull", err)
	}
	if _, err := others[3].Connect(within(t, soon), addr(a)); !errors.Is(err, smokesignal.ErrFull) {
		t.Errorf("Connect to a full node returned %v, want ErrFull", err)
	}
	if a.Peers().Len() != 2 || !a.Peers().Full() {
		t.Errorf("%d peers, Full=%v; want 2, true", a.Peers().Len(), a.Peers().Full())
	}
}

// TestMaximumZeroRefusesEveryLink shows that a maximum of zero means no peers at all, not
// the default.
func TestMaximumZeroRefusesEveryLink(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	none := l.start(cluster.Spec{Name: "none", Limits: &[2]int{0, 0}})
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	if _, err := b.Connect(within(t, soon), addr(none)); !errors.Is(err, smokesignal.ErrFull) {
		t.Errorf("Connect to a node with maximum 0 returned %v, want ErrFull", err)
	}
	if _, err := none.Connect(within(t, soon), addr(b)); !errors.Is(err, smokesignal.ErrFull) {
		t.Errorf("Connect of a node with maximum 0 returned %v, want ErrFull", err)
	}
	l.wantStory(none)
	l.wantStory(b)
}

// TestUnlimitedAcceptsEveryLink shows that a node with the maximum Unlimited is never full.
func TestUnlimitedAcceptsEveryLink(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	hub := l.start(cluster.Spec{Name: "hub", Limits: &[2]int{0, smokesignal.Unlimited}})
	for i := range 8 {
		l.link(l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual}), hub)
	}
	if hub.Peers().Len() != 8 || hub.Peers().Full() {
		t.Errorf("%d peers, Full=%v; want 8, false", hub.Peers().Len(), hub.Peers().Full())
	}
}

// TestFullNetworkLetsNewcomersIn shows that a seventh node joins six nodes that all have
// their maximum of five peers, and that no node stays above the maximum.
func TestFullNetworkLetsNewcomersIn(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		var nodes []*smokesignal.Node
		for i := range 6 {
			n := v.startOn(i, cluster.Spec{Name: fmt.Sprintf("n%d", i)})
			for _, other := range nodes {
				if !n.Peer(other.ID()).Linked() {
					v.link(n, other)
				}
			}
			nodes = append(nodes, n)
		}
		v.wait(soon, "all six are full", func(s *checker.State) bool { return s.Degrees()[5] == 6 })
		late := v.startOn(6, cluster.Spec{Name: "late", Seeds: []string{at(0)}})
		took := v.wait(gatherWithin, "the newcomer has enough peers", func(s *checker.State) bool { return s.Gathered(7) })
		t.Logf("the seventh had enough peers after %v", took)
		in := listen(t, nodes[5].Broadcast(), "x")
		emitNumbers(t, late.Broadcast(), "x", 5)
		wantNumbers(t, "n5", in.wait(5, soon), 5)
		took = v.wait(31*time.Second, "no node above its maximum", func(s *checker.State) bool { return s.Gathered(7) && len(s.AboveMax()) == 0 })
		t.Logf("no node was above its maximum %v later", took)
		v.check(checker.Config{Whole: true})
	})
}

// TestNodesThatStartAtOnceAllFindPeers shows that nodes that start at the same moment all find enough
// peers. TestGather does it with 30 processes.
func TestNodesThatStartAtOnceAllFindPeers(t *testing.T) {
	t.Parallel()
	n := 10
	if chosen() >= long {
		n = 30
	}
	l := newLocal(t)
	seed := l.start(cluster.Spec{Name: "seed"})
	nodes := []*smokesignal.Node{}
	for i := 1; i < n; i++ {
		nodes = append(nodes, l.create(cluster.Spec{Name: fmt.Sprintf("n%d", i), Seeds: []string{addr(seed)}}))
	}
	for _, node := range nodes {
		go func() {
			if err := node.Start(context.WithoutCancel(t.Context())); err != nil && !errors.Is(err, smokesignal.ErrClosed) {
				t.Error(err)
			}
		}()
	}
	took := l.wait(gatherWithin, "one network, and enough peers for each", func(s *checker.State) bool { return s.Gathered(n) })
	t.Logf("%d nodes gathered within %v", n, took.Round(time.Millisecond))
	l.never(2*time.Second, "a node is alone again", func(s *checker.State) bool { return s.Degrees()[0] > 0 })
	l.wait(31*time.Second, "no node above its maximum", func(s *checker.State) bool { return s.Gathered(n) && len(s.AboveMax()) == 0 })
	l.check(checker.Config{Whole: true})
}
