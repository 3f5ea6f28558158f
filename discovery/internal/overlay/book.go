package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxKnown bounds the known addresses, which belong to nodes believed to be alive. In
	// the simulation in which 95 % of a thousand nodes die without a message, a bound of
	// 64 left some nodes cut off.
	maxKnown = 128
	// maxLost bounds the lost addresses, whose nodes did not answer. There is space for
	// all addresses known before a cut, and for as many that were tried since.
	maxLost = 256
	// After a full node has refused a link, this node waits for one to two times fullPause
	// before it asks that node again. Without links, it waits only isolatedAskAgain.
	fullPause        = 4 * time.Second
	isolatedAskAgain = 2 * time.Second
)

// The pauses between attempts at a lost address, whose node did not answer. isolatedBackoff
// is for a node without links. A former neighbor may be on the other side of a cut that
// heals, so neighborBackoff grows slowly. Any other node may never have existed at that
// address, so unknownBackoff is long.
var (
	isolatedBackoff = backoff{time.Second, 8 * time.Second, 1}
	neighborBackoff = backoff{8 * time.Second, 64 * time.Second, 8}
	unknownBackoff  = backoff{30 * time.Second, 10 * time.Minute, 1}
)

// A backoff is a pause between attempts that grows with their number.
type backoff struct {
	first, last time.Duration // the shortest and the longest pause
	perStep     int           // the number of failed attempts after which the pause doubles
}

// after returns the pause after that many failed attempts.
func (b backoff) after(fails int) time.Duration {
	return min(b.first<<min(max(fails-1, 0)/b.perStep, 10), b.last)
}

// A candidate is an entry of the book: a node that could become a neighbor.
type candidate struct {
	Contact
	signedAddrs []ma.Multiaddr // the addresses among Addrs that are in the signed record
	wasNeighbor bool
	fails       int       // failed attempts since the node's last message; zero if known
	retryAt     time.Time // the earliest time for the next attempt
	lastTry     time.Time // the last request for a link, or the last check
	lastCheck   time.Time // the last check, or the last message from the node
}

// A book holds the addresses of other nodes. The known ones belong to nodes that are
// believed to be alive. The lost ones belong to nodes that did not answer, and to former
// neighbors whose links broke. Both are slices in the order of arrival, so that a simulation
// does not depend on the random order of a map.
//
// An address that another node passed on becomes a known one, unless it is already a lost
// one: only a message from the node itself makes its address known again. Otherwise live
// nodes would pass the addresses of dead ones around for ever.
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

// findKnown returns the entry of a node that is believed to be alive, or nil.
func (b *book) findKnown(id peer.ID) *candidate { return findEntry(b.known, id) }

// find returns the entry of a node, known or lost, or nil.
func (b *book) find(id peer.ID) *candidate {
	if e := b.findKnown(id); e != nil {
		return e
	}
	return findEntry(b.lost, id)
}

// update replaces the record of e if the one in c is not older, and the addresses of e if
// c has any.
func (e *candidate) update(c Contact) {
	if len(c.Record) > 0 && c.Seq >= e.Seq {
		e.Record, e.Seq = c.Record, c.Seq
		// If this node cannot dial any address of the new record, the old ones may still
		// work.
		if len(c.Addrs) > 0 {
			e.Addrs, e.signedAddrs = c.Addrs, c.Addrs
		}
	}
	switch {
	case len(e.Addrs) == 0:
		e.Addrs = c.Addrs
	case len(c.Record) == 0 && len(c.Addrs) > 0:
		// Addresses without a record, from the local network or a rendezvous, may be
		// wrong. So the signed addresses are kept as well.
		e.Addrs = slices.Clone(c.Addrs)
		for _, a := range e.signedAddrs {
			if !ma.Contains(e.Addrs, a) {
				e.Addrs = append(e.Addrs, a)
			}
		}
	}
}

// learn adds to the book a contact that came from another node, or from outside the
// overlay. A new entry is a known one; an old entry stays known or lost.
func (b *book) learn(c Contact) {
	if c.ID == b.self || c.ID == "" || len(c.Record) == 0 && len(c.Addrs) == 0 {
		return // c is this node itself, or has nothing that could be dialed
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

// markAlive notes that c itself sent a message. Its entry becomes a known one.
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

// addKnown adds e to the known entries. If there are too many, it evicts a random one, as
// HyParView does.
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

// markFailed notes that an attempt to reach a node failed, or that the link to it broke.
// Its entry is a lost one until the node sends a message. spread varies the pause before
// the next attempt.
func (b *book) markFailed(id peer.ID, now time.Time, spread func(time.Duration) time.Duration) {
	e := b.findKnown(id)
	if e != nil { // the node was believed to be alive until now
		b.known = slices.DeleteFunc(b.known, func(x *candidate) bool { return x == e })
		if len(b.lost) >= maxLost {
			b.evictLost()
		}
		b.lost = append(b.lost, e)
	} else if e = findEntry(b.lost, id); e == nil {
		return // the node is not in the book
	}
	e.fails++
	pause := unknownBackoff
	// A former neighbor may be on the other side of a cut, so it is tried more often.
	if e.wasNeighbor {
		pause = neighborBackoff
	}
	e.retryAt = now.Add(spread(pause.after(e.fails)))
}

// retryLost schedules an attempt at every lost node within the next second, in random
// order, and sets the number of failed attempts of each to one.
func (b *book) retryLost(now time.Time) {
	for _, e := range b.lost {
		e.fails, e.retryAt = 1, now.Add(time.Duration(b.rand.Int64N(int64(time.Second))))
	}
}

// evictLost removes the lost entry with the most failed attempts. It removes a former
// neighbor only if all lost nodes are former neighbors.
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

// dueKnown returns, in random order, the known nodes that may be asked for a link now and
// for which usable returns true.
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
		// The first failed attempt, which moved the node to the lost ones, was made while
		// this node still had links. Only later attempts lengthen the pause.
		return e.lastTry.Add(isolatedBackoff.after(e.fails - 1))
	}
	return e.lastTry.Add(isolatedAskAgain)
}

// retryAll lets a node that has lost its last link try all nodes in the book at once.
func (b *book) retryAll() {
	for _, list := range [][]*candidate{b.known, b.lost} {
		for _, e := range list {
			e.lastTry, e.fails = time.Time{}, min(e.fails, 1)
		}
	}
}

// hasUntried reports whether the book has a node, usable according to the function, that
// was not tried since retryAll.
func (b *book) hasUntried(usable func(*candidate) bool) bool {
	untried := func(e *candidate) bool { return e.lastTry.IsZero() && usable(e) }
	return slices.ContainsFunc(b.known, untried) || slices.ContainsFunc(b.lost, untried)
}

// dueIsolated returns the usable nodes that a node without links may ask for a link now.
// The known nodes come first, in random order. The lost ones follow: former neighbors
// first, and within each group the node with the oldest attempt first.
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

// stalestKnown returns the usable known node whose last check or message is the oldest, or
// nil.
func (b *book) stalestKnown(usable func(*candidate) bool) (stalest *candidate) {
	for _, e := range b.known {
		if usable(e) && (stalest == nil || e.lastCheck.Before(stalest.lastCheck)) {
			stalest = e
		}
	}
	return stalest
}

// nextLost returns the usable lost node whose next attempt comes first, or nil.
func (b *book) nextLost(usable func(*candidate) bool) (first *candidate) {
	for _, e := range b.lost {
		if usable(e) && (first == nil || e.retryAt.Before(first.retryAt)) {
			first = e
		}
	}
	return first
}

// earlier returns the earlier of two times. The zero time means never, so it is later than
// all others.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}
