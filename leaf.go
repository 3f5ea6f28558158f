package smokesignal

import (
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
)

// maxLeaves bounds the leaves that have marks and repair at a time: each can make
// everybody's broadcasts wait for it, as a neighbour can, but nobody has chosen it.
const maxLeaves = 16

// leafTag protects the connection to a leaf, which cannot find another node by itself.
const leafTag = "smokesignal leaf"

// leaves are the peers that are linked for broadcasts alone: they are on the topic and
// speak repair, but not the overlay (docs/wire.md, A leaf).
type leaves struct {
	spoken event.Subscription // who says what it speaks
	tasks  sync.WaitGroup

	mu     sync.Mutex
	of     map[ID]bool
	closed bool
}

// watchLeaves follows who says what it speaks: a leaf may say so only after it has come
// to the topic, and stop being one.
func (n *Node) watchLeaves() error {
	sub, err := n.host.EventBus().Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated)},
		eventbus.BufSize(256), eventbus.Name("smokesignal leaves"))
	if err != nil {
		return fmt.Errorf("listen to the host's event bus: %w", err)
	}
	n.leaves.spoken = sub
	n.leaves.tasks.Go(func() {
		for ev := range sub.Out() {
			switch ev := ev.(type) {
			case event.EvtPeerIdentificationCompleted:
				n.spoke(ev.Peer)
			case event.EvtPeerProtocolsUpdated:
				n.spoke(ev.Peer)
			}
		}
	})
	return nil
}

func (n *Node) spoke(p peer.ID) {
	leaf := n.isLeaf(p)
	n.leaves.mu.Lock()
	defer n.leaves.mu.Unlock()
	switch {
	case leaf && n.audience.has(p):
		n.linkLeaf(p)
	case !leaf && n.leaves.of[p]:
		n.unlinkLeaf(p)
	}
}

// closeLeaves forgets all leaves.
func (n *Node) closeLeaves() {
	if n.leaves.spoken != nil {
		n.leaves.spoken.Close()
		n.leaves.tasks.Wait()
	}
	n.leaves.mu.Lock()
	defer n.leaves.mu.Unlock()
	n.leaves.closed = true
	for p := range n.leaves.of {
		n.host.ConnManager().Unprotect(p, leafTag)
	}
	clear(n.leaves.of)
}

func (n *Node) leafOnTopic(p peer.ID, present bool) {
	n.leaves.mu.Lock()
	defer n.leaves.mu.Unlock()
	switch {
	case present:
		n.linkLeaf(p)
		if !n.leaves.of[p] && !n.list.Has(p) {
			n.protocols.Doubt(p, discovery.Protocol, events.ProtocolRepair)
		}
	case n.leaves.of[p]:
		n.unlinkLeaf(p)
	}
}

// unlinkLeaf forgets the leaf p. It needs the lock.
func (n *Node) unlinkLeaf(p peer.ID) {
	delete(n.leaves.of, p)
	n.broadcast.UnlinkLeaf(p)
	n.host.ConnManager().Unprotect(p, leafTag)
	for _, other := range n.audience.list() {
		n.linkLeaf(other) // one may have waited for the place
	}
}

// linkLeaf links p if it is a leaf and there is room. It needs the lock.
func (n *Node) linkLeaf(p peer.ID) {
	if n.leaves.closed || n.leaves.of[p] || len(n.leaves.of) >= maxLeaves || !n.isLeaf(p) {
		return
	}
	n.leaves.of[p] = true
	n.host.ConnManager().Protect(p, leafTag)
	n.broadcast.LinkLeaf(p)
}

func (n *Node) isLeaf(p peer.ID) bool {
	spoken, err := n.host.Peerstore().SupportsProtocols(p, discovery.Protocol, events.ProtocolRepair)
	return err == nil && len(spoken) == 1 && spoken[0] == events.ProtocolRepair
}
