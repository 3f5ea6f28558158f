package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// linkHalf links a to b, while b does not know of it.
func (w *World) linkHalf(a, b int32) {
	w.emit(a, overlay.Linked{Peer: w.nodes[b].id})
}

// link links two probes at both ends.
func (w *World) link(a, b int32) {
	w.linkHalf(a, b)
	w.linkHalf(b, a)
}

func (w *World) unlink(a, b int32, why overlay.Reason) {
	w.emit(a, overlay.Unlinked{Peer: w.nodes[b].id, Reason: why, WasLinked: true})
}

// The network is a line of four nodes, two nodes with half a link, and one without links.
func TestMeasuresCountWholeLinks(t *testing.T) {
	w := probes(t, 7)
	w.link(0, 1)
	w.link(1, 2)
	w.link(2, 3)
	w.linkHalf(4, 5)
	if got := w.Parts(0); !slices.Equal(got, []int{4, 1, 1, 1}) {
		t.Errorf("parts %v", got)
	}
	if w.Whole() {
		t.Error("whole")
	}
	if got := w.Degrees(); !slices.Equal(got, []int{3, 2, 2}) {
		t.Errorf("degrees %v", got)
	}
	if got := w.Diameter(); got != 3 {
		t.Errorf("diameter %d", got)
	}
	odd := func(i int32) int8 { return int8(i % 2) }
	if got := w.Crossing(odd); got != 1 {
		t.Errorf("crossing %v", got)
	}
	w.Split(func(i int32) int8 { return int8(i / 2) })
	if got := w.Parts(0); !slices.Equal(got, []int{2, 2, 1, 1, 1}) {
		t.Errorf("parts %v while 0 and 1 are cut off", got)
	}
	w.Heal()
	for _, i := range []int32{4, 5, 6} {
		w.Crash(i)
	}
	if !w.Whole() || w.Share(0) != 1 {
		t.Error("not whole without the others")
	}
	w.Run(time.Minute)
	w.Add(0)
	w.Run(time.Second)
	if w.Share(0) != 0.8 || w.Share(30*time.Second) != 1 {
		t.Errorf("a newcomer outside: %v of all, %v of the old", w.Share(0), w.Share(30*time.Second))
	}
}

// A half link has the age of the moment at which one end dropped it.
func TestHalfLinkHasAnAge(t *testing.T) {
	w := probes(t, 2)
	w.link(0, 1)
	w.Run(time.Minute)
	if got := w.OldestHalfLink(); got != 0 {
		t.Errorf("a whole link is half for %v", got)
	}
	w.unlink(1, 0, overlay.ReasonFull)
	w.OldestHalfLink()
	w.Run(7 * time.Second)
	if got := w.OldestHalfLink(); got != 7*time.Second {
		t.Errorf("half for %v", got)
	}
	w.Silence(1)
	if got := w.OldestHalfLink(); got != 0 {
		t.Errorf("half for %v with the dead", got)
	}
}

// A pair that is linked again within 30 seconds flaps, unless a fault explains it.
func TestEarlyRelinkIsAFlap(t *testing.T) {
	for name, c := range map[string]struct {
		pause time.Duration
		fault bool
		want  int
	}{
		"soon":          {pause: 29 * time.Second, want: 1},
		"late":          {pause: 31 * time.Second},
		"after a fault": {pause: time.Second, fault: true},
	} {
		w := probes(t, 2)
		w.Run(2 * time.Minute)
		w.linkHalf(0, 1)
		if c.fault {
			w.Split(func(i int32) int8 { return int8(i) })
			w.Heal()
		}
		w.unlink(0, 1, overlay.ReasonFull)
		w.Run(c.pause)
		w.linkHalf(0, 1)
		if w.Flaps != c.want {
			t.Errorf("%s: %d flaps, want %d", name, w.Flaps, c.want)
		}
	}
}
