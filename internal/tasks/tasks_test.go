package tasks_test

import (
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/tasks"
)

// Wait ends when all tasks have ended, or after the timeout.
func TestWaitEndsWithTheTasksOrTheTimeout(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var group sync.WaitGroup
		group.Go(func() { time.Sleep(3 * time.Second) })
		began := time.Now()
		if tasks.Wait(&group, 2*time.Second) || time.Since(began) != 2*time.Second {
			t.Errorf("after %v the tasks have ended", time.Since(began))
		}
		if !tasks.Wait(&group, 2*time.Second) || time.Since(began) != 3*time.Second {
			t.Errorf("after %v the tasks have not ended", time.Since(began))
		}
	})
}
