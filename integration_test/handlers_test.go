package integration_test

import (
	"context"
	"slices"
	"sync/atomic"
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
	other := listen(t, b.Direct(), "x")
	emitNumbers(t, a.Peer(b.ID()), "x", 1)
	other.wait(1, soon)
	<-called
	off()
	off() // a second call does nothing
	emitNumbers(t, a.Peer(b.ID()), "x", 1)
	other.wait(2, soon)
	if len(called) != 0 {
		t.Error("a handler was called after it was removed")
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
		if err := a.Broadcast().Emit(t.Context(), name, i); err != nil { // b has no handler for any of them
			t.Fatal(err)
		}
	}
	if got := numbers(t, in.wait(3, soon)); !slices.Equal(got, []int{0, 1, 5}) {
		t.Errorf("c got %v named error, want 0, 1 and 5", got)
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
	t.Run(checker.Direct, func(t *testing.T) {
		_, a, b := pair(t)
		answerEachOther(t, many(20_000), player{a.Direct(), a.Peer(b.ID())}, player{b.Direct(), b.Peer(a.ID())})
	})
	t.Run(checker.Broadcast, func(t *testing.T) {
		_, a, b := pair(t)
		// Fewer than direct events, since each broadcast is signed.
		answerEachOther(t, many(2000), player{a.Broadcast(), a.Broadcast()}, player{b.Broadcast(), b.Broadcast()})
	})
}

// A player answers each event of the other player.
type player struct {
	from smokesignal.Source
	to   smokesignal.Emitter
}

// answerEachOther lets the players answer each other's events until there were total
// answers. It starts with more events than a queue holds.
func answerEachOther(t *testing.T, total int, players ...player) {
	t.Helper()
	const chains = 600
	ball := make([]byte, 1024)
	var answers atomic.Int64
	done := make(chan struct{})
	for _, p := range players {
		p.from.On("ball", func(ctx context.Context, ev *smokesignal.Event) {
			n := int(answers.Add(1))
			if n == total {
				close(done)
			}
			if n >= total {
				return
			}
			if err := p.to.Emit(ctx, "ball", ball); err != nil && int(answers.Load()) < total {
				t.Errorf("answer: %v", err) // once there are enough, the nodes are being closed
			}
		})
	}
	began := time.Now()
	for range chains {
		for _, p := range players {
			if err := p.to.Emit(t.Context(), "ball", ball); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case <-done:
		t.Logf("%d answers in %v", total, time.Since(began).Round(time.Millisecond))
	case <-time.After(soon):
		t.Errorf("stuck at %d of %d answers", answers.Load(), total)
	}
}
