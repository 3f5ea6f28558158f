package direct

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

var double = Call[int, int]("double")

func answerDouble(_ context.Context, _ peer.ID, n int) (int, error) { return 2 * n, nil }

// do makes a call and expects the answer want.
func do[In, Out any](t testing.TB, c Call[In, Out], to *remote, in In, want Out) {
	t.Helper()
	if got, err := c.Do(t.Context(), to, in); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s(%v): %v, %v; want %v", c, in, got, err, want)
	}
}

// A call returns the results of its handler, also when many calls run at the same time.
func TestCalls(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		to := a.to(b.id())
		who := func(_ context.Context, from peer.ID, _ struct{}) (peer.ID, error) { return from, nil }
		Call[struct{}, peer.ID]("who").Handle(b, who)
		Call[[]byte, []byte]("echo").Handle(b, func(_ context.Context, _ peer.ID, p []byte) ([]byte, error) { return p, nil })
		Call[string, struct{}]("note").Handle(b, func(context.Context, peer.ID, string) (struct{}, error) { return struct{}{}, nil })
		double.Handle(b, answerDouble)
		do(t, Call[struct{}, peer.ID]("who"), to, struct{}{}, a.id())
		for _, n := range []int{1, 3000, 200_000, 500_000} {
			do(t, Call[[]byte, []byte]("echo"), to, []byte(strings.Repeat("x", n)), []byte(strings.Repeat("x", n)))
		}
		do(t, Call[string, struct{}]("note"), to, "text", struct{}{})
		do(t, double, to, 21, 42)

		// Any number of arguments and results.
		b.Handle("divide", func(_ context.Context, ev *event.Event) ([]any, error) {
			var x, y int
			if err := ev.Decode(&x, &y); err != nil {
				return nil, err
			}
			return []any{x / y, x % y}, nil
		})
		answer, err := a.Call(t.Context(), b.id(), "divide", 17, 5)
		if err != nil {
			t.Fatal(err)
		}
		var q, r int
		if err := answer.Decode(&q, &r); err != nil || q != 3 || r != 2 || answer.From != b.id() || answer.Name != "divide" {
			t.Error(q, r, err, answer)
		}

		// Many at a time: each gets its own answer.
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for n := range 200 {
					do(t, double, to, 1000*i+n, 2*(1000*i+n))
				}
			})
		}
		wg.Wait()
		if s := b.Stats(); faults(s) > 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Each way in which a call can fail has its own error, and a call that is refused runs no
// handler.
func TestErrorsOfCalls(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	hosttest.Connect(t, ha, hb)
	a, b := New(ha, Config{MaxEventSize: 2000}), newDirect(t, hb, Config{MaxEventSize: 2000, Log: eventtest.LogTo(&log)})
	ran := 0
	b.Handle("*", func(_ context.Context, ev *event.Event) ([]any, error) {
		ran++
		switch ev.Name {
		case "fail":
			return nil, errors.New("no such\nlamp")
		case "talk":
			return nil, errors.New(strings.Repeat("ä", 4000) + "\xff")
		case "panic":
			panic("secret")
		case "large":
			return []any{make([]byte, 3000)}, nil
		case "unsendable":
			return []any{math.NaN()}, nil
		case "text":
			return []any{"text"}, nil
		}
		return nil, nil
	})
	double.Handle(b, func(context.Context, peer.ID, int) (int, error) { ran++; return 0, nil })
	check := func(name string, want error, runs int, text string, args ...any) {
		t.Helper()
		ran = 0
		_, err := a.Call(t.Context(), b.id(), name, args...)
		if !errors.Is(err, want) || errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("%s: got %v, want %v", name, err, want)
		}
		if ran != runs {
			t.Errorf("%s: %d handlers have run, want %d", name, ran, runs)
		}
		for _, text := range []string{text, "call " + event.Quote(name), b.id().String()} {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q lacks %q", err, text)
			}
		}
		if strings.Count(err.Error(), "events: ") != 1 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q does not read as one line", err)
		}
	}
	check("early", errs.ErrNotStarted, 0, "")
	a.Start()
	check("*", event.ErrBadName, 0, "")
	check("send", event.ErrTooLarge, 0, "", make([]byte, 2000))
	check("send", event.ErrBadArgument, 0, "argument 2", 1, func() {})
	check("fail", ErrRemoteHandler, 1, `"no such\nlamp"`)
	check("panic", ErrRemoteHandler, 1, "panicked")
	check("large", ErrRemoteHandler, 1, "too large")
	check("unsendable", ErrRemoteHandler, 1, "bad argument")
	check("double", event.ErrBadArgument, 0, "argument 1", "no number")
	check("double", event.ErrBadArgument, 0, "argument 1 asked for")
	if s := b.Stats(); s["panics"] != 1 || s["undecodable"] != 2 {
		t.Errorf("%+v", s)
	}
	_, err := a.Call(t.Context(), b.id(), "talk")
	if remote, ok := errors.AsType[*RemoteError](err); !ok || remote.Text != strings.Repeat("ä", maxErrorText/2) {
		t.Error(err)
	}
	nobody := newDirect(t, newHost(t, tcp), Config{})
	hosttest.Connect(t, ha, nobody.host)
	start := time.Now()
	if _, err := a.Call(t.Context(), nobody.id(), "x"); !errors.Is(err, ErrNoHandler) {
		t.Error(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("without a handler it took %v", d)
	}
	if s := nobody.Stats(); s["unhandled"] != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := a.Call(t.Context(), newHost(t, tcp).ID(), "x"); !errors.Is(err, ErrNotConnected) || errors.Is(err, ErrUnknownOutcome) {
		t.Error(err)
	}
	if text := log.String(); !strings.Contains(text, "secret") || !strings.Contains(text, "results cannot be sent") {
		t.Error("the log:", text)
	}
	closeDirect(t, a)
	check("late", errs.ErrClosed, 0, "")
}

// A call ends at the deadline of its ctx, shorter or longer than the default timeout, and
// without a deadline at the default timeout.
func TestCallsEndInTime(t *testing.T) {
	t.Parallel()
	const usual = 200 * time.Millisecond
	a, b := pair(t, tcp, Config{CallTimeout: usual})
	thaw := make(chan struct{})
	ran := make(chan struct{}, 1)
	double.Handle(b, func(_ context.Context, _ peer.ID, n int) (int, error) {
		ran <- struct{}{}
		<-thaw
		return 2 * n, nil
	})
	for _, c := range []struct {
		deadline, least time.Duration
	}{{0, usual}, {usual / 4, usual / 4}, {2 * usual, 2 * usual}} {
		start := time.Now() // before that of the deadline
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if c.deadline > 0 {
			ctx, cancel = context.WithTimeout(ctx, c.deadline)
		}
		_, err := double.Do(ctx, a.to(b.id()), 1)
		if !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if d := time.Since(start); d < c.least {
			t.Errorf("with a deadline of %v it ended after %v", c.deadline, d)
		}
		cancel()
		<-ran
		thaw <- struct{}{}
	}
	// Answers that come too late disturb nobody.
	close(thaw)
	do(t, double, a.to(b.id()), 2, 4)
	if s := a.Stats(); faults(s) > 0 {
		t.Errorf("%+v", s)
	}
}

// A call that is canceled while it is in the queue does not run, and its error says so.
func TestCallCanceledInTheQueueDoesNotRun(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{StallTimeout: time.Hour})
		thaw := make(chan struct{})
		b.On("hold", func(context.Context, *event.Event) { <-thaw })
		b.On("fill", func(context.Context, *event.Event) {})
		var ran atomic.Int32
		double.Handle(b, func(_ context.Context, _ peer.ID, n int) (int, error) {
			if ran.Add(1); n == 13 {
				t.Error("a call ran that had been taken back")
			}
			return 2 * n, nil
		})
		emit(t, a, b.id(), "hold")
		// One event of the queue's size waits behind the writer, which cannot
		// write another one of that size.
		for full := false; !full; {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			full = a.Emit(ctx, b.id(), "fill", make([]byte, 500<<10)) != nil
			cancel()
		}
		l, err := a.queueFor(b.id())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, n := range []int{12, 13, 14} {
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() {
				got, err := double.Do(ctx, a.to(b.id()), n)
				switch {
				case n != 13 && (err != nil || got != 2*n):
					t.Error(n, got, err)
				case n == 13 && (!errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknownOutcome)):
					t.Error(err)
				}
			})
			waitFor(t, func() bool { return pending(l) == n-11 || n == 14 && pending(l) == 2 })
			if n == 13 {
				cancel()
				waitFor(t, func() bool { return pending(l) == 1 })
			}
			defer cancel()
		}
		close(thaw)
		wg.Wait()
		if err := a.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		if n := ran.Load(); n != 2 {
			t.Errorf("%d calls ran", n)
		}
	})
}

func pending(l *sendQueue) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

// A stream that breaks during a call leaves its outcome unknown; the call is not sent
// again, and the next call opens a new stream.
func TestCallOnALostStreamHasAnUnknownOutcome(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		for name, cut := range map[string]func(){
			"stream": func() {
				for _, s := range inboundOf(b, a.id()) {
					s.Reset()
				}
			},
			"connection": func() { a.host.Network().ClosePeer(b.id()) },
			"goroutine":  nil, // of the handler
		} {
			began, thaw := make(chan struct{}), make(chan struct{})
			var ran atomic.Int32
			off := double.Handle(b, func(_ context.Context, _ peer.ID, n int) (int, error) {
				if n == 0 {
					ran.Add(1)
					close(began)
					if cut == nil {
						runtime.Goexit()
					}
					<-thaw
				}
				return 2 * n, nil
			})
			err := make(chan error)
			go func() {
				_, e := double.Do(t.Context(), a.to(b.id()), 0)
				err <- e
			}()
			<-began
			if cut != nil {
				cut()
			}
			if err := <-err; !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, ErrNotConnected) {
				t.Errorf("%s: %v", name, err)
			}
			close(thaw)
			for {
				if n, err := double.Do(t.Context(), a.to(b.id()), 4); err == nil {
					if n != 8 {
						t.Error(name, n)
					}
					break
				} else if !errors.Is(err, ErrNotConnected) {
					t.Fatal(name, err)
				}
			}
			if n := ran.Load(); n != 1 {
				t.Errorf("%s: it ran %d times", name, n)
			}
			off()
		}
	})
}

// While streams break all the time, no call runs twice, every answered call has run, and
// each error says whether the call may have run.
func TestNoCallRunsTwice(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		const callers, calls = 4, 300
		var mu sync.Mutex
		ran := map[int]int{}
		double.Handle(b, func(_ context.Context, _ peer.ID, n int) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			ran[n]++
			return 2 * n, nil
		})
		var answered, unknown atomic.Int64
		var wg sync.WaitGroup
		for who := range callers {
			wg.Go(func() {
				for i := range calls {
					n := calls*who + i
					got, err := double.Do(t.Context(), a.to(b.id()), n)
					mu.Lock()
					times := ran[n]
					mu.Unlock()
					switch {
					case err == nil && got == 2*n && times == 1:
						answered.Add(1)
					case errors.Is(err, ErrUnknownOutcome):
						unknown.Add(1)
					case err == nil || times > 0:
						t.Errorf("call %d: %d, %v, ran %d times", n, got, err, times)
					}
				}
			})
		}
		stop := make(chan struct{})
		cutter := make(chan struct{})
		go func() {
			defer close(cutter)
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					for _, s := range inboundOf(b, a.id()) {
						s.Reset()
					}
				}
			}
		}()
		wg.Wait()
		close(stop)
		<-cutter
		for n, times := range ran {
			if times > 1 {
				t.Errorf("call %d ran %d times", n, times)
			}
		}
		t.Logf("%d answered, %d unknown", answered.Load(), unknown.Load())
		if answered.Load() == 0 {
			t.Error("nothing was answered")
		}
	})
}

// The events and calls of one caller are handled in the order in which it sent them.
func TestCallsKeepTheOrderOfEvents(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	n := 0
	b.On("add", func(context.Context, *event.Event) { n++ })
	Call[struct{}, int]("count").Handle(b, func(context.Context, peer.ID, struct{}) (int, error) { return n, nil })
	for i := range 100 {
		for range i {
			emit(t, a, b.id(), "add")
		}
		do(t, Call[struct{}, int]("count"), a.to(b.id()), struct{}{}, i*(i+1)/2)
	}
}

// A handler may call the node whose event or call it handles: the answer does not wait
// behind that handler.
func TestCallsFromHandlers(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		double.Handle(a, answerDouble)
		Call[int, int]("through a").Handle(b, func(ctx context.Context, from peer.ID, n int) (int, error) {
			return double.Do(ctx, b.to(from), n+1)
		})
		do(t, Call[int, int]("through a"), a.to(b.id()), 1, 4)
		got := make(chan string, 1)
		b.On("event", func(ctx context.Context, ev *event.Event) {
			n, err := double.Do(ctx, b.to(ev.From), 5)
			got <- fmt.Sprint(n, err)
		})
		emit(t, a, b.id(), "event")
		want(t, got, "10 <nil>")
	})
}

// Two nodes that wait for each other in their handlers do so only until their calls time
// out; then both continue.
func TestHandlersThatCallEachOtherTimeOut(t *testing.T) {
	a, b := pair(t, tcp, Config{CallTimeout: 300 * time.Millisecond})
	var both sync.WaitGroup // both handlers run
	both.Add(2)
	errs := make(chan error, 2)
	for _, d := range []*Direct{a, b} {
		double.Handle(d, answerDouble)
		d.On("cross", func(ctx context.Context, ev *event.Event) {
			both.Done()
			both.Wait()
			_, err := double.Do(ctx, d.to(ev.From), 1)
			errs <- err
		})
	}
	emit(t, a, b.id(), "cross")
	emit(t, b, a.id(), "cross")
	for range 2 {
		// The one that ends first frees the other one.
		if err := <-errs; err != nil && !errors.Is(err, ErrUnknownOutcome) {
			t.Error(err)
		}
	}
	do(t, double, a.to(b.id()), 2, 4)
	do(t, double, b.to(a.id()), 2, 4)
}

// Calls in flight end with the Direct, or with the link.
func TestClosingEndsCalls(t *testing.T) {
	t.Parallel()
	inFlight := func(t *testing.T) (a, b *Direct, err chan error) {
		a, b = pair(t, tcp, Config{})
		began := make(chan struct{})
		double.Handle(b, func(ctx context.Context, _ peer.ID, n int) (int, error) {
			close(began)
			<-ctx.Done()
			return n, nil
		})
		err = make(chan error, 1)
		go func() {
			_, e := double.Do(t.Context(), a.to(b.id()), 0)
			err <- e
		}()
		<-began
		return a, b, err
	}
	t.Run("close", func(t *testing.T) {
		a, _, err := inFlight(t)
		closeDirect(t, a)
		if err := <-err; !errors.Is(err, errs.ErrClosed) || !errors.Is(err, ErrUnknownOutcome) {
			t.Error(err)
		}
	})
	t.Run("the other side closes", func(t *testing.T) {
		_, b, err := inFlight(t)
		closeDirect(t, b)
		if err := <-err; errors.Is(err, errs.ErrClosed) || err != nil && !errors.Is(err, ErrUnknownOutcome) {
			t.Error(err)
		}
	})
	t.Run("release", func(t *testing.T) {
		a, b, err := inFlight(t)
		why := errors.New("silence")
		a.Release(b.id(), why)
		if err := <-err; !errors.Is(err, why) || !errors.Is(err, ErrNotConnected) || !errors.Is(err, ErrUnknownOutcome) {
			t.Error(err)
		}
	})
	t.Run("in a handler", func(t *testing.T) {
		a, b := pair(t, tcp, Config{})
		double.Handle(b, func(ctx context.Context, _ peer.ID, n int) (int, error) { <-ctx.Done(); return n, nil })
		err := make(chan error, 1)
		a.On("x", func(ctx context.Context, ev *event.Event) {
			_, e := double.Do(ctx, a.to(ev.From), 0)
			err <- e
		})
		emit(t, b, a.id(), "x")
		waitFor(t, func() bool {
			l, e := a.queueFor(b.id())
			return e == nil && pending(l) == 1
		})
		closeDirect(t, a)
		if err := <-err; !errors.Is(err, errs.ErrClosed) {
			t.Error(err)
		}
	})
}

// The number of calls that wait for an answer is bounded; further calls wait before they
// are sent.
func TestCallsAreBounded(t *testing.T) {
	a, b := pair(t, tcp, Config{MaxCalls: 2})
	thaw := make(chan struct{})
	double.Handle(b, func(_ context.Context, _ peer.ID, n int) (int, error) { <-thaw; return 2 * n, nil })
	var wg sync.WaitGroup
	for n := range 2 {
		wg.Go(func() { do(t, double, a.to(b.id()), n, 2*n) })
	}
	l, err := a.queueFor(b.id())
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return pending(l) == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := double.Do(ctx, a.to(b.id()), 3); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknownOutcome) {
		t.Error(err)
	}
	emit(t, a, b.id(), "an event passes")
	wg.Go(func() { do(t, double, a.to(b.id()), 4, 8) })
	close(thaw)
	wg.Wait()
	if n := pending(l); n != 0 {
		t.Errorf("%d calls are waited for", n)
	}
}

// The handler for the caller and the name answers a call before a less specific one, and
// of equal handlers the latest.
func TestMostSpecificHandlerAnswers(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	is := func(text string) func(context.Context, *event.Event) ([]any, error) {
		return func(context.Context, *event.Event) ([]any, error) { return []any{text}, nil }
	}
	check := func(want string) {
		t.Helper()
		do(t, Call[struct{}, string]("x"), a.to(b.id()), struct{}{}, want)
	}
	offs := map[string]func(){}
	for _, step := range []struct {
		name string
		on   func() func()
	}{
		{"all", func() func() { return b.Handle("*", is("all")) }},
		{"all from a", func() func() { return b.HandleFrom(a.id(), "*", is("all from a")) }},
		{"x", func() func() { return b.Handle("x", is("x")) }},
		{"x again", func() func() { return b.Handle("x", is("x again")) }},
		{"x from a", func() func() { return b.to(a.id()).Handle("x", is("x from a")) }},
	} {
		b.HandleFrom("somebody else", "x", is("wrong"))
		offs[step.name] = step.on()
		check(step.name)
	}
	for _, step := range [][2]string{{"x from a", "x again"}, {"x", "x again"}, {"x again", "all from a"}, {"all from a", "all"}} {
		offs[step[0]]()
		offs[step[0]]() // twice is fine
		check(step[1])
	}
	b.Handle("", is("never"))
	b.On("x", func(context.Context, *event.Event) { t.Error("a call is not an event") })
	check("all")
	offs["all"]()
	if _, err := a.Call(t.Context(), b.id(), "x"); !errors.Is(err, ErrNoHandler) {
		t.Error(err)
	}
}

// TryEmit never waits: it returns an error when the queue is full, and opens a stream in
// the background.
func TestTryEmit(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		ha, hb := newHost(t, listen), newHost(t, listen)
		hosttest.Connect(t, ha, hb)
		a, b := New(ha, Config{QueueEvents: 10, StallTimeout: time.Hour}), newDirect(t, hb, Config{})
		if err := a.TryEmit(b.id(), "early"); !errors.Is(err, errs.ErrNotStarted) {
			t.Error(err)
		}
		a.Start()
		defer closeDirect(t, a)
		thaw := make(chan struct{})
		got := make(chan int, 100_000)
		b.On("hold", func(context.Context, *event.Event) { <-thaw })
		Name[[]byte]("n").On(b, func(_ context.Context, _ peer.ID, p []byte) { got <- len(p) })
		if err := a.TryEmit(b.id(), "hold"); err != nil {
			t.Fatal(err)
		}
		var err error
		sent := 0
		for stop := time.Now().Add(patience); !errors.Is(err, errs.ErrQueueFull) && time.Now().Before(stop); {
			if err = a.TryEmit(b.id(), "n", make([]byte, 100<<10+sent%7)); err == nil {
				sent++
			}
			runtime.Gosched()
		}
		if !errors.Is(err, errs.ErrQueueFull) || !strings.Contains(err.Error(), b.id().String()) {
			t.Fatal(err)
		}
		close(thaw)
		for i := range sent {
			if n := <-got; n != 100<<10+i%7 {
				t.Fatalf("event %d of %d bytes", i, n)
			}
		}
		if err := a.TryEmit(b.id(), "x", make([]byte, 1<<20)); !errors.Is(err, event.ErrTooLarge) {
			t.Error(err)
		}
		if err := a.to(b.id()).TryEmit("x"); err != nil {
			t.Error(err)
		}
		closeDirect(t, a)
		if err := a.TryEmit(b.id(), "x"); !errors.Is(err, errs.ErrClosed) {
			t.Error(err)
		}
	})
}

// Events that TryEmit accepted for a peer that cannot be reached are counted as unwritten.
func TestTryEmitToAnUnreachablePeerCountsUnwritten(t *testing.T) {
	a := newDirect(t, newHost(t, tcp), Config{StallTimeout: 200 * time.Millisecond})
	to := newHost(t, tcp).ID()
	for range 3 {
		if err := a.TryEmit(to, "x"); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool { return a.Stats()["unwritten"] == 3 })
	if n := a.Release(to, nil); n != 3 {
		t.Errorf("%d events unwritten", n)
	}
}
