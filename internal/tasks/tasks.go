// Package tasks waits for goroutines that may never end.
package tasks

import (
	"sync"
	"time"
)

// Wait waits until all tasks have ended, at most for the timeout, and reports whether
// they have. After a timeout one goroutine stays behind until the tasks end.
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
