package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxKnown bounds the known addresses. The simulation in which half to nineteen
// twentieths of the nodes die at once left nodes behind with 64, none with 128.
const maxKnown = 128

// Retry of a known address: after an attempt that failed the pause doubles from
// firstRetry to lastRetry.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// A known is an address we might link to.
type known struct {
	Contact
	fails   int
	retryAt time.Time // no attempt before
	apartAt time.Time // when the pair parted without a fault
}

// book holds the known addresses in the order they came; a slice, since order
// must not depend on a map and 128 entries are searched quickly.
type book struct {
	entries []*known
}

func (b *book) get(id peer.ID) *known {
	i := slices.IndexFunc(b.entries, func(k *known) bool { return k.ID == id })
	if i < 0 {
		return nil
	}
	return b.entries[i]
}

// add remembers c, or refreshes its record and addresses. When the book is full
// the entry that failed most, the oldest of those, makes room.
func (b *book) add(c Contact) *known {
	if k := b.get(c.ID); k != nil {
		if len(c.Record) > 0 {
			k.Record = c.Record
		}
		if len(c.Addrs) > 0 {
			k.Addrs = c.Addrs
		}
		return k
	}
	if len(b.entries) >= maxKnown {
		worst := 0
		for i, k := range b.entries {
			if k.fails > b.entries[worst].fails {
				worst = i
			}
		}
		b.entries = slices.Delete(b.entries, worst, worst+1)
	}
	k := &known{Contact: c}
	b.entries = append(b.entries, k)
	return k
}

func (b *book) remove(id peer.ID) {
	b.entries = slices.DeleteFunc(b.entries, func(k *known) bool { return k.ID == id })
}

// failed puts off the next attempt at id.
func (b *book) failed(id peer.ID, now time.Time) {
	if k := b.get(id); k != nil {
		k.retryAt = now.Add(min(firstRetry<<min(k.fails, 10), lastRetry))
		k.fails++
	}
}

// due returns the entries that may be tried now, those that failed least first,
// otherwise in random order.
func (b *book) due(now time.Time, r *rand.Rand, usable func(*known) bool) []*known {
	var list []*known
	for _, k := range b.entries {
		if !now.Before(k.retryAt) && usable(k) {
			list = append(list, k)
		}
	}
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b *known) int { return a.fails - b.fails })
	return list
}

// next returns when the earliest entry which is not due yet will be, or zero.
func (b *book) next(now time.Time, usable func(*known) bool) (t time.Time) {
	for _, k := range b.entries {
		if k.retryAt.After(now) && usable(k) {
			t = earlier(t, k.retryAt)
		}
	}
	return t
}

// earlier returns the earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
