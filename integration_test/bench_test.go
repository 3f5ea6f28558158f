package integration_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/bench"
)

// The benchmarks compare smokesignal with what one would use in its place; how
// to read them is in docs/benchmarks.md. The nodes of all entrants of a case
// stand at the same time and take turns, one round each. An iteration is a
// turn, five unless -benchtime says otherwise:
//
//	go test ./integration_test -run '^$' -bench .
//	go test ./integration_test -run '^$' -bench Broadcast/pair -benchtime 11x
//	go test ./integration_test -run '^$' -bench . -short      # only to see that they work

func BenchmarkBroadcast(b *testing.B) { compare(b) }
func BenchmarkJSON(b *testing.B)      { compare(b) }
func BenchmarkLone(b *testing.B)      { compare(b) }
func BenchmarkDirect(b *testing.B)    { compare(b) }
func BenchmarkCall(b *testing.B)      { compare(b) }
func BenchmarkSize(b *testing.B)      { compare(b) }
func BenchmarkNodes(b *testing.B)     { compare(b) }

// benchTurns is the default of -benchtime: medians of five, or one turn of a
// short run.
func benchTurns() int {
	if testing.Short() {
		return 1
	}
	return 5
}

// compare runs the cases whose names begin with that of the benchmark.
func compare(b *testing.B) {
	for _, c := range bench.Cases(testing.Short()) {
		if name, ok := strings.CutPrefix("Benchmark"+c.Name, b.Name()+"/"); ok {
			b.Run(name, func(b *testing.B) { match(b, c) })
		}
	}
}

// match sets the entrants of a case up and reports each of them. Whose turn it
// is first takes the rounds of all; the others find theirs taken.
func match(b *testing.B, c bench.Case) {
	sideBySide.begin()
	m, err := c.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for i, name := range c.Entrants() {
		b.Run(name, func(b *testing.B) {
			for turn := 0; b.Loop(); turn++ {
				if turn == m.Turns() {
					if err := m.Turn(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
			report(b, c, m.Results()[i])
		})
	}
	if m.Turns() > 0 {
		sideBySide.add(c, m.Results())
	}
}

// report gives the benchmark the figures of its entrant.
func report(b *testing.B, c bench.Case, r bench.Result) {
	b.ReportMetric(0, "ns/op") // of a turn of all, which says nothing
	if c.Kind == bench.Latency {
		b.ReportMetric(r.P50.Median, "p50-us")
		b.ReportMetric(r.P99.Median, "p99-us")
	} else {
		b.ReportMetric(r.Rate.Median, "events/s")
		b.ReportMetric(r.Inversions, "inversions")
	}
	b.ReportMetric(r.Delivered, "delivered")
	b.ReportMetric(r.CPU.Median, "cpu-us/event")
	b.ReportMetric(r.Allocs.Median, "allocs/event")
	switch {
	case r.Factor.Max == 0: // the yardstick itself
	case c.Kind == bench.Latency:
		b.ReportMetric(r.FactorP50.Median, "x-"+c.Against+"-p50")
		b.ReportMetric(r.FactorP99.Median, "x-"+c.Against+"-p99")
	default:
		b.ReportMetric(r.Factor.Median, "x-"+c.Against)
	}
}

// sideBySide gathers the tables that stand at the end of the output.
var sideBySide tables

type tables struct {
	mu    sync.Mutex
	watch bench.Watch // since the first case
	text  []string
}

// begin notes when the first case is set up.
func (t *tables) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watch == (bench.Watch{}) {
		t.watch = bench.Observe()
	}
}

func (t *tables) add(c bench.Case, results []bench.Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, fmt.Sprintf("%s\n\n%s", c.Text, c.Table(results)))
}

func (t *tables) print(to io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, text := range t.text {
		fmt.Fprintf(to, "\n%s", text)
	}
	if part, ok := t.watch.Others(); ok {
		fmt.Fprintf(to, "\nOther processes took %.0f %% of the processor time.\n", 100*part)
	}
}
