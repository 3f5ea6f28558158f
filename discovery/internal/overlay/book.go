package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxKnown bounds the known addresses. In the simulation in which 95 % of a thousand
	// nodes die in silence, 64 left nodes behind.
	maxKnown = 128
	// maxLost bounds the lost addresses: all those known before a cut, and as many that
	// were tried since.
	maxLost = 256
	// A node that had no room is asked again after fullPause to twice that, and by a
	// node without links after isolatedAskAgain.
	fullPause        = 4 * time.Second
	isolatedAskAgain = 2 * time.Second
)

// The pauses between attempts at a lost address. A former neighbor may be on the other
// side of a cut, so its pause grows slowly; other nodes may never have been there.
var (
	isolatedBackoff = backoff{time.Second, 8 * time.Second, 1}
	neighborBackoff = backoff{8 * time.Second, 64 * time.Second, 8}
	unknownBackoff  = backoff{30 * time.Second, 10 * time.Minute, 1}
)

// A backoff is a pause that doubles, up to a limit.
type backoff struct {
	first, last time.Duration
	perStep     int // attempts before it doubles
}

func (b backoff) after(fails int) time.Duration {
	return min(b.first<<min(max(fails-1, 0)/b.perStep, 10), b.last)
}

// A candidate is a node that could become a neighbor.
type candidate struct {
	Contact
	signedAddrs []ma.Multiaddr // those of Addrs that are in the record
	wasNeighbor bool
	fails       int       // failed attempts since it was last heard; zero for a known node
	retryAt     time.Time // no attempt before
	lastTry     time.Time
	lastCheck   time.Time // the last check, or the last message of its own
}

// A book holds the addresses of other nodes: the known ones, which are believed to live,
// and the lost ones, which did not answer or were neighbors that went away. Both are
// slices in the order of their arrival, so that nothing depends on the order of a map.
//
// Hearsay adds to the known addresses, but it never moves an address from lost to known:
// only a message of the node itself does. Otherwise the living would tell each other of
// the dead for ever.
type book struct {
	self  peer.ID
	rand  *rand.Rand
	known []*candidate
	lost  []*candidate
}

func findEntry(list []*candidate, id peer.ID) *candidate {
	for _, e := range list {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// findKnown returns the known address of a node, or nil.
func (b *book) findKnown(id peer.ID) *candidate { return findEntry(b.known, id) }

// find returns the known or lost address of a node, or nil.
func (b *book) find(id peer.ID) *candidate {
	if e := b.findKnown(id); e != nil {
		return e
	}
	return findEntry(b.lost, id)
}

// update replaces what c has in a newer form.
func (e *candidate) update(c Contact) {
	if len(c.Record) > 0 && c.Seq >= e.Seq {
		e.Record, e.Seq = c.Record, c.Seq
		// No address of a new record may be dialable from here; the old ones may still work.
		if len(c.Addrs) > 0 {
			e.Addrs, e.signedAddrs = c.Addrs, c.Addrs
		}
	}
	switch {
	case len(e.Addrs) == 0:
		e.Addrs = c.Addrs
	case len(c.Record) == 0 && len(c.Addrs) > 0:
		// Unsigned addresses, from the local network or a rendezvous, may be wrong, so
		// the signed ones are kept beside them.
		e.Addrs = slices.Clone(c.Addrs)
		for _, a := range e.signedAddrs {
			if !ma.Contains(e.Addrs, a) {
				e.Addrs = append(e.Addrs, a)
			}
		}
	}
}

// learn remembers a contact that somebody told of.
func (b *book) learn(c Contact) {
	if c.ID == b.self || c.ID == "" || len(c.Record) == 0 && len(c.Addrs) == 0 {
		return // this node itself, or nothing to dial
	}
	if e := b.find(c.ID); e != nil {
		e.update(c)
		return
	}
	e := &candidate{}
	e.ID = c.ID
	e.update(c)
	b.addKnown(e)
}

// markAlive notes a message of c itself, and moves c to the known addresses.
func (b *book) markAlive(c Contact, now time.Time) {
	if e := findEntry(b.lost, c.ID); e != nil {
		b.lost = slices.DeleteFunc(b.lost, func(x *candidate) bool { return x == e })
		b.addKnown(e)
	}
	b.learn(c)
	if e := b.findKnown(c.ID); e != nil {
		e.fails, e.lastCheck = 0, now
	}
}

// addKnown adds e, and evicts a random known address if there are too many, as HyParView
// does.
func (b *book) addKnown(e *candidate) {
	if len(b.known) >= maxKnown {
		i := b.rand.IntN(len(b.known))
		b.known = slices.Delete(b.known, i, i+1)
	}
	b.known = append(b.known, e)
}

// markNeighbor notes that c is a neighbor now.
func (b *book) markNeighbor(c Contact, now time.Time) {
	b.markAlive(c, now)
	if e := b.findKnown(c.ID); e != nil {
		e.wasNeighbor = true
	}
}

// markFailed notes a failed attempt, or the loss of a neighbor: the address is lost until
// the node is heard again. spread varies the pause before the next attempt.
func (b *book) markFailed(id peer.ID, now time.Time, spread func(time.Duration) time.Duration) {
	e := b.findKnown(id)
	if e != nil {
		b.known = slices.DeleteFunc(b.known, func(x *candidate) bool { return x == e })
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
	e.retryAt = now.Add(spread(pause.after(e.fails)))
}

// retryLost lets all lost addresses be tried again within a second, in random order, and
// forgets all failed attempts but the first.
func (b *book) retryLost(now time.Time) {
	for _, e := range b.lost {
		e.fails, e.retryAt = 1, now.Add(time.Duration(b.rand.Int64N(int64(time.Second))))
	}
}

// evictLost removes one lost address: the one with the most failed attempts, and former
// neighbors last.
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
	match := func(e *candidate) bool { return e.ID == id }
	b.known = slices.DeleteFunc(b.known, match)
	b.lost = slices.DeleteFunc(b.lost, match)
}

// dueKnown returns the usable known addresses that may be asked for a link now, in
// random order.
func (b *book) dueKnown(now time.Time, usable func(*candidate) bool) (list []*candidate) {
	for _, e := range b.known {
		if !now.Before(e.retryAt) && usable(e) {
			list = append(list, e)
		}
	}
	b.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// isolatedRetryAt returns when a node without links may ask e again.
func (e *candidate) isolatedRetryAt() time.Time {
	switch {
	case e.lastTry.IsZero():
		return time.Time{}
	case e.fails > 0:
		// The first failure made the address lost; the isolated node did not make that attempt.
		return e.lastTry.Add(isolatedBackoff.after(e.fails - 1))
	}
	return e.lastTry.Add(isolatedAskAgain)
}

// retryAll lets a node that has become isolated try all addresses at once.
func (b *book) retryAll() {
	for _, list := range [][]*candidate{b.known, b.lost} {
		for _, e := range list {
			e.lastTry, e.fails = time.Time{}, min(e.fails, 1)
		}
	}
}

// hasUntried reports whether a usable address was not tried since retryAll.
func (b *book) hasUntried(usable func(*candidate) bool) bool {
	untried := func(e *candidate) bool { return e.lastTry.IsZero() && usable(e) }
	return slices.ContainsFunc(b.known, untried) || slices.ContainsFunc(b.lost, untried)
}

// dueIsolated returns the addresses that a node without links may ask now: the known
// ones in random order, and then the lost ones. Of those, former neighbors come first,
// and then those that were tried the longest ago.
func (b *book) dueIsolated(now time.Time, usable func(*candidate) bool) (list []*candidate) {
	due := func(e *candidate) bool { return !now.Before(e.isolatedRetryAt()) && usable(e) }
	for _, e := range b.known {
		if due(e) {
			list = append(list, e)
		}
	}
	b.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	known := len(list)
	for _, e := range b.lost {
		if due(e) {
			list = append(list, e)
		}
	}
	slices.SortStableFunc(list[known:], func(a, b *candidate) int {
		if a.wasNeighbor != b.wasNeighbor {
			return bit(b.wasNeighbor) - bit(a.wasNeighbor)
		}
		return a.lastTry.Compare(b.lastTry)
	})
	return list
}

// stalestKnown returns the usable known node that has not been heard for the longest
// time, or nil.
func (b *book) stalestKnown(usable func(*candidate) bool) (stalest *candidate) {
	for _, e := range b.known {
		if usable(e) && (stalest == nil || e.lastCheck.Before(stalest.lastCheck)) {
			stalest = e
		}
	}
	return stalest
}

// nextLost returns the usable lost node whose next attempt is due first, or nil.
func (b *book) nextLost(usable func(*candidate) bool) (first *candidate) {
	for _, e := range b.lost {
		if usable(e) && (first == nil || e.retryAt.Before(first.retryAt)) {
			first = e
		}
	}
	return first
}

// earlier returns the earlier of two times. Zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
