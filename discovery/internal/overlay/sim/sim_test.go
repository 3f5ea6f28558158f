package sim

import (
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"time"
)

// The sizes of these tests:
//
//	go test ./discovery/internal/overlay/...                        a sample, some seconds
//	SMOKESIGNAL_LONG=1 go test ./discovery/internal/overlay/...     10 and 100 nodes whole, some of 1,000: minutes
//	SMOKESIGNAL_FULL=1 go test -timeout 2h ./discovery/internal/overlay/...   all, also 10,000 nodes
type size int

const (
	sample size = iota
	long
	full
)

var testSize = func() size {
	switch {
	case os.Getenv("SMOKESIGNAL_FULL") != "":
		return full
	case os.Getenv("SMOKESIGNAL_LONG") != "":
		return long
	}
	return sample
}()

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // there is much garbage and little live memory
	os.Exit(m.Run())
}

// A run can be repeated exactly, and another seed gives another run.
func TestSameSeedSameRun(t *testing.T) {
	for _, rules := range []Rules{Smokesignal, Original} {
		for _, c := range []Case{Crash(50), splits[1].splitCase("split", "", time.Minute), {Name: "mixed", play: mixed}} {
			o := Options{Rules: rules, Nodes: 20, Seed: 7}
			figures, first := c.Play(o)
			again, second := c.Play(o)
			if first != second || fmt.Sprint(figures) != fmt.Sprint(again) {
				t.Errorf("%s by the rules of %s: two runs with the same seed differ", c.Name, rules.Name)
			}
			o.Seed = 8
			if _, third := c.Play(o); third == first {
				t.Errorf("%s by the rules of %s: two runs with different seeds do not differ", c.Name, rules.Name)
			}
		}
	}
}

// The rules use nothing of a message that does not travel.
func TestEncodingChangesNothing(t *testing.T) {
	for _, c := range []Case{Silent(50), undialable(30), {Name: "lookup", play: lookup}, {Name: "mixed", play: mixed}} {
		o := Options{Rules: Smokesignal, Nodes: 20, Seed: 3}
		_, straight := c.Play(o)
		o.Encode = true
		if _, encoded := c.Play(o); straight != encoded {
			t.Errorf("%s: the run is another one when messages are encoded", c.Name)
		}
	}
}

// Nodes that start at once or one by one through one seed form one part within ten
// seconds. After thirty, each has between Min and Max links, no link has flapped, and
// there is no half link.
func TestBurstJoin(t *testing.T) {
	runs := 60
	if testSize >= long {
		runs = 300
	}
	for _, n := range []int{2, 5, 10, 30, 100, 300} {
		for _, gap := range []time.Duration{0, 100 * time.Millisecond, time.Second} {
			for seed := range uint64(runs / n) {
				w := New(Smokesignal, seed)
				w.Encode = n <= 30
				for i := range n {
					w.Add(time.Duration(max(i-1, 0))*gap, 0)
				}
				name := fmt.Sprintf("%d nodes, %v apart, seed %d", n, gap, seed)
				w.Run(time.Duration(n)*gap + 10*time.Second)
				if !w.Whole() {
					t.Errorf("%s: the parts are %v after 10 s", name, w.Parts(0))
				}
				w.Run(20 * time.Second)
				w.OldestHalfLink()
				w.Run(time.Second)
				if half := w.OldestHalfLink(); half > 0 {
					t.Errorf("%s: there is a half link", name)
				}
				degrees := w.Degrees()
				for d, count := range degrees {
					if count > 0 && (d < min(Min, n-1) || d > Max) {
						t.Errorf("%s: the degrees are %v", name, degrees)
						break
					}
				}
				if w.Flaps > 0 {
					t.Errorf("%s: %d flaps", name, w.Flaps)
				}
			}
		}
	}
}
