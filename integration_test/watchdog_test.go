package integration_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// withShortPings returns spec with ping times that make a netsplit show after 2.8 s.
func withShortPings(spec cluster.Spec) cluster.Spec {
	spec.PingInterval, spec.PingTimeout = time.Second, 800*time.Millisecond
	return spec
}

// quietFor is how long a test in virtual time waits for a report that must not come. It is
// many times the time after which a watchdog with short pings reports a netsplit.
const quietFor = 30 * time.Second

// netsplits counts the netsplits that the node of that name has reported.
func netsplits(s *checker.State, name string) int { return s.Proc(name).Counts[checker.Netsplit] }

// resolved counts the ends of netsplits that the node of that name has reported.
func resolved(s *checker.State, name string) int { return s.Proc(name).Counts[checker.Resolved] }

// TestNetsplitIsResolved shows that every node that reported the loss of its seed
// reports its return, once.
func TestNetsplitIsResolved(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		seed := v.startOn(0, withShortPings(cluster.Spec{Name: "seed", Limits: manual}))
		a := v.startOn(1, withShortPings(cluster.Spec{Name: "a", Seeds: []string{at(0)}, Limits: joins}))
		b := v.startOn(2, withShortPings(cluster.Spec{Name: "b", Seeds: []string{at(0)}, Limits: joins}))
		v.link(a, b)
		v.wait(soon, "all three linked", func(s *checker.State) bool { return len(s.Proc("seed").Peers) == 2 })
		v.close(seed)
		v.wait(soon, "netsplit at a and b", func(s *checker.State) bool { return netsplits(s, "a") == 1 && netsplits(s, "b") == 1 })
		v.startOn(0, withShortPings(cluster.Spec{Name: "seed+1", Limits: manual}))
		v.wait(soon, "netsplit resolved at a and b", func(s *checker.State) bool { return resolved(s, "a") == 1 && resolved(s, "b") == 1 })
		v.never(quietFor, "more than one netsplit and one end of it", func(s *checker.State) bool {
			return netsplits(s, "a")+netsplits(s, "b") != 2 || resolved(s, "a")+resolved(s, "b") != 2
		})
		v.check(checker.Config{})
	})
}

// TestNetsplitIsReportedOncePerSeed shows that each of two seeds has its own netsplit
// and its own end of it.
func TestNetsplitIsReportedOncePerSeed(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		one := v.startOn(0, withShortPings(cluster.Spec{Name: "one", Limits: manual}))
		two := v.startOn(1, withShortPings(cluster.Spec{Name: "two", Limits: manual}))
		a := v.startOn(2, withShortPings(cluster.Spec{Name: "a", Seeds: []string{at(0), at(1)}, Limits: joins}))
		b := v.startOn(3, withShortPings(cluster.Spec{Name: "b", Limits: manual}))
		v.link(a, b)
		for _, seed := range []*smokesignal.Node{one, two} {
			if !a.Peer(seed.ID()).Linked() {
				v.link(a, seed)
			}
		}
		v.never(quietFor, "netsplit with both seeds alive", func(s *checker.State) bool { return netsplits(s, "a") > 0 })
		v.close(one)
		v.wait(soon, "netsplit of the first seed", func(s *checker.State) bool { return netsplits(s, "a") == 1 })
		v.close(two)
		v.wait(soon, "netsplit of the second seed", func(s *checker.State) bool { return netsplits(s, "a") == 2 })
		v.never(quietFor, "a third netsplit", func(s *checker.State) bool { return netsplits(s, "a") > 2 })
		seeds := map[string]bool{}
		for _, r := range v.log.RecordsOf("a", checker.Netsplit) {
			seeds[r.Seed] = true
		}
		if len(seeds) != 2 {
			t.Errorf("netsplits of the seeds %v, want one of each", seeds)
		}
		wantLost(t, a, true, true)

		v.startOn(0, withShortPings(cluster.Spec{Name: "one+1", Limits: manual}))
		v.wait(soon, "the first seed is heard again", func(s *checker.State) bool { return resolved(s, "a") == 1 })
		v.never(quietFor, "the dead seed is resolved too", func(s *checker.State) bool { return resolved(s, "a") > 1 })
		wantLost(t, a, false, true)
		v.check(checker.Config{})
	})
}

// wantLost fails unless the seeds of the node are lost or not, as given for each.
func wantLost(t *testing.T, n *smokesignal.Node, want ...bool) {
	t.Helper()
	seeds := n.Seeds()
	if len(seeds) != len(want) {
		t.Fatalf("%d seeds, want %d", len(seeds), len(want))
	}
	for i, st := range seeds {
		if st.Netsplit != want[i] {
			t.Errorf("the status of seed %d is %+v, want Netsplit=%v", i, st, want[i])
		}
	}
}

// TestNodeWithoutPeersReportsNoNetsplit shows that a node whose only peer was its seed
// reports OnDisconnect and no netsplit when the seed is gone.
func TestNodeWithoutPeersReportsNoNetsplit(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		seed := v.startOn(0, withShortPings(cluster.Spec{Name: "seed", Limits: manual}))
		v.startOn(1, withShortPings(cluster.Spec{Name: "a", Limits: joins, Seeds: []string{at(0)}}))
		v.wait(soon, "linked", func(s *checker.State) bool { return len(s.Proc("a").Peers) == 1 })
		v.close(seed)
		v.wait(soon, "disconnect", func(s *checker.State) bool { return s.Proc("a").Counts[checker.Disconnect] == 1 })
		v.never(quietFor, "netsplit of a node that is alone", func(s *checker.State) bool { return netsplits(s, "a") > 0 })
	})
}

// TestNetsplitShowsAfterTwoIntervalsAndTheTimeout shows how soon a node reports that its
// seed is gone, and that it reports nothing while the seed lives.
func TestNetsplitShowsAfterTwoIntervalsAndTheTimeout(t *testing.T) {
	parallelInVirtualTime(t)
	const interval, timeout = 400 * time.Millisecond, 200 * time.Millisecond
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		start := func(i int, name string, seeds ...string) *smokesignal.Node {
			return v.startOn(i, cluster.Spec{Name: name, Limits: joins, Seeds: seeds, PingInterval: interval, PingTimeout: timeout})
		}
		seed := start(0, "seed")
		a, b := start(1, "a", at(0)), start(2, "b")
		v.link(a, b)
		v.never(quietFor, "netsplit while the seed lives", func(s *checker.State) bool { return netsplits(s, "a") > 0 })
		v.close(seed)
		took := v.wait(soon, "netsplit", func(s *checker.State) bool { return netsplits(s, "a") == 1 })
		t.Logf("netsplit after %v", took)
		const most = 2*interval + timeout + 100*time.Millisecond // with the longest round trip
		if took < interval || took > most {
			t.Errorf("netsplit after %v, want it after %v to %v", took, interval, most)
		}
	})
}

// TestPingIntervalZeroTurnsTheWatchdogOff shows that a node without pings reports no
// netsplit when its seed is gone.
func TestPingIntervalZeroTurnsTheWatchdogOff(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		seed := v.startOn(0, cluster.Spec{Name: "seed", Limits: manual})
		a := v.startOn(1, cluster.Spec{Name: "a", Limits: joins, Seeds: []string{at(0)}},
			smokesignal.PingInterval(0), smokesignal.PingTimeout(100*time.Millisecond))
		v.link(a, v.startOn(2, cluster.Spec{Name: "b", Limits: manual}))
		v.wait(soon, "seed linked", func(s *checker.State) bool { return len(s.Proc("a").Peers) == 2 })
		v.close(seed)
		v.never(quietFor, "netsplit without a watchdog", func(s *checker.State) bool { return netsplits(s, "a") > 0 })
	})
}

// TestFloodIsNotANetsplit shows that four nodes that broadcast as fast as they can report
// no netsplit, lose no link, and get all in order.
func TestFloodIsNotANetsplit(t *testing.T) {
	t.Parallel()
	each, size := many(1000), 1024
	l := newLocal(t)
	// Shorter times would make a busy machine look like a netsplit.
	const interval, timeout = 2 * time.Second, 2 * time.Second
	seed := l.start(cluster.Spec{Name: "n0", PingInterval: interval, PingTimeout: timeout})
	nodes := []*smokesignal.Node{seed}
	for i := 1; i < 4; i++ {
		nodes = append(nodes, l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Seeds: []string{addr(seed)}, PingInterval: interval, PingTimeout: timeout}))
	}
	l.wait(soon, "four gathered", func(s *checker.State) bool { return s.Gathered(4) })
	ins := map[*smokesignal.Node]*inbox{}
	for _, n := range nodes {
		ins[n] = listen(t, n.Broadcast(), "flood")
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			for i := range each {
				if err := n.Broadcast().Emit(context.Background(), "flood", i, make([]byte, size)); err != nil {
					t.Errorf("%s: %v", l.name(n), err)
					return
				}
			}
		})
	}
	wg.Wait()
	for n, in := range ins {
		wantEachInOrder(t, l.name(n), in.wait(3*each, 2*soon))
	}
	t.Logf("%d events of %d bytes to 3 others took %v", 4*each, size, time.Since(began).Round(time.Millisecond))
	l.never(2*interval+timeout+time.Second, "netsplit with every node alive", func(s *checker.State) bool {
		return netsplits(s, "n0")+netsplits(s, "n1")+netsplits(s, "n2")+netsplits(s, "n3") > 0
	})
	for _, n := range nodes {
		l.wantNoLinkLost(n)
	}
	l.check(checker.Config{Whole: true})
}

// wantNoLinkLost fails if a link of the node ended, unless the overlay moved it to
// another peer, which it may do at any time.
func (l *local) wantNoLinkLost(n *smokesignal.Node) {
	l.t.Helper()
	for _, r := range l.log.RecordsOf(l.name(n), checker.PeerClose) {
		moved := strings.Contains(r.Err, "the link was handed over to another peer") ||
			strings.Contains(r.Err, "the link was exchanged for one to another peer")
		if !moved {
			l.t.Errorf("%s lost a link: %s", l.name(n), r.Err)
		}
	}
}

// wantEachInOrder fails unless the numbers of each sender are 0, 1, 2 and so on.
func wantEachInOrder(t *testing.T, who string, got []heard) {
	t.Helper()
	next := map[smokesignal.ID]int{}
	for i, n := range numbers(t, got) {
		from := got[i].From
		if n != next[from] {
			t.Fatalf("%s got %d of %s, want %d", who, n, from, next[from])
		}
		next[from]++
	}
}
