package smokesignaltest_test

import (
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/smokesignaltest"
)

// A neighbor whose process was killed says nothing over QUIC. A node that closes with a
// broadcast that this neighbor has not confirmed asks it for a sign of life, and stops
// waiting after a second without an answer.
func TestCloseDoesNotWaitForAKilledNeighbor(t *testing.T) {
	for name, events := range map[string]int{"one broadcast": 1, "more than the window holds": 100} {
		t.Run(name, func(t *testing.T) {
			smokesignaltest.Run(t, func(t *testing.T) {
				net := smokesignaltest.Network(t, 3)
				net.Kill(1)
				for k := range events {
					net.Emit(0, "last words", k)
				}
				began := time.Now()
				if err := net.Node(0).Close(); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > 1500*time.Millisecond {
					t.Errorf("Close took %v", took)
				}
				for k := range events {
					net.EverybodyGot("last words", k)
				}
			})
		})
	}
}

// A living neighbor that is slow to confirm a broadcast is waited for.
func TestCloseWaitsForASlowNeighbor(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		const lag = 400 * time.Millisecond
		net := smokesignaltest.Network(t, 2)
		net.Latency(0, 1, lag)
		net.Emit(0, "last words", "farewell")
		began := time.Now()
		if err := net.Node(0).Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 2*lag {
			t.Errorf("Close took %v, too short for an answer", took)
		}
		net.EverybodyGot("last words", "farewell")
	})
}
