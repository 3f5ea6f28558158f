package sim

import (
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// watchers returns a line of probes with watchdogs, of which node 0 is the seed.
func watchers(t *testing.T, n int) *World {
	t.Helper()
	w := probes(t, 0)
	w.rules.Watchdog = true
	for range n {
		w.Add(0, 0)
	}
	w.Run(time.Millisecond)
	for i := range int32(n - 1) {
		w.say(i, i+1, 0)
		w.Run(time.Second)
		w.join(i, i+1, true)
	}
	return w
}

// TestOnePingServesAll: a seed costs two floods in ten to twenty seconds, however
// many watch it, and nobody misses it.
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

// TestSeedLost: all who heard the seed miss it when it is gone, 23 seconds after
// they heard it last or a ping timeout after somebody asked, and hear of it when
// it is back.
func TestSeedLost(t *testing.T) {
	w := watchers(t, 5)
	w.Run(time.Minute)
	w.Silence(0)
	begin := w.Now()
	w.Run(10 * time.Second)
	w.unjoin(1, 0, overlay.ReasonSilent)
	w.Run(time.Minute)
	for i := int32(1); i < 5; i++ {
		_, at := only[overlay.SeedLost](t, w, i)
		// It was heard up to 15 seconds before.
		within(t, "the seed is missed", at-begin, 8*time.Second, 33*time.Second)
	}
	w.Start(0, 0)
	w.Run(time.Second)
	w.say(1, 0, 0) // a new connection, after the end of the old one
	w.Run(time.Second)
	w.join(0, 1, true)
	w.Run(time.Minute)
	for i := int32(1); i < 5; i++ {
		only[overlay.SeedHeard](t, w, i)
	}
}

// TestAloneMissesNobody: without a neighbour there is no verdict.
func TestAloneMissesNobody(t *testing.T) {
	w := watchers(t, 2)
	w.Run(time.Minute)
	w.Silence(0)
	w.unjoin(1, 0, overlay.ReasonSilent)
	w.Run(5 * time.Minute)
	for _, h := range w.probe(1).heard {
		if _, ok := h.in.(overlay.SeedLost); ok {
			t.Error("a lone node misses its seed")
		}
	}
}
