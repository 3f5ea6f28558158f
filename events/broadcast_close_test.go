package events

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// No event is lost by a node that calls Flush and then Close.
func TestBroadcastFlushThenCloseLosesNothing(t *testing.T) {
	t.Parallel()
	over(t, func(t *testing.T, listen string) {
		for range 10 {
			pair := line(t, 2, listen)
			for i := range 200 {
				pair[0].emit("%d", i)
			}
			if err := pair[0].Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := pair[0].Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			pair[0].stop()
			pair[0].host.Close()
			pair[1].wait(pair[0], texts(200)...)
			pair[1].Close(t.Context())
			pair[1].stop()
			pair[1].host.Close()
		}
	})
}

// A handler may call Close, which waits for all handlers but that one.
func TestBroadcastCloseInsideAHandler(t *testing.T) {
	pair := line(t, 2, overTCP)
	closed := make(chan error, 1)
	ended := make(chan struct{})
	pair[1].On("close", func(ctx context.Context, ev *event.Event) {
		closed <- pair[1].Close(ctx)
		if ctx.Err() == nil {
			t.Error("the handler's context goes on")
		}
		close(ended)
	})
	if err := pair[0].Emit(t.Context(), "close"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	<-ended
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("it took %v", d)
	}
}

// Close waits for the handlers that are running.
func TestBroadcastCloseWaitsForHandlers(t *testing.T) {
	pair := line(t, 2, overTCP)
	running, release := make(chan struct{}), make(chan struct{})
	pair[1].On("x", func(ctx context.Context, ev *event.Event) {
		close(running)
		<-ctx.Done() // Close ends it
		<-release
	})
	pair[0].emit("0")
	pair[0].emit("1")
	<-running
	if err := pair[0].Flush(t.Context()); err != nil { // both are there
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := pair[1].Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v although a handler runs", err)
	}
	close(release)
	if err := pair[1].Close(t.Context()); err != nil {
		t.Error(err)
	}
	if st := pair[1].Stats(); st["delivered"] != 1 || st["overrun"] != 1 {
		t.Errorf("%+v", st)
	}
}

// Emit, On and Close may run at the same time, and no goroutine or stream remains
// afterwards.
func TestBroadcastCloseLeavesNothing(t *testing.T) {
	pair := line(t, 2, overTCP)
	var busy sync.WaitGroup
	for range 64 {
		busy.Go(func() {
			for {
				err := pair[0].Emit(context.Background(), "x", []byte("x"))
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil && !errors.Is(err, ErrNoPeers) {
					t.Error(err)
					return
				}
			}
		})
	}
	eventually(t, "it runs", func() bool { return len(pair[1].received(pair[0])) > 100 })
	for _, s := range pair {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	busy.Wait()
	eventually(t, "no goroutine is left", func() bool {
		buf := make([]byte, 4<<20)
		return !bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("events.(*"))
	})
	for _, s := range pair {
		if slices.Contains(s.host.Mux().Protocols(), protocol.Repair) {
			t.Error("a handler is left")
		}
		for _, c := range s.host.Network().Conns() {
			for _, st := range c.GetStreams() {
				if st.Protocol() == protocol.Repair {
					t.Error("a stream is left")
				}
			}
		}
		if topics := s.ps.GetTopics(); len(topics) != 0 {
			t.Errorf("topics %q", topics)
		}
	}
}

// Close waits for a neighbor's stream that is accepted during the close, but only until it
// ends: it once waited forever.
func TestCloseWaitsForAStreamAcceptedMeanwhile(t *testing.T) {
	s, p := newStation(t, overTCP, Config{}), newStationHost(t, overTCP).ID()
	s.link(p, nil)
	s.cancel() // as the first step of Close does
	if err := s.admitRepair(p, nil); err == nil {
		s.leaveRepair(p, nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.admitRepair(p, nil); err == nil {
		t.Error("a stream is let in after Close")
	}
}
