package smokesignal

import (
	"context"
	"slices"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/internal/gate"
	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// This file connects the parts of a node. Some of its functions write what a part reports
// into the records of the peers, or call the user's callbacks. The others, the followers, are
// called when a record has changed, and change a part accordingly. All of them run on
// goroutines of the parts, and none blocks except admitBroadcast.

// leafTag is the tag by which the connection to a leaf is protected from libp2p's connection
// manager. A leaf is not in the overlay, so it cannot find another node by itself.
const leafTag = "smokesignal leaf"

// follow makes the parts of the node follow the records of its peers. The order is that
// of [peers.Followers].
func (n *Node) follow() error {
	followers := peers.Followers{
		Overlay: n.overlayFollows, Broadcast: n.broadcastFollows, Direct: n.directFollows,
		Watchdog: n.watchdogFollows, Callbacks: n.callbacksFollow,
		Identified: func(p peer.ID, is peers.Standing) {
			if is.Role == peers.Node {
				n.overlay.NodeConnected(p)
			}
		},
	}
	if n.gate == nil {
		// On a lent pubsub the node does not choose which guests are served, so it has no
		// places for guests to give.
		return n.records.Follow(followers)
	}
	followers.Gate = n.gateFollows
	return n.records.Follow(followers, pubsub.FloodSubID)
}

// gateFollows opens and closes the gate for a peer: pubsub has streams with the peer only
// while the record of the peer allows it.
func (n *Node) gateFollows(c *peers.Transition) {
	n.gate.SetAdmission(c.Peer, gate.Admission{
		Linked: c.Is.Served(), Guest: c.Is.Place, Plain: c.Is.Role != peers.Node,
	})
	// The peer is being linked again while the streams of its former link are still open.
	// Pubsub announces its topics only on new streams, and the peer may have dropped the
	// earlier announcement when the former link ended.
	if c.Was.Link == peers.Draining && c.Is.Link == peers.Pending {
		n.gate.Announce(c.Peer)
	}
}

// overlayFollows tells the overlay which peers are on the topic.
func (n *Node) overlayFollows(c *peers.Transition) {
	// On a lent pubsub, a peer can be on the topic before it is linked. Then no change of the
	// topic follows the beginning of the handshake, so this function tells the overlay at that
	// moment.
	knownBefore := n.gate == nil && c.Begun() && c.Is.OnTopic
	if c.Is.OnTopic != c.Was.OnTopic || knownBefore {
		n.overlay.TopicChanged(c.Peer, c.Is.OnTopic)
	}
	if c.Unclear() {
		// The peer may have added protocols since libp2p's identify asked it.
		n.protocols.Recheck(c.Peer, protocol.Overlay, protocol.Repair)
	}
}

// broadcastFollows links neighbors and leaves for broadcasts.
func (n *Node) broadcastFollows(c *peers.Transition) {
	if c.Removed() {
		n.channels.broadcast.wiring.Unlink(c.Peer)
	}
	if c.Was.LinkedLeaf() && !c.Is.LinkedLeaf() {
		n.channels.broadcast.wiring.Unlink(c.Peer)
		n.host.ConnManager().Unprotect(c.Peer, leafTag)
	}
	if c.Is.LinkedLeaf() && !c.Was.LinkedLeaf() {
		n.host.ConnManager().Protect(c.Peer, leafTag)
		n.channels.broadcast.wiring.Link(c.Peer, nil) // greetings go over the streams of marks
	}
	if c.Added() {
		if err := n.channels.broadcast.wiring.Link(c.Peer, c.Greeting); err != nil {
			n.log.Debug("a neighbor's greeting cannot be read", "peer", c.Peer, "error", err)
		}
	}
}

// directFollows ends the queue of direct events for a peer whose link has ended.
func (n *Node) directFollows(c *peers.Transition) {
	if c.Ended() {
		c.Unwritten = n.direct.Release(c.Peer, c.Reason)
	}
}

func (n *Node) watchdogFollows(c *peers.Transition) {
	if c.Added() || c.Removed() {
		n.watchdog.NeighborsChanged()
	}
}

// callbacksFollow calls the user's callbacks in the order of the Node.js library: connect,
// peer added, peers add; disconnect, peer removed, peers remove, peer close.
func (n *Node) callbacksFollow(c *peers.Transition) {
	switch {
	case c.Added():
		n.peerAdded(*c)
	case c.Removed():
		n.peerRemoved(c)
	}
}

func (n *Node) peerAdded(c peers.Transition) {
	if c.First() {
		n.wake()
		notifyAll(n.callbacks, &n.on.connect, struct{}{})
		emit(n.bus, EvtConnected{})
	}
	p := n.peers.register(&Peer{node: n, id: c.Peer})
	notifyAll(n.callbacks, &n.on.peerAdded, p)
	notifyAll(n.callbacks, &n.peers.onAdd, p)
	n.callbacks.post(func() { n.records.Release(&c) })
	emit(n.bus, EvtPeerAdded{Peer: c.Peer})
}

func (n *Node) peerRemoved(c *peers.Transition) {
	if c.Last() {
		n.wake()
		notifyAll(n.callbacks, &n.on.disconnect, struct{}{})
		emit(n.bus, EvtDisconnected{})
	}
	p := n.peers.register(&Peer{node: n, id: c.Peer})
	notifyAll(n.callbacks, &n.on.peerRemoved, p)
	notifyAll(n.callbacks, &n.peers.onRemove, p)
	var reason error = &CloseError{Peer: c.Peer, Unwritten: c.Unwritten, Err: c.Reason}
	notifyAll(n.callbacks, &p.onClose, reason)
	n.callbacks.post(func() { n.peers.unregister(p) })
	emit(n.bus, EvtPeerRemoved{Peer: c.Peer, Reason: reason})
}

// wake wakes the goroutines that wait in Ready, because the peer list has changed.
func (n *Node) wake() {
	n.life.mu.Lock()
	defer n.life.mu.Unlock()
	n.life.changed.Broadcast()
}

// admitBroadcast blocks the delivery of broadcasts until Start. On a lent host they arrive
// already after New, but the user may register handlers until Start.
func (n *Node) admitBroadcast(ctx context.Context, p peer.ID) error {
	select {
	case <-n.life.begun:
		return n.records.Admit(ctx, p)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// onTopic reports to the overlay whether pubsub sees p on the topic.
func (n *Node) onTopic(p peer.ID) bool {
	if n.gate == nil {
		// The list of a lent pubsub lacks peers to which it has not opened a stream yet. The
		// record is complete.
		return n.records.Standing(p).OnTopic
	}
	// The gate may have closed the pubsub streams of p a moment ago. Pubsub knows that already;
	// the record of p does not yet.
	return slices.Contains(n.pubsub.ListPeers(n.topic), p)
}

// isGuest reports whether p has not said that it is a node.
func (n *Node) isGuest(p peer.ID) bool { return n.records.Standing(p).Role != peers.Node }

func (n *Node) gap(_ context.Context, g Gap) {
	notifyAll(n.callbacks, &n.on.gap, g)
	emit(n.bus, EvtGap{Gap: g})
}

func (n *Node) seedError(e *discovery.SeedError) {
	notifyAll(n.callbacks, &n.on.seedError, (*SeedError)(e))
	emit(n.bus, EvtSeedError{Err: (*SeedError)(e)})
}

func (n *Node) netsplit(seed string) {
	n.overlay.SeedLost(seed)
	n.callbacks.post(func() { n.on.netsplit.call(n.callbacks, n.seed(seed)) })
	emit(n.bus, EvtNetsplit{Seed: seed})
}

func (n *Node) resolved(seed string) {
	n.overlay.SeedHeard(seed)
	n.callbacks.post(func() { n.on.netsplitResolved.call(n.callbacks, n.seed(seed)) })
	emit(n.bus, EvtNetsplitResolved{Seed: seed})
}
