package gate

import (
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// offerLocked offers p to pubsub, that is, notifies pubsub that p is connected, so that
// pubsub opens a stream to it. It does nothing while pubsub has, opens or ends a stream to p.
func (g *Gate) offerLocked(p peer.ID, r *peerRecord) {
	r.stopRetryLocked()
	if g.closed || !r.admitted() || r.offered || r.opening != nil || r.out != nil || r.ending != nil {
		return
	}
	r.offered = true
	g.offers = append(g.offers, p)
	g.offersReady.Set()
}

// offerLaterLocked offers p to pubsub after a pause. The offer has no effect if pubsub has a
// stream to p by then.
func (g *Gate) offerLaterLocked(p peer.ID, r *peerRecord) {
	if g.closed || !r.admitted() || r.retry != nil {
		return
	}
	r.delay = min(max(2*r.delay, minDelay), maxDelay)
	r.retry = time.AfterFunc(r.delay, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.peers[p] == r { // p may have a new record by now
			g.offerLocked(p, r)
		}
	})
}

func (r *peerRecord) stopRetryLocked() {
	if r.retry != nil {
		r.retry.Stop()
		r.retry = nil
	}
}

// makeOffers emits an event for each peer in offers, with which pubsub learns of the peer.
// For each event, pubsub calls Connectedness once.
func (g *Gate) makeOffers() {
	for {
		select {
		case <-g.offersReady:
		case <-g.ctx.Done():
			return
		}
		g.mu.Lock()
		offers, protocols := g.offers, g.protocols
		g.offers = nil
		g.mu.Unlock()
		for _, p := range offers {
			g.mu.Lock()
			r := g.peers[p]
			// The peer may have been evicted meanwhile. Without a protocol, pubsub has not
			// started yet; when it does, addProtocol offers all peers.
			valid := r != nil && r.admitted() && len(protocols) > 0
			if r != nil && !valid {
				r.offered = false
				g.removeUnusedLocked(p, r)
			}
			g.mu.Unlock()
			// mu is not held, because Emit blocks until pubsub's event queue has space.
			if valid {
				g.emitter.Emit(event.EvtPeerIdentificationCompleted{Peer: p, Protocols: protocols})
			}
		}
	}
}

// connectedness answers pubsub's call of Connectedness. Pubsub opens a stream to p if the
// answer is Connected. It calls in two situations, after an offer and when it drops a peer;
// the record shows which one it is, see peerRecord.
func (g *Gate) connectedness(p peer.ID) network.Connectedness {
	c := network.NotConnected
	if n := g.host.Network(); addr.HasDirect(n, p) {
		c = n.Connectedness(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.peers[p]
	if r == nil {
		return network.NotConnected
	}
	// Without an offer, pubsub calls because it drops the peer after the end of its stream.
	// If the answer were Connected, pubsub would open another stream, which it does only
	// four times within ten minutes. So the gate answers NotConnected and makes a new offer.
	if r.ending != nil && !r.offered {
		g.peerDroppedLocked(p, r)
		g.removeUnusedLocked(p, r)
		return network.NotConnected
	}
	r.offered = false
	defer g.removeUnusedLocked(p, r)
	switch {
	case !r.admitted() || r.ending != nil:
		return network.NotConnected
	case r.out == nil:
		// Pubsub opens a stream now. It does not if it still uses the last one, so another
		// offer follows later.
		g.offerLaterLocked(p, r)
	}
	return c
}

// peerDroppedLocked records that pubsub has dropped the peer, and offers the peer again if it
// is admitted.
func (g *Gate) peerDroppedLocked(p peer.ID, r *peerRecord) {
	r.ending = nil
	r.dropped.Stop()
	r.changed.Broadcast()
	// A delay above zero means that the last stream broke soon. The next might, too.
	if r.admitted() && r.delay > 0 {
		g.offerLaterLocked(p, r)
	} else {
		g.offerLocked(p, r)
	}
}

// endStreamsLocked ends pubsub's streams to and from p, and cancels an attempt to open one.
func (g *Gate) endStreamsLocked(p peer.ID, r *peerRecord) {
	if r.opening != nil {
		(*r.opening)()
		r.opening = nil
	}
	r.stopRetryLocked()
	if o := r.out; o != nil {
		r.out, r.ending = nil, o
		o.endForPubSub()
		// Pubsub does not drop the peer if it has not received this stream from NewStream
		// yet. The timer then does what pubsub's call of Connectedness does otherwise.
		r.dropped = time.AfterFunc(dropTimeout, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if r.ending == o {
				r.offered = false
				g.peerDroppedLocked(p, r)
				g.removeUnusedLocked(p, r)
			}
		})
	}
	if r.in != nil {
		r.in.endLocked()
	}
	r.changed.Broadcast()
}

// outLost ends pubsub's streams to and from the peer of o, because o cannot be continued.
func (g *Gate) outLost(o *writeStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := o.peer
	r := g.peers[p]
	if r == nil || r.out != o {
		return // it has ended already
	}
	if time.Since(o.began) > soundAfter {
		r.delay = 0
	} else {
		r.delay = max(r.delay, minDelay)
	}
	g.endStreamsLocked(p, r)
}
