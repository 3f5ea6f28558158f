package notify

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// Broadcast wakes all waiting goroutines.
func TestBroadcastWakesAllWaiters(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var changed Cond
		ready, woken := false, 0
		for range 3 {
			go func() {
				mu.Lock()
				defer mu.Unlock()
				for !ready {
					if err := changed.Wait(t.Context(), &mu); err != nil {
						t.Error(err)
					}
				}
				woken++
			}()
		}
		synctest.Wait()
		mu.Lock()
		changed.Broadcast() // the state is as before, so they wait on
		mu.Unlock()
		synctest.Wait()
		mu.Lock()
		if woken != 0 {
			t.Errorf("%d waiters went on before the state had changed", woken)
		}
		ready = true
		changed.Broadcast()
		mu.Unlock()
		synctest.Wait()
		if woken != 3 {
			t.Errorf("%d of 3 waiters were woken", woken)
		}
	})
}

// Wait ends with its context.
func TestWaitEndsWithItsContext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var changed Cond
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		mu.Lock()
		defer mu.Unlock() // panics if Wait does not lock mu again
		if err := changed.Wait(ctx, &mu); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait returned %v", err)
		}
		changed.Broadcast()
	})
}

// Wait reports the change if the context has ended, too.
func TestWaitPrefersTheChangeToTheEndOfItsContext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for range 100 { // select chooses at random
			var mu sync.Mutex
			var changed Cond
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				mu.Lock()
				defer mu.Unlock()
				cancel()
				changed.Broadcast()
			}()
			mu.Lock()
			if err := changed.Wait(ctx, &mu); err != nil {
				t.Fatalf("Wait returned %v after a Broadcast", err)
			}
			mu.Unlock()
		}
	})
}

// The channel of Changed is closed by the next Broadcast.
func TestChangedIsClosedByTheNextBroadcast(t *testing.T) {
	var changed Cond
	changed.Broadcast()
	first := changed.Changed()
	select {
	case <-first:
		t.Fatal("closed by a Broadcast of before")
	default:
	}
	changed.Broadcast()
	<-first
	if changed.Changed() == first {
		t.Error("the channel of the next change is closed already")
	}
}

// Signals that were set before the receiver reads are received as one.
func TestSignalsBeforeTheReceiverLooksCountAsOne(t *testing.T) {
	s := NewSignal()
	s.Set()
	s.Set()
	<-s
	select {
	case <-s:
		t.Error("received a second time")
	default:
	}
	s.Set()
	<-s
}
