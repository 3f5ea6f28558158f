package bench

import (
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
)

// Close leaves no goroutine behind.
func TestMain(m *testing.M) { leaks.Main(m) }

// Every kind of entrant delivers the events of a short run. An entrant that
// promises to lose nothing and to keep the order does so.
func TestEntrants(t *testing.T) {
	for _, c := range Cases(true) {
		if strings.Contains(c.Name, "line") || strings.Contains(c.Name, "graph") || strings.HasPrefix(c.Name, "Nodes/") {
			continue // the same entrants with more nodes
		}
		if strings.HasPrefix(c.Name, "Size/") && c.Name != "Size/1KiB" {
			continue // the same entrants with other sizes
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			for _, r := range play(t, c, 1) {
				if lossy := strings.HasSuffix(r.Entrant, "-default"); !lossy && (r.Delivered != 1 || r.Inversions != 0) {
					t.Errorf("%s: %v arrived, %v inversions", r.Entrant, r.Delivered, r.Inversions)
				}
				if c.Kind == Burst && r.Rate.Median <= 0 || c.Kind == Latency && (r.P50.Median <= 0 || r.P99.Median < r.P50.Median) {
					t.Errorf("%s: nothing was measured: %+v", r.Entrant, r)
				}
			}
		})
	}
}

// scripted is an entrant that returns the given rounds after a first one to warm
// up.
func scripted(name string, rounds ...Round) entrant {
	return entrant{name, 100, func(context.Context) (*rig, error) {
		next := -1
		return &rig{
			round: func(context.Context, int) (Round, error) {
				if next++; next == 0 {
					return Round{}, nil
				}
				return rounds[next-1], nil
			},
			close: func() {},
		}, nil
	}}
}

func rate(perSecond int) Round {
	return Round{Sent: perSecond, Arrived: perSecond, Elapsed: time.Second}
}

func play(t *testing.T, c Case, turns int) []Result {
	t.Helper()
	m, err := c.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for range turns {
		if err := m.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return m.Results()
}

// A machine that is slow in some turns changes both rates but not their factor.
func TestFactorIsComputedWithinATurn(t *testing.T) {
	c := Case{Name: "x", Yardstick: "old", entrants: []entrant{
		scripted("new", rate(1000), rate(100), rate(500)),
		scripted("old", rate(100), rate(10), rate(250)),
	}}
	r := play(t, c, 3)
	if got, want := r[0].Rate, (Spread{500, 100, 1000}); got != want {
		t.Errorf("rate %v, want %v", got, want)
	}
	if got, want := r[0].Factor, (Spread{10, 2, 10}); got != want {
		t.Errorf("factor %v, want %v", got, want)
	}
	if r[1].Factor != (Spread{}) {
		t.Errorf("the yardstick is compared with itself: %v", r[1].Factor)
	}
}

// A single lost event shows in the result, although the median of the rounds
// would hide it. So does a single inversion.
func TestOneLostEventShows(t *testing.T) {
	good := rate(100_000)
	bad := good
	bad.Arrived, bad.Inversions = bad.Arrived-1, 1
	r := play(t, Case{entrants: []entrant{scripted("x", good, bad, good, good, good)}}, 5)[0]
	if r.Delivered == 1 || formatShare(r.Delivered) != "0.999" {
		t.Errorf("delivered %v, written %s", r.Delivered, formatShare(r.Delivered))
	}
	if r.Inversions != 0.2 {
		t.Errorf("inversions %v, want 0.2", r.Inversions)
	}
}

// A spread has the median, the minimum and the maximum of its values.
func TestSpread(t *testing.T) {
	for _, x := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{9, 1, 5}, Spread{5, 1, 9}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9}},
	} {
		if got := spread(x.values); got != x.want {
			t.Errorf("spread(%v) = %v, want %v", x.values, got, x.want)
		}
	}
}

// The times of the processor are read from /proc/stat; other text is refused.
func TestParseStat(t *testing.T) {
	m, ok := parseStat("cpu  100 10 50 1000 20 1 2 7 99 99\ncpu0 1 2 3\n")
	if want := (machineTime{1700 * time.Millisecond, 11900 * time.Millisecond}); !ok || m != want {
		t.Errorf("got %v, %v; want %v", m, ok, want)
	}
	for _, text := range []string{"", "cpu", "cpu 1 2 3 4 5 6 7 x", "intr 1 2 3 4 5 6 7 8"} {
		if m, ok := parseStat(text); ok {
			t.Errorf("parseStat(%q) = %v, want an error", text, m)
		}
	}
}

// The processor time of this process does not count as that of others.
func TestOthers(t *testing.T) {
	w := Observe()
	if !w.ok {
		t.Skip("SKIPPED: this system does not report the processor time of others")
	}
	for w.then.all == Observe().then.all { // the clock moves in steps of 10 ms
		runtime.GC()
	}
	if share, ok := w.Others(); !ok || share < 0 || share > 1 {
		t.Errorf("Others() = %v, %v; want a share from 0 to 1", share, ok)
	}
}

// In each graph a node has the wanted number of different neighbors.
func TestGraphs(t *testing.T) {
	for n := 2; n <= 40; n++ {
		for i := range n {
			near := degree4(n).neighbors(i)
			if len(near) != min(4, n-1) {
				t.Errorf("degree4(%d): node %d has %d neighbors", n, i, len(near))
			}
			slices.Sort(near)
			if slices.Contains(near, i) || len(slices.Compact(near)) != min(4, n-1) {
				t.Errorf("degree4(%d): node %d has neighbors %v", n, i, near)
			}
		}
	}
	if got := line(5).neighbors(2); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("line(5): node 2 has neighbors %v", got)
	}
}

// fakeFlow is a flow to one receiver. deliver decides what the receiver gets.
func fakeFlow(deliver func(r *receiver, round, no uint32)) *flow {
	r := new(receiver)
	return &flow{to: []*receiver{r}, send: func(_ context.Context, round, no uint32) error {
		deliver(r, round, no)
		return nil
	}}
}

var oneAtATime sync.Mutex

// late delivers an event after d.
func late(r *receiver, d time.Duration, round, no uint32) {
	time.AfterFunc(d, func() {
		oneAtATime.Lock()
		defer oneAtATime.Unlock()
		r.count(round, no)
	})
}

// A burst counts the events of its own round once, and those out of order.
func TestBurstCounts(t *testing.T) {
	for _, x := range []struct {
		name                string
		deliver             func(r *receiver, round, no uint32)
		arrived, inversions int
	}{
		{"all", func(r *receiver, round, no uint32) { r.count(round, no) }, 100, 0},
		{"every second, twice", func(r *receiver, round, no uint32) { r.count(round, no&^1) }, 50, 0},
		{"every second with the number of the round before", func(r *receiver, round, no uint32) { r.count(round-no%2, no) }, 50, 0},
		{"numbers that were not sent as well", func(r *receiver, round, no uint32) { r.count(round, no); r.count(round, no+1<<20) }, 100, 0},
		{"every second", func(r *receiver, round, no uint32) {
			if no%2 == 0 {
				r.count(round, no)
			}
		}, 50, 0},
		{"pairs in reverse order", func(r *receiver, round, no uint32) { r.count(round, no^1) }, 100, 50},
	} {
		bubble.Test(t, func(t *testing.T) { // in virtual time, so the silence costs nothing
			r, err := fakeFlow(x.deliver).burst(t.Context(), 100)
			if err != nil || r.Sent != 100 || r.Arrived != x.arrived || r.Inversions != x.inversions {
				t.Errorf("%s: %+v, %v; want %d arrived, %d inversions", x.name, r, err, x.arrived, x.inversions)
			}
		})
	}
}

// The time spent waiting for lost events does not count in the rate.
func TestSilenceIsNotMeasured(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := fakeFlow(func(r *receiver, round, no uint32) {
			if time.Sleep(time.Millisecond); no < 90 {
				r.count(round, no)
			}
		})
		began := time.Now()
		r, err := f.burst(t.Context(), 100)
		if err != nil || r.Elapsed > 110*time.Millisecond {
			t.Errorf("%+v, %v; want 100 ms elapsed", r, err)
		}
		if took := time.Since(began); took < losslessSilence {
			t.Errorf("the round was over after %v, want at least %v of silence", took, losslessSilence)
		}
	})
}

// A burst of a slow sender ends after its longest time.
func TestBurstOfASlowSenderIsCut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := fakeFlow(func(r *receiver, round, no uint32) {
			time.Sleep(maxSending / 500)
			late(r, maxSending/10, round, no)
		})
		began := time.Now()
		r, err := f.burst(t.Context(), 1_000_000)
		if err != nil || r.Sent != r.Arrived || r.Sent < 500 || r.Sent > 600 || r.Elapsed > 2*maxSending {
			t.Errorf("%+v, %v; want some 500 events in %v", r, err, maxSending)
		}
		if took := time.Since(began); took > 2*maxSending {
			t.Errorf("the round took %v, although every event sent had arrived", took)
		}
	})
}

// Paced sending measures the latency of each event.
func TestPacedMeasuresEachEvent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := fakeFlow(func(r *receiver, round, no uint32) {
			late(r, time.Duration(no+1)*10*time.Microsecond, round, no)
		})
		r, err := f.sendPaced(t.Context(), 100)
		if err != nil || r.P50 != 510*time.Microsecond || r.P99 != 1000*time.Microsecond {
			t.Errorf("%+v, %v; want p50 510 us, p99 1 ms", r, err)
		}
		if r.Elapsed < 100*pace {
			t.Errorf("100 lone events in %v, want one each %v", r.Elapsed, pace)
		}
	})
}

// A burst of which no event arrives is an error.
func TestNothingArrivedIsAnError(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, err := fakeFlow(func(*receiver, uint32, uint32) {}).burst(t.Context(), 10)
		if !errors.Is(err, errNothing) {
			t.Errorf("got %v, want %v", err, errNothing)
		}
	})
}

// A table of results is printed as aligned Markdown.
func TestTable(t *testing.T) {
	c := Case{Kind: Burst, Against: "floodsub"}
	got := c.Table([]Result{
		{Entrant: "new", Rate: Spread{412345, 400000, 420000}, Factor: Spread{61.2, 60, 62}, Delivered: 1,
			CPU: Spread{3.456, 3, 4}, Allocs: Spread{2.5, 2, 3}, Events: 200000},
		{Entrant: "floodsub", Rate: Spread{6700, 6500, 7000}, Delivered: 0.99999, Inversions: 1234, CPU: Spread{257, 250, 260}, Events: 2000},
	})
	want := `
|          | events/s |       (min to max) | x floodsub | arrived | inversions | CPU us/event | allocs/event |   burst |
|----------|---------:|-------------------:|-----------:|--------:|-----------:|-------------:|-------------:|--------:|
| new      |  412 000 | 400 000 to 420 000 |       61.2 |       1 |          0 |         3.46 |         2.50 | 200 000 |
| floodsub |    6 700 |     6 500 to 7 000 |            |   0.999 |      1 230 |          257 |            0 |   2 000 |
`
	if got != strings.TrimPrefix(want, "\n") {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
}

// Numbers are printed with three significant digits.
func TestFormatNumber(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0", 7: "7", 0.0456: "0.046", 0.731: "0.73", 9.99: "9.99", 9.996: "10.0", 99.96: "100",
		999.6: "1 000", 1234567: "1 230 000", 99999: "100 000",
	} {
		if got := formatNumber(f); got != want {
			t.Errorf("formatNumber(%v) = %q, want %q", f, got, want)
		}
	}
}

// Every case contains its yardstick and has a valid, unique benchmark name.
func TestCases(t *testing.T) {
	seen := map[string]bool{}
	cases := Cases(false)
	for _, c := range cases {
		if !slices.Contains(c.Entrants(), c.Yardstick) || c.Against == "" {
			t.Errorf("%s: the yardstick %q is not one of %q", c.Name, c.Yardstick, c.Entrants())
		}
		if strings.ContainsAny(c.Name, " _") || seen[c.Name] {
			t.Errorf("%q has a space or an underscore, or is there twice", c.Name)
		}
		seen[c.Name] = true
		for _, e := range c.entrants {
			if e.count > math.MaxUint32 || e.count < 100 {
				t.Errorf("%s: %s has rounds of %d events", c.Name, e.name, e.count)
			}
		}
	}
}
