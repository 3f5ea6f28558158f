package gate

import (
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// offerLocked makes pubsub hear of p, unless pubsub has, opens or ends a stream to p.
func (g *Gate) offerLocked(p peer.ID, r *peerRecord) {
	r.stopRetryLocked()
	if g.closed || !r.admitted() || r.offered || r.opening != nil || r.out != nil || r.ending != nil {
		return
	}
	r.offered = true
	g.offers = append(g.offers, p)
	g.offersReady.Set()
}

// offerLaterLocked makes an offer after a pause, in case the last one has no effect.
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

// makeOffers emits the events by which pubsub learns of peers. Pubsub asks for the
// connectedness of the peer once for each event.
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
			// It may have been evicted meanwhile. Without a protocol there is no pubsub
			// yet; it makes its handlers known when it starts, and all are offered then.
			valid := r != nil && r.admitted() && len(protocols) > 0
			if r != nil && !valid {
				r.offered = false
				g.removeUnusedLocked(p, r)
			}
			g.mu.Unlock()
			// Without mu, since the bus blocks until pubsub has room for the event.
			if valid {
				g.emitter.Emit(event.EvtPeerIdentificationCompleted{Peer: p, Protocols: protocols})
			}
		}
	}
}

// connectedness answers pubsub's question whether it should have a stream to p. The
// record shows which of two questions it is, see peerRecord.
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
	// There is no offer, so pubsub asks because it drops the peer after the end of its
	// stream. If it heard that the peer is connected, it would open another stream, and
	// it does so only four times in ten minutes.
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
		// Pubsub opens a stream now, unless it is not done with the last one yet.
		g.offerLaterLocked(p, r)
	}
	return c
}

// peerDroppedLocked records that pubsub has dropped the peer. So the peer can be
// offered again, and pubsub will remember the topics that it announces.
func (g *Gate) peerDroppedLocked(p peer.ID, r *peerRecord) {
	r.ending = nil
	r.dropped.Stop()
	r.changed.Broadcast()
	// The last stream did not live long, so the next might not, either.
	if r.admitted() && r.delay > 0 {
		g.offerLaterLocked(p, r)
	} else {
		g.offerLocked(p, r)
	}
}

// endStreamsLocked ends pubsub's streams with p, and the opening of one.
func (g *Gate) endStreamsLocked(p peer.ID, r *peerRecord) {
	if r.opening != nil {
		(*r.opening)()
		r.opening = nil
	}
	r.stopRetryLocked()
	if o := r.out; o != nil {
		r.out, r.ending = nil, o
		o.endForPubSub()
		// If pubsub has not known the stream yet, it does not drop the peer.
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

// outLost ends pubsub's streams with the peer of o, since o cannot go on.
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
