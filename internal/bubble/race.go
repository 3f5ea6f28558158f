//go:build race

package bubble

import (
	"runtime"
	"sync"
)

var confined struct {
	sync.Mutex
	bubbles int
	procs   int // GOMAXPROCS before the first bubble
}

// confine limits the process to one processor (GOMAXPROCS) until free is called. With more,
// the race detector can crash the process ("CHECK failed"): all timers of a bubble share one
// context of the race detector, which two timers must not use at the same time on two
// processors. See go.dev/issue/78156, seen with Go 1.26.8.
func confine() (free func()) {
	confined.Lock()
	defer confined.Unlock()
	if confined.bubbles++; confined.bubbles == 1 {
		confined.procs = runtime.GOMAXPROCS(1)
	}
	return func() {
		confined.Lock()
		defer confined.Unlock()
		if confined.bubbles--; confined.bubbles == 0 {
			runtime.GOMAXPROCS(confined.procs)
		}
	}
}
