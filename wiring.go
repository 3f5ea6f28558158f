package smokesignal

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery"
)

// This file says what happens when a room has news: its functions are the hooks of
// the rooms. They run on the goroutines of the rooms and, but for admitBroadcast, do not
// block.

// admitBroadcast holds broadcasts back until Start, since on a lent host they come from
// New on, and handlers may be registered in between.
func (n *Node) admitBroadcast(ctx context.Context, p peer.ID) error {
	select {
	case <-n.begun:
		return n.list.Admit(ctx, p)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *Node) pending(p peer.ID) {
	n.list.Expect(p)
	n.drains.mu.Lock()
	defer n.drains.mu.Unlock()
	delete(n.drains.of, p)
	switch {
	case n.gate != nil:
		n.gate.Admit(p)
	case n.onTopic(p): // as long as it is connected, perhaps; there was no news then
		n.driver.TopicChanged(p, true)
	}
}

// drain is how long pubsub keeps a peer whose link ended on purpose, so that what
// is on its way over that link still arrives.
const drain = 10 * time.Second

// drains are the peers that pubsub is about to lose.
type drains struct {
	mu sync.Mutex
	of map[ID]*time.Timer
}

// evict takes p away from pubsub: soon after a link that ended on purpose, and at
// once after a fault.
func (n *Node) evict(p peer.ID, reason error, was bool) {
	if n.gate == nil {
		return // whom a pubsub that is lent sees is not ours to say
	}
	if e, ok := errors.AsType[*discovery.LinkError](reason); !ok || !was || !e.OnPurpose() {
		n.gate.Evict(p)
		return
	}
	n.drains.mu.Lock()
	defer n.drains.mu.Unlock()
	var timer *time.Timer
	timer = time.AfterFunc(drain, func() {
		n.drains.mu.Lock()
		defer n.drains.mu.Unlock()
		if n.drains.of[p] == timer { // the link has not come back meanwhile
			delete(n.drains.of, p)
			n.gate.Evict(p)
		}
	})
	n.drains.of[p] = timer
}

func (n *Node) linked(p peer.ID, greeting []byte) {
	if err := n.broadcast.Link(p, greeting); err != nil {
		n.log.Debug("greeting", "peer", p, "err", err)
	}
	n.list.Add(p)
	n.watchdog.NeighborsChanged()
	n.sources.linksChanged()
}

func (n *Node) unlinked(p peer.ID, reason error, was bool) {
	n.evict(p, reason, was)
	n.broadcast.Unlink(p)
	unwritten := n.direct.Release(p, reason)
	n.list.Remove(p, &CloseError{Peer: p, Unwritten: unwritten, Err: reason})
	n.watchdog.NeighborsChanged()
	n.sources.linksChanged()
}

func (n *Node) onTopic(p peer.ID) bool {
	if n.gate == nil {
		return n.audience.has(p)
	}
	for _, x := range n.pubsub.ListPeers(n.topic) {
		if x == p {
			return true
		}
	}
	return false
}

// audience are the peers of whom pubsub said that they are on the topic. Its own list
// has none of those to whom it has no stream yet.
type audience struct {
	mu sync.Mutex
	of map[ID]bool
}

func (a *audience) set(p ID, present bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if present {
		a.of[p] = true
	} else {
		delete(a.of, p)
	}
}

func (a *audience) has(p ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.of[p]
}

func (a *audience) list() []ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.of))
}

// onTopicChanged is told by pubsub of everybody who comes to the topic, or leaves it.
func (n *Node) onTopicChanged(p peer.ID, present bool) {
	n.audience.set(p, present)
	n.driver.TopicChanged(p, present)
	n.leafOnTopic(p, present)
}

func (n *Node) gap(_ context.Context, g Gap) {
	n.calls.post(func() {
		n.onGap.each(func(f func(context.Context, Gap)) { n.calls.guard(func() { f(n.calls.ctx, g) }) })
	})
	n.emit(EvtGap{Gap: g})
}

func (n *Node) seedError(e *SeedError) {
	n.calls.post(func() {
		n.onSeedError.each(func(f func(context.Context, *SeedError)) { n.calls.guard(func() { f(n.calls.ctx, e) }) })
	})
	n.emit(EvtSeedError{Err: e})
}

func (n *Node) netsplit(seed string) {
	n.driver.SeedLost(seed)
	n.tellSeed(&n.onNetsplit, seed)
	n.emit(EvtNetsplit{Seed: seed})
}

func (n *Node) resolved(seed string) {
	n.driver.SeedHeard(seed)
	n.tellSeed(&n.onNetsplitResolved, seed)
	n.emit(EvtNetsplitResolved{Seed: seed})
}

func (n *Node) tellSeed(list *hooks[func(context.Context, Seed)], seed string) {
	n.calls.post(func() {
		s := n.seed(seed)
		list.each(func(f func(context.Context, Seed)) { n.calls.guard(func() { f(n.calls.ctx, s) }) })
	})
}
