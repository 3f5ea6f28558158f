package integration_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestEachFormOfASeedJoins shows that a seed may be a host and port, a name and port,
// or a multiaddr with or without id.
func TestEachFormOfASeedJoins(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	port := hosttest.FreePort(t)
	seed := l.start(cluster.Spec{Name: "seed", Listen: []string{hostPort(port)}, Limits: &[2]int{0, smokesignal.Unlimited}})
	for i, text := range []string{
		hostPort(port),
		fmt.Sprintf("localhost:%d", port),
		fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port),
		fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port),
		fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", port, seed.ID()),
		fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1/p2p/%s", port, seed.ID()),
	} {
		name := fmt.Sprintf("n%d", i)
		n := l.start(cluster.Spec{Name: name, Limits: joins, Seeds: []string{text}})
		l.wait(soon, text+" joins", func(s *checker.State) bool {
			return s.Proc(name).Has(seed.ID().String()) && s.Proc("seed").Has(n.ID().String())
		})
		if st := n.Seeds(); len(st) != 1 || st[0].Seed != text || st[0].ID != seed.ID() || !st[0].Linked || st[0].Err != nil {
			t.Errorf("the state of seed %s is %+v", text, st)
		}
	}
}

// TestOneGoodSeedIsEnough shows that a node joins if one of its seeds answers.
func TestOneGoodSeedIsEnough(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	seed := l.start(cluster.Spec{Name: "seed"})
	n := l.start(cluster.Spec{Name: "n", Seeds: []string{hosttest.FreeAddress(t), "no-such-host.invalid:1", addr(seed)}})
	if err := n.Ready(within(t, soon)); err != nil {
		t.Errorf("Ready: %v", err)
	}
	l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
}

// TestNodeWithoutMinimumJoinsItsSeed shows that a node that wants no peers links to its
// seed nevertheless.
func TestNodeWithoutMinimumJoinsItsSeed(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	seed := l.start(cluster.Spec{Name: "seed", Limits: manual})
	l.start(cluster.Spec{Name: "n", Limits: manual, Seeds: []string{addr(seed)}})
	l.wait(5*slow*time.Second, "joined", func(s *checker.State) bool { return s.Gathered(2) })
}

// TestReadyWithoutSeedsIsAnError shows that Ready of a node without seeds ends with an
// error that says so.
func TestReadyWithoutSeedsIsAnError(t *testing.T) {
	t.Parallel()
	a := newLocal(t).start(cluster.Spec{Name: "a"})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := a.Ready(ctx)
	if !errors.Is(err, smokesignal.ErrNotConnected) || !strings.Contains(err.Error(), "seed") {
		t.Errorf("Ready of a node without seeds: %v", err)
	}
}

// TestNodeJoinsASeedThatStartsLater shows that a node reports that its seed cannot be
// reached, and joins as soon as it can.
func TestNodeJoinsASeedThatStartsLater(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	at := hosttest.FreeAddress(t)
	a := l.start(cluster.Spec{Name: "a", Seeds: []string{at}})
	l.wait(soon, "the seed error", func(s *checker.State) bool { return s.Proc("a").Counts[checker.SeedError] > 0 })
	if r := l.log.RecordsOf("a", checker.SeedError)[0]; r.Code != "ErrUnreachable" || r.Seed != at {
		t.Errorf("the seed error is %v", r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := a.Ready(ctx); err == nil || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Ready while the seed is down: %v", err)
	}
	seed := l.start(cluster.Spec{Name: "seed", Listen: []string{at}})
	took := l.wait(10*slow*time.Second, "joined", func(s *checker.State) bool { return s.Gathered(2) })
	t.Logf("joined %v after the seed came up", took.Round(time.Millisecond))
	if err := a.Ready(within(t, soon)); err != nil || !seed.Connected() {
		t.Errorf("Ready: %v", err)
	}
}

// TestNodeRejoinsARestartedSeed shows that a node that lost its last peer links to its
// seed again when the seed is back, with another id.
func TestNodeRejoinsARestartedSeed(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	at := hosttest.FreeAddress(t)
	seed := l.start(cluster.Spec{Name: "seed", Listen: []string{at}})
	a := l.start(cluster.Spec{Name: "a", Seeds: []string{at}})
	l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	l.close(seed)
	l.wait(soon, "disconnect", func(s *checker.State) bool { return s.Proc("a").Counts[checker.Disconnect] == 1 })
	l.start(cluster.Spec{Name: "seed+1", Listen: []string{at}}) // with a new id
	took := l.wait(10*time.Second, "rejoined", func(s *checker.State) bool { return s.Gathered(2) })
	t.Logf("rejoined %v after the seed was back", took.Round(time.Millisecond))
	if st := a.Seeds()[0]; st.Err != nil || !st.Linked {
		t.Errorf("the seed's state is %+v", st)
	}
	l.check(checker.Config{Whole: true})
}

// TestNodesRejoinThroughKnownAddresses shows that two nodes whose common seed is gone
// find each other.
func TestNodesRejoinThroughKnownAddresses(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	hub := l.start(cluster.Spec{Name: "hub"})
	l.start(cluster.Spec{Name: "a", Seeds: []string{addr(hub)}})
	l.start(cluster.Spec{Name: "b", Seeds: []string{addr(hub)}})
	l.wait(soon, "three linked", func(s *checker.State) bool { return s.Gathered(3) })
	l.close(hub)
	l.wait(soon, "a and b are linked", func(s *checker.State) bool { return s.Gathered(2) })
}
