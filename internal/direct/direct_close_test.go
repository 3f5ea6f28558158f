package direct

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/internal/pipe"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// left returns how many streams and whether a handler of direct events a host still has.
func left(h corehost.Host) (streams int, handler bool) {
	for _, c := range h.Network().Conns() {
		for _, s := range c.GetStreams() {
			if s.Protocol() == protocol.Events {
				streams++
			}
		}
	}
	return streams, slices.Contains(h.Mux().Protocols(), protocol.Events)
}

// Close leaves no goroutine, stream or handler on a host that stays open, whatever happens
// at the same time.
func TestCloseLeavesNothingBehind(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		ha, hb := newHost(t, listen), newHost(t, listen)
		hosttest.Connect(t, ha, hb)
		hb.SetStreamHandler(protocol.Events, func(network.Stream) {}) // hosts with one more handler
		hb.RemoveStreamHandler(protocol.Events)
		noneLeft := leaks.Watch(t)
		for name, use := range map[string]func(a, b *Direct){
			"unused": func(a, b *Direct) {},
			"idle":   func(a, b *Direct) { emit(t, a, b.id(), "x"); a.Flush(t.Context()) },
			"busy": func(a, b *Direct) {
				for range 1000 {
					emit(t, a, b.id(), "x")
					emit(t, b, a.id(), "x")
				}
			},
			"a handler that waits for its ctx": func(a, b *Direct) {
				in := make(chan struct{})
				b.On("x", func(ctx context.Context, _ *event.Event) { close(in); <-ctx.Done() })
				emit(t, a, b.id(), "x")
				<-in
			},
			"views that nobody reads": func(a, b *Direct) {
				b.Pipe(a.id())
				s := a.Pipe(b.id())
				for range 2 * pipe.MaxEvents {
					s.Write([]byte("x"))
				}
			},
		} {
			for _, order := range []string{"sender first", "receiver first", "at once"} {
				a, b := New(ha, Config{}), New(hb, Config{})
				a.Start()
				b.Start()
				use(a, b)
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				closeIt := func(d *Direct) {
					if err := d.Close(ctx); err != nil {
						t.Errorf("%s, %s: %v", name, order, err)
					}
				}
				switch order {
				case "sender first":
					closeIt(a)
					closeIt(b)
				case "receiver first":
					closeIt(b)
					closeIt(a)
				default:
					var wg sync.WaitGroup
					wg.Go(func() { closeIt(a) })
					wg.Go(func() { closeIt(b) })
					wg.Wait()
				}
				cancel()
				for _, h := range []corehost.Host{ha, hb} {
					// A stream that libp2p was just opening ends a moment later.
					waitFor(t, func() bool { streams, _ := left(h); return streams == 0 })
					if _, handler := left(h); handler {
						t.Errorf("%s, %s: the handler is left", name, order)
					}
				}
			}
		}
		noneLeft()
	})
}

// Close returns in time although a peer is frozen and 64 goroutines emit.
func TestCloseReturnsWhileManyEmit(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		b := newDirect(t, newHost(t, listen), Config{})
		a, to := frozen(t, listen, Config{})
		hosttest.Connect(t, a.host, b.host)
		var failures sync.Map
		var emitters sync.WaitGroup
		started := make(chan struct{}, 64)
		for i := range 64 {
			to := to
			if i%2 == 0 {
				to = b.id()
			}
			emitters.Go(func() {
				started <- struct{}{}
				_, err := fill(context.Background(), a, to, 10<<10)
				failures.Store(i, err)
			})
		}
		for range 64 {
			<-started
		}
		waitUntilFull(t, a, to)
		start := time.Now()
		closeDirect(t, a)
		emitters.Wait()
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("it took %v", d)
		}
		for i, err := range failures.Range {
			if !errors.Is(err.(error), errs.ErrClosed) {
				t.Errorf("emitter %v: %v", i, err)
			}
		}
		waitFor(t, func() bool { streams, _ := left(a.host); return streams == 0 })
	})
}

// A handler may close its node: Close waits for the other handlers, not for
// this one.
func TestCloseInAHandler(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		c := newDirect(t, newHost(t, listen), Config{})
		hosttest.Connect(t, c.host, b.host)
		var otherDone atomic.Bool
		in, closing := make(chan struct{}), make(chan struct{})
		b.On("other", func(ctx context.Context, _ *event.Event) {
			close(in)
			<-ctx.Done()
			<-closing
			otherDone.Store(true)
		})
		result := make(chan error, 1)
		b.On("close", func(ctx context.Context, _ *event.Event) {
			go func() { <-ctx.Done(); close(closing) }()
			err := b.Close(ctx)
			if !otherDone.Load() {
				t.Error("the other handler was not waited for")
			}
			if ctx.Err() == nil {
				t.Error("the handler's context has not ended")
			}
			if err := b.Emit(ctx, a.id(), "x"); !errors.Is(err, errs.ErrClosed) {
				t.Error(err)
			}
			result <- err
		})
		emit(t, c, b.id(), "other")
		<-in
		emit(t, a, b.id(), "close")
		if err := <-result; err != nil {
			t.Error(err)
		}
		closeDirect(t, b) // this one waits for the handler, too
	})
}

// A handler that does not return delays Close until its ctx ends; the rest ends with the
// handler.
func TestCloseWaitsForAStuckHandlerUntilItsContextEnds(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	in, out := make(chan struct{}), make(chan struct{})
	b.On("x", func(context.Context, *event.Event) { close(in); <-out })
	emit(t, a, b.id(), "x")
	<-in
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(out)
}

// A Direct that was closed before its start leaves the host's stream handler alone, and
// its pipes are closed.
func TestCloseBeforeStart(t *testing.T) {
	h := newHost(t, tcp)
	h.SetStreamHandler(protocol.Events, func(network.Stream) {}) // somebody else's
	d := New(h, Config{})
	v := d.Pipe("somebody")
	closeDirect(t, d)
	closeDirect(t, d)
	d.Start()
	if _, handler := left(h); !handler {
		t.Error("the handler of somebody else is gone")
	}
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("a view of a closed node")
	}
	select {
	case <-d.Done():
	default:
		t.Error("Done is open")
	}
	if n := d.Release("somebody", nil); n != 0 {
		t.Error(n)
	}
}

// An Emit that waits for room in the queue returns ErrClosed when its node closes, also
// when the link ends first.
func TestWaitingEmitReturnsErrClosed(t *testing.T) {
	a, b := pair(t, hosttest.TCP, Config{QueueEvents: 1})
	release := make(chan struct{})
	defer close(release)
	b.On("x", func(context.Context, *event.Event) { <-release })
	failed := make(chan error)
	var accepted atomic.Int64
	go func() {
		for {
			if err := a.Emit(context.Background(), b.id(), "x", make([]byte, 64<<10)); err != nil {
				failed <- err
				return
			}
			accepted.Add(1)
		}
	}()
	waiting := int64(-1)
	hosttest.Eventually(t, "it waits", func() bool {
		last := waiting
		waiting = accepted.Load()
		time.Sleep(50 * time.Millisecond) // no event says that nothing happens
		return waiting > 0 && waiting == last && waiting == accepted.Load()
	})
	a.refused.Store(true) // as the first step of Drain does
	a.Release(b.id(), errors.New("the node was closed"))
	if err := <-failed; !errors.Is(err, errs.ErrClosed) {
		t.Error(err)
	}
}
