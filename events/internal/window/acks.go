package window

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// This file decides which acknowledgments are sent to neighbors, and when.

// catchUpAge is how long the greeting to a new neighbor may take to arrive. The greeting
// may lack events that were added within this time.
const catchUpAge = 15 * time.Second

// CatchUp sends a new neighbor acknowledgments of all senders whose batches were added
// recently or that were announced recently. The greeting may have been written before
// that and not mention them. Nothing else would mention them, since the neighbor need
// not acknowledge batches from before it was added.
func (c *Controller) CatchUp(now time.Time, id peer.ID) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	tell := func(sender peer.ID) {
		if p := c.pair(n, sender); p != nil {
			c.markDirty(now, n, p, soon)
		}
	}
	for sender, f := range c.flows {
		if now.Sub(f.lastAddedAt) < catchUpAge {
			tell(sender)
		}
	}
	for sender, at := range c.announced {
		if now.Sub(at) < catchUpAge {
			tell(sender)
		} else {
			delete(c.announced, sender) // old enough that every greeting contains it
		}
	}
}

// Announce sends an acknowledgment about a sender to every neighbor, because what this
// node stores of the sender has changed.
func (c *Controller) Announce(now time.Time, sender peer.ID) {
	if len(c.announced) < c.cfg.MaxSenders {
		c.announced[sender] = now
	}
	for _, n := range c.neighbors {
		if p := c.pair(n, sender); p != nil {
			c.markDirty(now, n, p, soon)
		}
	}
}

// An ackUrgency says how soon an acknowledgment is sent to a neighbor.
type ackUrgency int

const (
	soon ackUrgency = iota // after Config.AckDelay, together with other acknowledgments that are due by then
	atOnce
)

// markDirty notes that an acknowledgment about the sender of the pair p must be sent to
// the neighbor n. when says how soon.
func (c *Controller) markDirty(now time.Time, n *neighbor, p *pair, when ackUrgency) {
	if !p.dirty {
		p.dirty = true
		n.dirty = append(n.dirty, p)
	}
	at := now
	if when == soon {
		at = now.Add(c.cfg.AckDelay)
	}
	n.marksDue = order.Earlier(n.marksDue, at)
}

// ack returns the acknowledgment to send to a neighbor about the sender of f.
func (c *Controller) ack(n *neighbor, f *flow) Ack {
	a := Ack{Sender: f.sender, Session: f.session, Next: f.next, Through: f.next}
	for i := range f.batches {
		b := &f.batches[i]
		if b.first >= a.Through {
			break
		}
		// The neighbor gave us this batch, so it is not told that the batch got through
		// until our other neighbors have it.
		if b.giver == n.id && c.isAwaited(f, b) {
			a.Through = b.first
			break
		}
	}
	return a
}

// Due returns the neighbors to which acknowledgments must be sent at the time now. After
// it has returned a neighbor, it does not return it again until CollectAcks was called
// for the neighbor. That can take long if the neighbor reads slowly.
func (c *Controller) Due(now time.Time) (list []peer.ID) {
	for id, n := range c.neighbors {
		if !n.marksReported && !n.marksDue.IsZero() && !n.marksDue.After(now) {
			n.marksReported = true
			list = append(list, id)
		}
	}
	return list
}

// CollectAcks returns at most limit acknowledgments to send to the neighbor id. If no
// batch of a sender was added, only Sender and Ask of its Ack are set.
func (c *Controller) CollectAcks(now time.Time, id peer.ID, limit int) []Ack {
	n := c.neighbors[id]
	if n == nil {
		return nil
	}
	n.marksDue, n.marksReported = time.Time{}, false
	var acks []Ack
	for len(n.dirty) > 0 && len(acks) < limit {
		p := n.dirty[0]
		n.dirty[0] = nil
		n.dirty = n.dirty[1:]
		p.dirty, p.unsentBatches, p.unsentBytes = false, 0, 0
		a := Ack{Sender: p.sender}
		if f := c.flows[p.sender]; f != nil {
			a = c.ack(n, f)
		}
		// p.sent is compared with later acknowledgments to see whether something new
		// has to be sent. For that Ask does not matter.
		p.sent = a
		a.Ask = p.ask
		acks = append(acks, a)
		p.ask = false
	}
	if len(n.dirty) > 0 {
		n.marksDue = now // more than limit acknowledgments are due; those that are left must be sent at once
	} else {
		n.dirty = nil
	}
	return acks
}

// RequeueAcks takes back acknowledgments that CollectAcks returned but that could not
// be sent. CollectAcks will return them again.
func (c *Controller) RequeueAcks(now time.Time, id peer.ID, acks []Ack) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	for _, a := range acks {
		if p := n.pairs[a.Sender]; p != nil {
			p.ask = p.ask || a.Ask
			c.markDirty(now, n, p, soon)
		}
	}
}
