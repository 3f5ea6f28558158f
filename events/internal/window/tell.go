package window

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// What neighbours are told, and when.

// recently is how long ago the greeting of a new neighbour may have been written.
const recently = 15 * time.Second

// CatchUp makes a new neighbour be told of the authors of whom something was taken,
// or told, recently: it was sent that, but knows only what it was greeted with, and nobody
// waits for it to acknowledge the rest.
func (c *Controller) CatchUp(now time.Time, id peer.ID) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	tell := func(author peer.ID) {
		if p := c.pair(n, author); p != nil {
			c.markDirty(now, n, p, false)
		}
	}
	for author, f := range c.flows {
		if now.Sub(f.lastTaken) < recently {
			tell(author)
		}
	}
	for author, at := range c.announced {
		if now.Sub(at) < recently {
			tell(author)
		} else {
			delete(c.announced, author)
		}
	}
}

// Announce makes every neighbour be told of an author.
func (c *Controller) Announce(now time.Time, author peer.ID) {
	if len(c.announced) < c.cfg.MaxAuthors {
		c.announced[author] = now
	}
	for _, n := range c.neighbors {
		if p := c.pair(n, author); p != nil {
			c.markDirty(now, n, p, false)
		}
	}
}

// markDirty notes that a neighbour has to be told of an author, soon or now.
func (c *Controller) markDirty(now time.Time, n *neighbor, p *pair, urgent bool) {
	if !p.dirty {
		p.dirty = true
		n.dirty = append(n.dirty, p)
	}
	at := now
	if !urgent {
		at = now.Add(c.cfg.AckDelay)
	}
	n.due = order.Earlier(n.due, at)
}

// ack returns what a neighbour is to be told of a flow.
func (c *Controller) ack(n *neighbor, f *flow) Ack {
	a := Ack{Author: f.author, Session: f.session, Next: f.next, Through: f.next}
	for i := range f.batches {
		b := &f.batches[i]
		if b.first >= a.Through {
			break
		}
		if b.giver == n.id && c.isAwaited(f, b) {
			a.Through = b.first
			break
		}
	}
	return a
}

// Due returns the neighbours that have to be told something at now. Each is
// returned once until Collect is called for it, which may be long after: a
// neighbour may be slow in taking what it is told.
func (c *Controller) Due(now time.Time) (list []peer.ID) {
	for id, n := range c.neighbors {
		if !n.reported && !n.due.IsZero() && !n.due.After(now) {
			n.reported = true
			list = append(list, id)
		}
	}
	return list
}

// CollectAcks returns what a neighbour has to be told, at most so many. Of an author
// of whom nothing passed through here an Ack has nothing but the name.
func (c *Controller) CollectAcks(now time.Time, id peer.ID, most int) []Ack {
	n := c.neighbors[id]
	if n == nil {
		return nil
	}
	n.due, n.reported = time.Time{}, false
	var acks []Ack
	for len(n.dirty) > 0 && len(acks) < most {
		p := n.dirty[0]
		n.dirty[0] = nil
		n.dirty = n.dirty[1:]
		p.dirty, p.owing, p.owingSize = false, 0, 0
		a := Ack{Author: p.author}
		if f := c.flows[p.author]; f != nil {
			a = c.ack(n, f)
		}
		p.sent = a
		a.Ask = p.ask
		acks = append(acks, a)
		p.ask = false
	}
	if len(n.dirty) > 0 {
		n.due = now
	} else {
		n.dirty = nil
	}
	return acks
}

// RequeueAcks says that a neighbour was not told what Collect returned.
func (c *Controller) RequeueAcks(now time.Time, id peer.ID, acks []Ack) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	for _, a := range acks {
		if p := n.pairs[a.Author]; p != nil {
			p.ask = p.ask || a.Ask
			c.markDirty(now, n, p, false)
		}
	}
}
