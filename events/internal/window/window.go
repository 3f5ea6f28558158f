// Package window decides who may send how much. Pubsub has no back pressure: what
// a neighbour's queue does not take it drops. So every node tells its neighbours
// how far it has received each sender, and a sender publishes only as long as
// each of its neighbours lacks little. The package performs no I/O and reads no
// clock.
//
// A relay acknowledges a batch towards the neighbour from which it first got it
// only when its own other neighbours have acknowledged it: so the sender goes as
// fast as the slowest link of the network, and relays cannot be overrun. To its
// other neighbours it acknowledges what it has at once. As who got a batch first
// from whom makes a tree, no cycle of links can wait for itself.
//
// A neighbour that acknowledges nothing of a sender for [Config.GiveUp] is not
// waited for until it does.
package window

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the bounds. Zero means the default in brackets.
type Config struct {
	// Batches and Bytes are how much of a sender a neighbour may lack before
	// nothing more is sent. 16 batches are half of what the queues of a pubsub
	// with its defaults hold [16, 1 MiB].
	Batches int
	Bytes   int
	// GiveUp is how long a neighbour is waited for that acknowledges nothing [5 s].
	GiveUp time.Duration
	// AckDelay is how long an acknowledgement may wait for more, and AckBatches
	// and AckBytes what it does not wait for [3 ms, a quarter of a window]. With 10
	// ms a lone event every 5 ms took a tenth longer, since then the acknowledgement
	// of the one before last was always in its way.
	AckDelay   time.Duration
	AckBatches int
	AckBytes   int
	// Nudge is how long a neighbour may acknowledge nothing before it is told
	// what there is, in case it did not notice. The pause doubles each time; one that
	// is given up is told a few times more [300 ms].
	Nudge time.Duration
	// MaxAuthors bounds the senders of which a neighbour's word is remembered [10,000].
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

// maxBatches bounds the batches of one sender that are remembered. Only a sender
// that heeds no window can reach it.
const maxBatches = 4096

// maxPauses is how long the pause becomes, in units of GiveUp, before who is given
// up is not told any more.
const maxPauses = 8

// maxTries is how many are looked at for one that can be forgotten.
const maxTries = 16

// An Ack is how far a session of an author has come.
type Ack struct {
	Author  peer.ID
	Session order.SessionKey
	Next    uint64 // who says it has everything below
	Through uint64 // and nobody behind it lacks anything below
	Ask     bool   // and wants to know how far the other is
}

// A Controller is not safe for concurrent use.
type Controller struct {
	cfg       Config
	self      peer.ID
	count     uint64 // of batches taken, which orders them and the joining of neighbours
	neighbors map[peer.ID]*neighbor
	flows     map[peer.ID]*flow     // by author
	busy      map[peer.ID]*flow     // those that somebody lacks something of
	due       time.Time             // Advance has nothing to do before; zero: never
	announced map[peer.ID]time.Time // authors of whom Tell told, for neighbours to come
}

// flow is what is under way of one author.
type flow struct {
	author    peer.ID
	session   order.SessionKey
	next      uint64    // everything below is here
	last      uint64    // count of the latest batch
	lastTaken time.Time // when it was taken
	batches   []unacked // that a neighbour may lack, ascending
}

type unacked struct {
	first, end uint64
	size       int
	count      uint64
	giver      peer.ID // from whom it came first; empty: it did not come by pubsub
}

type neighbor struct {
	id       peer.ID
	joinedAt uint64 // batches taken before it joined; it is owed none of those
	pairs    map[peer.ID]*pair
	dirty    []*pair // those it has to be told of
	due      time.Time
	// reported says that Due has returned it since: it is told at its own pace.
	reported bool
}

// pair is what passes between us and a neighbour about one author.
type pair struct {
	author  peer.ID
	session order.SessionKey
	// What the neighbour has told.
	next, through uint64
	owed          uint64    // the end of what it is owed of the flow's session
	progress      time.Time // when it told more, or the first batch it lacks was taken
	lacks         bool      // something it is owed
	givenUp       bool      // until it tells more
	// What it was told.
	sent       Ack
	owing      int // batches taken since
	owingSize  int
	dirty      bool
	ask        bool      // when it is told, it is asked too
	nextNudge  time.Time // when it is told again what there is
	nudgePause time.Duration
}

// New returns the core of the node self, without neighbours.
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

// AddNeighbor adds a neighbour. It is owed what is taken from now on.
func (c *Controller) AddNeighbor(id peer.ID) {
	if c.neighbors[id] == nil {
		c.neighbors[id] = &neighbor{id: id, joinedAt: c.count, pairs: make(map[peer.ID]*pair)}
	}
}

// RemoveNeighbor removes a neighbour: nobody waits for it any more.
func (c *Controller) RemoveNeighbor(now time.Time, id peer.ID) {
	if c.neighbors[id] == nil {
		return
	}
	delete(c.neighbors, id)
	for _, f := range c.busy {
		c.updateFlow(now, f)
	}
}

// AddBatch says that a batch [first, end) of an author was published here, or came
// for the first time from the neighbour giver; an empty giver is nobody who waits
// for an acknowledgement.
func (c *Controller) AddBatch(now time.Time, author peer.ID, session order.SessionKey, first, end uint64, size int, giver peer.ID) {
	f := c.flows[author]
	if f == nil || f.session.Compare(session) < 0 {
		if f == nil {
			c.makeRoom()
		}
		f = &flow{author: author, session: session, next: first}
		c.flows[author] = f
		for _, n := range c.neighbors {
			if p := n.pairs[author]; p != nil {
				p.owed, p.lacks = 0, false
			}
		}
	} else if f.session != session {
		return // of an earlier life
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

// scheduleNudge says that the neighbour was heard, or there is something new for it.
func (p *pair) scheduleNudge(now time.Time, pause time.Duration) {
	p.nudgePause = pause
	p.nextNudge = now.Add(pause)
}

// makeRoom forgets an author, if there are too many: one of whom nothing is under
// way, if such a one is easily found.
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
			if !p.dirty {
				delete(n.pairs, victim)
			}
		}
	}
}

// SetReceived says that everything of the author below next is here, or lost.
func (c *Controller) SetReceived(now time.Time, author peer.ID, session order.SessionKey, next uint64) {
	f := c.flows[author]
	if f == nil || f.session != session || next <= f.next {
		return
	}
	f.next = next
	c.updateFlow(now, f)
}

// ReceiveAck takes a neighbour's word of how far it is with an author.
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
		return
	case order < 0:
		p.session, p.next, p.through = a.Session, 0, 0
	}
	if a.Ask {
		c.markDirty(now, n, p, false)
	}
	a.Through = min(a.Through, a.Next)
	if a.Next <= p.next && a.Through <= p.through {
		return
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

// Backlog returns how many batches of an author the neighbours that are waited for
// lack at most, and how many bytes.
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

// lacks reports whether a neighbour is owed a batch that it has not acknowledged.
func (f *flow) lacks(n *neighbor, p *pair, b *unacked) bool {
	return b.count > n.joinedAt && b.giver != n.id && n.id != f.author && f.behind(p, b.end)
}

// behind reports whether a neighbour has not acknowledged everything below end. Who
// is with a later session has done with this one.
func (f *flow) behind(p *pair, end uint64) bool {
	c := p.session.Compare(f.session)
	return c < 0 || c == 0 && p.through < end
}

// NeighborsLacking returns the neighbours that were there when something of the author was
// published and have not received everything below goal.
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

// ReceivedBy returns up to where a neighbour has received a session; zero: nothing.
func (c *Controller) ReceivedBy(id, author peer.ID, session order.SessionKey) uint64 {
	if n := c.neighbors[id]; n != nil {
		if p := n.pairs[author]; p != nil && p.session == session {
			return p.next
		}
	}
	return 0
}

// pair returns what is known of a neighbour and an author. If too much is known
// of the neighbour, it forgets an author of whom nothing is under way; it returns
// nil if none is easily found.
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

// updateFlow brings up to date who lacks what of a flow, and what each neighbour has to
// be told.
func (c *Controller) updateFlow(now time.Time, f *flow) {
	// What everybody has is forgotten.
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
		if lacks && !p.lacks {
			p.progress = now
			p.scheduleNudge(now, c.cfg.Nudge)
		}
		p.lacks = lacks
		busy = busy || lacks
		c.due = order.Earlier(c.due, c.deadline(p))
		// Of ourselves a neighbour learns by what it gets, or by a nudge.
		if f.author != c.self && c.ack(nb, f) != p.sent {
			c.markDirty(now, nb, p, p.owing >= c.cfg.AckBatches || p.owingSize >= c.cfg.AckBytes)
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

// isAwaited reports whether a neighbour lacks a batch and is waited for.
func (c *Controller) isAwaited(f *flow, b *unacked) bool {
	for _, n := range c.neighbors {
		if p := n.pairs[f.author]; p != nil && !p.givenUp && f.lacks(n, p, b) {
			return true
		}
	}
	return false
}

// Advance gives up who was waited for too long, and tells again who may not have
// noticed that there is something.
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
				if p.scheduleNudge(now, 2*p.nudgePause); p.nudgePause > maxPauses*c.cfg.GiveUp {
					p.nextNudge = time.Time{}
				}
				p.ask = true
				c.markDirty(now, n, p, true)
			}
		}
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
		if !n.reported {
			next = order.Earlier(next, n.due)
		}
	}
	return next
}
