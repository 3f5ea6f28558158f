package peers

import (
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// maxLeaves is how many leaves may be linked at a time. Broadcasts may wait for a
	// leaf as for a neighbor, but this node has not chosen it, so their number is
	// limited.
	maxLeaves = 16
	// maxGuests is the default of Config.MaxGuests.
	maxGuests = 64
	// drainTime is how long pubsub keeps a peer after a link ended on purpose, so that
	// messages on their way over that link still arrive.
	drainTime = 10 * time.Second
)

// core holds one record for each peer, which says what is known of the peer. It performs no
// I/O and reads no clock. Each method notes one fact and returns the changes of records
// that follow from it, in order. It is not safe for concurrent use.
type core struct {
	records   map[peer.ID]*record
	leaves    quota
	guests    quota
	neighbors int
	serial    uint64 // number of the last admission: see record.admission
	openToAll bool   // pubsub serves every peer that speaks it
	closed    bool

	changes []Transition // changes made by the method that is running
}

// record holds the facts about one peer, and the Standing that settle derives from
// them.
type record struct {
	abilities Abilities
	// link is the state of the link to a node. For a leaf it is not used: a leaf is
	// linked if it has one of the limited places for leaves.
	link LinkState
	// drained is the time at which a link in the state Draining becomes None. In that
	// state, the link has ended on purpose, but messages may still arrive.
	drained time.Time
	onTopic bool
	// admission is not zero while the peer is being made a neighbor; in that time its
	// direct events are held back. Each time that the peer is made a neighbor,
	// admission has another value.
	admission uint64

	standing Standing // the standing of which the other parts of the node were last informed
}

func newCore(maxGuests int) *core {
	return &core{records: map[peer.ID]*record{}, leaves: newQuota(maxLeaves), guests: newQuota(maxGuests)}
}

// spoke records which protocols p says it speaks.
func (c *core) spoke(p peer.ID, abilities Abilities) []Transition {
	c.record(p).abilities = abilities
	return c.settled(p, Transition{})
}

// disconnected records that there is no connection to p any more.
func (c *core) disconnected(p peer.ID) []Transition {
	// Most connections are to peers that speak none of our protocols and have no
	// record.
	if c.records[p] == nil {
		return nil
	}
	// The peer may speak other protocols when it comes back. That its link ends, and
	// that it leaves the topic, is recorded by other calls.
	return c.spoke(p, Abilities{})
}

// pending records that a handshake with p begins. From then on the direct events of p
// are held back.
func (c *core) pending(p peer.ID) []Transition {
	r := c.record(p)
	if r.link == Linked {
		return nil // cannot happen, since the overlay ends a link before it makes it again
	}
	r.link = Pending
	// If an earlier handshake with p is still Pending, its admission stays.
	if r.admission == 0 {
		c.serial++
		r.admission = c.serial
	}
	return c.settled(p, Transition{})
}

// linked records that the link to p is complete. greeting is what p said in the
// handshake.
func (c *core) linked(p peer.ID, greeting []byte) []Transition {
	r := c.record(p)
	r.link = Linked
	return c.settled(p, Transition{Greeting: greeting, Admission: r.admission})
}

// unlinked records that the handshake with p has failed or that its link has ended, and
// why.
func (c *core) unlinked(now time.Time, p peer.ID, reason error, how Ending) []Transition {
	r := c.records[p]
	// Nothing has to end if pending was not called for the handshake that failed, or if
	// the link has ended before and is in the state Draining.
	if r == nil || r.link != Pending && r.link != Linked {
		return nil
	}
	r.admission = 0
	if how == OnPurpose && r.link == Linked {
		// Both nodes continue to run, and messages may be on their way over the link.
		r.link, r.drained = Draining, now.Add(drainTime)
	} else {
		// After a fault no message arrives any more, and over a link that was never
		// complete no message was sent. So the link need not stay in the state
		// Draining.
		r.link = None
	}
	return c.settled(p, Transition{Reason: reason})
}

// joined records that p has come to the topic.
func (c *core) joined(p peer.ID) []Transition {
	c.record(p).onTopic = true
	return c.settled(p, Transition{})
}

// left records that p has left the topic.
func (c *core) left(p peer.ID) []Transition {
	if r := c.records[p]; r != nil { // p may leave after close has removed its record
		r.onTopic = false
	}
	return c.settled(p, Transition{})
}

// release ends the time in which the direct events of p are held back, if admission is
// still the number under which p is being made a neighbor. Otherwise it does nothing, since
// p is being made a neighbor anew.
func (c *core) release(p peer.ID, admission uint64) {
	if r := c.records[p]; r != nil && r.admission == admission {
		r.admission = 0
	}
}

// held reports whether the direct events of p are held back, since p is being made a
// neighbor.
func (c *core) held(p peer.ID) bool {
	r := c.records[p]
	return r != nil && r.admission != 0
}

// openPubSub makes pubsub serve every peer that speaks it, in any number, from now on.
// It is called when the node joins a topic of other programs, on which there are no
// links.
func (c *core) openPubSub() []Transition {
	c.openToAll = true
	c.changes = nil
	for _, p := range c.known() {
		c.settle(p, Transition{})
	}
	return c.changes
}

// advance ends the state Draining of those links that have been in it for drainTime at the
// time now. It returns the changes that follow.
func (c *core) advance(now time.Time) []Transition {
	c.changes = nil
	for _, p := range c.known() {
		if r := c.records[p]; r != nil && r.link == Draining && !now.Before(r.drained) {
			r.link = None
			c.settle(p, Transition{})
		}
	}
	return c.changes
}

// next returns the time at which advance has to be called next; the zero time means never.
func (c *core) next() (next time.Time) {
	for _, r := range c.records {
		if r.link == Draining && (next.IsZero() || r.drained.Before(next)) {
			next = r.drained
		}
	}
	return next
}

// close removes the records of all peers and returns the changes that follow. Facts that
// are noted later change nothing. It is called when the overlay has ended its links.
func (c *core) close() []Transition {
	c.changes, c.closed = nil, true
	for _, p := range c.known() {
		c.settle(p, Transition{})
	}
	return c.changes
}

// standing returns the Standing in the record of p, or the zero value if p has no record.
func (c *core) standing(p peer.ID) Standing {
	if r := c.records[p]; r != nil {
		return r.standing
	}
	return Standing{}
}

// known returns the peers that have a record, sorted by their ids.
func (c *core) known() []peer.ID { return slices.Sorted(maps.Keys(c.records)) }

// record returns the record of p, which it makes if there is none.
func (c *core) record(p peer.ID) *record {
	r := c.records[p]
	if r == nil {
		r = &record{}
		c.records[p] = r
	}
	return r
}

// settled calls settle with p and change, and returns all changes of records that settle
// made.
func (c *core) settled(p peer.ID, change Transition) []Transition {
	c.changes = nil
	c.settle(p, change)
	return c.changes
}

// settle derives the standing of p from the facts in its record. If the standing has
// changed, settle adds change to c.changes; the caller has set in change what it knows
// beyond the standing, such as the reason. If p gives up one of the limited places for
// leaves and guests, settle gives the place to the peer that has waited longest.
func (c *core) settle(p peer.ID, change Transition) {
	r := c.records[p]
	if r == nil {
		return
	}
	// If a link was made again while it was in the state Draining, the end of that
	// state no longer counts.
	if r.link != Draining {
		r.drained = time.Time{}
	}
	was := r.standing
	is := Standing{Role: r.role(), Link: r.link, OnTopic: r.onTopic}
	var next []peer.ID
	// A leaf has no handshake. It is linked as soon as it is on the topic and one of
	// the limited places for leaves is free.
	if is.Role == Leaf && is.Link == None && is.OnTopic && !c.closed {
		if c.leaves.request(p) {
			is.Link = Linked
		}
	} else {
		next = append(next, c.leaves.release(p)...)
	}
	// Leaves and guests need one of the limited places. A node must not have one, since
	// pubsub would then serve the node without a link.
	if r.abilities.PubSub && is.Role != Node && c.guests.max > 0 && !c.openToAll && !c.closed {
		is.Place = c.guests.request(p)
	} else {
		next = append(next, c.guests.release(p)...)
	}
	// On a topic of other programs, pubsub serves every peer, even a node without a
	// link.
	if c.openToAll && r.abilities.PubSub {
		is.Place = true
	}
	if c.closed {
		is = Standing{}
	}
	// When the registry is closed, the overlay has ended its links already, and the
	// other parts of the node need not be told.
	if is != was && !(c.closed && was.bound()) {
		c.add(p, r, change, is)
	}
	// A record without any fact says the same as no record.
	if *r == (record{}) || c.closed {
		delete(c.records, p)
	}
	for _, id := range next {
		c.settle(id, Transition{})
	}
}

// add appends change to c.changes, as the change of the standing of p from the one in its
// record r to is. It stores is in r, and counts the neighbors.
func (c *core) add(p peer.ID, r *record, change Transition, is Standing) {
	change.Peer, change.Was, change.Is = p, r.standing, is
	r.standing = is
	switch {
	case change.Added():
		c.neighbors++
	case change.Removed():
		c.neighbors--
	}
	change.Neighbors = c.neighbors
	c.changes = append(c.changes, change)
}

// role returns what the peer is, by what it speaks and by its link.
func (r *record) role() Role {
	switch {
	case r.link != None:
		// The peer has made a handshake in the overlay with this node, even if it does
		// not list the protocol.
		return Node
	case r.abilities.Overlay:
		return Node
	case r.abilities.Repair:
		return Leaf
	case r.abilities.PubSub:
		return Guest
	}
	return Unknown
}
