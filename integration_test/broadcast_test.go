package integration_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestBurstOverALine: 10,000 events as fast as Emit returns, over up to nine hops,
// with all defaults. Floodsub alone loses 2 % of them over one hop, 70 % over four.
func TestBurstOverALine(t *testing.T) {
	const events, bytes = 10_000, 300
	runs := map[size]int{byDefault: 1, long: 3, full: 20}[chosen()]
	for _, n := range []int{3, 5, 10} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			for range runs {
				l, nodes := line(t, n)
				var tallies []*tally
				for i, node := range nodes[1:] {
					tallies = append(tallies, newTally(t, fmt.Sprintf("n%d", i+1), node, nodes[0].ID(), nil))
				}
				began := time.Now()
				if err := emitNumbered(within(t, soon), nodes[0], 1, events+1, bytes); err != nil {
					t.Fatal(err)
				}
				for _, y := range tallies {
					y.all(events+1, soon)
				}
				t.Logf("%d events at %d nodes in %v", events, n-1, time.Since(began).Round(time.Millisecond))
				for _, node := range nodes {
					l.close(node)
				}
			}
		})
	}
}

// TestEmitAndCloseAtOnce: what Emit accepted arrives, although Close comes at once.
func TestEmitAndCloseAtOnce(t *testing.T) {
	const events = 10_000
	runs := map[size]int{byDefault: 2, long: 5, full: 20}[chosen()]
	for run := range runs {
		l, nodes := line(t, 3)
		near := newTally(t, "near", nodes[1], nodes[0].ID(), nil)
		far := newTally(t, "far", nodes[2], nodes[0].ID(), nil)
		if err := emitNumbered(within(t, soon), nodes[0], 1, events+1, 64); err != nil {
			t.Fatal(err)
		}
		if err := l.close(nodes[0]); err != nil {
			t.Errorf("run %d: Close: %v", run, err)
		}
		near.all(events+1, soon)
		far.all(events+1, soon)
		l.close(nodes[1])
		l.close(nodes[2])
	}
}

// TestLinksComeAndGo: 20 nodes of which the links change all the time lose nothing
// of what one of them broadcasts 100 times a second, nor of what the others
// broadcast now and then.
func TestLinksComeAndGo(t *testing.T) {
	t.Parallel()
	const n = 20
	lasts := map[size]time.Duration{byDefault: 4 * time.Second, long: 30 * time.Second, full: 5 * time.Minute}[chosen()]
	l := newLocal(t)
	var nodes []*smokesignal.Node
	for i := range n {
		nodes = append(nodes, l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual}))
	}
	// A ring that stays, so that the network is always whole, and chords which
	// come and go.
	for i := range n {
		l.link(nodes[i], nodes[(i+1)%n])
	}
	var tallies []*tally
	for i, node := range nodes[1:] {
		tallies = append(tallies, newTally(t, fmt.Sprintf("n%d", i+1), node, nodes[0].ID(), nil))
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	changes := 0
	churn.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			default:
			}
			a, b := nodes[r.IntN(n)], nodes[r.IntN(n)]
			if p := a.Peers().Get(b.ID()); p != nil {
				if !areNeighbors(nodes, a, b) {
					l.fault(a, checker.FaultLink)
					l.fault(b, checker.FaultLink)
					p.Disconnect()
					changes++
				}
			} else if a != b {
				// Who parted a moment ago may be refused; that is part of it.
				if _, err := a.Connect(within(t, 5*time.Second), addr(b)); err == nil {
					changes++
				}
			}
		}
	})
	tick := time.NewTicker(10 * time.Millisecond) // the rate is part of the test
	defer tick.Stop()
	var sent uint64
	for end := time.Now().Add(lasts); time.Now().Before(end); <-tick.C {
		if err := emitNumbered(within(t, soon), nodes[0], sent+1, sent+2, 100); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	close(stop)
	churn.Wait()
	for _, y := range tallies {
		y.all(sent+1, soon)
	}
	t.Logf("%d events while links changed %d times", sent, changes)
	l.check(checker.Config{})
}

// areNeighbors reports whether two nodes are next to each other in the ring.
func areNeighbors(nodes []*smokesignal.Node, a, b *smokesignal.Node) bool {
	for i, node := range nodes {
		next := nodes[(i+1)%len(nodes)]
		if node == a && next == b || node == b && next == a {
			return true
		}
	}
	return false
}
