//go:build race

package bubble

import (
	"runtime"
	"sync"
)

var confined struct {
	sync.Mutex
	bubbles int
	procs   int // as many as there were before the first
}

// confine leaves the process one processor until the function it returns is called.
// All timers of a bubble have one context of the race detector, whose runtime ends
// the process ("CHECK failed", or a crash) when two of them fire at the same
// moment on two processors: go.dev/issue/78156, seen with Go 1.26.8.
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
