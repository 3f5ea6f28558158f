package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxKnown bounds the known addresses. In the simulation in which nineteen in
	// twenty of a thousand nodes die in silence, 64 leave nodes behind.
	maxKnown = 128
	// maxLost bounds the addresses that did not answer: all known ones of the time
	// before a cut, and as many that were tried since.
	maxLost = 256
	// fullPause is half of the longest time before a node that had no room is
	// asked again.
	fullPause = 4 * time.Second
	// isolatedAskAgain is how soon a lone node asks one again that had no room.
	isolatedAskAgain = 2 * time.Second
)

// The pause before a lost address is tried again doubles, with each attempt, or
// with each eighth for a former neighbour: that may be on the other side of a cut,
// while another may never have been there.
var (
	isolatedBackoff = backoff{time.Second, 8 * time.Second, 1} // promise 5
	neighborBackoff = backoff{8 * time.Second, 64 * time.Second, 8}
	unknownBackoff  = backoff{30 * time.Second, 10 * time.Minute, 1}
)

type backoff struct {
	first, last time.Duration
	perStep     int // before it doubles
}

func (p backoff) after(fails int) time.Duration {
	return min(p.first<<min(max(fails-1, 0)/p.perStep, 10), p.last)
}

// An entry is an address we might link to.
type entry struct {
	Contact
	signedAddrs []ma.Multiaddr // those of Addrs that are in the record
	wasNeighbor bool           // it was one
	fails       int            // attempts in vain since it was last heard; not zero: it is lost
	retryAt     time.Time      // no attempt before
	lastTry     time.Time      // the last attempt
	lastCheck   time.Time      // the last attempt or word of its own
}

// A book holds the known and the lost addresses in the order they came: slices,
// since order must not depend on a map, and so few are searched quickly.
//
// What others tell adds to the known and never moves an address from lost to
// known: otherwise nodes would tell each other for ever of the dead. Only the node
// itself does.
type book struct {
	self  peer.ID
	rand  *rand.Rand
	known []*entry
	lost  []*entry
}

func findEntry(list []*entry, id peer.ID) *entry {
	for _, e := range list {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// findKnown returns the known address of a node, or nil.
func (b *book) findKnown(id peer.ID) *entry { return findEntry(b.known, id) }

// find returns the known or lost address of a node, or nil.
func (b *book) find(id peer.ID) *entry {
	if e := b.findKnown(id); e != nil {
		return e
	}
	return findEntry(b.lost, id)
}

// update takes what is newer in c.
func (e *entry) update(c Contact) {
	if len(c.Record) > 0 && c.Seq >= e.Seq {
		e.Record, e.Seq = c.Record, c.Seq
		if len(c.Addrs) > 0 {
			e.Addrs, e.signedAddrs = c.Addrs, c.Addrs
		}
	}
	switch {
	case len(e.Addrs) == 0:
		e.Addrs = c.Addrs
	case len(c.Record) == 0 && len(c.Addrs) > 0:
		// Whoever says it, on the local network or in a rendezvous, may be wrong.
		e.Addrs = slices.Clone(c.Addrs)
		for _, a := range e.signedAddrs {
			if !ma.Contains(e.Addrs, a) {
				e.Addrs = append(e.Addrs, a)
			}
		}
	}
}

// learn remembers what somebody tells of another node.
func (b *book) learn(c Contact) {
	if c.ID == b.self || c.ID == "" || len(c.Record) == 0 && len(c.Addrs) == 0 {
		return
	}
	if e := b.find(c.ID); e != nil {
		e.update(c)
		return
	}
	e := &entry{}
	e.ID = c.ID
	e.update(c)
	b.addKnown(e)
}

// markAlive notes that c itself was heard, and has moved it to the known ones if it
// can be dialled.
func (b *book) markAlive(c Contact, now time.Time) {
	if e := findEntry(b.lost, c.ID); e != nil {
		b.lost = slices.DeleteFunc(b.lost, func(x *entry) bool { return x == e })
		b.addKnown(e)
	}
	b.learn(c)
	if e := b.findKnown(c.ID); e != nil {
		e.fails, e.lastCheck = 0, now
	}
}

// addKnown makes room for e at the cost of a random other one, as HyParView does.
func (b *book) addKnown(e *entry) {
	if len(b.known) >= maxKnown {
		i := b.rand.IntN(len(b.known))
		b.known = slices.Delete(b.known, i, i+1)
	}
	b.known = append(b.known, e)
}

// markNeighbor notes that c is a neighbour now.
func (b *book) markNeighbor(c Contact, now time.Time) {
	b.markAlive(c, now)
	if e := b.findKnown(c.ID); e != nil {
		e.wasNeighbor = true
	}
}

// markFailed notes an attempt in vain, or the loss of a neighbour: the address is lost
// until it is heard again. vary spreads the next attempt.
func (b *book) markFailed(id peer.ID, now time.Time, vary func(time.Duration) time.Duration) {
	e := b.findKnown(id)
	if e != nil {
		b.known = slices.DeleteFunc(b.known, func(x *entry) bool { return x == e })
		if len(b.lost) >= maxLost {
			b.evictLost()
		}
		b.lost = append(b.lost, e)
	} else if e = findEntry(b.lost, id); e == nil {
		return
	}
	e.fails++
	pause := unknownBackoff
	if e.wasNeighbor {
		pause = neighborBackoff
	}
	e.retryAt = now.Add(vary(pause.after(e.fails)))
}

// retryLost lets all lost ones be tried again, as fast as that is allowed, and the first
// attempts in vain count for nothing.
func (b *book) retryLost(now time.Time) {
	for _, e := range b.lost {
		e.fails, e.retryAt = 1, now.Add(time.Duration(b.rand.Int64N(int64(time.Second)))) // in random order
	}
}

// evictLost makes room among the lost: who failed most goes, strangers first.
func (b *book) evictLost() {
	worst := 0
	for i, e := range b.lost {
		w := b.lost[worst]
		if w.wasNeighbor && !e.wasNeighbor || w.wasNeighbor == e.wasNeighbor && e.fails > w.fails {
			worst = i
		}
	}
	b.lost = slices.Delete(b.lost, worst, worst+1)
}

func (b *book) remove(id peer.ID) {
	gone := func(e *entry) bool { return e.ID == id }
	b.known = slices.DeleteFunc(b.known, gone)
	b.lost = slices.DeleteFunc(b.lost, gone)
}

// dueKnown returns the known ones that may be asked for a link now, in random order.
func (b *book) dueKnown(now time.Time, usable func(*entry) bool) (list []*entry) {
	for _, e := range b.known {
		if !now.Before(e.retryAt) && usable(e) {
			list = append(list, e)
		}
	}
	b.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// isolatedRetryAt returns when a node without links may ask e.
func (e *entry) isolatedRetryAt() time.Time {
	switch {
	case e.lastTry.IsZero():
		return time.Time{}
	case e.fails > 0:
		return e.lastTry.Add(isolatedBackoff.after(e.fails - 1)) // the first was no attempt of the lone node
	}
	return e.lastTry.Add(isolatedAskAgain)
}

// retryAll lets everybody be tried again at once.
func (b *book) retryAll() {
	for _, list := range [][]*entry{b.known, b.lost} {
		for _, e := range list {
			e.lastTry, e.fails = time.Time{}, min(e.fails, 1)
		}
	}
}

// hasUntried tells whether somebody was not asked since the node is alone.
func (b *book) hasUntried(usable func(*entry) bool) bool {
	fresh := func(e *entry) bool { return e.lastTry.IsZero() && usable(e) }
	return slices.ContainsFunc(b.known, fresh) || slices.ContainsFunc(b.lost, fresh)
}

// dueIsolated returns all that a lone node may ask now: the known in random order, then
// the lost, former neighbours and those whose last attempt is longest ago first.
func (b *book) dueIsolated(now time.Time, usable func(*entry) bool) (list []*entry) {
	rested := func(e *entry) bool { return !now.Before(e.isolatedRetryAt()) && usable(e) }
	for _, e := range b.known {
		if rested(e) {
			list = append(list, e)
		}
	}
	b.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	known := len(list)
	for _, e := range b.lost {
		if rested(e) {
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list[known:], func(a, b *entry) int {
		if a.wasNeighbor != b.wasNeighbor {
			return bit(b.wasNeighbor) - bit(a.wasNeighbor)
		}
		return a.lastTry.Compare(b.lastTry)
	})
	return list
}

// stalestKnown returns the known one of which nothing was heard for longest.
func (b *book) stalestKnown(usable func(*entry) bool) (worst *entry) {
	for _, e := range b.known {
		if usable(e) && (worst == nil || e.lastCheck.Before(worst.lastCheck)) {
			worst = e
		}
	}
	return worst
}

// nextLost returns the lost one that should be tried first.
func (b *book) nextLost(usable func(*entry) bool) (first *entry) {
	for _, e := range b.lost {
		if usable(e) && (first == nil || e.retryAt.Before(first.retryAt)) {
			first = e
		}
	}
	return first
}

// earlier returns the earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
