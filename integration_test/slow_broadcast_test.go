package integration_test

import (
	"slices"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestSlowBroadcastHandler: a handler that takes a millisecond hurts its own node
// alone. 20,000 small events wait for it; of 50,000 large ones, which are more than
// its node keeps, the received events and the reported gaps add up.
func TestSlowBroadcastHandler(t *testing.T) {
	t.Parallel()
	small := map[size]uint64{byDefault: 2000, long: 5000, full: 20_000}[chosen()]
	large := map[size]uint64{byDefault: 4000, long: 4000, full: 50_000}[chosen()]
	var keep []smokesignal.Option
	if chosen() < full {
		keep = append(keep, smokesignal.KeepBytes(2<<20)) // so that less is more than is kept
	}
	l, nodes := line(t, 3, keep...)
	sender, relay, slowNode := nodes[0], nodes[1], nodes[2]
	near := newTally(t, "relay", relay, sender.ID(), nil)
	late := newTally(t, "slow", slowNode, sender.ID(), func() { time.Sleep(time.Millisecond) })
	if err := emitNumbered(within(t, soon), sender, 1, small+1, 64); err != nil {
		t.Fatal(err)
	}
	near.all(small+1, soon)
	late.all(small+1, soon)
	if err := emitNumbered(within(t, soon), sender, small+1, small+large+1, 1<<10); err != nil {
		t.Fatal(err)
	}
	near.all(small+large+1, soon)
	delivered, reported := late.wait(small+large+1, 2*soon)
	if delivered+reported != small+large || reported == 0 {
		t.Errorf("%d delivered and %d reported of %d", delivered, reported, small+large)
	}
	t.Logf("%d delivered and %d reported of %d", delivered, reported, small+large)
	for _, n := range nodes {
		l.close(n)
	}
}

// BenchmarkSlowBroadcastHandler is what a slow handler at one node costs the others:
// the rate at which 50,000 events of 1 KiB arrive at the relay before it and at a
// node beside it, with the handler and without, as medians of five.
func BenchmarkSlowBroadcastHandler(b *testing.B) {
	events := uint64(50_000)
	if testing.Short() {
		events = 5000
	}
	var with, without []float64
	for b.Loop() {
		for range benchTurns() {
			with = append(with, rateBeside(b, events, time.Millisecond))
			without = append(without, rateBeside(b, events, 0))
		}
	}
	b.ReportMetric(median(with), "events/s-slow")
	b.ReportMetric(median(without), "events/s")
	b.ReportMetric(median(with)/median(without), "x-without")
}

// rateBeside returns how many events a second arrive at all but one of the nodes
// behind a sender; the handler of that one takes its time.
func rateBeside(b *testing.B, events uint64, pause time.Duration) float64 {
	l, nodes := line(b, 3)
	defer l.closeAll()
	beside := l.start(cluster.Spec{Name: "beside", Limits: manual})
	l.link(nodes[1], beside)
	sender := nodes[0]
	newTally(b, "slow", nodes[2], sender.ID(), func() {
		if pause > 0 {
			time.Sleep(pause)
		}
	})
	near := newTally(b, "relay", nodes[1], sender.ID(), nil)
	next := newTally(b, "beside", beside, sender.ID(), nil)
	began := time.Now()
	if err := emitNumbered(within(b, soon), sender, 1, events+1, 1<<10); err != nil {
		b.Fatal(err)
	}
	near.all(events+1, soon)
	next.all(events+1, soon)
	return float64(events) / time.Since(began).Seconds()
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
