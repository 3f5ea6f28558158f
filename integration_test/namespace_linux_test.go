package integration_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/netns"
)

// TestNamespacesAreCut: twelve processes on machines of their own, over TCP, QUIC and
// both, half of them on each of two switches with a seed at each. Again and again
// packets between the switches are dropped. Each time both sides report it soon,
// every node reports once which seed is lost and back, and the network is whole soon
// after. In between no node reports anything.
func TestNamespacesAreCut(t *testing.T) {
	t.Parallel()
	needs(t, long)
	b := namespaceBed{
		nodes: 12, cycles: 1, cut: 25 * time.Second, quiet: 15 * time.Second,
		interval: 2 * time.Second, timeout: time.Second,
	}
	if chosen() == full {
		b.cycles, b.cut, b.quiet = 10, 60*time.Second, 30*time.Second
		b.interval, b.timeout = 0, 0 // the defaults
	}
	inside, err := netns.Enter(t)
	if err != nil {
		cannot(t, err)
	}
	if inside {
		b.run(t)
	}
}

// The promised times of a cut.
const (
	cutReportedWithin = 25 * time.Second // by netsplit or disconnect, on each side
	wholeAgain        = 10 * time.Second * slow
)

type namespaceBed struct {
	nodes, cycles     int
	cut, quiet        time.Duration
	interval, timeout time.Duration // of pings; zero: the library's

	*cluster.Cluster
	t      *testing.T
	halves *netns.Halves
	procs  []*cluster.Proc
	seeds  [2]string // by side
}

// side of a process.
func (b *namespaceBed) side(i int) int { return i % 2 }

func (b *namespaceBed) run(t *testing.T) {
	b.t = t
	halves, err := netns.NewHalves()
	if err != nil {
		cannot(t, err)
	}
	t.Cleanup(func() { halves.Close() })
	b.halves = halves
	b.Cluster = cluster.New(t) // its processes end before the namespaces are closed
	b.start()
	took := b.Wait(2*gatherWithin, "all gathered", func(s *checker.State) bool { return s.Gathered(b.nodes) })
	t.Logf("gathered after %v", tenth(took))
	b.wantNoReports("before the first cut", b.quiet+b.cut/2)
	for cycle := 1; cycle <= b.cycles; cycle++ {
		b.cycle(cycle)
	}
	b.Wait(soon, "enough peers for everybody, nobody too many", func(s *checker.State) bool {
		return s.Gathered(b.nodes) && len(s.AboveMax()) == 0
	})
	b.Check(checker.Config{Whole: true})
}

// start starts the processes, the first of each side as its seed.
func (b *namespaceBed) start() {
	const port = 8495
	machines := make([]*netns.Machine, b.nodes)
	for i := range machines {
		m, err := b.halves.Machine(b.side(i))
		if err != nil {
			b.t.Fatal(err)
		}
		machines[i] = m
	}
	for side := range b.seeds {
		b.seeds[side] = fmt.Sprintf("%s:%d", machines[side].IP, port)
	}
	for i, m := range machines {
		listen := []string{
			fmt.Sprintf("%s:%d", m.IP, port), // both, as the seeds
			fmt.Sprintf("/ip4/%s/tcp/%d", m.IP, port),
			fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", m.IP, port),
		}[i/2%3]
		b.procs = append(b.procs, b.Start(cluster.Spec{
			Name: fmt.Sprint("n", i), Listen: []string{listen}, Seeds: b.seeds[:],
			PingInterval: b.interval, PingTimeout: b.timeout, In: m.Do,
		}))
	}
	for _, p := range b.procs {
		p.ID()
	}
}

// reports counts the netsplits of a process, their ends, and the losses of its last peer.
type reports struct{ netsplits, resolved, alone int }

func reportsOf(s *checker.State, p *cluster.Proc) reports {
	counts := s.Proc(p.Name).Counts
	return reports{counts[checker.Netsplit], counts[checker.Resolved], counts[checker.Disconnect]}
}

// reports returns the reports of every process so far.
func (b *namespaceBed) reports() (list []reports) {
	b.Log.Inspect(func(s *checker.State) {
		for _, p := range b.procs {
			list = append(list, reportsOf(s, p))
		}
	})
	return list
}

// wantNoReports lets d pass and fails if any process reports anything.
func (b *namespaceBed) wantNoReports(when string, d time.Duration) {
	b.t.Helper()
	before := b.reports()
	b.Never(d, "a report "+when, func(s *checker.State) bool {
		for i, p := range b.procs {
			if reportsOf(s, p) != before[i] {
				return true
			}
		}
		return false
	})
}

func (b *namespaceBed) cycle(cycle int) {
	b.t.Helper()
	before := b.reports()
	b.switched(b.halves.Cut)
	began := time.Now()
	b.Wait(cutReportedWithin, "both sides report the cut", func(s *checker.State) bool {
		sides := [2]bool{}
		for i, p := range b.procs {
			now := reportsOf(s, p)
			if now.netsplits > before[i].netsplits || now.alone > before[i].alone {
				sides[b.side(i)] = true
			}
		}
		return sides == [2]bool{true, true}
	})
	first := time.Since(began)
	b.Wait(b.cut-first, "every node reports a netsplit", func(s *checker.State) bool {
		for i, p := range b.procs {
			if reportsOf(s, p).netsplits == before[i].netsplits {
				return false
			}
		}
		return true
	})
	last := time.Since(began)
	time.Sleep(b.cut - last) // how long it is cut is part of the test
	b.Log.Inspect(func(s *checker.State) {
		if parts := s.Components(); len(parts) != 2 {
			b.t.Errorf("cut %d: at its end there are %d components: %v", cycle, len(parts), parts)
		}
	})
	b.switched(b.halves.Heal)
	took := b.Wait(wholeAgain, "one component", whole)
	resolved := took + b.Wait(soon, "every node reports the end", func(s *checker.State) bool {
		for _, p := range b.procs {
			if now := reportsOf(s, p); now.netsplits != now.resolved {
				return false
			}
		}
		return true
	})
	b.t.Logf("cut %d: both sides reported it after %v, every node after %v; one component %v after the heal, every node reported it after %v",
		cycle, tenth(first), tenth(last), tenth(took), tenth(resolved))
	b.wantNoReports("after the heal", b.quiet)
	for i, p := range b.procs {
		n := map[string]int{}
		for _, r := range b.Log.RecordsOf(p.Name, checker.Netsplit) {
			n[r.Seed]++
		}
		// A seed on the same side is lost too while that side has not come together.
		if here, there := n[b.seeds[b.side(i)]], n[b.seeds[1-b.side(i)]]; there != cycle || here > cycle {
			b.t.Errorf("after %d cuts %s reported %d netsplits of the other side's seed and %d of its own side's", cycle, p.Name, there, here)
		}
	}
}

// switched changes the switches and records the time for the checker.
func (b *namespaceBed) switched(do func() error) {
	b.t.Helper()
	for _, p := range b.procs {
		b.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Fault, Text: checker.FaultLink})
	}
	if err := do(); err != nil {
		b.t.Fatal(err)
	}
}
