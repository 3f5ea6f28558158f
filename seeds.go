package smokesignal

import (
	"context"
	"errors"
	"time"
)

// A Seed is what a node knows of one of its seeds.
type Seed struct {
	// Seed is the text of the seed, as it was given to Seeds.
	Seed string
	// ID is the id of the node at the seed's address; empty until that node was reached.
	ID ID
	// Self is true if the seed leads to this node itself. Such a seed is ignored.
	Self bool
	// Linked reports whether the seed is in the peer list.
	Linked bool
	// Netsplit is true if the seed was heard before and cannot be heard now, see OnNetsplit.
	Netsplit bool
	// LastHeard is when the watchdog last heard the seed; zero if it never did.
	LastHeard time.Time
	// Err is why the seed cannot be used at present; nil if there is no known reason.
	Err error
	// Next is when the seed is tried next; zero if no try is planned.
	Next time.Time
}

// Seeds returns the state of all seeds, in the order in which they were given. Before Start
// only the field Seed is set; after Close there are none. The slice is the caller's.
func (n *Node) Seeds() []Seed {
	switch err := n.running(); {
	case errors.Is(err, ErrNotStarted):
		list := make([]Seed, len(n.cfg.seeds))
		for i, text := range n.cfg.seeds {
			list[i].Seed = text
		}
		return list
	case err != nil:
		return nil
	}
	heard := n.watchdog.Status()
	var list []Seed
	for _, s := range n.driver.Seeds() {
		seed := Seed{Seed: s.Seed, ID: s.ID, Self: s.Self, Err: s.Err, Next: s.Next}
		seed.Linked = s.ID != "" && n.records.Has(s.ID)
		for _, h := range heard {
			if h.Seed == s.Seed {
				seed.Netsplit, seed.LastHeard = h.Netsplit, h.LastHeard
			}
		}
		list = append(list, seed)
	}
	return list
}

func (n *Node) seed(text string) Seed {
	for _, s := range n.Seeds() {
		if s.Seed == text {
			return s
		}
	}
	return Seed{Seed: text}
}

// OnConnect calls f when the first peer was added. Connected is true then, and a broadcast
// that f emits reaches that peer. All functions registered with the On methods of Node run in
// order, one at a time, on one goroutine that does nothing else; they may emit and block. The
// ctx of f ends when the node closes. off removes f.
func (n *Node) OnConnect(f func(ctx context.Context)) (off func()) {
	return n.on.connect.on(func(ctx context.Context, _ struct{}) { f(ctx) })
}

// OnDisconnect calls f when the last peer was removed. By then the node is already trying to
// join again, through its seeds and all addresses that it knows. off removes f.
func (n *Node) OnDisconnect(f func(ctx context.Context)) (off func()) {
	return n.on.disconnect.on(func(ctx context.Context, _ struct{}) { f(ctx) })
}

// OnPeerAdded calls f when a peer was added to the peer list; the Node.js library calls this event
// "new peer". The peer's direct events and calls are read only after f has returned, and the
// peer does the same. So if both nodes make a Call inside f, both wait until their ctx ends;
// make the call on another goroutine. off removes f.
func (n *Node) OnPeerAdded(f func(ctx context.Context, p *Peer)) (off func()) {
	return n.on.peerAdded.on(f)
}

// OnPeerRemoved calls f when a peer was removed from the peer list. off removes f.
func (n *Node) OnPeerRemoved(f func(ctx context.Context, p *Peer)) (off func()) {
	return n.on.peerRemoved.on(f)
}

// OnNetsplit calls f when a seed can no longer be heard through the network although the node
// has peers: once for each time that the seed is lost. off removes f.
func (n *Node) OnNetsplit(f func(ctx context.Context, seed Seed)) (off func()) {
	return n.on.netsplit.on(f)
}

// OnNetsplitResolved calls f when a seed that OnNetsplit reported is heard again. off removes
// f.
func (n *Node) OnNetsplitResolved(f func(ctx context.Context, seed Seed)) (off func()) {
	return n.on.netsplitResolved.on(f)
}

// OnGap calls f when broadcasts of a sender are missing and will not arrive. Broadcast.OnGap
// reports the same gaps in order with the sender's events. off removes f.
func (n *Node) OnGap(f func(ctx context.Context, gap Gap)) (off func()) {
	return n.on.gap.on(f)
}

// OnSeedError calls f when the reason why a seed cannot be used changes. off removes f.
func (n *Node) OnSeedError(f func(ctx context.Context, err *SeedError)) (off func()) {
	return n.on.seedError.on(f)
}
