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

// warnEvery is how often it is logged that foreign peers are turned away.
const warnEvery = time.Minute

// Open admits, from now on, every connected peer that speaks pubsub, foreign or not
// and however many there are: on a topic that others made, nobody is linked to
// anybody. It cannot be taken back.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.toAll = true
	g.judgeAll()
}

// judgeAll has everybody who is connected judged anew, soon.
func (g *Gate) judgeAll() {
	select {
	case g.rescan <- struct{}{}:
	default:
	}
}

// watch follows on the host's bus who is connected and speaks what.
func (g *Gate) watch() {
	// The bus waits for its subscribers, so there is room for the time in which
	// others have the lock.
	sub, err := g.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated), new(event.EvtPeerConnectednessChanged),
	}, eventbus.BufSize(256), eventbus.Name("smokesignal gate"))
	if err != nil {
		g.log.Error("no foreign peers are let in, since the host's event bus cannot be listened to", "error", err)
		return
	}
	g.tasks.Go(func() {
		defer sub.Close()
		var warned time.Time
		for {
			select {
			case ev := <-sub.Out():
				var turnedAway bool
				switch ev := ev.(type) {
				case event.EvtPeerIdentificationCompleted:
					turnedAway = g.judge(ev.Peer)
				case event.EvtPeerProtocolsUpdated:
					turnedAway = g.judge(ev.Peer)
				case event.EvtPeerConnectednessChanged:
					if ev.Connectedness != network.Connected { // else what it speaks is yet to come
						g.judge(ev.Peer)
					}
				}
				if !turnedAway {
					continue
				}
				g.turnedAway.Add(1)
				if now := time.Now(); now.Sub(warned) > warnEvery {
					warned = now
					g.log.Warn("foreign peers are turned away from pubsub, since there are as many as allowed", "most", g.cfg.MaxForeign)
				}
			case <-g.rescan:
				for _, p := range g.host.Network().Peers() {
					g.judge(p)
				}
			case <-g.ctx.Done():
				return
			}
		}
	})
}

// judge decides whether p is a guest, and tells whether it is turned away now and was
// not before. Only the goroutine of watch calls it, so that what is decided last was also
// seen last.
func (g *Gate) judge(p peer.ID) (turnedAway bool) {
	g.mu.Lock()
	protocols := g.protocols
	g.mu.Unlock()
	direct := addr.HasDirect(g.host.Network(), p)
	foreign := g.cfg.NodeProtocol != "" && !g.speaks(p, g.cfg.NodeProtocol)
	pubsub := g.speaks(p, protocols...)

	g.mu.Lock()
	defer g.mu.Unlock()
	guest := direct && pubsub && (foreign && g.cfg.MaxForeign > 0 || g.toAll)
	r := g.peers[p]
	_, before := g.turned[p]
	if !direct {
		delete(g.turned, p)
	}
	if g.closed || r == nil && !guest {
		return false
	}
	r = g.peer(p)
	r.foreign = foreign
	if guest && !r.guest && !g.toAll && g.guests >= g.cfg.MaxForeign {
		guest, turnedAway = false, !before
		g.turned[p] = struct{}{}
	}
	if guest {
		delete(g.turned, p)
	}
	if r.guest && !guest && g.guests == g.cfg.MaxForeign {
		g.judgeAll() // one who was turned away may take the place
	}
	if r.guest != guest {
		g.admit(p, r, r.linked, guest)
	} else {
		g.tidy(p, r)
	}
	return turnedAway
}

// speaks tells whether p said that it handles one of the protocols.
func (g *Gate) speaks(p peer.ID, protocols ...protocol.ID) bool {
	if len(protocols) == 0 {
		return false
	}
	known, err := g.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(known) > 0
}

// AwaitRoom waits while there is a peer that has yet to take more than half of
// [Config.MaxPending], and takes it. Whoever calls it before each message makes a
// peer that is slow miss none. It waits until ctx ends, which is its only error,
// or [Config.StallTimeout]. Whom one call has waited for in vain none waits for until
// it has taken all, so nobody can make others wait for long again and again.
func (g *Gate) AwaitRoom(ctx context.Context) error {
	var timeout <-chan time.Time
	for ctx.Err() == nil {
		change := g.crowded()
		if change == nil {
			return nil
		}
		if timeout == nil {
			t := time.NewTimer(g.cfg.StallTimeout)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-change:
		case <-timeout:
			g.waitedInVain()
			return nil
		case <-g.ctx.Done():
			return nil
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// waitedInVain ends the waiting for all for which much waits.
func (g *Gate) waitedInVain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.peers {
		if r.out != nil {
			r.out.waitedInVain()
		}
	}
}

func (o *outStream) waitedInVain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.box.slow = o.box.crowded() || o.box.slow
}

// crowded returns what is closed when something has changed at a peer for which much
// waits, or nil if there is none.
func (g *Gate) crowded() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.peers {
		if r.out == nil {
			continue
		}
		if change := r.out.crowded(); change != nil {
			return change
		}
	}
	return nil
}

func (o *outStream) crowded() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || o.box.stalled || o.box.slow || !o.box.crowded() {
		return nil
	}
	if o.change == nil {
		o.change = make(chan struct{})
	}
	return o.change
}
