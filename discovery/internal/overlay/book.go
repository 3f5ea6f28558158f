package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxKnown bounds the addresses in the book of nodes that are believed to be alive. In the
	// simulation in which 95 % of a thousand nodes die without a message, a bound of 64 left
	// some nodes cut off.
	maxKnown = 128
	// maxLost bounds the lost addresses in the book, whose nodes did not answer. There is space
	// for all addresses of live nodes that were known before a network was cut, and for as many
	// addresses that were tried since.
	maxLost = 256
	// After a full node has refused this node's request for a link, this node waits for one to
	// two times fullPause before it asks the same node again. If this node has no links, it
	// waits only isolatedAskAgain.
	fullPause        = 4 * time.Second
	isolatedAskAgain = 2 * time.Second
)

// The pauses between attempts to reach a node of the book that did not answer. A node without
// links uses isolatedBackoff for all such nodes. A node with links uses neighborBackoff for a
// former neighbor: that node may be on the other side of a cut that heals, so the pause grows
// slowly. For any other node it uses unknownBackoff, which is long, since the node may never
// have existed at its address.
var (
	isolatedBackoff = backoff{time.Second, 8 * time.Second, 1}
	neighborBackoff = backoff{8 * time.Second, 64 * time.Second, 8}
	unknownBackoff  = backoff{30 * time.Second, 10 * time.Minute, 1}
)

// A backoff is a pause between attempts to reach a node. It grows with the number of failed
// attempts.
type backoff struct {
	first, last time.Duration // the shortest and the longest pause
	perStep     int           // after each perStep failed attempts, the pause doubles
}

// after returns the pause before the next attempt to reach a node, if fails attempts to reach
// it have failed.
func (b backoff) after(fails int) time.Duration {
	return min(b.first<<min(max(fails-1, 0)/b.perStep, 10), b.last)
}

// A candidate is an entry of the book: a node that could become a neighbor.
type candidate struct {
	Contact
	signedAddrs []ma.Multiaddr // the addresses among Addrs that are in the node's signed peer record
	wasNeighbor bool
	// fails counts the failed attempts to reach the node since its last message. It is zero
	// while the node is believed to be alive.
	fails   int
	retryAt time.Time // the earliest time for the next attempt
	// lastTry is when this node last asked the other node for a link, or checked whether it is
	// alive.
	lastTry time.Time
	// lastCheck is when this node last checked whether the other node is alive, or received a
	// message from it.
	lastCheck time.Time
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

// findKnown returns the entry of the node id in the book if that node is believed to be alive,
// or nil.
func (b *book) findKnown(id peer.ID) *candidate { return findEntry(b.known, id) }

// find returns the entry of the node id in the book, whether the node is believed to be alive
// or did not answer, or nil if there is none.
func (b *book) find(id peer.ID) *candidate {
	if e := b.findKnown(id); e != nil {
		return e
	}
	return findEntry(b.lost, id)
}

// update takes the record of c over into e, with its addresses, if it is not older than the
// record of e. If c has addresses but no record, update replaces the addresses of e by them,
// but keeps those that are signed. If e has no addresses, it gets those of c.
func (e *candidate) update(c Contact) {
	if len(c.Record) > 0 && c.Seq >= e.Seq {
		e.Record, e.Seq = c.Record, c.Seq
		// If this node cannot dial any address of the new record, it keeps the old addresses,
		// which may still work.
		if len(c.Addrs) > 0 {
			e.Addrs, e.signedAddrs = c.Addrs, c.Addrs
		}
	}
	switch {
	case len(e.Addrs) == 0:
		e.Addrs = c.Addrs
	case len(c.Record) == 0 && len(c.Addrs) > 0:
		// Addresses without a signed record, from the local network or a rendezvous, may be
		// wrong. So the addresses in the node's signed record are kept as well.
		e.Addrs = slices.Clone(c.Addrs)
		for _, a := range e.signedAddrs {
			if !ma.Contains(e.Addrs, a) {
				e.Addrs = append(e.Addrs, a)
			}
		}
	}
}

// learn adds to the book a contact that another node passed on, or that was found outside the
// overlay. A new entry counts as a node that is believed to be alive. An entry that exists is
// only updated.
func (b *book) learn(c Contact) {
	if c.ID == b.self || c.ID == "" || len(c.Record) == 0 && len(c.Addrs) == 0 {
		return // c is this node itself, names no node, or has nothing that could be dialed
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

// markAlive notes that the node c itself sent a message, which arrived at the time now. The
// book then lists c among the nodes believed to be alive.
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

// addKnown adds e to the nodes in the book that are believed to be alive. If there are maxKnown
// such nodes already, it first removes a random one, as the protocol HyParView does.
func (b *book) addKnown(e *candidate) {
	if len(b.known) >= maxKnown {
		i := b.rand.IntN(len(b.known))
		b.known = slices.Delete(b.known, i, i+1)
	}
	b.known = append(b.known, e)
}

// markNeighbor notes in the book that the node c became a neighbor at the time now.
func (b *book) markNeighbor(c Contact, now time.Time) {
	b.markAlive(c, now)
	if e := b.findKnown(c.ID); e != nil {
		e.wasNeighbor = true
	}
}

// markFailed notes that an attempt to reach the node id failed at the time now, or that the
// link to it broke. Its entry in the book is a lost one until the node sends a message. The
// function spread varies the pause before the next attempt.
func (b *book) markFailed(id peer.ID, now time.Time, spread func(time.Duration) time.Duration) {
	e := b.findKnown(id)
	if e != nil { // the book listed the node among those believed to be alive until now
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
	// A former neighbor may be on the other side of a cut in the network, so it is tried more
	// often than other lost nodes.
	if e.wasNeighbor {
		pause = neighborBackoff
	}
	e.retryAt = now.Add(spread(pause.after(e.fails)))
}

// retryLost schedules an attempt to reach each lost node of the book, one that did not answer,
// at a random time within a second from now. It sets the number of failed attempts of each of
// these nodes to one.
func (b *book) retryLost(now time.Time) {
	for _, e := range b.lost {
		e.fails, e.retryAt = 1, now.Add(time.Duration(b.rand.Int64N(int64(time.Second))))
	}
}

// evictLost removes from the lost nodes of the book, which did not answer, the one with the
// most failed attempts. It removes a former neighbor only if all lost nodes are former
// neighbors.
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

// dueKnown returns, in random order, the nodes of the book that are believed to be alive, that
// may be asked for a link at the time now, and for which usable returns true.
func (b *book) dueKnown(now time.Time, usable func(*candidate) bool) (list []*candidate) {
	for _, e := range b.known {
		if !now.Before(e.retryAt) && usable(e) {
			list = append(list, e)
		}
	}
	b.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// isolatedRetryAt returns the time from which on a node without links may ask the node e for a
// link again. The zero time means at once.
func (e *candidate) isolatedRetryAt() time.Time {
	switch {
	case e.lastTry.IsZero():
		return time.Time{}
	case e.fails > 0:
		// The first failed attempt to reach the node e, which moved e to the lost nodes, was
		// made while this node still had links. Only later attempts lengthen the pause.
		return e.lastTry.Add(isolatedBackoff.after(e.fails - 1))
	}
	return e.lastTry.Add(isolatedAskAgain)
}

// retryAll lets a node that has lost its last link try all nodes in its book at once, without
// the pauses that earlier attempts left.
func (b *book) retryAll() {
	for _, list := range [][]*candidate{b.known, b.lost} {
		for _, e := range list {
			e.lastTry, e.fails = time.Time{}, min(e.fails, 1)
		}
	}
}

// hasUntried reports whether the book has a node for which usable returns true, and which this
// node has not tried to reach since the last call of retryAll.
func (b *book) hasUntried(usable func(*candidate) bool) bool {
	untried := func(e *candidate) bool { return e.lastTry.IsZero() && usable(e) }
	return slices.ContainsFunc(b.known, untried) || slices.ContainsFunc(b.lost, untried)
}

// dueIsolated returns the nodes of the book that a node without links may ask for a link at the
// time now, and for which usable returns true. Nodes believed to be alive come first, in random
// order. Then follow lost nodes that were neighbors, and then all other lost nodes; within each
// of these two groups, the node with the oldest attempt comes first.
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

// stalestKnown returns, among the nodes of the book that are believed to be alive and for which
// usable returns true, the one whose last check or message is the oldest. It returns nil if
// there is none.
func (b *book) stalestKnown(usable func(*candidate) bool) (stalest *candidate) {
	for _, e := range b.known {
		if usable(e) && (stalest == nil || e.lastCheck.Before(stalest.lastCheck)) {
			stalest = e
		}
	}
	return stalest
}

// nextLost returns, among the lost nodes of the book for which usable returns true, the one
// whose next attempt is due first. It returns nil if there is none.
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
