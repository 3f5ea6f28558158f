package window

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// This file decides which acknowledgments are sent to neighbors, and when.

// catchUpAge is how old the greeting of a new neighbor may be.
const catchUpAge = 15 * time.Second

// CatchUp tells a new neighbor our marks of the authors of which something was added or
// announced recently. Our greeting may be older than that, so the neighbor may have been
// sent batches without knowing where they belong, and nobody waits for it to acknowledge
// them.
func (c *Controller) CatchUp(now time.Time, id peer.ID) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	tell := func(author peer.ID) {
		if p := c.pair(n, author); p != nil {
			c.markDirty(now, n, p, soon)
		}
	}
	for author, f := range c.flows {
		if now.Sub(f.lastTaken) < catchUpAge {
			tell(author)
		}
	}
	for author, at := range c.announced {
		if now.Sub(at) < catchUpAge {
			tell(author)
		} else {
			delete(c.announced, author) // no neighbor needs it any more
		}
	}
}

// Announce tells every neighbor our mark of an author.
func (c *Controller) Announce(now time.Time, author peer.ID) {
	if len(c.announced) < c.cfg.MaxAuthors {
		c.announced[author] = now
	}
	for _, n := range c.neighbors {
		if p := c.pair(n, author); p != nil {
			c.markDirty(now, n, p, soon)
		}
	}
}

// An ackUrgency is how soon an acknowledgement is sent to a neighbor.
type ackUrgency int

const (
	soon ackUrgency = iota // after AckDelay, together with whatever else there is by then
	atOnce
)

// markDirty notes that there is something to tell a neighbor about an author.
func (c *Controller) markDirty(now time.Time, n *neighbor, p *pair, when ackUrgency) {
	if !p.dirty {
		p.dirty = true
		n.dirty = append(n.dirty, p)
	}
	at := now
	if when == soon {
		at = now.Add(c.cfg.AckDelay)
	}
	n.due = order.Earlier(n.due, at)
}

// ack returns the acknowledgment of a flow for a neighbor.
func (c *Controller) ack(n *neighbor, f *flow) Ack {
	a := Ack{Author: f.author, Session: f.session, Next: f.next, Through: f.next}
	for i := range f.batches {
		b := &f.batches[i]
		if b.first >= a.Through {
			break
		}
		// The giver waits until our other neighbors have the batch, too.
		if b.giver == n.id && c.isAwaited(f, b) {
			a.Through = b.first
			break
		}
	}
	return a
}

// Due returns the neighbors that have to be told something at now. Each is returned once
// until CollectAcks is called for it. That may be long after, as a neighbor may read
// slowly.
func (c *Controller) Due(now time.Time) (list []peer.ID) {
	for id, n := range c.neighbors {
		if !n.reported && !n.due.IsZero() && !n.due.After(now) {
			n.reported = true
			list = append(list, id)
		}
	}
	return list
}

// CollectAcks returns at most limit acknowledgments for a neighbor. If no batch of the
// author was added here, only Author and Ask are set.
func (c *Controller) CollectAcks(now time.Time, id peer.ID, limit int) []Ack {
	n := c.neighbors[id]
	if n == nil {
		return nil
	}
	n.due, n.reported = time.Time{}, false
	var acks []Ack
	for len(n.dirty) > 0 && len(acks) < limit {
		p := n.dirty[0]
		n.dirty[0] = nil
		n.dirty = n.dirty[1:]
		p.dirty, p.owing, p.owingSize = false, 0, 0
		a := Ack{Author: p.author}
		if f := c.flows[p.author]; f != nil {
			a = c.ack(n, f)
		}
		// Without Ask, since p.sent is compared with the next acknowledgment.
		p.sent = a
		a.Ask = p.ask
		acks = append(acks, a)
		p.ask = false
	}
	if len(n.dirty) > 0 {
		n.due = now // more than limit; go on with the rest
	} else {
		n.dirty = nil
	}
	return acks
}

// RequeueAcks notes that acknowledgments which CollectAcks returned were not sent.
func (c *Controller) RequeueAcks(now time.Time, id peer.ID, acks []Ack) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	for _, a := range acks {
		if p := n.pairs[a.Author]; p != nil {
			p.ask = p.ask || a.Ask
			c.markDirty(now, n, p, soon)
		}
	}
}
