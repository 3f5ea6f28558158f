package health

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
)

func number(field int) protowire.Number { return protowire.Number(field) }

// recent remembers the last keys set, at least half of limit and at most limit:
// when the younger half is full, the older is forgotten.
type recent[K comparable, V any] struct {
	limit      int
	young, old map[K]V
}

func newRecent[K comparable, V any](limit int) *recent[K, V] {
	return &recent[K, V]{limit: limit, young: map[K]V{}}
}

func (r *recent[K, V]) get(k K) (V, bool) {
	if v, ok := r.young[k]; ok {
		return v, true
	}
	v, ok := r.old[k]
	return v, ok
}

func (r *recent[K, V]) set(k K, v V) {
	if _, ok := r.young[k]; !ok && len(r.young) >= r.limit/2 {
		r.old, r.young = r.young, map[K]V{}
	}
	r.young[k] = v
}

// A neighbor may send this many signals a second, and so many more at once.
// A seed costs two in a ping interval, so this is room for hundreds.
const (
	signalsPerSecond = 100
	signalsAtOnce    = 128
	maxBudgets       = 256
)

// budgets says how many signals of each neighbor are looked at, so that one
// who floods hurts himself alone.
type budgets map[peer.ID]*budget

type budget struct {
	left float64
	at   time.Time
}

// take reports whether another signal of p may be looked at.
func (m budgets) take(p peer.ID, now time.Time) bool {
	b := m[p]
	if b == nil {
		if len(m) >= maxBudgets {
			m.forget(now)
		}
		if len(m) >= maxBudgets {
			return false
		}
		b = &budget{left: signalsAtOnce, at: now}
		m[p] = b
	}
	b.left = min(b.left+now.Sub(b.at).Seconds()*signalsPerSecond, signalsAtOnce)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// forget drops those who have been silent long enough to have all back.
func (m budgets) forget(now time.Time) {
	for p, b := range m {
		if now.Sub(b.at).Seconds()*signalsPerSecond >= signalsAtOnce {
			delete(m, p)
		}
	}
}
