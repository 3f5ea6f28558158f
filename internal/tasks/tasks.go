// Package tasks waits for goroutines, with a timeout.
package tasks

import (
	"sync"
	"time"
)

// Wait waits until all tasks have ended, but at most for timeout, and reports whether they have
// ended. After a timeout, a goroutine of Wait itself remains until the tasks end.
func Wait(tasks *sync.WaitGroup, timeout time.Duration) bool {
	ended := make(chan struct{})
	go func() {
		tasks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return true
	case <-time.After(timeout):
		return false
	}
}
