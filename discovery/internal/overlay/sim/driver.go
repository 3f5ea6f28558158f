package sim

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// This file does what a machine wants done, as package discovery does.

const (
	// flapTime is how long a pair that has parted stays apart (promise 1).
	flapTime = 30 * time.Second
	// faultTime is how long a fault explains what happens to links.
	faultTime = 60 * time.Second
)

// A bond is what a node knows of a peer beyond its connection.
type peerState struct {
	peer      int32
	admitted  bool // to the topic
	onTopic   bool // the peer is seen there
	linked    bool
	halfSince time.Duration // since when the peer does not know of the link; zero if it does
}

// A parting is when a link ended.
type parting struct {
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
		if n.bond(i, false) != nil {
			w.violation(n, "Pending of %s for the second time", o.Peer)
		}
		n.bond(i, true).admitted = true
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

func (n *node) bond(peer int32, make bool) *peerState {
	for i := range n.peerStates {
		if n.peerStates[i].peer == peer {
			return &n.peerStates[i]
		}
	}
	if !make {
		return nil
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
	b := n.bond(peer, false)
	return b != nil && b.linked
}

// degree is how many links n believes to have.
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
	if slices.ContainsFunc(n.dials, func(d *dial) bool { return d.seed == seed }) {
		w.violation(n, "asks for seed %s while the answer is due", w.nodes[i].id)
	}
	if i == n.index {
		w.nextInputs = append(w.nextInputs, overlay.SeedSelf{Seed: seed})
		return
	}
	w.dial(n, &dial{peer: i, seed: seed})
}

// violation notes that the machine did what its driver does not expect of it.
func (w *World) violation(n *node, format string, p peer.ID) {
	w.Violations++
	w.trace(n, "BREACH: "+format, string(p))
}

func (w *World) linked(n *node, i int32) {
	b := n.bond(i, true)
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

// explainedByFault tells whether a fault explains that n parts from a peer and comes back
// to it: one that hit either of them, or the neighbours.
func (w *World) explainedByFault(n *node, p parting) bool {
	f := max(n.lastFault, w.nodes[p.peer].lastFault)
	return f != 0 && p.at <= f+faultTime
}

func (w *World) unlinked(n *node, i int32, o overlay.Unlinked) {
	if b := n.bond(i, false); b == nil || b.linked != o.WasLinked {
		w.violation(n, "Unlinked from %s out of turn", w.nodes[i].id)
	}
	n.removePeerState(i)
	w.scheduleTopic(n, i)
	if o.WasLinked {
		n.partings = append(n.partings, parting{i, w.now})
	}
	if w.Trace != nil {
		word := "gives up"
		if o.WasLinked {
			word = "unlinks"
		}
		w.trace(n, "%s %s: %s", word, string(w.nodes[i].id), o.Reason)
	}
	if o.Reason == overlay.ReasonSilent {
		w.closeConns(n, i) // as the driver does
	}
}

// seedAnswer tells n what came of the search for a seed.
func (w *World) seedAnswer(n *node, seed int, good bool) {
	if !good {
		w.deliver(n, delivery{in: overlay.SeedFailed{Seed: seed}})
		return
	}
	w.foundSeed(n, seed)
	w.deliver(n, delivery{in: overlay.SeedFound{Seed: seed, Contact: overlay.Contact{ID: w.nodes[n.seeds[seed]].id, Addrs: dialable}}})
}

// Find has node a look for node b. It returns when b was found, or a negative time,
// and how many messages that took.
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
			w.deliver(n, delivery{in: overlay.EndFind{Token: token}}) // it was reached there
		default:
			done = done || o.Done
		}
	}
	w.deliver(w.nodes[a], delivery{in: overlay.Find{Target: w.nodes[b].id, Token: token}})
	for found < 0 && !done && w.now < begin+limit {
		w.Run(10 * time.Millisecond)
	}
	w.Run(time.Second) // what is on its way counts too
	w.onLocated = nil
	return found, w.Sent[kindLookup] + w.Sent[kindFound] - before
}
