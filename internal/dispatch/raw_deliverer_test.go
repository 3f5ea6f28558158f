package dispatch

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

func newTestRawDeliverer(ctx context.Context) *RawDeliverer {
	r := new(RawDeliverer)
	r.Init(ctx, New(logging.Package("events", nil)))
	return r
}

// The messages of each sender are delivered in order, and a handler that is slow with one
// sender does not delay another.
func TestRawKeepsTheOrderOfEachSender(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newTestRawDeliverer(t.Context())
		slow := make(chan struct{})
		got := map[peer.ID][]string{}
		r.On(func(_ context.Context, from peer.ID, data []byte) {
			if from == "slow" {
				<-slow
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			got[from] = append(got[from], string(data))
		})
		var want []string
		for i := range 100 {
			for _, from := range []peer.ID{"slow", "fast"} {
				r.Enqueue(from, fmt.Append(nil, i))
			}
			want = append(want, fmt.Sprint(i))
		}
		synctest.Wait()
		if !slices.Equal(got["fast"], want) || len(got["slow"]) != 0 {
			t.Errorf("got %v", got)
		}
		close(slow)
		synctest.Wait()
		if !slices.Equal(got["slow"], want) {
			t.Errorf("got %v of the slow", got["slow"])
		}
		if r.weight != 0 || r.turns.Len() != 0 {
			t.Errorf("%d bytes and %d senders are left", r.weight, r.turns.Len())
		}
	})
}

// The waiting messages are bounded, the sender with the most of them loses messages first,
// and every loss is counted.
func TestRawBoundsWaitingMessages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newTestRawDeliverer(t.Context())
		busy := make(chan struct{})
		got := map[peer.ID]int{}
		r.On(func(_ context.Context, from peer.ID, _ []byte) {
			<-busy
			r.mu.Lock()
			defer r.mu.Unlock()
			got[from]++
		})
		const flood = 10 * maxRaw / rawWeight
		for range flood {
			r.Enqueue("flood", nil)
		}
		if r.weight > maxRaw {
			t.Errorf("%d bytes wait, more than %d", r.weight, maxRaw)
		}
		for range 10 {
			r.Enqueue("quiet", make([]byte, 1000))
		}
		r.Enqueue("large", make([]byte, 1<<20))
		if r.weight > maxRaw {
			t.Errorf("%d bytes wait, more than %d", r.weight, maxRaw)
		}
		close(busy)
		synctest.Wait()
		if got["quiet"] != 10 || got["large"] != 1 {
			t.Errorf("%d messages of 10 came from who sent little, %d large ones of 1", got["quiet"], got["large"])
		}
		if n := uint64(got["flood"]); n < 2000 || n+r.dropped.Load() != flood || r.delivered.Load() != n+11 {
			t.Errorf("%d of %d came, %d were dropped, %d are said to have come", n, flood, r.dropped.Load(), r.delivered.Load())
		}
		if r.weight != 0 || r.turns.Len() != 0 {
			t.Errorf("%d bytes and %d senders are left", r.weight, r.turns.Len())
		}
	})
}

// The number of waiting senders is bounded too, so many keys with ever smaller messages do
// not grow the queue; every message is delivered or counted as dropped.
func TestRawBoundsSenders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newTestRawDeliverer(t.Context())
		busy := make(chan struct{})
		r.On(func(context.Context, peer.ID, []byte) { <-busy })
		const most, flood = maxRaw / rawWeight, 6000
		for i := range MaxWorkers {
			r.Enqueue(peer.ID(fmt.Sprint("busy ", i)), nil)
		}
		synctest.Wait() // all who could take a sender's turn are busy
		for i := range flood {
			r.Enqueue(peer.ID(fmt.Sprint(i)), make([]byte, flood-i))
		}
		if n := r.turns.Len(); n > most || r.weight > maxRaw {
			t.Errorf("%d senders and %d bytes wait, more than %d and %d", n, r.weight, most, maxRaw)
		}
		before := r.dropped.Load()
		r.Enqueue("new", nil)
		if n := r.dropped.Load() - before; n != 1 {
			t.Errorf("%d messages were dropped of a sender too many", n)
		}
		close(busy)
		synctest.Wait()
		const sent = MaxWorkers + flood + 1
		if got, dropped := r.delivered.Load(), r.dropped.Load(); got+dropped != sent || r.weight != 0 || r.turns.Len() != 0 {
			t.Errorf("%d came, %d were dropped of %d; %d bytes and %d senders are left", got, dropped, sent, r.weight, r.turns.Len())
		}
		r.Enqueue("new", nil)
		synctest.Wait()
		if n := r.dropped.Load() - before; n != 1 {
			t.Error("a new sender is dropped though nobody waits")
		}
	})
}

// A handler may store and change its message, panic, and be removed while messages wait
// for it.
func TestRawHandlersMayStoreChangeAndPanic(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newTestRawDeliverer(t.Context())
		if r.Enqueue("x", []byte("nobody")) {
			t.Error("a message without a handler is taken")
		}
		var kept []string
		offPanic := r.On(func(_ context.Context, _ peer.ID, data []byte) {
			clear(data)
			panic("on purpose")
		})
		off := r.On(func(ctx context.Context, _ peer.ID, data []byte) {
			if !InHandler(ctx) || data == nil {
				t.Errorf("in a handler: %v, data %v", InHandler(ctx), data)
			}
			kept = append(kept, string(data))
		})
		sent := []byte("1")
		r.Enqueue("x", sent)
		r.Enqueue("x", nil)
		synctest.Wait()
		if !slices.Equal(kept, []string{"1", ""}) || string(sent) != "1" || r.dispatcher.Panics() != 2 {
			t.Errorf("got %q, sent %q, %d panics", kept, sent, r.dispatcher.Panics())
		}
		offPanic()
		off()
		off()
		if r.Enqueue("x", []byte("2")) || len(kept) != 2 {
			t.Error("a handler that was taken away is called")
		}
		busy := make(chan struct{})
		r.On(func(ctx context.Context, _ peer.ID, _ []byte) { <-busy })
		for range 5 {
			r.Enqueue("x", nil)
		}
		synctest.Wait()
		r.Close()
		r.Enqueue("x", nil)
		close(busy)
		if n := r.dropped.Load(); n != 5 {
			t.Errorf("%d messages were dropped at the end, want 5", n)
		}
	})
}
