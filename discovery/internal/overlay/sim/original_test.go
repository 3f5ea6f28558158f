package sim

import (
	"testing"
	"time"
)

// The yardstick has the faults that the Node.js library has.
func TestOriginalHasItsFaults(t *testing.T) {
	t.Run("one by one makes a chain", func(t *testing.T) {
		w := New(Original, 1)
		for i := range 100 {
			w.Add(time.Duration(i)*time.Second, 0)
		}
		w.Run(130 * time.Second)
		if d := w.Diameter(); d < 15 {
			t.Errorf("diameter %d", d)
		}
	})
	t.Run("everybody pings", func(t *testing.T) {
		w := New(Original, 1)
		for i := range 100 {
			w.Add(time.Duration(i)*100*time.Millisecond, 0)
		}
		w.Run(time.Minute)
		before := w.Sent[kindPing]
		w.Run(time.Minute)
		if rate := float64(w.Sent[kindPing]-before) / 60 / 100; rate < 30 {
			t.Errorf("%.1f pings per node per second", rate)
		}
	})
	t.Run("a node that cannot be dialed does not join", func(t *testing.T) {
		w := New(Original, 1)
		for i := range 10 {
			w.Add(time.Duration(i)*time.Second, 0)
		}
		w.Undialable(5)
		w.Run(5 * time.Minute)
		if w.nodes[5].degree() != 0 {
			t.Error("it did")
		}
	})
	t.Run("a frozen node stays a peer", func(t *testing.T) {
		w := New(Original, 1)
		w.Add(0, 0)
		w.Add(0, 0)
		w.Run(time.Minute)
		w.Silence(1)
		w.Run(10 * time.Minute)
		if !w.nodes[0].linkedTo(1) {
			t.Error("it does not")
		}
	})
	t.Run("two nodes that dial each other end up without a link", func(t *testing.T) {
		w := New(Original, 1)
		w.Add(0)
		w.Add(0)
		w.Run(time.Second)
		for i := range int32(2) {
			s := w.nodes[i].machine.(*original)
			s.out = s.out[:0]
			s.answerRequest(w.nodes[1-i].id)
			for _, o := range s.out {
				w.perform(w.nodes[i], o)
			}
		}
		w.Run(time.Second)
		if w.nodes[0].degree()+w.nodes[1].degree() != 0 {
			t.Error("there is a link")
		}
	})
}
