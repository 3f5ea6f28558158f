package bubble

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestTimersOfABubble: with the race detector and two processors, a bubble of
// synctest.Test alone ends the process within a tenth of a second here.
func TestTimersOfABubble(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	for range 5 {
		Test(t, func(t *testing.T) {
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() {
					for range 10 {
						time.Sleep(time.Millisecond)
						for range 20 {
							now := time.NewTimer(0)
							select {
							case <-now.C:
							default:
							}
							now.Reset(0)
							<-now.C
						}
					}
				})
			}
			all.Wait()
		})
	}
	if after := runtime.GOMAXPROCS(0); after != before {
		t.Errorf("%d processors are left of %d", after, before)
	}
}

// TestBubblesAtOnce: the last one gives the processors back, also when one fails.
func TestBubblesAtOnce(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Run("some", func(t *testing.T) {
		for range 4 {
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				Test(t, func(t *testing.T) {
					time.Sleep(time.Second)
					t.SkipNow()
				})
			})
		}
	})
	if after := runtime.GOMAXPROCS(0); after != before {
		t.Errorf("%d processors are left of %d", after, before)
	}
}
