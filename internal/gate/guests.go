package gate

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// warnEvery is the least time between two warnings that guests are turned away.
const warnEvery = time.Minute

// Open admits, from now on, every connected peer that speaks pubsub, nodes included and
// without a bound: on a topic of other programs, nobody is linked. It cannot be undone.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	g.reclassify.Set()
}

// watchPeers classifies peers when they connect, disconnect, or change the protocols
// that they speak.
func (g *Gate) watchPeers() {
	// The host's bus blocks while this buffer is full. It covers the time for which
	// others hold mu.
	sub, err := g.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated), new(event.EvtPeerConnectednessChanged),
	}, eventbus.BufSize(256), eventbus.Name("smokesignal gate"))
	if err != nil {
		g.log.Error("no guests are admitted, since the host's event bus cannot be subscribed to", "error", err)
		return
	}
	g.tasks.Go(func() {
		defer sub.Close()
		var warned time.Time
		for {
			select {
			case ev := <-sub.Out():
				if g.classifyAfter(ev) != turnedAway {
					continue
				}
				g.turnedAwayCount.Add(1)
				if now := time.Now(); now.Sub(warned) > warnEvery {
					warned = now
					g.log.Warn("guests are turned away from pubsub, since there are as many as allowed", "most", g.cfg.MaxGuests)
				}
			case <-g.reclassify:
				for _, p := range g.host.Network().Peers() {
					g.classify(p)
				}
			case <-g.ctx.Done():
				return
			}
		}
	})
}

// classifyAfter classifies the peer of an event on the host's bus.
func (g *Gate) classifyAfter(ev any) outcome {
	switch ev := ev.(type) {
	case event.EvtPeerIdentificationCompleted:
		return g.classify(ev.Peer)
	case event.EvtPeerProtocolsUpdated:
		return g.classify(ev.Peer)
	case event.EvtPeerConnectednessChanged:
		// A peer that has just connected is not identified yet.
		if ev.Connectedness != network.Connected {
			g.classify(ev.Peer)
		}
	}
	return classified
}

// An outcome is the result of classify.
type outcome int

const (
	classified outcome = iota
	turnedAway         // there is no place for another guest, and the peer has just come
)

// classify decides whether p is a guest. Only the goroutine of watchPeers calls it, so
// that the latest decision is about the latest state of the peer.
func (g *Gate) classify(p peer.ID) outcome {
	g.mu.Lock()
	protocols := g.protocols
	g.mu.Unlock()
	// Without mu, since these ask the host, which has locks of its own.
	direct := addr.HasDirect(g.host.Network(), p)
	plain := g.cfg.NodeProtocol != "" && !g.speaks(p, g.cfg.NodeProtocol)
	pubsub := g.speaks(p, protocols...)

	g.mu.Lock()
	defer g.mu.Unlock()
	guest := direct && pubsub && (plain && g.cfg.MaxGuests > 0 || g.open)
	_, turnedAwayBefore := g.turnedAway[p]
	if !direct {
		delete(g.turnedAway, p)
	}
	if g.closed || g.peers[p] == nil && !guest {
		return classified
	}
	r := g.recordLocked(p)
	r.plain = plain
	result := classified
	if guest && !r.guest && !g.open && g.guests >= g.cfg.MaxGuests {
		guest = false
		g.turnedAway[p] = struct{}{}
		// Each further event about the peer would count it again.
		if !turnedAwayBefore {
			result = turnedAway
		}
	}
	if guest {
		delete(g.turnedAway, p)
	}
	// A place becomes free, for a peer that was turned away before.
	if r.guest && !guest && g.guests == g.cfg.MaxGuests {
		g.reclassify.Set()
	}
	if r.guest != guest {
		g.setAdmissionLocked(p, r, admission{linked: r.linked, guest: guest})
	} else {
		g.removeUnusedLocked(p, r)
	}
	return result
}

// speaks reports whether p is known to handle one of the protocols.
func (g *Gate) speaks(p peer.ID, protocols ...protocol.ID) bool {
	if len(protocols) == 0 {
		return false
	}
	known, err := g.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(known) > 0
}

// AwaitRoom waits while more than half of [Config.MaxPending] waits for a peer that
// reads it. A caller that calls it before each message loses no message for a peer that
// is merely slow. It returns after [Config.StallTimeout] at the latest; its only error
// is the cause of ctx, if that ends before. A peer that one call timed out on is
// skipped by later calls until its queue is empty, so a slow peer can delay callers
// only once.
func (g *Gate) AwaitRoom(ctx context.Context) error {
	var timeout <-chan time.Time
	for ctx.Err() == nil {
		change := g.crowdedChange()
		if change == nil {
			return nil
		}
		// Most calls do not get here, so the timer is made late.
		if timeout == nil {
			t := time.NewTimer(g.cfg.StallTimeout)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-change:
		case <-timeout:
			g.skipCrowded()
			return nil
		case <-g.ctx.Done():
			return nil
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// crowdedChange returns a channel that is closed when something changes at a peer that
// AwaitRoom waits for, or nil if there is no such peer.
func (g *Gate) crowdedChange() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.peers {
		if r.out == nil {
			continue
		}
		if change := r.out.crowdedChange(); change != nil {
			return change
		}
	}
	return nil
}

func (o *outStream) crowdedChange() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || o.queue.stalled || o.queue.skipped || !o.queue.crowded() {
		return nil
	}
	return o.changed.Changed()
}

// skipCrowded makes AwaitRoom skip the peers that it has waited for.
func (g *Gate) skipCrowded() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.peers {
		if r.out != nil {
			r.out.skipIfCrowded()
		}
	}
}

func (o *outStream) skipIfCrowded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.queue.crowded() {
		o.queue.skipped = true
	}
}
