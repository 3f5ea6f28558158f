package fair

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// bench is a Scheduler of numbers, each of which takes a second of virtual time.
type bench struct {
	*Scheduler[string, *numbers]
	mu      sync.Mutex
	done    []string
	busy    map[string]bool
	most    int // goroutines at a time
	started int // goroutines
}

type numbers struct{ list []string }

func (n *numbers) Empty() bool { return len(n.list) == 0 }

func newBench(t *testing.T, workers int) *bench {
	b := &bench{busy: map[string]bool{}}
	b.Scheduler = New(&b.mu, Config[string, *numbers]{
		MaxWorkers: workers,
		Go: func(work func(context.Context)) {
			b.started++
			go work(t.Context())
		},
		Turn: func(ctx context.Context, sender string, q *numbers) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.busy[sender] {
				t.Errorf("%s has two turns at a time", sender)
			}
			if b.Closed() {
				return
			}
			b.busy[sender] = true
			b.most = max(b.most, len(b.busy))
			n := q.list[0]
			q.list = q.list[1:]
			b.mu.Unlock()
			time.Sleep(time.Second)
			b.mu.Lock()
			delete(b.busy, sender)
			b.done = append(b.done, sender+n)
		},
	})
	return b
}

func (b *bench) push(sender string, list ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q, ok := b.Queue(sender); ok {
		q.list = append(q.list, list...)
		return
	}
	b.Add(sender, &numbers{list})
}

func (b *bench) wantDone(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.done, want) {
		t.Errorf("done: %v, want %v", b.done, want)
	}
}

// Senders with waiting work are served in turn, one unit of work each.
func TestSendersTakeTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.push("a", "1", "2", "3")
		b.push("b", "1")
		b.push("a", "4")
		b.push("c", "1", "2")
		time.Sleep(time.Minute)
		b.wantDone(t, "a1", "b1", "c1", "a2", "c2", "a3", "a4")
	})
}

// A slow sender delays no other sender while a goroutine is free.
func TestASlowSenderKeepsNobodyWaitingWhileThereAreGoroutines(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		for _, sender := range []string{"a", "b", "c"} {
			b.push(sender, "1", "2")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(b.done) != 6 || b.most != 2 || b.started != 2 {
			t.Errorf("%d of 6 done by %d goroutines, %d at a time", len(b.done), b.started, b.most)
		}
	})
}

// The goroutines of a scheduler without work end.
func TestGoroutinesEndWhenThereIsNoWork(t *testing.T) {
	bubble.Test(t, func(t *testing.T) { // a goroutine that is left fails it
		b := newBench(t, 1)
		b.push("a", "1")
		time.Sleep(time.Second)
		b.wantDone(t, "a1")
		if b.Len() != 0 || b.workers != 0 {
			t.Errorf("%d senders and %d goroutines are left", b.Len(), b.workers)
		}
		b.push("a", "2")
		time.Sleep(time.Second)
		b.wantDone(t, "a1", "a2")
	})
}

// A turn that ends its goroutine does not stop the other turns.
func TestGoexitInATurnStopsNothingElse(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		turn := b.cfg.Turn
		b.cfg.Turn = func(ctx context.Context, sender string, q *numbers) {
			turn(ctx, sender, q)
			runtime.Goexit()
		}
		b.push("a", "1", "2")
		b.push("b", "1")
		time.Sleep(time.Minute)
		b.wantDone(t, "a1", "b1", "a2")
		if b.most != 1 || b.started != 3 || b.workers != 0 {
			t.Errorf("%d goroutines were started, %d ran at a time, %d are left", b.started, b.most, b.workers)
		}
	})
}

// Close drops the work that has not begun.
func TestCloseDropsWaitingWork(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.push("a", "1", "2")
		b.push("b", "1")
		synctest.Wait()
		b.mu.Lock()
		waiting := 0
		for _, q := range b.All() {
			waiting += len(q.list)
		}
		b.Close()
		b.mu.Unlock()
		b.push("c", "1")
		time.Sleep(time.Minute)
		b.wantDone(t, "a1") // had its turn
		if waiting != 2 || b.Len() != 0 {
			t.Errorf("%d waited before Close, %d senders after it", waiting, b.Len())
		}
	})
}
