package sim

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Events come in the order of their times, and then in the order of their arrival, even
// if new ones come in between.
func TestQueueKeepsOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var q queue
	added, last := int32(0), simEvent{}
	var now time.Duration
	for range 10_000 {
		for range r.IntN(4) {
			added++
			q.push(now+time.Duration(r.IntN(50)), simEvent{node: added})
		}
		at, ok := q.nextTime()
		if !ok {
			continue
		}
		e := q.pop()
		if at < now || at == now && e.node < last.node && last.node != 0 {
			t.Fatalf("event %d at %d after %d at %d", e.node, at, last.node, now)
		}
		now, last = at, e
	}
	if len(q.events) > 3*(len(q.heap)+100) {
		t.Errorf("%d places for %d events", len(q.events), len(q.heap))
	}
}

func BenchmarkQueue(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var q queue
	for range 100_000 {
		q.push(time.Duration(r.IntN(1e9)), simEvent{})
	}
	b.ReportAllocs()
	for b.Loop() {
		at, _ := q.nextTime()
		q.pop()
		q.push(at+time.Duration(r.IntN(1e9)), simEvent{})
	}
}
