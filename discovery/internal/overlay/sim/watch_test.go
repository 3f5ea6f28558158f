package sim

import (
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// watchers returns a line of probes with watchdogs. Node 0 is the seed.
func watchers(t *testing.T, n int) *World {
	t.Helper()
	w := probes(t, 0)
	w.rules.Watchdog = true
	for range n {
		w.Add(0, 0)
	}
	w.Run(time.Millisecond)
	for i := range int32(n - 1) {
		w.sendNumber(i, i+1, 0)
		w.Run(time.Second)
		w.link(i, i+1)
	}
	return w
}

// A seed costs two floods in ten to fifteen seconds, however many nodes watch it, and no
// node misses it.
func TestOnePingServesAll(t *testing.T) {
	w := watchers(t, 30)
	w.Run(time.Minute)
	before := w.Counts
	w.Run(5 * time.Minute)
	pings, pongs := w.Sent[kindPing]-before.Sent[kindPing], w.Sent[kindPong]-before.Sent[kindPong]
	floods := float64(pongs) / 29 // one message for each link of the line
	if floods < 300/15 || floods > 300/10 {
		t.Errorf("%.1f answers in five minutes", floods)
	}
	if pings > 2*pongs {
		t.Errorf("%d pings for %d answers", pings, pongs)
	}
	for i := range int32(30) {
		for _, h := range w.probe(i).heard {
			if _, ok := h.in.(overlay.SeedLost); ok {
				t.Fatalf("node %d misses the seed", i)
			}
		}
	}
}

// All nodes that heard the seed report its loss, 23 seconds after they heard it last, or
// a ping timeout after a ping, and report its return.
func TestLostSeedIsReported(t *testing.T) {
	w := watchers(t, 5)
	w.Run(time.Minute)
	w.Silence(0)
	begin := w.Now()
	w.Run(10 * time.Second)
	w.unlink(1, 0, overlay.ReasonSilent)
	w.Run(time.Minute)
	for i := int32(1); i < 5; i++ {
		_, at := onlyInput[overlay.SeedLost](t, w, i)
		// Each had heard the seed up to 15 seconds before.
		within(t, "the seed is missed", at-begin, 8*time.Second, 33*time.Second)
	}
	w.Start(0, 0)
	w.Run(time.Second)
	w.sendNumber(1, 0, 0) // a new connection, after the end of the old one
	w.Run(time.Second)
	w.link(0, 1)
	w.Run(time.Minute)
	for i := int32(1); i < 5; i++ {
		onlyInput[overlay.SeedHeard](t, w, i)
	}
}

// A node without links reports no loss.
func TestIsolatedNodeReportsNoLoss(t *testing.T) {
	w := watchers(t, 2)
	w.Run(time.Minute)
	w.Silence(0)
	w.unlink(1, 0, overlay.ReasonSilent)
	w.Run(5 * time.Minute)
	for _, h := range w.probe(1).heard {
		if _, ok := h.in.(overlay.SeedLost); ok {
			t.Error("an isolated node misses its seed")
		}
	}
}
