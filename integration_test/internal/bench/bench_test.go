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

// What a match set up is gone when it is closed.
func TestMain(m *testing.M) { leaks.Main(m) }

// Every kind of entrant passes events on the small scale, and those who promise
// to lose nothing and to keep the order do so.
func TestEntrants(t *testing.T) {
	for _, c := range Cases(true) {
		if strings.Contains(c.Name, "line") || strings.Contains(c.Name, "graph") {
			continue // the same entrants with more nodes
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

// scripted is an entrant whose rounds are given, after a first one to warm up.
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

// A machine that is slow in some turns moves both rates, and not their factor.
func TestFactorIsTakenWithinATurn(t *testing.T) {
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

// One lost event in all the rounds shows, where the median of the rounds would
// hide it; so does one inversion.
func TestOneLostEventShows(t *testing.T) {
	good := rate(100_000)
	bad := good
	bad.Arrived, bad.Inversions = bad.Arrived-1, 1
	r := play(t, Case{entrants: []entrant{scripted("x", good, bad, good, good, good)}}, 5)[0]
	if r.Delivered == 1 || part(r.Delivered) != "0.999" {
		t.Errorf("delivered %v, written %s", r.Delivered, part(r.Delivered))
	}
	if r.Inversions != 0.2 {
		t.Errorf("inversions %v, want 0.2", r.Inversions)
	}
}

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

func TestParseStat(t *testing.T) {
	m, ok := parseStat("cpu  100 10 50 1000 20 1 2 7 99 99\ncpu0 1 2 3\n")
	if want := (machineTime{1700 * time.Millisecond, 11900 * time.Millisecond}); !ok || m != want {
		t.Errorf("got %v, %v; want %v", m, ok, want)
	}
	for _, text := range []string{"", "cpu", "cpu 1 2 3 4 5 6 7 x", "intr 1 2 3 4 5 6 7 8"} {
		if m, ok := parseStat(text); ok {
			t.Errorf("%q is taken as %v", text, m)
		}
	}
}

// What this process burns itself is not what others took.
func TestOthers(t *testing.T) {
	w := Observe()
	if !w.ok {
		t.Skip("SKIPPED: this system does not tell what others take")
	}
	for w.then.all == Observe().then.all { // a hundredth of a second
		runtime.GC()
	}
	if part, ok := w.Others(); !ok || part < 0 || part > 1 {
		t.Errorf("others took %v, %v", part, ok)
	}
}

func TestGraphs(t *testing.T) {
	for n := 2; n <= 40; n++ {
		for i := range n {
			near := degree4(n).neighbours(i)
			if len(near) != min(4, n-1) {
				t.Errorf("degree4(%d): node %d has %d neighbours", n, i, len(near))
			}
			slices.Sort(near)
			if slices.Contains(near, i) || len(slices.Compact(near)) != min(4, n-1) {
				t.Errorf("degree4(%d): node %d has neighbours %v", n, i, near)
			}
		}
	}
	if got := line(5).neighbours(2); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("line(5): node 2 has neighbours %v", got)
	}
}

// fakeFlow is a flow to one receiver, for which deliver decides what comes.
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
		r.take(round, no)
	})
}

func TestBurstCounts(t *testing.T) {
	for _, x := range []struct {
		what                string
		deliver             func(r *receiver, round, no uint32)
		arrived, inversions int
	}{
		{"all", func(r *receiver, round, no uint32) { r.take(round, no) }, 100, 0},
		{"every second, twice", func(r *receiver, round, no uint32) { r.take(round, no&^1) }, 50, 0},
		{"every second as of the round before", func(r *receiver, round, no uint32) { r.take(round-no%2, no) }, 50, 0},
		{"numbers that were not sent as well", func(r *receiver, round, no uint32) { r.take(round, no); r.take(round, no+1<<20) }, 100, 0},
		{"every second", func(r *receiver, round, no uint32) {
			if no%2 == 0 {
				r.take(round, no)
			}
		}, 50, 0},
		{"pairs changed about", func(r *receiver, round, no uint32) { r.take(round, no^1) }, 100, 50},
	} {
		bubble.Test(t, func(t *testing.T) { // in which silence passes at once
			r, err := fakeFlow(x.deliver).burst(t.Context(), 100)
			if err != nil || r.Sent != 100 || r.Arrived != x.arrived || r.Inversions != x.inversions {
				t.Errorf("%s: %+v, %v; want %d arrived, %d inversions", x.what, r, err, x.arrived, x.inversions)
			}
		})
	}
}

// Waiting for what is lost does not count into the rate.
func TestSilenceIsNotMeasured(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := fakeFlow(func(r *receiver, round, no uint32) {
			if time.Sleep(time.Millisecond); no < 90 {
				r.take(round, no)
			}
		})
		began := time.Now()
		r, err := f.burst(t.Context(), 100)
		if err != nil || r.Elapsed > 110*time.Millisecond {
			t.Errorf("%+v, %v; want 100 ms elapsed", r, err)
		}
		if took := time.Since(began); took < patience {
			t.Errorf("the round was over after %v, want %v of patience", took, patience)
		}
	})
}

func TestBurstOfASlowSenderIsCut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := fakeFlow(func(r *receiver, round, no uint32) {
			time.Sleep(sending / 500)
			late(r, sending/10, round, no)
		})
		began := time.Now()
		r, err := f.burst(t.Context(), 1_000_000)
		if err != nil || r.Sent != r.Arrived || r.Sent < 500 || r.Sent > 600 || r.Elapsed > 2*sending {
			t.Errorf("%+v, %v; want some 500 events in %v", r, err, sending)
		}
		if took := time.Since(began); took > 2*sending {
			t.Errorf("it took %v, although all that was sent had come", took)
		}
	})
}

func TestLoneMeasuresEachEvent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := fakeFlow(func(r *receiver, round, no uint32) {
			late(r, time.Duration(no+1)*10*time.Microsecond, round, no)
		})
		r, err := f.lone(t.Context(), 100)
		if err != nil || r.P50 != 510*time.Microsecond || r.P99 != 1000*time.Microsecond {
			t.Errorf("%+v, %v; want p50 510 us, p99 1 ms", r, err)
		}
		if r.Elapsed < 100*pace {
			t.Errorf("100 lone events in %v, want one each %v", r.Elapsed, pace)
		}
	})
}

func TestNothingArrivedIsAnError(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, err := fakeFlow(func(*receiver, uint32, uint32) {}).burst(t.Context(), 10)
		if !errors.Is(err, errNothing) {
			t.Errorf("got %v, want %v", err, errNothing)
		}
	})
}

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

func TestShort(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0", 7: "7", 0.0456: "0.046", 0.731: "0.73", 9.99: "9.99", 9.996: "10.0", 99.96: "100",
		999.6: "1 000", 1234567: "1 230 000", 99999: "100 000",
	} {
		if got := short(f); got != want {
			t.Errorf("short(%v) = %q, want %q", f, got, want)
		}
	}
}

// Every case has its yardstick, and names that a benchmark can have.
func TestCases(t *testing.T) {
	seen := map[string]bool{}
	cases := Cases(false)
	for _, c := range Curves(false) {
		for _, p := range c.Points {
			cases = append(cases, p.Case)
			for _, e := range p.Case.entrants {
				if e.count < 100 {
					t.Errorf("%s %s: %s has bursts of %d, too few to measure", c.Name, p.Text, e.name, e.count)
				}
			}
		}
	}
	for i, c := range cases {
		if !slices.Contains(c.Entrants(), c.Yardstick) || c.Against == "" {
			t.Errorf("%s: the yardstick %q is none of %q", c.Name, c.Yardstick, c.Entrants())
		}
		if strings.ContainsAny(c.Name, " _") || i < len(Cases(false)) && seen[c.Name] {
			t.Errorf("%q is no good name, or there twice", c.Name)
		}
		seen[c.Name] = true
		for _, e := range c.entrants {
			if e.count > math.MaxUint32 || e.count < 1 {
				t.Errorf("%s: %s has bursts of %d", c.Name, e.name, e.count)
			}
		}
	}
}
