package events

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Flush waits until the events have arrived at the neighbors, and not for their handlers.
func TestFlushWaitsForArrival(t *testing.T) {
	t.Parallel()
	pair := line(t, 2, overTCP)
	release := make(chan struct{})
	defer close(release)
	pair[1].On("x", func(context.Context, *event.Event) { <-release })
	for range 20 {
		for i := range 50 {
			pair[0].emit("%d", i)
		}
		if err := pair[0].Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m, _ := pair[1].driver.mark(pair[0].id()); m.Next != pair[0].publisher.nextNumber() {
			t.Fatalf("confirmed %d, has %d", pair[0].publisher.nextNumber(), m.Next)
		}
	}
}

// stopAcknowledging makes a station send no marks to its neighbors.
func stopAcknowledging(s *station) {
	s.driver.mu.Lock()
	defer s.driver.mu.Unlock()
	for p := range s.driver.links {
		s.driver.engine.RemoveNeighbor(time.Now(), p)
	}
}

// When its ctx ends, Flush names the neighbors that have not confirmed, and how far they
// are.
func TestFlushNamesTheUnconfirmedNeighbors(t *testing.T) {
	t.Parallel()
	a := newStation(t, overTCP, Config{})
	good := newStation(t, overTCP, Config{})
	silent := newStation(t, overTCP, Config{})
	link(t, a, good)
	link(t, a, silent)
	if err := a.Flush(t.Context()); err != nil { // nothing was sent
		t.Fatal(err)
	}
	a.emit("0")
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAcknowledging(silent)
	a.emit("1")
	ctx, end := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer end()
	err := a.Flush(ctx)
	missed, ok := errors.AsType[*UnconfirmedError](err)
	if !ok || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	if !slices.Equal(missed.Peers, []peer.ID{silent.id()}) || missed.Has[0] != 1 || missed.Sent != 2 {
		t.Errorf("%v", err)
	}
	// One that confirms is enough where one was asked for.
	if err := a.EmitConfirmed(t.Context(), 1, "x", []byte("2")); err != nil {
		t.Error(err)
	}
	ctx, end = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer end()
	for _, k := range []int{0, 2} {
		if err := a.EmitConfirmed(ctx, k, "x", []byte("3")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d neighbors confirmed: %v", k, err)
		}
	}
}

// Flush does not wait for a neighbor whose link has ended.
func TestFlushDoesNotWaitForFormerNeighbors(t *testing.T) {
	t.Parallel()
	pair := line(t, 2, overTCP)
	stopAcknowledging(pair[1])
	pair[0].emit("0")
	done := make(chan error, 1)
	go func() { done <- pair[0].Flush(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("%v although nobody could confirm", err)
	case <-time.After(50 * time.Millisecond):
	}
	pair[1].Close(t.Context())
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Close ends a Flush that waits, with ErrClosed.
func TestFlushEndsWithClose(t *testing.T) {
	t.Parallel()
	pair := line(t, 2, overTCP)
	stopAcknowledging(pair[1])
	pair[0].emit("0")
	done := make(chan error, 1)
	go func() { done <- pair[0].Flush(t.Context()) }()
	if err := pair[0].Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
