package gate

import (
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// offerLocked offers p to pubsub: it notifies pubsub that p is connected, so that pubsub
// opens a stream to p. It does nothing while pubsub has a stream to p, opens one, or has
// not noticed yet that its stream has ended.
func (g *Gate) offerLocked(p peer.ID, r *peerRecord) {
	r.stopRetryLocked()
	if g.closed || !r.admitted() || r.offered || r.opening != nil || r.out != nil || r.ending != nil {
		return
	}
	r.offered = true
	g.offers = append(g.offers, p)
	g.offersReady.Set()
}

// offerLaterLocked offers p to pubsub after a pause: it notifies pubsub that p is
// connected. The offer has no effect if pubsub has a stream to p by then.
func (g *Gate) offerLaterLocked(p peer.ID, r *peerRecord) {
	if g.closed || !r.admitted() || r.retry != nil {
		return
	}
	r.delay = min(max(2*r.delay, minDelay), maxDelay)
	r.retry = time.AfterFunc(r.delay, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.peers[p] == r { // p may have lost its record, or have another one by now
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

// makeOffers emits, for each peer in offers, an event by which pubsub learns that the peer
// is connected. Pubsub calls Connectedness once for each event.
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
			// The peer may no longer be admitted. If there is no protocol,
			// pubsub has not started yet; when it starts, addProtocol offers
			// all peers.
			valid := r != nil && r.admitted() && len(protocols) > 0
			if r != nil && !valid {
				r.offered = false
				g.removeUnusedLocked(p, r)
			}
			g.mu.Unlock()
			// mu is not held here, because Emit blocks until the buffer of
			// pubsub's subscription has space.
			if valid {
				g.emitter.Emit(event.EvtPeerIdentificationCompleted{Peer: p, Protocols: protocols})
			}
		}
	}
}

// connectedness answers pubsub's call of Connectedness for p. If the answer is Connected,
// pubsub opens a stream to p. Pubsub calls Connectedness in two situations: after an offer
// (a notification that p is connected), and when it forgets p. The fields of peerRecord
// show which one it is.
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
	// No offer of the peer is open, so pubsub calls because it forgets the peer after
	// the end of its stream. If the answer were Connected, pubsub would open another
	// stream, but it does so at most four times within ten minutes. So the gate answers
	// NotConnected and makes a new offer.
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
		// Pubsub now opens a stream, unless it has not forgotten the last stream
		// yet. For the second case, the gate makes another offer later.
		g.offerLaterLocked(p, r)
	}
	return c
}

// peerDroppedLocked records that pubsub has forgotten p. If p is admitted, it notifies
// pubsub again that p is connected.
func (g *Gate) peerDroppedLocked(p peer.ID, r *peerRecord) {
	r.ending = nil
	r.dropped.Stop()
	r.changed.Broadcast()
	// A delay above zero means that the last stream broke soon after it was opened. The
	// next one might, too, so there is a pause.
	if r.admitted() && r.delay > 0 {
		g.offerLaterLocked(p, r)
	} else {
		g.offerLocked(p, r)
	}
}

// endStreamsLocked ends pubsub's streams to p and from p, and cancels pubsub's attempt to
// open a stream to p, if one is running.
func (g *Gate) endStreamsLocked(p peer.ID, r *peerRecord) {
	if r.opening != nil {
		(*r.opening)()
		r.opening = nil
	}
	r.stopRetryLocked()
	if o := r.out; o != nil {
		r.out, r.ending = nil, o
		o.endForPubSub()
		// If the call of NewStream that opened this stream has not returned yet,
		// pubsub will not notice the end of the stream, and will not call
		// Connectedness. Then the timer does what that call would do.
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

// outLost ends pubsub's streams to and from the peer of o, because no other libp2p stream
// can be opened for o.
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
