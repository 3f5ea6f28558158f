package window

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// What neighbours are told, and when.

// recently is how long ago the greeting of a new neighbour may have been written.
const recently = 15 * time.Second

// Greeted makes a new neighbour be told of the authors of whom something was taken,
// or told, recently: it was sent that, but knows only what it was greeted with, and nobody
// waits for it to acknowledge the rest.
func (c *Core) Greeted(now time.Time, id peer.ID) {
	n := c.neighbours[id]
	if n == nil {
		return
	}
	tell := func(author peer.ID) {
		if p := c.pair(n, author); p != nil {
			c.soil(now, n, p, false)
		}
	}
	for author, f := range c.flows {
		if now.Sub(f.at) < recently {
			tell(author)
		}
	}
	for author, at := range c.told {
		if now.Sub(at) < recently {
			tell(author)
		} else {
			delete(c.told, author)
		}
	}
}

// Tell makes every neighbour be told of an author.
func (c *Core) Tell(now time.Time, author peer.ID) {
	if len(c.told) < c.cfg.MaxAuthors {
		c.told[author] = now
	}
	for _, n := range c.neighbours {
		if p := c.pair(n, author); p != nil {
			c.soil(now, n, p, false)
		}
	}
}

// soil notes that a neighbour has to be told of an author, soon or now.
func (c *Core) soil(now time.Time, n *neighbour, p *pair, urgent bool) {
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
func (c *Core) ack(n *neighbour, f *flow) Ack {
	a := Ack{Author: f.author, Session: f.session, Next: f.next, Through: f.next}
	for i := range f.batches {
		b := &f.batches[i]
		if b.first >= a.Through {
			break
		}
		if b.giver == n.id && c.lacked(f, b) {
			a.Through = b.first
			break
		}
	}
	return a
}

// Due returns the neighbours that have to be told something at now. Each is
// returned once until Collect is called for it, which may be long after: a
// neighbour may be slow in taking what it is told.
func (c *Core) Due(now time.Time) (list []peer.ID) {
	for id, n := range c.neighbours {
		if !n.called && !n.due.IsZero() && !n.due.After(now) {
			n.called = true
			list = append(list, id)
		}
	}
	return list
}

// Collect returns what a neighbour has to be told, at most so many. Of an author
// of whom nothing passed through here an Ack has nothing but the name.
func (c *Core) Collect(now time.Time, id peer.ID, most int) []Ack {
	n := c.neighbours[id]
	if n == nil {
		return nil
	}
	n.due, n.called = time.Time{}, false
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
		p.told = a
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

// Again says that a neighbour was not told what Collect returned.
func (c *Core) Again(now time.Time, id peer.ID, acks []Ack) {
	n := c.neighbours[id]
	if n == nil {
		return
	}
	for _, a := range acks {
		if p := n.pairs[a.Author]; p != nil {
			p.ask = p.ask || a.Ask
			c.soil(now, n, p, false)
		}
	}
}
