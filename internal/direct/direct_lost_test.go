package direct

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// inboundOf returns the streams that p has open to d.
func inboundOf(d *Direct, p peer.ID) (all []*inStream) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if in := d.inbound[p]; in != nil {
		for s := range in.streams {
			all = append(all, s)
		}
	}
	return all
}

// Streams and connections that break never change the order of events and never deliver
// one twice, and the sender continues by itself.
func TestOrderIsKeptOverLostStreams(t *testing.T) {
	t.Parallel()
	breakers := map[string]func(a, b *Direct){
		"receiver resets": func(a, b *Direct) {
			for _, s := range inboundOf(b, a.id()) {
				s.Reset()
			}
		},
		"sender resets": func(a, b *Direct) {
			a.mu.RLock()
			l := a.queues[b.id()]
			a.mu.RUnlock()
			if l == nil {
				return
			}
			l.mu.Lock()
			out := l.stream
			l.mu.Unlock()
			if out != nil {
				out.Reset()
			}
		},
		"connection closes": func(a, b *Direct) { a.host.Network().ClosePeer(b.id()) },
	}
	overTransports(t, func(t *testing.T, listen string) {
		for name, cut := range breakers {
			t.Run(name, func(t *testing.T) {
				const emitters = 3
				a, b := pair(t, listen, Config{})
				last := [emitters]int{}
				got := 0
				var ends sync.WaitGroup
				ends.Add(1)
				Name[numbers]("n").On(b, func(_ context.Context, _ peer.ID, v numbers) {
					if v.N <= last[v.Who] {
						t.Errorf("emitter %d: event %d came after %d", v.Who, v.N, last[v.Who])
					}
					last[v.Who] = v.N
					got++
				})
				var ended atomic.Bool
				b.On("end", func(context.Context, *event.Event) {
					if !ended.Swap(true) {
						ends.Done()
					}
				})
				var sent atomic.Int64
				stop := make(chan struct{})
				var wg sync.WaitGroup
				for who := range emitters {
					wg.Go(func() {
						to := emitterTo{a, b.id()}
						for n := 1; ; n++ {
							select {
							case <-stop:
								return
							default:
							}
							switch err := Name[numbers]("n").Emit(t.Context(), to, numbers{who, n}); {
							case err == nil:
								sent.Add(1)
							case !errors.Is(err, ErrNotConnected):
								t.Error(err)
								return
							}
						}
					})
				}
				for range 20 {
					before := sent.Load()
					for sent.Load() < before+int64(500+rand.IntN(500)) {
						time.Sleep(time.Millisecond) // let some go by
					}
					cut(a, b)
				}
				close(stop)
				wg.Wait()
				// An end that is written to a stream which just broke is lost.
				for !ended.Load() {
					a.Emit(t.Context(), b.id(), "end")
					time.Sleep(time.Millisecond)
				}
				ends.Wait()
				t.Logf("%d of %d arrived, %d counted as unwritten", got, sent.Load(), a.Stats()["unwritten"])
				if got == 0 || uint64(sent.Load()) < uint64(got)+a.Stats()["unwritten"] {
					t.Error("more than was sent")
				}
			})
		}
	})
}

// rawStream opens a stream to d by hand and says hello.
func rawStream(t testing.TB, from *Direct, to *Direct, h hello) network.Stream {
	t.Helper()
	s, err := from.host.NewStream(t.Context(), to.id(), protocol.Events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Reset() })
	if _, err := s.Write(h.append(nil)); err != nil {
		t.Fatal(err)
	}
	return s
}

func rawEvent(t testing.TB, name string, args ...any) []byte {
	ev := eventtest.Encoded(t, name, args...)
	return appendFrame(nil, &event.Outgoing{Size: len(ev), Buf: &event.Buffer{B: ev}}, nil)
}

// A newer stream is read when the older one has ended or has been silent for a second; a
// stream older than the one being read is refused.
func TestStreamsOfOnePeerAreReadInTurn(t *testing.T) {
	const drainTimeout = 300 * time.Millisecond
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{timeouts: timeouts{drain: drainTimeout}})
		thaw := make(chan struct{})
		got := make(chan string, 9)
		b.On("*", func(_ context.Context, ev *event.Event) {
			got <- ev.Name
			if ev.Name == "first" {
				<-thaw
			}
		})
		h := func(serial uint64) hello { return hello{"sessionA", "", serial} }
		older := rawStream(t, a, b, h(2))
		older.Write(append(rawEvent(t, "first"), rawEvent(t, "second")...))
		want(t, got, "first")
		newer := rawStream(t, a, b, h(3))
		newer.Write(rawEvent(t, "fourth"))
		waitFor(t, func() bool {
			for _, s := range inboundOf(b, a.id()) {
				if s.retired.Load() {
					return true
				}
			}
			return false
		})
		late := rawStream(t, a, b, h(1))
		late.Write(rawEvent(t, "stale"))
		if code := resetCode(t, late); code != network.StreamSupplanted {
			t.Errorf("the late one: %x", code)
		}
		older.Write(rawEvent(t, "third"))
		time.Sleep(2 * drainTimeout) // a slow handler is not silence
		start := time.Now()
		close(thaw)
		want(t, got, "second")
		want(t, got, "third")
		want(t, got, "fourth")
		if d := time.Since(start); d < drainTimeout/2 {
			t.Errorf("the newer stream was read %v after the older one's last event", d)
		}
		if code := resetCode(t, older); code != network.StreamSupplanted {
			t.Errorf("the older one: %x", code)
		}

		// An older one that ends is not waited for; nor does a new session
		// count its streams from where the old one was.
		newer.Close()
		start = time.Now()
		rawStream(t, a, b, hello{"sessionB", "", 1}).Write(rawEvent(t, "fifth"))
		want(t, got, "fifth")
		if d := time.Since(start); d >= drainTimeout {
			t.Errorf("waited %v for a stream that has ended", d)
		}
		if len(got) != 0 {
			t.Error("more came:", <-got)
		}
	})
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("it does not happen")
		}
	}
}

// resetCode waits until the stream is reset from the other side.
func resetCode(t testing.TB, s network.Stream) network.StreamErrorCode {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(patience))
	_, err := s.Read(make([]byte, 1))
	reset, ok := errors.AsType[*network.StreamError](err)
	if !ok || !reset.Remote {
		t.Errorf("the stream ended with %v", err)
		return 0
	}
	return reset.ErrorCode
}

// A peer that resets every stream does not make its sender spin: the pauses between
// streams grow, and after the stall timeout the queued and the waiting events fail.
func TestPeerThatResetsEveryStreamIsGivenUp(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		h := newHost(t, listen)
		var opened atomic.Int64
		h.SetStreamHandler(protocol.Events, func(s network.Stream) {
			opened.Add(1)
			io.CopyN(io.Discard, s, 100<<10)
			s.Reset()
		})
		a := newDirect(t, newHost(t, listen), Config{MaxEventSize: 4 << 20, StallTimeout: time.Second, QueueEvents: 1})
		hosttest.Connect(t, a.host, h)
		start := time.Now()
		// More than a stream takes at once, so that its end is noticed.
		n, err := fill(t.Context(), a, h.ID(), 2<<20)
		if !errors.Is(err, ErrNotConnected) {
			t.Error(err)
		}
		if d := time.Since(start); d < time.Second || d > 20*time.Second {
			t.Errorf("given up after %v", d)
		}
		// 50, 100, 200, 400, 800 ms: six streams, or a few more as some time
		// passes before the first breaks.
		if opened := opened.Load(); opened > 10 {
			t.Errorf("%d streams in a second", opened)
		}
		if s := a.Stats(); s["unwritten"] != uint64(n) {
			t.Errorf("%d accepted, %+v", n, s)
		}
		if err := a.Flush(t.Context()); err != nil {
			t.Error("nothing is left to flush:", err)
		}
		if lost := a.Release(h.ID(), nil); lost != n {
			t.Errorf("%d of %d events unwritten", lost, n)
		}
	})
}

// Events that were queued when the stream broke go over the next stream; events that were
// written to the broken one are not sent again.
func TestQueueSurvivesItsStream(t *testing.T) {
	h := newHost(t, tcp)
	frames := make(chan []byte, 10_000)
	var streams atomic.Int64
	h.SetStreamHandler(protocol.Events, func(s network.Stream) {
		defer s.Close()
		if streams.Add(1) == 1 {
			<-frames // the test says when
			s.Reset()
			return
		}
		r := frame.NewReader(s, 1<<20)
		for {
			b, err := r.Next()
			if err != nil {
				if err != io.EOF {
					s.Reset()
				}
				close(frames)
				return
			}
			frames <- append([]byte(nil), b...)
		}
	})
	a := newDirect(t, newHost(t, tcp), Config{StallTimeout: time.Hour})
	hosttest.Connect(t, a.host, h)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var accepted atomic.Int64
	go func() {
		defer close(done)
		for n := 0; Name[int]("n").Emit(ctx, emitterTo{a, h.ID()}, n) == nil; n++ {
			accepted.Add(1)
		}
	}()
	waitUntilFull(t, a, h.ID())
	cancel()
	<-done
	frames <- nil // break it
	if err := a.Flush(t.Context()); err != nil && !errors.Is(err, ErrNotConnected) {
		t.Error(err)
	}
	unwritten := a.Release(h.ID(), nil)

	first, next := -1, 0
	<-frames // hello
	for b := range frames {
		ev, _, err := parseDirectFrame(b)
		if err != nil {
			t.Fatal(err)
		}
		e, err := event.Parse("p", ev)
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := e.Decode(&n); err != nil {
			t.Fatal(err)
		}
		if first < 0 {
			first, next = n, n
		}
		if n != next {
			t.Fatalf("event %d after %d", n, next-1)
		}
		next++
	}
	// The queue (512) and the part of a write that was not handed over.
	if int64(next) != accepted.Load() || next-first < 512 {
		t.Errorf("%d events accepted, %d to %d came over the second stream", accepted.Load(), first, next-1)
	}
	t.Logf("%d accepted, first stream had %d, %d counted as unwritten", accepted.Load(), first, unwritten)
	if unwritten > first {
		t.Errorf("%d events counted as unwritten, though only %d were lost", unwritten, first)
	}
}
