package direct

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// frozen returns a started Direct and the id of a connected peer that accepts streams and
// never reads them.
func frozen(t *testing.T, listen string, cfg Config) (*Direct, peer.ID) {
	t.Helper()
	h := newHost(t, listen)
	h.SetStreamHandler(protocol.Events, func(network.Stream) {})
	a := newDirect(t, newHost(t, listen), cfg)
	hosttest.Connect(t, a.host, h)
	return a, h.ID()
}

// fill emits until an error comes, and returns how many were accepted.
func fill(ctx context.Context, d *Direct, to peer.ID, size int) (n int, err error) {
	b := make([]byte, size)
	for ; err == nil; n++ {
		err = d.Emit(ctx, to, "fill", b)
	}
	return n - 1, err
}

// The original buffered 146 MiB for a frozen peer and never freed it. Here Emit waits and
// then reports that the peer is stalled, and the accepted events stay within the bound.
func TestFrozenPeerStallsEmit(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		const stall = 300 * time.Millisecond
		a, to := frozen(t, listen, Config{StallTimeout: stall})
		start := time.Now()
		n, err := fill(t.Context(), a, to, 10<<10)
		if !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		if d := time.Since(start); d < stall {
			t.Errorf("stalled after %v", d)
		}
		// Two queues, and what the transport takes: its window, 16 MiB at most.
		if bytes := n * 10 << 10; bytes > 2<<20+16<<20 {
			t.Errorf("%d MiB accepted", bytes>>20)
		}
		// Now that it is known, nobody waits for the timeout again.
		if err := a.Emit(t.Context(), to, "x", make([]byte, 1<<20-1000), 1); !errors.Is(err, event.ErrTooLarge) {
			t.Error(err)
		}
		if err := a.Emit(t.Context(), to, "x", make([]byte, 100<<10)); !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		// Somebody else's ctx.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.Flush(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "not written") {
			t.Error(err)
		}
		lost := a.Release(to, errors.New("it is frozen"))
		if lost == 0 || lost > n || uint64(lost) != a.Stats()["unwritten"] {
			t.Errorf("%d of %d unwritten, %+v", lost, n, a.Stats())
		}
	})
}

// An Emit that waits ends with its ctx, with the link, and with Close.
func TestContextLinkAndCloseEndAWaitingEmit(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		for _, c := range []struct {
			name string
			end  func(d *Direct, to peer.ID, cancel func())
			want error
			text string
		}{
			{"ctx", func(_ *Direct, _ peer.ID, cancel func()) { cancel() }, context.Canceled, ""},
			{"release", func(d *Direct, to peer.ID, _ func()) { d.Release(to, errors.New("the link broke")) }, ErrNotConnected, "the link broke"},
			{"close", func(d *Direct, _ peer.ID, _ func()) { d.Close(context.Background()) }, errs.ErrClosed, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				var log bytes.Buffer
				a, to := frozen(t, listen, Config{StallTimeout: time.Hour, Log: eventtest.LogTo(&log)})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var accepted atomic.Int64
				errs := make(chan error, 4)
				for range cap(errs) {
					go func() {
						n, err := fill(ctx, a, to, 10<<10)
						accepted.Add(int64(n))
						errs <- err
					}()
				}
				waitUntilFull(t, a, to)
				c.end(a, to, cancel)
				for range cap(errs) {
					if err := <-errs; !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
						t.Error(err)
					}
				}
				closeDirect(t, a)
				lost := a.Stats()["unwritten"]
				if lost == 0 || lost > uint64(accepted.Load()) {
					t.Errorf("%d of %d unwritten", lost, accepted.Load())
				}
				if !strings.Contains(log.String(), "level=WARN") {
					t.Error("nothing in the log:", &log)
				}
			})
		}
	})
}

// waitUntilFull waits until an Emit waits for room in the queue to a frozen peer.
func waitUntilFull(t *testing.T, d *Direct, to peer.ID) {
	t.Helper()
	last, since := uint64(0), time.Now()
	for start := since; time.Since(since) < 200*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("the queue does not fill")
		}
		d.mu.RLock()
		l := d.queues[to]
		d.mu.RUnlock()
		if l == nil {
			since = time.Now()
			continue
		}
		l.mu.Lock()
		if l.accepted != last || !l.change.Waited() {
			last, since = l.accepted, time.Now()
		}
		l.mu.Unlock()
	}
}

// A peer that freezes for a while loses no events: the accepted events wait for it.
func TestThawedPeerGetsEverything(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		const stall = 200 * time.Millisecond
		a, b := pair(t, listen, Config{StallTimeout: stall})
		thaw := make(chan struct{})
		got := 0
		all := make(chan struct{})
		b.On("freeze", func(context.Context, *event.Event) { <-thaw })
		b.On("fill", func(context.Context, *event.Event) { got++ })
		b.On("end", func(context.Context, *event.Event) { close(all) })
		emit(t, a, b.id(), "freeze")
		n, err := fill(t.Context(), a, b.id(), 1<<10)
		if !errors.Is(err, ErrStalled) {
			t.Fatal(err)
		}
		close(thaw)
		for err = ErrStalled; errors.Is(err, ErrStalled); {
			err = a.Emit(t.Context(), b.id(), "end")
		}
		if err != nil {
			t.Fatal(err)
		}
		<-all
		if got != n || a.Stats()["unwritten"] != 0 {
			t.Errorf("%d of %d events, %+v", got, n, a.Stats())
		}

		// The next time it freezes counts from its own beginning.
		again := make(chan struct{})
		defer close(again)
		b.On("freeze again", func(context.Context, *event.Event) { <-again })
		emit(t, a, b.id(), "freeze again")
		if err := a.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		start := time.Now()
		if _, err := fill(t.Context(), a, b.id(), 1<<10); !errors.Is(err, ErrStalled) || time.Since(start) < stall {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// Two nodes that answer each other's events in their handlers, as fast as they can, do not
// block each other for good: when both handlers wait for room, neither node reads, and the
// stall timeout frees them.
func TestNodesThatAnswerEachOtherDoNotLockUp(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{StallTimeout: 100 * time.Millisecond})
		var stalls atomic.Int64
		answer := func(d *Direct) {
			d.On("ask", func(ctx context.Context, ev *event.Event) {
				p, _ := ev.Bytes(0)
				for range 4 { // more than came, so that it has to jam
					if err := d.Emit(ctx, ev.From, "answer", p); errors.Is(err, ErrStalled) {
						stalls.Add(1)
					} else if err != nil {
						t.Error(err)
					}
				}
			})
		}
		answer(a)
		answer(b)
		var ends sync.WaitGroup
		for _, d := range []*Direct{a, b} {
			ends.Add(1)
			d.On("end", func(context.Context, *event.Event) { ends.Done() })
		}
		var emitters sync.WaitGroup
		for _, e := range []emitterTo{{a, b.id()}, {b, a.id()}} {
			emitters.Go(func() {
				p := make([]byte, 4<<10)
				for range 2000 {
					if err := e.Emit(t.Context(), "ask", p); err != nil && !errors.Is(err, ErrStalled) {
						t.Error(err)
					}
				}
				for e.Emit(t.Context(), "end") != nil && t.Context().Err() == nil {
				}
			})
		}
		emitters.Wait()
		ends.Wait()
		t.Logf("%d answers met a stall", stalls.Load())
	})
}

// Two nodes that pass many events back and forth without end never stall.
func TestPingPongNeverStalls(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		const balls, hits = 100, 20_000
		done := make(chan struct{})
		left := hits
		for _, d := range []*Direct{a, b} {
			Name[int]("ball").On(d, func(ctx context.Context, from peer.ID, n int) {
				if d == a {
					if left--; left == 0 {
						close(done)
					}
				}
				if err := d.Emit(ctx, from, "ball", n+1); err != nil && !errors.Is(err, errs.ErrClosed) {
					t.Error(err)
				}
			})
		}
		for range balls {
			emit(t, a, b.id(), "ball", 0)
		}
		<-done
	})
}

// A slow handler delays its sender and no other peer.
func TestSlowHandlerDelaysOnlyItsSender(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		b := newDirect(t, newHost(t, listen), Config{})
		slow := newDirect(t, newHost(t, listen), Config{StallTimeout: time.Hour})
		quick := newDirect(t, newHost(t, listen), Config{})
		hosttest.Connect(t, slow.host, b.host)
		hosttest.Connect(t, quick.host, b.host)
		thaw, frozen := make(chan struct{}), make(chan struct{})
		b.On("freeze", func(context.Context, *event.Event) {
			close(frozen)
			<-thaw
		})
		var got atomic.Int64
		b.On("fill", func(context.Context, *event.Event) { got.Add(1) })
		done := make(chan struct{})
		b.OnFrom(quick.id(), "end", func(context.Context, *event.Event) { close(done) })

		emit(t, slow, b.id(), "freeze")
		<-frozen
		ctx, cancel := context.WithCancel(t.Context())
		filled := make(chan int)
		go func() {
			n, _ := fill(ctx, slow, b.id(), 1<<10)
			filled <- n
		}()
		waitUntilFull(t, slow, b.id())
		for range 10_000 {
			emit(t, quick, b.id(), "quick")
		}
		emit(t, quick, b.id(), "end")
		<-done
		if n := got.Load(); n != 0 {
			t.Errorf("%d events handled while their handler was busy", n)
		}
		cancel()
		n := <-filled
		end := make(chan struct{})
		b.OnFrom(slow.id(), "end", func(context.Context, *event.Event) { close(end) })
		close(thaw)
		emit(t, slow, b.id(), "end")
		<-end
		if got.Load() != int64(n) {
			t.Errorf("%d of %d events arrived", got.Load(), n)
		}
	})
}
