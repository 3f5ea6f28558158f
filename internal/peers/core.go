package peers

import (
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// maxLeaves bounds the leaves that are linked at a time. Each can make everybody's
	// broadcasts wait for it, as a neighbor can, but nobody has chosen it.
	maxLeaves = 16
	// maxGuests is the default of Config.MaxGuests.
	maxGuests = 64
	// drainTime is how long pubsub keeps a peer whose link ended on purpose, so that
	// messages on their way over that link still arrive.
	drainTime = 10 * time.Second
)

// core owns the records. It performs no I/O and reads no clock. Each method takes one
// fact and returns the changes that follow from it, in order. One goroutine at a time
// may use it.
type core struct {
	records   map[peer.ID]*record
	leaves    quota
	guests    quota
	neighbors int
	serial    uint64 // of the last admission
	openToAll bool   // pubsub serves every peer that speaks it
	closed    bool

	changes []Transition // of the method that runs
}

// record holds the facts about one peer, and the standing that settle derives from them.
type record struct {
	abilities Abilities
	link      LinkState // of nodes; that of a leaf follows from its place
	drained   time.Time
	onTopic   bool
	admission uint64 // the direct events of the peer are held; zero: they are not

	standing Standing // as last told to the followers
}

func newCore(maxGuests int) *core {
	return &core{records: map[peer.ID]*record{}, leaves: newQuota(maxLeaves), guests: newQuota(maxGuests)}
}

// spoke records the protocols that p says it speaks.
func (c *core) spoke(p peer.ID, abilities Abilities) []Transition {
	c.record(p).abilities = abilities
	return c.settled(p, Transition{})
}

// disconnected records that there is no connection to p.
func (c *core) disconnected(p peer.ID) []Transition {
	// Most connections are to peers of other protocols, which have no record.
	if c.records[p] == nil {
		return nil
	}
	// What it speaks may be different when it comes back. The link and the topic have
	// ends of their own.
	return c.spoke(p, Abilities{})
}

// pending records that a handshake with p begins. From now on the direct events of p are
// held.
func (c *core) pending(p peer.ID) []Transition {
	r := c.record(p)
	if r.link == Linked {
		return nil // the overlay ends a link before it makes it anew
	}
	r.link = Pending
	// The hold of a handshake that is announced twice goes on.
	if r.admission == 0 {
		c.serial++
		r.admission = c.serial
	}
	return c.settled(p, Transition{})
}

// linked records that the link to p stands.
func (c *core) linked(p peer.ID, greeting []byte) []Transition {
	r := c.record(p)
	r.link = Linked
	return c.settled(p, Transition{Greeting: greeting, Admission: r.admission})
}

// unlinked records that the handshake with p has failed or its link has ended.
func (c *core) unlinked(now time.Time, p peer.ID, reason error, how Ending) []Transition {
	r := c.records[p]
	// A handshake can fail before it was pending, and a draining link has ended before.
	if r == nil || r.link != Pending && r.link != Linked {
		return nil
	}
	r.admission = 0
	if how == OnPurpose && r.link == Linked {
		// Both nodes live on, and messages may be on their way.
		r.link, r.drained = Draining, now.Add(drainTime)
	} else {
		// After a fault no message arrives any more, and a link that was never complete has
		// carried none. So nothing is gained by draining.
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
	if r := c.records[p]; r != nil { // a leave can come after close
		r.onTopic = false
	}
	return c.settled(p, Transition{})
}

// release ends the holding of direct events that began with that admission. An older
// admission changes nothing, because the peer is being added anew.
func (c *core) release(p peer.ID, admission uint64) {
	if r := c.records[p]; r != nil && r.admission == admission {
		r.admission = 0
	}
}

// held reports whether the direct events of p have to wait.
func (c *core) held(p peer.ID) bool {
	r := c.records[p]
	return r != nil && r.admission != 0
}

// openPubSub makes pubsub serve every peer that speaks it, without bound, from now on: on
// a topic that others made, nobody is linked to anybody.
func (c *core) openPubSub() []Transition {
	c.openToAll = true
	c.changes = nil
	for _, p := range c.known() {
		c.settle(p, Transition{})
	}
	return c.changes
}

// advance ends the draining of links that is over at now.
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

// next returns when to call advance; the zero time means never.
func (c *core) next() (next time.Time) {
	for _, r := range c.records {
		if r.link == Draining && (next.IsZero() || r.drained.Before(next)) {
			next = r.drained
		}
	}
	return next
}

// close ends all records. Later facts change nothing. The overlay has ended its links
// before.
func (c *core) close() []Transition {
	c.changes, c.closed = nil, true
	for _, p := range c.known() {
		c.settle(p, Transition{})
	}
	return c.changes
}

// standing returns the standing of p.
func (c *core) standing(p peer.ID) Standing {
	if r := c.records[p]; r != nil {
		return r.standing
	}
	return Standing{}
}

// known returns the peers that have a record, in the same order for the same records.
func (c *core) known() []peer.ID { return slices.Sorted(maps.Keys(c.records)) }

func (c *core) record(p peer.ID) *record {
	r := c.records[p]
	if r == nil {
		r = &record{}
		c.records[p] = r
	}
	return r
}

func (c *core) settled(p peer.ID, change Transition) []Transition {
	c.changes = nil
	c.settle(p, change)
	return c.changes
}

// settle derives the standing of p from the facts. If the standing is new, it adds the
// given change, which carries what else the fact said. A place that becomes free goes to
// the peer that has waited longest, whose change follows.
func (c *core) settle(p peer.ID, change Transition) {
	r := c.records[p]
	if r == nil {
		return
	}
	// A link that was made anew while it drained does not end at the old time.
	if r.link != Draining {
		r.drained = time.Time{}
	}
	was := r.standing
	is := Standing{Role: r.role(), Link: r.link, OnTopic: r.onTopic}
	var next []peer.ID
	// A leaf has no handshake. It is linked as soon as it is on the topic.
	if is.Role == Leaf && is.Link == None && is.OnTopic && !c.closed {
		if c.leaves.request(p) {
			is.Link = Linked
		}
	} else {
		next = append(next, c.leaves.release(p)...)
	}
	// Nodes have links, and a place would make the gate serve them without one.
	if r.abilities.PubSub && is.Role != Node && c.guests.max > 0 && !c.openToAll && !c.closed {
		is.Place = c.guests.request(p)
	} else {
		next = append(next, c.guests.release(p)...)
	}
	// Programs on other topics may be nodes, linked or not.
	if c.openToAll && r.abilities.PubSub {
		is.Place = true
	}
	if c.closed {
		is = Standing{}
	}
	// When the registry is closed, the overlay has ended, and nobody wants to hear that its
	// links end.
	if is != was && !(c.closed && was.bound()) {
		c.add(p, r, change, is)
	}
	// A record without facts is the same as none.
	if *r == (record{}) || c.closed {
		delete(c.records, p)
	}
	for _, id := range next {
		c.settle(id, Transition{})
	}
}

// add adds the change of p to is.
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

// role returns what the peer is.
func (r *record) role() Role {
	switch {
	case r.link != None:
		// It has spoken the overlay with this node, even if it does not list the protocol.
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
