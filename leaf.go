package smokesignal

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

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
	mu sync.Mutex
	of map[ID]bool
}

// onTopicChanged is told of everybody who comes to the topic, or leaves it.
func (n *Node) onTopicChanged(p peer.ID, present bool) {
	n.driver.TopicChanged(p, present)
	n.leaves.mu.Lock()
	defer n.leaves.mu.Unlock()
	switch {
	case present:
		n.linkLeaf(p)
	case n.leaves.of[p]:
		delete(n.leaves.of, p)
		n.broadcast.Unlink(p)
		n.host.ConnManager().Unprotect(p, leafTag)
		for _, other := range n.pubsub.ListPeers(n.topic) {
			n.linkLeaf(other) // one may have waited for the place
		}
	}
}

// linkLeaf links p if it is a leaf and there is room. It needs the lock.
func (n *Node) linkLeaf(p peer.ID) {
	if n.leaves.of[p] || len(n.leaves.of) >= maxLeaves || !n.isLeaf(p) {
		return
	}
	if n.leaves.of == nil {
		n.leaves.of = map[ID]bool{}
	}
	n.leaves.of[p] = true
	n.host.ConnManager().Protect(p, leafTag)
	n.broadcast.LinkLeaf(p)
}

func (n *Node) isLeaf(p peer.ID) bool {
	spoken, err := n.host.Peerstore().SupportsProtocols(p, discovery.Protocol, events.ProtocolRepair)
	return err == nil && len(spoken) == 1 && spoken[0] == events.ProtocolRepair
}
