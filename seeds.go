package smokesignal

import (
	"context"
	"errors"
	"time"
)

// Seed is what a node knows of one of its seeds.
type Seed struct {
	// Seed is the seed as it was given.
	Seed string
	// ID is empty until the seed was reached.
	ID ID
	// Self tells that the seed is this node, so it is left alone.
	Self bool
	// Linked tells whether it is in the peer list.
	Linked bool
	// Netsplit tells that it was heard once, and is not any more. LastHeard is when
	// it was last heard through the overlay, zero for never.
	Netsplit  bool
	LastHeard time.Time
	// Err is why it cannot be used at present, nil if nothing is known against it.
	// Next is when it is tried again, zero if that is not planned.
	Err  error
	Next time.Time
}

// Seeds returns the state of all seeds, in the order in which they were given. Before
// Start only the field Seed is set; after Close there are none. The slice is the caller's.
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

// OnConnect calls f when the first peer was added. Connected is true by then, and
// a broadcast reaches that peer. The functions registered with this and the
// other On methods of Node run in order, one at a time, on a goroutine of their
// own; they may emit. off removes f.
func (n *Node) OnConnect(f func(ctx context.Context)) (off func()) {
	return n.on.connect.on(func(ctx context.Context, _ struct{}) { f(ctx) })
}

// OnDisconnect calls f when the last peer is gone. The node is already trying to
// come back through its seeds and the addresses it knows.
func (n *Node) OnDisconnect(f func(ctx context.Context)) (off func()) {
	return n.on.disconnect.on(func(ctx context.Context, _ struct{}) { f(ctx) })
}

// OnPeerAdded calls f when a peer was added to the list: the original's "new
// peer". The peer's direct events and calls are read only after f has returned,
// and so it is at the peer: two nodes that both call the other in f, and wait for
// the answer, wait until their ctx ends. Another goroutine can call at once.
func (n *Node) OnPeerAdded(f func(ctx context.Context, p *Peer)) (off func()) {
	return n.on.peerAdded.on(f)
}

// OnPeerRemoved calls f when a peer was removed from the list.
func (n *Node) OnPeerRemoved(f func(ctx context.Context, p *Peer)) (off func()) {
	return n.on.peerRemoved.on(f)
}

// OnNetsplit calls f once when a seed is not heard any more through the overlay
// although the node has peers.
func (n *Node) OnNetsplit(f func(ctx context.Context, seed Seed)) (off func()) {
	return n.on.netsplit.on(f)
}

// OnNetsplitResolved calls f once when a lost seed is heard again.
func (n *Node) OnNetsplitResolved(f func(ctx context.Context, seed Seed)) (off func()) {
	return n.on.netsplitResolved.on(f)
}

// OnGap calls f when broadcasts of a sender are missing and will not come: no
// neighbour has them any more, or the handlers here were so slow that they had to
// make room. Who has to know it in its place among the events uses
// Broadcast().OnGap.
func (n *Node) OnGap(f func(ctx context.Context, gap Gap)) (off func()) {
	return n.on.gap.on(f)
}

// OnSeedError calls f when the reason why a seed cannot be used changes.
func (n *Node) OnSeedError(f func(ctx context.Context, err *SeedError)) (off func()) {
	return n.on.seedError.on(f)
}
