package integration_test

import (
	"context"
	"encoding/binary"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestSlowDirectHandler: b takes a millisecond for each event of a, which sends
// as fast as it can. Nothing is lost, a is held back, no memory fills up, and
// the events of c, which b handles at once, come as fast as before. Not
// parallel, as it measures.
func TestSlowDirectHandler(t *testing.T) {
	const size = 1 << 10
	total, within, atLeast := many(2400), 5.0, 100*time.Millisecond // of the p99
	alone := 200                                                    // events that measure the latency without the slow handler
	if chosen() == full {
		total, within, atLeast, alone = 20_000, 2, 0, 500
	}
	l, a, b := pair(t)
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(c, b)

	// What a sends is numbered. b's handler is slow, and checks the numbers.
	var handled atomic.Int64
	done := make(chan struct{})
	smokesignal.Name[[]byte]("slow").On(b.Peer(a.ID()), func(_ context.Context, _ smokesignal.ID, p []byte) {
		n := handled.Add(1)
		if got := int64(binary.BigEndian.Uint64(p)); got != n {
			t.Errorf("event %d came when %d was due", got, n)
		}
		time.Sleep(time.Millisecond)
		if n == int64(total) {
			close(done)
		}
	})

	before := latencies(t, c, b, alone)
	runtime.GC()
	idle := memory()
	peak := idle

	// a does nothing else, and counts how far it is ahead of b.
	var ahead int64
	sent := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(sent)
		event := smokesignal.Name[[]byte]("slow")
		p := make([]byte, size)
		for n := range total {
			binary.BigEndian.PutUint64(p, uint64(n+1))
			if err := event.Emit(t.Context(), a.Peer(b.ID()), p); err != nil {
				t.Errorf("Emit %d: %v", n+1, err)
				return
			}
			ahead = max(ahead, int64(n+1)-handled.Load())
		}
	}()

	var during []time.Duration
	for running := true; running && !t.Failed(); {
		during = append(during, latencies(t, c, b, 100)...)
		peak = max(peak, memory())
		select {
		case <-done:
			running = false
		default:
		}
	}
	<-sent
	after := latencies(t, c, b, alone)

	if n := handled.Load(); n != int64(total) {
		t.Errorf("%d of %d events were handled", n, total)
	}
	// The queue (512 events), as many with the writer, and the windows of the
	// transport are what a may be ahead.
	const most = 2*512 + (1<<20)/size
	if ahead > most {
		t.Errorf("the sender was %d events ahead, want at most %d: it was not held back", ahead, most)
	}
	if grown := int64(peak) - int64(idle); grown > 64<<20 {
		t.Errorf("%d MiB above idle, want at most 64", grown>>20)
	}
	usual := max(p99(before), p99(after))
	if worst := time.Duration(within * float64(usual)); p99(during) > max(worst, atLeast) {
		t.Errorf("p99 of another sender: %v beside the slow handler, %v without", p99(during), usual)
	}
	t.Logf("%d events in %v, %d ahead at most, %d KiB above idle, p99 of another sender %v, %v without", total,
		time.Since(began).Round(time.Millisecond), ahead, (int64(peak)-int64(idle))>>10, p99(during), usual)
}

// latencies sends events one after the other, 2 ms apart, and returns how long
// each took from Emit to its handler.
func latencies(t *testing.T, from, to *smokesignal.Node, n int) []time.Duration {
	t.Helper()
	took := make(chan time.Duration, n)
	event := smokesignal.Name[time.Time]("tick")
	defer event.On(to.Peer(from.ID()), func(_ context.Context, _ smokesignal.ID, sent time.Time) { took <- time.Since(sent) })()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	all := make([]time.Duration, 0, n)
	for range n {
		<-ticker.C
		if err := event.Emit(t.Context(), from.Peer(to.ID()), time.Now()); err != nil {
			t.Fatal(err)
		}
		select {
		case d := <-took:
			all = append(all, d)
		case <-time.After(soon):
			t.Fatal("an event of another sender did not come")
		}
	}
	return all
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}

// memory is what this process has of the system.
func memory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}
