package sim

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// This file performs the outputs of the simulated nodes' state machines, as package discovery
// does for real nodes.

const (
	// If two nodes link again within flapTime after their last link ended, the simulator counts
	// a flap, unless a fault explains the end of that link.
	flapTime = 30 * time.Second
	// If a link ends within faultTime after a fault, such as a crash, the link may have ended
	// because of the fault.
	faultTime = 60 * time.Second
)

// A peerState says what a simulated node knows of one peer, apart from its connections to that
// peer.
type peerState struct {
	peer     int32
	admitted bool // the node lets the peer onto the pubsub topic
	onTopic  bool // the node sees the peer on the pubsub topic
	linked   bool
	// halfSince is the time since which only the node, and not the peer, has the link between
	// them. It is zero if the peer has the link as well.
	halfSince time.Duration
}

// A lostLink holds the peer of a link that has ended, and the time of the end.
type lostLink struct {
	peer int32
	at   time.Duration
}

func (w *World) perform(n *node, o overlay.Output) {
	switch o := o.(type) {
	case overlay.Send:
		if i, ok := w.index(o.To.ID); ok && i != n.index {
			w.send(n, i, o.Message)
		} else {
			w.nextInputs = append(w.nextInputs, overlay.Unreachable{Peer: o.To.ID, Reason: overlay.ReasonUnreachable})
		}
	case overlay.Pending:
		i, _ := w.index(o.Peer)
		if n.peerState(i) != nil {
			w.violation(n, "Pending of %s for the second time", o.Peer)
		}
		n.addPeerState(i).admitted = true
		w.scheduleTopic(n, i)
	case overlay.Probe:
		if i, _ := w.index(o.Peer); w.onTopic(n, i) {
			w.nextInputs = append(w.nextInputs, overlay.OnTopic{Peer: o.Peer, Present: true})
		}
	case overlay.Linked:
		i, _ := w.index(o.Peer)
		w.linked(n, i)
	case overlay.Unlinked:
		i, _ := w.index(o.Peer)
		w.unlinked(n, i, o)
	case overlay.Refused:
		if w.Trace != nil {
			w.trace(n, "is refused by %s: %s", string(o.Peer), o.Reason)
		}
		// The peer did not answer in the handshake of the link, so the connection to it is
		// probably dead.
		if i, ok := w.index(o.Peer); ok && o.Reason == overlay.ReasonTimeout {
			w.closeConns(n, i)
		}
	case overlay.AskSeed:
		w.askSeed(n, o.Seed)
	case overlay.RenewRecord:
		w.nextInputs = append(w.nextInputs, w.newRecord(n))
	case overlay.DialBack:
		if i, ok := w.index(o.To.ID); ok && n.conn(i) == nil {
			w.dial(n, &dial{peer: i, seed: -1})
		}
	case overlay.Located:
		if w.onLocated != nil {
			w.onLocated(n, o)
		}
	}
}

// peerState returns what n knows of the node with the index peer, or nil if n knows nothing of
// it.
func (n *node) peerState(peer int32) *peerState {
	for i := range n.peerStates {
		if n.peerStates[i].peer == peer {
			return &n.peerStates[i]
		}
	}
	return nil
}

// addPeerState returns what n knows of the node with the index peer. If n knows nothing of it,
// addPeerState adds an empty state.
func (n *node) addPeerState(peer int32) *peerState {
	if b := n.peerState(peer); b != nil {
		return b
	}
	n.peerStates = append(n.peerStates, peerState{peer: peer})
	return &n.peerStates[len(n.peerStates)-1]
}

func (n *node) removePeerState(peer int32) {
	for i := range n.peerStates {
		if n.peerStates[i].peer == peer {
			n.peerStates = append(n.peerStates[:i], n.peerStates[i+1:]...)
			return
		}
	}
}

func (n *node) linkedTo(peer int32) bool {
	b := n.peerState(peer)
	return b != nil && b.linked
}

// degree returns the number of links of n, which counts also links that only n, and not the
// peer, knows of.
func (n *node) degree() (d int) {
	for i := range n.peerStates {
		if n.peerStates[i].linked {
			d++
		}
	}
	return d
}

func (w *World) askSeed(n *node, seed int) {
	i := n.seeds[seed]
	// A state machine must not ask the driver about a seed before the driver has answered its
	// last question about that seed.
	if slices.ContainsFunc(n.dials, func(d *dial) bool { return d.seed == seed }) {
		w.violation(n, "asks for seed %s while the answer is due", w.nodes[i].id)
	}
	if i == n.index {
		w.nextInputs = append(w.nextInputs, overlay.SeedSelf{Seed: seed})
		return
	}
	w.dial(n, &dial{peer: i, seed: seed})
}

// violation counts an output of n's state machine that breaks the contract with the driver, and
// writes it to the trace. format describes it, with a verb for the id p of the other node.
func (w *World) violation(n *node, format string, p peer.ID) {
	w.Violations++
	w.trace(n, "VIOLATION: "+format, string(p))
}

func (w *World) linked(n *node, i int32) {
	b := n.addPeerState(i)
	// Package overlay promises that a Pending comes before each Linked, and that Linked comes
	// only once for each link.
	if w.rules.Pending && (!b.admitted || b.linked) {
		w.violation(n, "Linked to %s out of turn", w.nodes[i].id)
	}
	b.linked, b.halfSince = true, 0
	w.mixHash(uint64(n.index)<<32 | uint64(i) | 1<<63)
	if w.Trace != nil {
		w.trace(n, "links %s", string(w.nodes[i].id))
	}
	kept := n.endedLinks[:0]
	for _, p := range n.endedLinks {
		switch {
		// The link p ended so long ago that a new link to the same peer does not count as a
		// flap.
		case w.now-p.at > flapTime:
		case p.peer != i:
			kept = append(kept, p)
		case !w.explainedByFault(n, p):
			w.Flaps++
			if w.Trace != nil {
				w.trace(n, "FLAPS with %s, parted at %v", string(w.nodes[i].id), p.at)
			}
		}
	}
	n.endedLinks = kept
	w.watchNewNeighbor(n, i)
}

// explainedByFault reports whether the link p of the node n may have ended because of a fault
// of one of its two nodes or of one of their neighbors.
func (w *World) explainedByFault(n *node, p lostLink) bool {
	f := max(n.lastFault, w.nodes[p.peer].lastFault)
	return f != 0 && p.at <= f+faultTime
}

func (w *World) unlinked(n *node, i int32, o overlay.Unlinked) {
	// An Unlinked must say correctly whether the last output for the same peer was a Pending or
	// a Linked.
	if b := n.peerState(i); b == nil || b.linked != o.WasLinked {
		w.violation(n, "Unlinked from %s out of turn", w.nodes[i].id)
	}
	n.removePeerState(i)
	w.scheduleTopic(n, i)
	if o.WasLinked {
		n.endedLinks = append(n.endedLinks, lostLink{i, w.now})
	}
	if w.Trace != nil {
		word := "gives up"
		if o.WasLinked {
			word = "unlinks"
		}
		w.trace(n, "%s %s: %s", word, string(w.nodes[i].id), o.Reason)
	}
	if o.Reason == overlay.ReasonSilent {
		w.closeConns(n, i) // package discovery, too, closes its connections to a peer that fell silent
	}
}

// seedAnswer gives n the answer to its AskSeed about the seed with the index seed. good means
// that a node was reached at the seed's address.
func (w *World) seedAnswer(n *node, seed int, good bool) {
	if !good {
		w.deliver(n, delivery{in: overlay.SeedFailed{Seed: seed}})
		return
	}
	w.foundSeed(n, seed)
	w.deliver(n, delivery{in: overlay.SeedFound{Seed: seed, Contact: overlay.Contact{ID: w.nodes[n.seeds[seed]].id, Addrs: dialable}}})
}

// Find lets node a search for the address of node b. It returns the time until a found the
// address, or a negative time if a did not find it within limit, and the number of messages
// that the search took.
func (w *World) Find(a, b int32, limit time.Duration) (found time.Duration, sent int64) {
	before := w.Sent[kindLookup] + w.Sent[kindFound]
	begin := w.now
	done := false
	found = -1
	w.finds++
	token := w.finds
	w.onLocated = func(n *node, o overlay.Located) {
		switch {
		case o.Token != token:
		case o.Contact.ID == w.nodes[b].id && found < 0:
			found = w.now - begin
			w.deliver(n, delivery{in: overlay.EndFind{Token: token}}) // a real node would end the search once it has reached b
		default:
			done = done || o.Done
		}
	}
	w.deliver(w.nodes[a], delivery{in: overlay.Find{Target: w.nodes[b].id, Token: token}})
	for found < 0 && !done && w.now < begin+limit {
		w.Run(10 * time.Millisecond)
	}
	w.Run(time.Second) // One more second passes, to count the messages that are still on their way.
	w.onLocated = nil
	return found, w.Sent[kindLookup] + w.Sent[kindFound] - before
}
