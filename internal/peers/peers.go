// Package peers keeps one record for each peer of a node: what the peer is, how far the
// link to it is, and whether it is on the topic.
//
// The records change because of facts: which protocols a peer speaks, the steps of the
// overlay's handshake, who joins and leaves the topic, which connections are lost. Each
// change of a record is passed to the followers, one change after the other, and to the
// followers in this order:
//
//	gate, overlay, broadcast, direct, list of neighbors, watchdog, callbacks
//
// The promises of a node depend on this order. The gate comes first, so that pubsub has
// streams to a peer before the peer hears that the link is complete. Broadcast comes
// before the list and the callbacks, so that a broadcast reaches the new neighbor if a
// callback, or a program that has seen the list, sends it. The callbacks come last, and
// the peer's direct events are held back until they have run.
//
// The decisions are in core, which performs no I/O and reads no clock. [Registry]
// informs it of the facts, some of which it learns from a libp2p host, and delivers the
// changes.
package peers

import "github.com/libp2p/go-libp2p/core/peer"

// A Role says what a peer is to a node.
type Role uint8

const (
	// Unknown is a peer that speaks none of the protocols below, or has not said yet
	// what it speaks.
	Unknown Role = iota
	// Node is a peer that speaks the overlay protocol.
	Node
	// Leaf is a peer that speaks the repair protocol but not the overlay protocol.
	Leaf
	// Guest is a peer that speaks only pubsub.
	Guest
)

func (r Role) String() string { return [...]string{"unknown", "node", "leaf", "guest"}[r] }

// A LinkState says how far the link to a peer is.
type LinkState uint8

const (
	// None means that there is no link.
	None LinkState = iota
	// Pending means that the handshake has begun and is not complete.
	Pending
	// Linked means that the link is complete on both sides. A leaf is linked without a
	// handshake, as soon as it is on the topic and has one of the limited places for
	// leaves.
	Linked
	// Draining means that the link has ended on purpose, and messages that were on
	// their way may still arrive.
	Draining
)

func (l LinkState) String() string { return [...]string{"none", "pending", "linked", "draining"}[l] }

// A Standing says what is known of a peer: its role, how far the link to it is, whether it
// is on the topic, and whether it has a place. A peer without a record has the zero value.
type Standing struct {
	Role    Role
	Link    LinkState
	OnTopic bool
	// Place means that pubsub serves the peer although this node has no handshake or
	// link with it as a node. Either the peer is a leaf or guest with one of the
	// limited places for leaves and guests, or [Registry.OpenPubSub] was called.
	Place bool
}

// Neighbor reports whether the peer is a neighbor: a node with a complete link.
func (s Standing) Neighbor() bool { return s.Role == Node && s.Link == Linked }

// LinkedLeaf reports whether the peer is a leaf that is linked.
func (s Standing) LinkedLeaf() bool { return s.Role == Leaf && s.Link == Linked }

// Served reports whether pubsub serves the peer because it is a node with which this node
// has a handshake or a link, even one that is draining.
func (s Standing) Served() bool { return s.Role == Node && s.Link != None }

// bound reports whether the overlay has a handshake or a link with the peer.
func (s Standing) bound() bool { return s.Role == Node && (s.Link == Pending || s.Link == Linked) }

// A Transition is one change of the record of a peer. The parts of the node that follow the
// changes all get the same Transition, one after the other.
type Transition struct {
	Peer    peer.ID
	Was, Is Standing
	// Greeting is the bytes that a new neighbor sent in the last step of the handshake.
	Greeting []byte
	// Reason says why a link has ended.
	Reason error
	// Neighbors is how many neighbors the node has after the change.
	Neighbors int
	// Admission is the number by which [Registry.Release] knows that it is called for
	// this change and not for an earlier time at which the peer became a neighbor.
	Admission uint64
	// Unwritten is how many direct events for the peer were accepted but not written
	// when the link ended. The part of the node that handles direct events sets it, for
	// the parts that get the change after it.
	Unwritten int
}

// Added reports whether the peer has become a neighbor.
func (c *Transition) Added() bool { return c.Is.Neighbor() && !c.Was.Neighbor() }

// Removed reports whether the peer has stopped being a neighbor.
func (c *Transition) Removed() bool { return c.Was.Neighbor() && !c.Is.Neighbor() }

// First reports whether the change adds a neighbor to a node that had none.
func (c *Transition) First() bool { return c.Added() && c.Neighbors == 1 }

// Last reports whether the change removes the last neighbor of the node.
func (c *Transition) Last() bool { return c.Removed() && c.Neighbors == 0 }

// Begun reports whether a handshake has begun.
func (c *Transition) Begun() bool { return c.Is.Link == Pending && c.Was.Link != Pending }

// Ended reports whether a handshake or a link with the peer, which is a node, has ended.
func (c *Transition) Ended() bool { return c.Was.bound() && !c.Is.bound() }

// Unclear reports whether the peer has come to the pubsub topic before its link is
// complete, so that it is not clear yet whether it will become a neighbor.
func (c *Transition) Unclear() bool { return c.Is.OnTopic && !c.Was.OnTopic && c.Is.Link != Linked }

// Abilities says which protocols of this library a peer speaks.
type Abilities struct {
	Overlay, Repair bool
	// PubSub means that the peer speaks pubsub over a direct connection. Through a
	// relay pubsub does not exchange messages.
	PubSub bool
}

// An Ending says how a link of nodes has ended.
type Ending uint8

const (
	// Broken means that there was a fault, or that one of the nodes is closing.
	Broken Ending = iota
	// OnPurpose means that one of the two nodes has ended the link to have other
	// neighbors. Both nodes continue to run.
	OnPurpose
)
