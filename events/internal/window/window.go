// Package window decides how much a sender may publish before its neighbors have
// received it. Pubsub has no back pressure: it drops what does not fit into a neighbor's
// queue. So every node acknowledges to its neighbors how far it has received each
// sender, and a sender publishes only while each of its neighbors lacks little. The
// package performs no I/O and reads no clock.
//
// A relay acknowledges a batch to its giver, the neighbor from which the batch came
// first, only when its own other neighbors have acknowledged it. So the sender goes as
// fast as the slowest link of the network, and cannot overrun relays. To its other
// neighbors a relay acknowledges at once. The givers of a batch form a tree, so no cycle
// of links can wait for itself.
//
// A neighbor that acknowledges nothing of a sender for [Config.GiveUp] is no longer
// waited for until it does.
package window

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the bounds of a controller. Zero means the default in brackets.
type Config struct {
	// Batches and Bytes are how much of a sender a neighbor may lack before nothing
	// more is published. 16 batches are half of the queue of a pubsub with its defaults
	// [16, 1 MiB].
	Batches int
	Bytes   int
	// GiveUp is how long a neighbor that acknowledges nothing is waited for [5 s].
	GiveUp time.Duration
	// AckDelay is how long an acknowledgment may wait for others to be sent with it.
	// One for AckBatches or AckBytes is sent at once [3 ms, a quarter of a window]. With
	// 10 ms a lone event every 5 ms took a tenth longer, as the acknowledgment of the
	// event before the last was always in its way.
	AckDelay   time.Duration
	AckBatches int
	AckBytes   int
	// Nudge is how long a neighbor may acknowledge nothing before it is told our mark,
	// in case it has noticed nothing. The time doubles with each nudge. A neighbor that
	// is no longer waited for gets a few more [300 ms].
	Nudge time.Duration
	// MaxAuthors bounds the senders of which a neighbor's acknowledgments are
	// remembered [10,000].
	MaxAuthors int
}

func (c Config) withDefaults() Config {
	c.Batches = cmp.Or(c.Batches, 16)
	c.Bytes = cmp.Or(c.Bytes, 1<<20)
	c.GiveUp = cmp.Or(c.GiveUp, 5*time.Second)
	c.AckDelay = cmp.Or(c.AckDelay, 3*time.Millisecond)
	c.AckBatches = cmp.Or(c.AckBatches, c.Batches/4)
	c.AckBytes = cmp.Or(c.AckBytes, c.Bytes/4)
	c.Nudge = cmp.Or(c.Nudge, 300*time.Millisecond)
	c.MaxAuthors = cmp.Or(c.MaxAuthors, 10_000)
	return c
}

// maxBatches bounds the batches of one sender that are remembered. Only a sender that
// ignores the window can reach it.
const maxBatches = 4096

// maxPauses is how long the time between nudges grows, in units of GiveUp, before they
// end.
const maxPauses = 8

// maxTries is how many entries are examined to find one that can be dropped.
const maxTries = 16

// An Ack is how far a node has received a session of an author.
type Ack struct {
	Author  peer.ID
	Session order.SessionKey
	Next    uint64 // the node has everything below
	Through uint64 // no node behind it lacks anything below
	Ask     bool   // the node asks for the other's mark
}

// A Controller is not safe for concurrent use.
type Controller struct {
	cfg       Config
	self      peer.ID
	neighbors map[peer.ID]*neighbor
	announced map[peer.ID]time.Time // when Announce was called for an author; for neighbors to come

	// Batches under way.
	count uint64            // batches added so far, to tell which came before a neighbor joined
	flows map[peer.ID]*flow // by author
	busy  map[peer.ID]*flow // the flows that a neighbor lacks something of
	due   time.Time         // when Advance has something to do; zero: never
}

// flow is the latest session of one author, and its batches under way.
type flow struct {
	author    peer.ID
	session   order.SessionKey
	next      uint64    // everything below is here
	last      uint64    // Controller.count at the latest batch
	lastTaken time.Time // when that was added
	batches   []unacked // ascending
}

// unacked is a batch that a neighbor may lack.
type unacked struct {
	first, end uint64
	size       int
	count      uint64  // Controller.count when it was added
	giver      peer.ID // from which it came first; empty: it did not come by pubsub
}

type neighbor struct {
	id       peer.ID
	joinedAt uint64 // Controller.count when it joined; it is not owed earlier batches
	pairs    map[peer.ID]*pair
	dirty    []*pair // pairs with something to tell the neighbor
	due      time.Time
	reported bool // Due has returned it, and CollectAcks was not called since
}

// pair is what a neighbor and this node have acknowledged to each other about an author.
type pair struct {
	author  peer.ID
	session order.SessionKey

	// What the neighbor has acknowledged.
	next, through uint64
	owed          uint64    // it is owed the flow's session up to here
	progress      time.Time // of its last acknowledgment, or of the first batch that it lacks
	lacks         bool      // it lacks something that it is owed
	givenUp       bool      // it is not waited for until it acknowledges more

	// What this node has acknowledged to the neighbor.
	sent       Ack
	owing      int // batches added since
	owingSize  int
	dirty      bool // it is in neighbor.dirty
	ask        bool // the next acknowledgment asks for the neighbor's mark
	nextNudge  time.Time
	nudgePause time.Duration
}

// New returns the controller of the node self, without neighbors.
func New(self peer.ID, cfg Config) *Controller {
	return &Controller{
		cfg:       cfg.withDefaults(),
		self:      self,
		neighbors: make(map[peer.ID]*neighbor),
		flows:     make(map[peer.ID]*flow),
		busy:      make(map[peer.ID]*flow),
		announced: make(map[peer.ID]time.Time),
	}
}

// AddNeighbor adds a neighbor. It is owed the batches that are added from now on.
func (c *Controller) AddNeighbor(id peer.ID) {
	if c.neighbors[id] == nil {
		c.neighbors[id] = &neighbor{id: id, joinedAt: c.count, pairs: make(map[peer.ID]*pair)}
	}
}

// RemoveNeighbor removes a neighbor. Nobody waits for it any more.
func (c *Controller) RemoveNeighbor(now time.Time, id peer.ID) {
	if c.neighbors[id] == nil {
		return
	}
	delete(c.neighbors, id)
	for _, f := range c.busy {
		c.updateFlow(now, f)
	}
}

// AddBatch adds a batch [first, end) of an author that was published here, or that came
// for the first time from the neighbor giver. With an empty giver, no neighbor waits for
// its acknowledgment.
func (c *Controller) AddBatch(now time.Time, author peer.ID, session order.SessionKey, first, end uint64, size int, giver peer.ID) {
	f := c.flows[author]
	if f == nil || f.session.Compare(session) < 0 {
		if f == nil {
			c.makeRoom()
		}
		f = &flow{author: author, session: session, next: first}
		c.flows[author] = f
		// Nobody is owed the rest of the earlier session.
		for _, n := range c.neighbors {
			if p := n.pairs[author]; p != nil {
				p.owed, p.lacks = 0, false
			}
		}
	} else if f.session != session {
		return // the author has restarted since
	}
	c.count++
	f.last, f.lastTaken = c.count, now
	b := unacked{first, end, size, c.count, giver}
	i := len(f.batches)
	for i > 0 && f.batches[i-1].first > first {
		i--
	}
	f.batches = slices.Insert(f.batches, i, b)
	if len(f.batches) > maxBatches {
		f.batches = slices.Delete(f.batches, 0, 1)
	}
	for _, n := range c.neighbors {
		p := c.pair(n, author)
		if p == nil {
			continue
		}
		p.owing++
		p.owingSize += size
		if f.lacks(n, p, &b) {
			p.owed = max(p.owed, end)
		}
	}
	c.updateFlow(now, f)
}

// scheduleNudge sets the time until the neighbor is nudged, after it was heard or was
// nudged.
func (p *pair) scheduleNudge(now time.Time, pause time.Duration) {
	p.nudgePause = pause
	p.nextNudge = now.Add(pause)
}

// makeRoom removes an author if there are too many, if possible one without batches
// under way.
func (c *Controller) makeRoom() {
	if len(c.flows) < c.cfg.MaxAuthors {
		return
	}
	var victim peer.ID
	tries := 0
	for author := range c.flows {
		if author == c.self {
			continue
		}
		victim = author
		if tries++; c.busy[author] == nil || tries == maxTries {
			break
		}
	}
	delete(c.flows, victim)
	delete(c.busy, victim)
	for _, n := range c.neighbors {
		if p := n.pairs[victim]; p != nil {
			p.owed, p.lacks = 0, false
			// CollectAcks still needs a dirty pair.
			if !p.dirty {
				delete(n.pairs, victim)
			}
		}
	}
}

// SetReceived notes that everything of the author below next is here, or lost.
func (c *Controller) SetReceived(now time.Time, author peer.ID, session order.SessionKey, next uint64) {
	f := c.flows[author]
	if f == nil || f.session != session || next <= f.next {
		return
	}
	f.next = next
	c.updateFlow(now, f)
}

// ReceiveAck handles an acknowledgment of a neighbor.
func (c *Controller) ReceiveAck(now time.Time, id peer.ID, a Ack) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	p := c.pair(n, a.Author)
	if p == nil {
		return
	}
	switch order := p.session.Compare(a.Session); {
	case order > 0:
		return // it was overtaken by one about a later session
	case order < 0:
		p.session, p.next, p.through = a.Session, 0, 0
	}
	if a.Ask {
		c.markDirty(now, n, p, soon)
	}
	a.Through = min(a.Through, a.Next)
	if a.Next <= p.next && a.Through <= p.through {
		return // nothing new; the neighbor is not making progress
	}
	p.next, p.through = max(p.next, a.Next), max(p.through, a.Through)
	p.progress, p.givenUp = now, false
	p.scheduleNudge(now, c.cfg.Nudge)
	if f := c.flows[a.Author]; f != nil {
		c.updateFlow(now, f)
	}
}

// CanPublish reports whether the author may publish another batch.
func (c *Controller) CanPublish(author peer.ID) bool {
	batches, bytes := c.Backlog(author)
	return batches < c.cfg.Batches && bytes < c.cfg.Bytes
}

// Backlog returns how many batches and bytes of an author the neighbor lacks that lacks
// most. Neighbors that are not waited for do not count.
func (c *Controller) Backlog(author peer.ID) (batches, bytes int) {
	f := c.flows[author]
	if f == nil {
		return 0, 0
	}
	for _, n := range c.neighbors {
		p := n.pairs[author]
		if p == nil || p.givenUp {
			continue
		}
		count, size := 0, 0
		for i := range f.batches {
			if b := &f.batches[i]; f.lacks(n, p, b) {
				count++
				size += b.size
			}
		}
		batches, bytes = max(batches, count), max(bytes, size)
	}
	return batches, bytes
}

// lacks reports whether a neighbor is owed a batch that it has not acknowledged. The
// batch is not owed to the neighbors that sent it.
func (f *flow) lacks(n *neighbor, p *pair, b *unacked) bool {
	return b.count > n.joinedAt && b.giver != n.id && n.id != f.author && f.behind(p, b.end)
}

// behind reports whether a neighbor has not acknowledged everything below end. A
// neighbor that has received a later session is not behind in this one.
func (f *flow) behind(p *pair, end uint64) bool {
	c := p.session.Compare(f.session)
	return c < 0 || c == 0 && p.through < end
}

// NeighborsLacking returns the neighbors that have not received everything of the author
// below goal. Neighbors that joined after the latest batch do not count.
func (c *Controller) NeighborsLacking(author peer.ID, goal uint64) []peer.ID {
	f := c.flows[author]
	if f == nil {
		return nil
	}
	var list []peer.ID
	for id, n := range c.neighbors {
		if p := n.pairs[author]; n.joinedAt < f.last && (p == nil || p.session != f.session || p.next < goal) {
			list = append(list, id)
		}
	}
	return list
}

// ReceivedBy returns the number up to which a neighbor has received a session; zero:
// nothing.
func (c *Controller) ReceivedBy(id, author peer.ID, session order.SessionKey) uint64 {
	if n := c.neighbors[id]; n != nil {
		if p := n.pairs[author]; p != nil && p.session == session {
			return p.next
		}
	}
	return 0
}

// pair returns the pair of a neighbor and an author, and adds it if it is new. If the
// neighbor has too many, one that is not needed makes way. If none of a few is
// unneeded, pair returns nil.
func (c *Controller) pair(n *neighbor, author peer.ID) *pair {
	if p := n.pairs[author]; p != nil {
		return p
	}
	if len(n.pairs) >= c.cfg.MaxAuthors {
		tries := 0
		for other, p := range n.pairs {
			if !p.dirty && !p.lacks && other != c.self {
				delete(n.pairs, other)
				break
			}
			if tries++; tries == maxTries {
				return nil
			}
		}
	}
	p := &pair{author: author}
	n.pairs[author] = p
	return p
}

// updateFlow computes which neighbors lack something of a flow, and what each of them
// has to be told.
func (c *Controller) updateFlow(now time.Time, f *flow) {
	// Batches that every neighbor has are done with.
	n := 0
	for n < len(f.batches) && f.batches[n].end <= f.next && !c.isAwaited(f, &f.batches[n]) {
		n++
	}
	f.batches = slices.Delete(f.batches, 0, n)
	busy := len(f.batches) > 0
	for _, nb := range c.neighbors {
		p := c.pair(nb, f.author)
		if p == nil {
			continue
		}
		lacks := p.owed > 0 && f.behind(p, p.owed)
		// The time to acknowledge begins with the first batch that it lacks.
		if lacks && !p.lacks {
			p.progress = now
			p.scheduleNudge(now, c.cfg.Nudge)
		}
		p.lacks = lacks
		busy = busy || lacks
		c.due = order.Earlier(c.due, c.deadline(p))
		// Our own batches tell a neighbor how far we are, or a nudge does.
		if f.author != c.self && c.ack(nb, f) != p.sent {
			at := soon
			if p.owing >= c.cfg.AckBatches || p.owingSize >= c.cfg.AckBytes {
				at = atOnce
			}
			c.markDirty(now, nb, p, at)
		}
	}
	if busy {
		c.busy[f.author] = f
	} else {
		delete(c.busy, f.author)
	}
}

// deadline returns when Advance has to look at a pair; zero: never.
func (c *Controller) deadline(p *pair) time.Time {
	switch {
	case !p.lacks:
		return time.Time{}
	case p.givenUp:
		return p.nextNudge
	}
	return order.Earlier(p.nextNudge, p.progress.Add(c.cfg.GiveUp))
}

// isAwaited reports whether a neighbor that is waited for lacks a batch.
func (c *Controller) isAwaited(f *flow, b *unacked) bool {
	for _, n := range c.neighbors {
		if p := n.pairs[f.author]; p != nil && !p.givenUp && f.lacks(n, p, b) {
			return true
		}
	}
	return false
}

// Advance stops waiting for neighbors that have acknowledged nothing for too long, and
// nudges neighbors that may not have noticed new events.
func (c *Controller) Advance(now time.Time) {
	if c.due.IsZero() || c.due.After(now) {
		return
	}
	for _, f := range c.busy {
		changed := false
		for _, n := range c.neighbors {
			p := n.pairs[f.author]
			if p == nil || !p.lacks {
				continue
			}
			if !p.givenUp && now.Sub(p.progress) >= c.cfg.GiveUp {
				p.givenUp, changed = true, true
			}
			if !p.nextNudge.IsZero() && !p.nextNudge.After(now) {
				// After some nudges without an answer there is no point in more.
				if p.scheduleNudge(now, 2*p.nudgePause); p.nudgePause > maxPauses*c.cfg.GiveUp {
					p.nextNudge = time.Time{}
				}
				p.ask = true
				c.markDirty(now, n, p, atOnce)
			}
		}
		// Batches that only the given-up neighbor lacks are done with.
		if changed {
			c.updateFlow(now, f)
		}
	}
	c.due = time.Time{}
	for _, f := range c.busy {
		for _, n := range c.neighbors {
			if p := n.pairs[f.author]; p != nil {
				c.due = order.Earlier(c.due, c.deadline(p))
			}
		}
	}
}

// Next returns when to call Advance and Due; zero: not before the next input.
func (c *Controller) Next() time.Time {
	next := c.due
	for _, n := range c.neighbors {
		// A reported neighbor waits for CollectAcks, not for the clock.
		if !n.reported {
			next = order.Earlier(next, n.due)
		}
	}
	return next
}
