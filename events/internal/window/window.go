// Package window decides how much a node may publish before its neighbors have received
// it. Pubsub gives no back pressure: it silently drops what does not fit into the queue
// for a neighbor. So every node acknowledges to its neighbors how far it has received
// each sender, and a sender publishes only while each of its neighbors lacks little
// (the window). The package performs no I/O and reads no clock.
//
// A relay is a node that forwards batches. The neighbor from which it got a batch first
// is the giver of the batch. To the giver, the relay acknowledges a batch only when its
// other neighbors have acknowledged it; to the other neighbors it acknowledges at once.
// So the sender goes as fast as the slowest link of the network and cannot overrun
// relays. The givers of a batch form a tree, so no cycle of nodes can wait for each
// other.
//
// If a neighbor acknowledges nothing of a sender for [Config.GiveUp], this node stops
// waiting for it until it acknowledges something.
package window

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the limits of a controller. A zero field means the default in brackets.
type Config struct {
	// Batches and Bytes limit how many batches, and how many bytes of them, a neighbor
	// may lack of a sender while the sender goes on publishing. 16 batches are half of
	// a neighbor's queue in a pubsub with default settings [16, 1 MiB].
	Batches int
	Bytes   int
	// GiveUp is how long this node waits for a neighbor that acknowledges nothing
	// [5 s].
	GiveUp time.Duration
	// AckDelay is how long an acknowledgment waits, so that others can be sent together
	// with it. An acknowledgment of at least AckBatches batches or AckBytes bytes does
	// not wait [3 ms, a quarter of Batches, a quarter of Bytes]. With a delay of 10 ms,
	// acknowledgments slowed down a sender of one event every 5 ms by a tenth.
	AckDelay   time.Duration
	AckBatches int
	AckBytes   int
	// Nudge is how long a neighbor may acknowledge nothing before this node sends it a
	// mark, in case it has not noticed that it lacks something. The time doubles with
	// each such mark (a nudge). A neighbor that this node has stopped waiting for gets
	// some more nudges [300 ms].
	Nudge time.Duration
	// MaxSenders is the number of senders about which the acknowledgments of one neighbor
	// are remembered [10,000].
	MaxSenders int
}

func (c Config) withDefaults() Config {
	c.Batches = cmp.Or(c.Batches, 16)
	c.Bytes = cmp.Or(c.Bytes, 1<<20)
	c.GiveUp = cmp.Or(c.GiveUp, 5*time.Second)
	c.AckDelay = cmp.Or(c.AckDelay, 3*time.Millisecond)
	c.AckBatches = cmp.Or(c.AckBatches, c.Batches/4)
	c.AckBytes = cmp.Or(c.AckBytes, c.Bytes/4)
	c.Nudge = cmp.Or(c.Nudge, 300*time.Millisecond)
	c.MaxSenders = cmp.Or(c.MaxSenders, 10_000)
	return c
}

// maxBatches is how many batches of one sender are remembered as not yet acknowledged.
// Only a sender that ignores its window can reach it.
const maxBatches = 4096

// maxPauses limits the growing time between two nudges (marks sent to a neighbor that
// acknowledges nothing), as a multiple of Config.GiveUp. When the time would be longer,
// no more nudges are sent.
const maxPauses = 8

// maxTries is how many entries of a full map are examined, at most, to find one that
// can be removed. It keeps the cost of adding an entry constant.
const maxTries = 16

// An Ack is an acknowledgment: how far a node has received a session of a sender.
type Ack struct {
	Sender  peer.ID
	Session order.SessionKey
	Next    uint64 // the node has received every event below Next
	Through uint64 // the neighbors to which the node forwards events have received every event below Through
	Ask     bool   // the node asks its neighbor to send an Ack of the same sender
}

// A Controller keeps the windows of all senders, and the acknowledgments to and from
// all neighbors. It is not safe for concurrent use.
type Controller struct {
	cfg       Config
	self      peer.ID
	neighbors map[peer.ID]*neighbor
	// announced says when Announce was last called for a sender. Later neighbors need
	// the announcement, too.
	announced map[peer.ID]time.Time

	// count is how many batches were added in all. By it, this node knows which batches
	// were added before a neighbor joined; the neighbor need not acknowledge those.
	count uint64
	flows map[peer.ID]*flow // by sender
	// busy contains the flows (latest sessions of senders) of which some neighbor lacks
	// a batch.
	busy      map[peer.ID]*flow
	advanceAt time.Time // when Advance has to do something; zero: never
}

// flow is the latest session of one sender, with its batches that neighbors may still
// lack.
type flow struct {
	sender      peer.ID
	session     order.SessionKey
	next        uint64    // this node has every event below
	lastAdded   uint64    // Controller.count when the latest batch was added
	lastAddedAt time.Time // when the latest batch was added
	batches     []unacked // in ascending order of their numbers
}

// unacked is a batch [first, end) that a neighbor may lack.
type unacked struct {
	first, end uint64
	size       int
	count      uint64  // Controller.count when it was added
	giver      peer.ID // the neighbor that first sent the batch to this node; empty: the batch did not arrive through pubsub
}

// neighbor is what this node knows about a neighbor's acknowledgments.
type neighbor struct {
	id            peer.ID
	joinedAt      uint64 // Controller.count when the neighbor was added; it need not acknowledge earlier batches
	pairs         map[peer.ID]*pair
	dirty         []*pair // the pairs whose acknowledgment must be sent to the neighbor
	marksDue      time.Time
	marksReported bool      // Due has returned this neighbor, and CollectAcks was not called for it since
	heardAt       time.Time // when the neighbor last sent marks or a request; zero: never
}

// pair is what a neighbor and this node have acknowledged to each other about one
// sender.
type pair struct {
	sender  peer.ID
	session order.SessionKey

	// next and through are what the neighbor has acknowledged; they have the same meaning
	// as Next and Through of an Ack.
	next, through uint64
	owedTo        uint64    // the neighbor must acknowledge the flow's session up to this number
	progressAt    time.Time // when the neighbor last acknowledged something, or when it first lacked a batch if that is later
	lacks         bool      // the neighbor lacks something below owedTo
	givenUp       bool      // this node does not wait for the neighbor until it acknowledges more

	// sent is what this node has last acknowledged to the neighbor.
	sent          Ack
	unsentBatches int // batches of the sender that were added since this node last sent the neighbor an acknowledgment
	unsentBytes   int
	dirty         bool // this pair is in neighbor.dirty
	ask           bool // the next acknowledgment to the neighbor asks for the neighbor's own acknowledgment
	nextNudge     time.Time
	nudgePause    time.Duration
}

// New returns a controller for the node self, without neighbors.
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

// AddNeighbor adds a neighbor, which must acknowledge the batches that are added from
// now on.
func (c *Controller) AddNeighbor(id peer.ID) {
	if c.neighbors[id] == nil {
		c.neighbors[id] = &neighbor{id: id, joinedAt: c.count, pairs: make(map[peer.ID]*pair)}
	}
}

// RemoveNeighbor removes a neighbor. Nothing waits for its acknowledgments any more.
func (c *Controller) RemoveNeighbor(now time.Time, id peer.ID) {
	if c.neighbors[id] == nil {
		return
	}
	delete(c.neighbors, id)
	for _, f := range c.busy {
		c.updateFlow(now, f)
	}
}

// AddBatch adds a batch [first, end) of a sender, with its size in bytes. This node
// published it, or received it first from the neighbor giver. If giver is empty, no
// neighbor waits for this node to acknowledge the batch.
func (c *Controller) AddBatch(now time.Time, sender peer.ID, session order.SessionKey, first, end uint64, size int, giver peer.ID) {
	f := c.flows[sender]
	if f == nil || f.session.Compare(session) < 0 {
		if f == nil {
			c.evictSender()
		}
		f = &flow{sender: sender, session: session, next: first}
		c.flows[sender] = f
		// The sender has restarted, so nobody needs to acknowledge its earlier session.
		for _, n := range c.neighbors {
			if p := n.pairs[sender]; p != nil {
				p.owedTo, p.lacks = 0, false
			}
		}
	} else if f.session != session {
		return // the batch is of an earlier session, and nobody waits for those
	}
	c.count++
	f.lastAdded, f.lastAddedAt = c.count, now
	b := unacked{first, end, size, c.count, giver}
	i := len(f.batches)
	for i > 0 && f.batches[i-1].first > first {
		i--
	}
	f.batches = slices.Insert(f.batches, i, b)
	// The sender ignores its window. The oldest batch is forgotten to limit memory.
	if len(f.batches) > maxBatches {
		f.batches = slices.Delete(f.batches, 0, 1)
	}
	for _, n := range c.neighbors {
		p := c.pair(n, sender)
		if p == nil {
			continue
		}
		p.unsentBatches++
		p.unsentBytes += size
		// This neighbor has to acknowledge the batch.
		if f.lacks(n, p, &b) {
			p.owedTo = max(p.owedTo, end)
		}
	}
	c.updateFlow(now, f)
}

// scheduleNudge schedules the next nudge for the time now plus pause. A nudge is a mark
// that shows the neighbor what it may lack. scheduleNudge is called when the neighbor
// has acknowledged something or was nudged.
func (p *pair) scheduleNudge(now time.Time, pause time.Duration) {
	p.nudgePause = pause
	p.nextNudge = now.Add(pause)
}

// evictSender removes a sender if MaxSenders are remembered. It prefers a sender of which
// no neighbor lacks a batch.
func (c *Controller) evictSender() {
	if len(c.flows) < c.cfg.MaxSenders {
		return
	}
	var victim peer.ID
	tries := 0
	for sender := range c.flows {
		if sender == c.self {
			continue
		}
		victim = sender
		if tries++; c.busy[sender] == nil || tries == maxTries {
			break
		}
	}
	delete(c.flows, victim)
	delete(c.busy, victim)
	for _, n := range c.neighbors {
		if p := n.pairs[victim]; p != nil {
			p.owedTo, p.lacks = 0, false
			// CollectAcks still has to send the acknowledgment of a dirty pair.
			if !p.dirty {
				delete(n.pairs, victim)
			}
		}
	}
}

// SetReceived notes that this node has received, or given up as lost, every event of a
// sender below the number next.
func (c *Controller) SetReceived(now time.Time, sender peer.ID, session order.SessionKey, next uint64) {
	f := c.flows[sender]
	if f == nil || f.session != session || next <= f.next {
		return
	}
	f.next = next
	c.updateFlow(now, f)
}

// ReceiveAck handles an acknowledgment from a neighbor.
func (c *Controller) ReceiveAck(now time.Time, id peer.ID, a Ack) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	p := c.pair(n, a.Sender)
	if p == nil {
		return
	}
	switch order := p.session.Compare(a.Session); {
	case order > 0:
		return // an acknowledgment of a later session has overtaken this one
	case order < 0:
		p.session, p.next, p.through = a.Session, 0, 0
	}
	if a.Ask {
		c.markDirty(now, n, p, soon)
	}
	a.Through = min(a.Through, a.Next)
	if a.Next <= p.next && a.Through <= p.through {
		return // nothing new, so the neighbor is not making progress
	}
	p.next, p.through = max(p.next, a.Next), max(p.through, a.Through)
	p.progressAt, p.givenUp = now, false
	p.scheduleNudge(now, c.cfg.Nudge)
	if f := c.flows[a.Sender]; f != nil {
		c.updateFlow(now, f)
	}
}

// CanPublish reports whether the sender may publish another batch: its window has
// space.
func (c *Controller) CanPublish(sender peer.ID) bool {
	batches, bytes := c.Backlog(sender)
	return batches < c.cfg.Batches && bytes < c.cfg.Bytes
}

// Backlog returns how many batches of a sender, and how many bytes, its slowest
// neighbor lacks. Neighbors that this node has stopped waiting for do not count.
func (c *Controller) Backlog(sender peer.ID) (batches, bytes int) {
	f := c.flows[sender]
	if f == nil {
		return 0, 0
	}
	for _, n := range c.neighbors {
		p := n.pairs[sender]
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

// lacks reports whether a neighbor must still acknowledge a batch. Neighbors that have
// sent the batch themselves, the sender and the giver, need not.
func (f *flow) lacks(n *neighbor, p *pair, b *unacked) bool {
	return b.count > n.joinedAt && b.giver != n.id && n.id != f.sender && f.behind(p, b.end)
}

// behind reports whether a neighbor has not acknowledged every event below end. A
// neighbor that has acknowledged a later session of the sender is not behind.
func (f *flow) behind(p *pair, end uint64) bool {
	c := p.session.Compare(f.session)
	return c < 0 || c == 0 && p.through < end
}

// NeighborsLacking returns the neighbors that have not received every event of a sender
// below the number goal. Neighbors that joined after the latest batch do not count.
func (c *Controller) NeighborsLacking(sender peer.ID, goal uint64) []peer.ID {
	f := c.flows[sender]
	if f == nil {
		return nil
	}
	var list []peer.ID
	for id, n := range c.neighbors {
		if p := n.pairs[sender]; n.joinedAt < f.lastAdded && (p == nil || p.session != f.session || p.next < goal) {
			list = append(list, id)
		}
	}
	return list
}

// Heard notes that a neighbor has sent something.
func (c *Controller) Heard(now time.Time, id peer.ID) {
	if n := c.neighbors[id]; n != nil {
		n.heardAt = now
	}
}

// HeardAt returns when a neighbor last sent something; the zero time means never.
func (c *Controller) HeardAt(id peer.ID) time.Time {
	if n := c.neighbors[id]; n != nil {
		return n.heardAt
	}
	return time.Time{}
}

// BytesLacked returns the size of the batches of a sender that the neighbor id lacks. If
// this node has stopped waiting for the neighbor, some of these batches may be left out.
func (c *Controller) BytesLacked(id, sender peer.ID) (size int) {
	n, f := c.neighbors[id], c.flows[sender]
	if n == nil || f == nil {
		return 0
	}
	p := n.pairs[sender]
	if p == nil {
		return 0
	}
	for i := range f.batches {
		if b := &f.batches[i]; f.lacks(n, p, b) {
			size += b.size
		}
	}
	return size
}

// AskForAck asks a neighbor for its acknowledgment of a sender at once. The neighbor
// answers even if it has received nothing new, so no answer means that it is gone.
func (c *Controller) AskForAck(now time.Time, id, sender peer.ID) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	if p := c.pair(n, sender); p != nil {
		p.ask = true
		c.markDirty(now, n, p, atOnce)
	}
}

// ReceivedBy returns the number below which a neighbor has received every event of a
// session; zero means that it has acknowledged none.
func (c *Controller) ReceivedBy(id, sender peer.ID, session order.SessionKey) uint64 {
	if n := c.neighbors[id]; n != nil {
		if p := n.pairs[sender]; p != nil && p.session == session {
			return p.next
		}
	}
	return 0
}

// pair returns the pair of a neighbor and a sender, and adds it if there is none. If
// the neighbor has MaxSenders pairs already, one that is not needed is removed. If none
// is found in a few tries, pair returns nil.
func (c *Controller) pair(n *neighbor, sender peer.ID) *pair {
	if p := n.pairs[sender]; p != nil {
		return p
	}
	if len(n.pairs) >= c.cfg.MaxSenders {
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
	p := &pair{sender: sender}
	n.pairs[sender] = p
	return p
}

// updateFlow recomputes which neighbors lack batches of a sender, and which
// acknowledgments have to be sent to them because something has changed.
func (c *Controller) updateFlow(now time.Time, f *flow) {
	// The oldest batches are removed once this node, and every neighbor that it waits
	// for, has them.
	n := 0
	for n < len(f.batches) && f.batches[n].end <= f.next && !c.isAwaited(f, &f.batches[n]) {
		n++
	}
	f.batches = slices.Delete(f.batches, 0, n)
	busy := len(f.batches) > 0
	for _, nb := range c.neighbors {
		p := c.pair(nb, f.sender)
		if p == nil {
			continue
		}
		lacks := p.owedTo > 0 && f.behind(p, p.owedTo)
		// The time limit for an acknowledgment starts with the first batch that the
		// neighbor lacks.
		if lacks && !p.lacks {
			p.progressAt = now
			p.scheduleNudge(now, c.cfg.Nudge)
		}
		p.lacks = lacks
		busy = busy || lacks
		c.advanceAt = order.Earlier(c.advanceAt, c.deadline(p))
		// No acknowledgments are sent for this node's own batches: the batches
		// themselves show neighbors how far it is.
		if f.sender != c.self && c.ack(nb, f) != p.sent {
			at := soon
			if p.unsentBatches >= c.cfg.AckBatches || p.unsentBytes >= c.cfg.AckBytes {
				at = atOnce
			}
			c.markDirty(now, nb, p, at)
		}
	}
	if busy {
		c.busy[f.sender] = f
	} else {
		delete(c.busy, f.sender)
	}
}

// deadline returns when Advance has to stop waiting for, or nudge, the neighbor of a
// pair; zero means never.
func (c *Controller) deadline(p *pair) time.Time {
	switch {
	case !p.lacks:
		return time.Time{}
	case p.givenUp:
		return p.nextNudge
	}
	return order.Earlier(p.nextNudge, p.progressAt.Add(c.cfg.GiveUp))
}

// isAwaited reports whether a neighbor lacks the batch b and this node has not stopped
// waiting for that neighbor.
func (c *Controller) isAwaited(f *flow, b *unacked) bool {
	for _, n := range c.neighbors {
		if p := n.pairs[f.sender]; p != nil && !p.givenUp && f.lacks(n, p, b) {
			return true
		}
	}
	return false
}

// Advance stops waiting for neighbors that have acknowledged nothing for GiveUp. It also
// nudges neighbors that may not have noticed new events: this node's mark is sent to
// them.
func (c *Controller) Advance(now time.Time) {
	if c.advanceAt.IsZero() || c.advanceAt.After(now) {
		return
	}
	for _, f := range c.busy {
		changed := false
		for _, n := range c.neighbors {
			p := n.pairs[f.sender]
			if p == nil || !p.lacks {
				continue
			}
			if !p.givenUp && now.Sub(p.progressAt) >= c.cfg.GiveUp {
				p.givenUp, changed = true, true
			}
			if !p.nextNudge.IsZero() && !p.nextNudge.After(now) {
				// A neighbor that answered none of several nudges gets no more of them.
				if p.scheduleNudge(now, 2*p.nudgePause); p.nudgePause > maxPauses*c.cfg.GiveUp {
					p.nextNudge = time.Time{}
				}
				p.ask = true
				c.markDirty(now, n, p, atOnce)
			}
		}
		// Batches that only this neighbor lacked need not be remembered any more.
		if changed {
			c.updateFlow(now, f)
		}
	}
	c.advanceAt = time.Time{}
	for _, f := range c.busy {
		for _, n := range c.neighbors {
			if p := n.pairs[f.sender]; p != nil {
				c.advanceAt = order.Earlier(c.advanceAt, c.deadline(p))
			}
		}
	}
}

// Next returns when to call Advance and Due. The zero time means that nothing is to be
// done until another method was called.
func (c *Controller) Next() time.Time {
	next := c.advanceAt
	for _, n := range c.neighbors {
		// Due has returned this neighbor already. Its acknowledgments now wait for a call
		// of CollectAcks, and not for a time.
		if !n.marksReported {
			next = order.Earlier(next, n.marksDue)
		}
	}
	return next
}
