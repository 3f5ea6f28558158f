package sim

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// This file carries out the outputs of a machine, as package discovery does.

const (
	// flapTime is how long a pair whose link ended without a fault must stay apart.
	flapTime = 30 * time.Second
	// faultTime is how long after a fault a broken link counts as its consequence.
	faultTime = 60 * time.Second
)

// A peerState is what a node knows of a peer beyond its connection.
type peerState struct {
	peer      int32
	admitted  bool // to the topic
	onTopic   bool // the peer is seen there
	linked    bool
	halfSince time.Duration // when the peer was first seen not to know of the link; zero if it does
}

// A pastLink is a link that has ended.
type pastLink struct {
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
		// The peer does not answer, so its connection is likely to be dead.
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

// peerState returns what n knows of a peer, or nil.
func (n *node) peerState(peer int32) *peerState {
	for i := range n.peerStates {
		if n.peerStates[i].peer == peer {
			return &n.peerStates[i]
		}
	}
	return nil
}

// addPeerState returns what n knows of a peer, which it may have met just now.
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

// degree returns the number of links that n believes in.
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
	// A machine promises to ask one question at a time for each seed.
	if slices.ContainsFunc(n.dials, func(d *dial) bool { return d.seed == seed }) {
		w.violation(n, "asks for seed %s while the answer is due", w.nodes[i].id)
	}
	if i == n.index {
		w.nextInputs = append(w.nextInputs, overlay.SeedSelf{Seed: seed})
		return
	}
	w.dial(n, &dial{peer: i, seed: seed})
}

// violation counts an output that breaks the promises to the driver.
func (w *World) violation(n *node, format string, p peer.ID) {
	w.Violations++
	w.trace(n, "VIOLATION: "+format, string(p))
}

func (w *World) linked(n *node, i int32) {
	b := n.addPeerState(i)
	// Package overlay promises a Pending before each Linked, and one Linked only.
	if w.rules.Pending && (!b.admitted || b.linked) {
		w.violation(n, "Linked to %s out of turn", w.nodes[i].id)
	}
	b.linked, b.halfSince = true, 0
	w.mixHash(uint64(n.index)<<32 | uint64(i) | 1<<63)
	if w.Trace != nil {
		w.trace(n, "links %s", string(w.nodes[i].id))
	}
	kept := n.partings[:0]
	for _, p := range n.partings {
		switch {
		// Older partings are forgotten; a new link to the same peer does not count as a flap any more.
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
	n.partings = kept
	w.watchNewNeighbor(n, i)
}

// explainedByFault reports whether a fault explains that n was unlinked from a peer and
// linked to it again: one that hit either of them, or their neighbors.
func (w *World) explainedByFault(n *node, p pastLink) bool {
	f := max(n.lastFault, w.nodes[p.peer].lastFault)
	return f != 0 && p.at <= f+faultTime
}

func (w *World) unlinked(n *node, i int32, o overlay.Unlinked) {
	// An Unlinked must end what the last Pending or Linked began.
	if b := n.peerState(i); b == nil || b.linked != o.WasLinked {
		w.violation(n, "Unlinked from %s out of turn", w.nodes[i].id)
	}
	n.removePeerState(i)
	w.scheduleTopic(n, i)
	if o.WasLinked {
		n.partings = append(n.partings, pastLink{i, w.now})
	}
	if w.Trace != nil {
		word := "gives up"
		if o.WasLinked {
			word = "unlinks"
		}
		w.trace(n, "%s %s: %s", word, string(w.nodes[i].id), o.Reason)
	}
	if o.Reason == overlay.ReasonSilent {
		w.closeConns(n, i) // the driver closes the connections of a silent peer, too
	}
}

// seedAnswer gives n the answer to an AskSeed.
func (w *World) seedAnswer(n *node, seed int, good bool) {
	if !good {
		w.deliver(n, delivery{in: overlay.SeedFailed{Seed: seed}})
		return
	}
	w.foundSeed(n, seed)
	w.deliver(n, delivery{in: overlay.SeedFound{Seed: seed, Contact: overlay.Contact{ID: w.nodes[n.seeds[seed]].id, Addrs: dialable}}})
}

// Find lets node a look for node b. It returns the time until b was found, or a negative
// time if it was not, and the number of messages.
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
			w.deliver(n, delivery{in: overlay.EndFind{Token: token}}) // as if a had reached b at that address
		default:
			done = done || o.Done
		}
	}
	w.deliver(w.nodes[a], delivery{in: overlay.Find{Target: w.nodes[b].id, Token: token}})
	for found < 0 && !done && w.now < begin+limit {
		w.Run(10 * time.Millisecond)
	}
	w.Run(time.Second) // messages that are still on their way count, too
	w.onLocated = nil
	return found, w.Sent[kindLookup] + w.Sent[kindFound] - before
}
