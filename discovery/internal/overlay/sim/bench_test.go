package sim

import (
	"testing"
	"time"
)

// BenchmarkTenThousand plays a minute of ten thousand nodes, from their start.
func BenchmarkTenThousand(b *testing.B) {
	if testing.Short() {
		b.Skip("half a minute of CPU")
	}
	for b.Loop() {
		w := New(Smokesignal, 1)
		for range 10_000 {
			w.Add(w.randomBelow(time.Second), 0)
		}
		w.Run(time.Minute)
		b.ReportMetric(float64(w.Events), "events")
	}
}
