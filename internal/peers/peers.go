// Package peers keeps one record for each peer of a node: what the peer is, how far a
// link to it is, and whether it is on the topic.
//
// The record is fed with facts: the protocols that a peer speaks, the steps of the
// overlay's handshake, the topic's joins and leaves, lost connections. Each fact may
// change records, and each change is told to the followers, one change after the other
// and every follower in the same order:
//
//	gate, overlay, broadcast, direct, list of neighbors, watchdog, callbacks
//
// The order is what keeps the promises of a node. The gate comes first, so that pubsub
// exchanges streams with a peer before the peer is told that the link stands. The
// broadcast comes before the list and the callbacks, so that a broadcast sent by a
// callback, or after a look at the list, reaches the new neighbor. The callbacks come
// last, and the peer's direct events are held until they have run.
//
// The decisions are in core, which performs no I/O and reads no clock. [Registry] feeds it
// from a libp2p host and delivers the changes.
package peers

import "github.com/libp2p/go-libp2p/core/peer"

// A Role is what a peer is to a node.
type Role uint8

const (
	// Unknown is a peer that speaks none of the protocols below, or has not yet said so.
	Unknown Role = iota
	// Node is a peer that speaks the overlay.
	Node
	// Leaf is a peer that speaks repair but not the overlay.
	Leaf
	// Guest is a plain pubsub peer.
	Guest
)

func (r Role) String() string { return [...]string{"unknown", "node", "leaf", "guest"}[r] }

// A LinkState says how far the link to a peer is.
type LinkState uint8

const (
	// None: there is no link.
	None LinkState = iota
	// Pending: the handshake is under way.
	Pending
	// Linked: the link stands on both sides. A leaf is linked without a handshake, as
	// soon as it is on the topic and has a place.
	Linked
	// Draining: the link has ended on purpose, and messages that were on their way
	// may still arrive.
	Draining
)

func (l LinkState) String() string { return [...]string{"none", "pending", "linked", "draining"}[l] }

// A Standing is what the record of a peer says. The zero value is that of a peer that has
// no record.
type Standing struct {
	Role    Role
	Link    LinkState
	OnTopic bool
	// Place means that pubsub serves the peer without a link: a leaf or a guest that
	// has one of the places for such peers, or any peer once the topics are open to all.
	Place bool
}

// Neighbor reports whether the peer is in the list of neighbors: a node whose link
// stands.
func (s Standing) Neighbor() bool { return s.Role == Node && s.Link == Linked }

// LinkedLeaf reports whether the peer is a leaf whose link stands.
func (s Standing) LinkedLeaf() bool { return s.Role == Leaf && s.Link == Linked }

// Served reports whether the handshake or a link of nodes gives the peer access to pubsub.
func (s Standing) Served() bool { return s.Role == Node && s.Link != None }

// bound reports whether the overlay has a handshake or a link with the peer.
func (s Standing) bound() bool { return s.Role == Node && (s.Link == Pending || s.Link == Linked) }

// A Transition is one step of a record. Followers get the same Transition one after the other.
type Transition struct {
	Peer    peer.ID
	Was, Is Standing
	// Greeting is what a new neighbor said with the last step of the handshake.
	Greeting []byte
	// Reason says why a link has ended.
	Reason error
	// Neighbors is the length of the list of neighbors after the change.
	Neighbors int
	// Admission is given to [Tracker.Release] after the callbacks of an added peer.
	Admission uint64
	// Unwritten is set by the follower of direct events for those after it: the number
	// of accepted events that were not written before the link ended.
	Unwritten int
}

// Added reports whether the peer has become a neighbor.
func (c *Transition) Added() bool { return c.Is.Neighbor() && !c.Was.Neighbor() }

// Removed reports whether the peer is no longer a neighbor.
func (c *Transition) Removed() bool { return c.Was.Neighbor() && !c.Is.Neighbor() }

// First reports whether the change makes the list of neighbors begin.
func (c *Transition) First() bool { return c.Added() && c.Neighbors == 1 }

// Last reports whether the change leaves no neighbor.
func (c *Transition) Last() bool { return c.Removed() && c.Neighbors == 0 }

// Begun reports whether a handshake has begun.
func (c *Transition) Begun() bool { return c.Is.Link == Pending && c.Was.Link != Pending }

// Ended reports whether a handshake or a link of nodes has ended.
func (c *Transition) Ended() bool { return c.Was.bound() && !c.Is.bound() }

// Unclear reports whether the peer has come to the topic without a link, which only
// peers do that speak the overlay or repair, or that are guests.
func (c *Transition) Unclear() bool { return c.Is.OnTopic && !c.Was.OnTopic && c.Is.Link != Linked }

// Abilities are the protocols of this library that a peer speaks.
type Abilities struct {
	Overlay, Repair bool
	// PubSub means that the peer speaks pubsub over a direct connection. Pubsub is not
	// spoken through a relay.
	PubSub bool
}

// An Ending says how a link of nodes ended.
type Ending uint8

const (
	// Broken: a fault, or one of the nodes is closing.
	Broken Ending = iota
	// OnPurpose: the nodes reorder their links, and both live on.
	OnPurpose
)
