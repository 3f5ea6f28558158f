package integration_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestPanickingHandlerStopsNothing shows that other handlers get all events beside a
// handler that panics.
func TestPanickingHandlerStopsNothing(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	b.Direct().On("x", func(context.Context, *smokesignal.Event) { panic("a handler of the test") })
	b.Broadcast().On("x", func(context.Context, *smokesignal.Event) { panic("a handler of the test") })
	direct, broadcast := listen(t, b.Direct(), "x"), listen(t, b.Broadcast(), "x")
	emitNumbers(t, a.Peer(b.ID()), "x", 5)
	emitNumbers(t, a.Broadcast(), "x", 5)
	wantNumbers(t, "b", direct.wait(5, soon), 5)
	wantNumbers(t, "b", broadcast.wait(5, soon), 5)
}

// TestSlowDirectHandlerDelaysOnlyItsSender shows that events of one sender are handled
// while a handler blocks on those of another.
func TestSlowDirectHandlerDelaysOnlyItsSender(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(b, c)
	release := make(chan struct{})
	b.Peer(a.ID()).On("x", func(context.Context, *smokesignal.Event) { <-release })
	defer close(release)
	fromC := listen(t, b.Peer(c.ID()), "x")
	emitNumbers(t, a.Peer(b.ID()), "x", 1)
	emitNumbers(t, c.Peer(b.ID()), "x", 200)
	wantNumbers(t, "b, from c,", fromC.wait(200, soon), 200)
}

// TestRemovedHandlerIsNotCalled shows that a handler is not called any more once it was
// removed, and may be removed twice.
func TestRemovedHandlerIsNotCalled(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	called := make(chan struct{}, 10)
	off := b.Direct().On("x", func(context.Context, *smokesignal.Event) { called <- struct{}{} })
	stays := listen(t, b.Direct(), "x")
	emitNumbers(t, a.Peer(b.ID()), "x", 1)
	stays.wait(1, soon)
	<-called
	off()
	off() // twice is fine
	emitNumbers(t, a.Peer(b.ID()), "x", 1)
	stays.wait(2, soon)
	if len(called) != 0 {
		t.Error("called after off")
	}
}

// TestEventNamedErrorIsOrdinary shows that events may have names that Node.js treats in
// a special way, such as error.
func TestEventNamedErrorIsOrdinary(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(b, c)
	in := listen(t, c.Broadcast(), "error")
	direct := listen(t, a.Direct(), "error")
	for i, name := range []string{"error", "error", "close", "end", "newListener", "error"} {
		if err := a.Broadcast().Emit(t.Context(), name, i); err != nil { // b listens to none of them
			t.Fatal(err)
		}
	}
	if got := numbers(t, in.wait(3, soon)); !slices.Equal(got, []int{0, 1, 5}) {
		t.Errorf("c heard %v named error, want 0, 1 and 5", got)
	}
	emitNumbers(t, b.Peer(a.ID()), "error", 2)
	wantNumbers(t, "a", direct.wait(2, soon), 2)
	for _, n := range []*smokesignal.Node{a, b, c} {
		if err := n.Err(); err != nil || !n.Connected() {
			t.Errorf("%s: connected=%v, %v", l.name(n), n.Connected(), err)
		}
	}
}

// TestAnsweringFromHandlers shows that two nodes that answer each other's events from
// their handlers as fast as they can do not lock up, on either channel.
func TestAnsweringFromHandlers(t *testing.T) {
	t.Parallel()
	for _, channel := range []string{checker.Direct, checker.Broadcast} {
		t.Run(channel, func(t *testing.T) {
			const chains = 600    // events under way at once: more than a queue holds
			total := many(20_000) // answers
			if channel == checker.Broadcast {
				total = many(2000) // each of them is signed
			}
			_, a, b := pair(t)
			var mu sync.Mutex
			var complain sync.Once
			answers, done := 0, make(chan struct{})
			for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
				var to smokesignal.Emitter = n.Broadcast()
				var from smokesignal.Source = n.Broadcast()
				if channel == checker.Direct {
					to, from = n.Peer(other.ID()), n.Direct()
				}
				from.On("ball", func(ctx context.Context, ev *smokesignal.Event) {
					mu.Lock()
					answers++
					if answers == total {
						close(done)
					}
					more := answers < total
					mu.Unlock()
					if more {
						if err := to.Emit(ctx, "ball", make([]byte, 1024)); err != nil {
							select {
							case <-done: // the test is over and its nodes are being closed
							default:
								complain.Do(func() { t.Errorf("answer: %v", err) })
							}
						}
					}
				})
			}
			began := time.Now()
			for range chains {
				for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
					var to smokesignal.Emitter = n.Broadcast()
					if channel == checker.Direct {
						to = n.Peer(other.ID())
					}
					if err := to.Emit(t.Context(), "ball", make([]byte, 1024)); err != nil {
						t.Fatal(err)
					}
				}
			}
			select {
			case <-done:
				t.Logf("%d answers in %v", total, time.Since(began).Round(time.Millisecond))
			case <-time.After(soon):
				mu.Lock()
				defer mu.Unlock()
				t.Errorf("stuck at %d of %d answers", answers, total)
			}
		})
	}
}
