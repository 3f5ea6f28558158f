package dispatch

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

var discard = slog.New(slog.DiscardHandler)

// calls notes the order in which handlers are called.
type calls []string

func (c *calls) note(s string) func(context.Context, *event.Event) {
	return func(context.Context, *event.Event) { *c = append(*c, s) }
}

func (c *calls) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(*c, want) {
		t.Errorf("called %q, want %q", *c, want)
	}
	*c = nil
}

func eventFrom(from peer.ID, name string) *event.Event { return &event.Event{From: from, Name: name} }

// Matching handlers are called in the order of their registration, and not after they were
// removed.
func TestHandlersAreCalledInOrderOfRegistration(t *testing.T) {
	m := New(discard)
	ctx := t.Context()
	var got calls
	offs := []func(){
		m.OnFrom("p", "a", got.note("p/a")),
		m.On("*", got.note("*")),
		m.On("a", got.note("a")),
		m.OnFrom("p", "*", got.note("p/*")),
		m.On("a", got.note("a again")),
		m.On("b", got.note("b")),
		m.OnFrom("q", "a", got.note("q/a")),
	}
	m.Dispatch(ctx, eventFrom("p", "a"))
	got.want(t, "p/a", "*", "a", "p/*", "a again")
	m.Dispatch(ctx, eventFrom("r", "a"))
	got.want(t, "*", "a", "a again")
	m.Dispatch(ctx, eventFrom("q", "b"))
	got.want(t, "*", "b")

	offs[2]()
	offs[2]() // twice is fine
	m.Dispatch(ctx, eventFrom("p", "a"))
	got.want(t, "p/a", "*", "p/*", "a again")
	for _, off := range offs {
		off()
	}
	m.Dispatch(ctx, eventFrom("p", "a"))
	got.want(t)
	if n := m.Unhandled(); n != 1 {
		t.Errorf("%d events unhandled, want 1", n)
	}
	if len(m.handlers) != 0 {
		t.Errorf("handlers left: %v", m.handlers)
	}
}

// A handler may add and remove handlers, and a removed handler is not called even for the
// current event.
func TestHandlersMayChangeHandlers(t *testing.T) {
	m := New(discard)
	var got calls
	var offSelf, offNext func()
	offSelf = m.On("a", func(context.Context, *event.Event) {
		got = append(got, "first")
		offSelf()
		offNext() // after this it is not called, not even for this event
		m.On("a", got.note("new"))
	})
	offNext = m.On("a", got.note("second"))
	m.On("a", got.note("third"))
	m.Dispatch(t.Context(), eventFrom("p", "a"))
	got.want(t, "first", "third")
	m.Dispatch(t.Context(), eventFrom("p", "a"))
	got.want(t, "third", "new")
}

// The goroutine of a stream caches the handlers it found last and notices changes of them.
func TestEnteredGoroutineSeesChanges(t *testing.T) {
	m := New(discard)
	ctx, leave := m.Enter(t.Context())
	defer leave()
	var got calls
	m.Dispatch(ctx, eventFrom("p", "a"))
	off := m.On("a", got.note("a"))
	m.Dispatch(ctx, eventFrom("p", "a"))
	m.Dispatch(ctx, eventFrom("p", "b"))
	m.OnFrom("q", "a", got.note("q"))
	m.Dispatch(ctx, eventFrom("q", "a"))
	off()
	m.Dispatch(ctx, eventFrom("q", "a"))
	m.Dispatch(ctx, eventFrom("p", "a"))
	got.want(t, "a", "a", "q", "q")
}

// A panic in a handler is caught, logged with its stack and counted, and the later
// handlers are called.
func TestPanicsAreCaughtLoggedAndCounted(t *testing.T) {
	var log bytes.Buffer
	m := New(eventtest.LogTo(&log))
	var got calls
	m.On("a", func(context.Context, *event.Event) { panic("oh no") })
	m.On("a", func(context.Context, *event.Event) { var e *event.Event; e.Name = "" })
	m.On("a", got.note("last"))
	m.Dispatch(t.Context(), eventFrom("p", "a"))
	got.want(t, "last")
	if n := m.Panics(); n != 2 {
		t.Errorf("%d panics counted, want 2", n)
	}
	for _, want := range []string{"level=ERROR", "oh no", "nil pointer", "TestPanicsAreCaughtLoggedAndCounted"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q: %s", want, &log)
		}
	}
}

// A handler for a name that no event can have is logged as an error.
func TestHandlerForAnInvalidNameIsLogged(t *testing.T) {
	for _, name := range []string{"", "a\xff", strings.Repeat("n", 129)} {
		var log bytes.Buffer
		m := New(eventtest.LogTo(&log))
		m.On(name, func(context.Context, *event.Event) {})()
		if !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("%q: log %q", name, &log)
		}
	}
}

// Handlers may be added and removed while other goroutines dispatch.
func TestHandlersMayChangeDuringDispatch(t *testing.T) {
	m := New(discard)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				m.On("a", func(context.Context, *event.Event) {})()
			}
		})
		wg.Go(func() {
			ctx, leave := m.Enter(context.Background())
			defer leave()
			for range 1000 {
				m.Dispatch(ctx, eventFrom("p", "a"))
			}
		})
	}
	wg.Wait()
}

// Wait returns when the handlers have returned, or at the end of its ctx; inside a handler
// it waits for the other handlers only, and not forever.
func TestWaitIsForOtherHandlersOnly(t *testing.T) {
	type key struct{}
	bubble.Test(t, func(t *testing.T) {
		m := New(discard)
		base, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "v"))
		if InHandler(base) {
			t.Error("not in a handler")
		}
		release := make(chan struct{})
		m.On("block", func(ctx context.Context, _ *event.Event) {
			if ctx.Value(key{}) != "v" || !InHandler(ctx) {
				t.Error("the handler's context lacks something")
			}
			<-release
		})
		m.On("self", func(ctx context.Context, _ *event.Event) {
			// A handler does not wait for itself, not even through a derived
			// context, but for others; and not for ever, though its own
			// context ends first.
			cancel()
			start := time.Now()
			if err := m.wait(context.WithValue(ctx, key{}, 1)); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != handlersTimeout {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			short, cancel := context.WithDeadline(ctx, start.Add(7*time.Second))
			defer cancel()
			if err := m.wait(short); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 7*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			close(release)
			if err := m.wait(ctx); err != nil {
				t.Error(err)
			}
		})
		go m.Dispatch(base, eventFrom("p", "block"))
		synctest.Wait()
		ended, end := context.WithCancel(context.Background())
		end()
		if err := m.wait(ended); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		ctx, leave := m.Enter(base)
		m.Dispatch(ctx, eventFrom("p", "self"))
		leave()
		if err := m.wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// Handlers that panic, end their goroutine or have the wrong type are logged without any
// configuration.
func TestFaultsOfHandlersAreLoggedByDefault(t *testing.T) {
	for what, c := range map[string]struct {
		handle func(t *Turn)
		want   string
	}{
		"panic":     {func(*Turn) { panic("a bug") }, "a handler panicked"},
		"goexit":    {func(*Turn) { runtime.Goexit() }, "a handler called runtime.Goexit"},
		"undecoded": {func(r *Turn) { r.Undecodable("x", "somebody", errors.New("not a number")) }, "a handler cannot decode an event"},
	} {
		var out bytes.Buffer
		before := slog.Default()
		slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
		m := New(logging.Package("events", nil))
		m.On("x", func(ctx context.Context, _ *event.Event) { c.handle(ctx.(*Turn)) })
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.Dispatch(t.Context(), eventtest.Decoded(t, "x"))
		}()
		<-done
		slog.SetDefault(before)
		if !strings.Contains(out.String(), c.want) || !strings.Contains(out.String(), "level=ERROR") {
			t.Errorf("%s: %q, want %q at level error", what, &out, c.want)
		}
		// A logger of the application's is used in its place.
		var own bytes.Buffer
		m = New(logging.Package("events", slog.NewTextHandler(&own, nil)))
		m.LogMalformed("somebody", errors.New("rubbish"))
		if !strings.Contains(own.String(), "rubbish") {
			t.Errorf("the application's logger got %q", &own)
		}
	}
}
