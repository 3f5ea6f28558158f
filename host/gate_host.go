package host

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// facade is the host that pubsub sees. Of a host pubsub uses the id, the
// private key in the peerstore, and what is defined here.
type facade struct {
	corehost.Host
	gate    *Gate
	network *facadeNetwork
}

// facadeNetwork shows the admitted peers only.
type facadeNetwork struct {
	network.Network
	gate *Gate
}

func (f *facade) Network() network.Network { return f.network }
func (f *facade) EventBus() event.Bus      { return f.gate.bus }
func (f *facade) Close() error             { return nil }

func (n *facadeNetwork) Peers() []peer.ID {
	connected := n.Network.Peers()
	n.gate.mu.Lock()
	defer n.gate.mu.Unlock()
	var ps []peer.ID
	for _, p := range connected {
		if r := n.gate.peers[p]; r != nil && r.admitted {
			ps = append(ps, p)
		}
	}
	return ps
}

func (n *facadeNetwork) Connectedness(p peer.ID) network.Connectedness {
	return n.gate.connectedness(p)
}

func (f *facade) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	if f.gate.addProtocol(id) {
		f.Host.SetStreamHandler(id, f.gate.accept(handle))
	}
}

func (f *facade) SetStreamHandlerMatch(id protocol.ID, match func(protocol.ID) bool, handle network.StreamHandler) {
	if f.gate.addProtocol(id) {
		f.Host.SetStreamHandlerMatch(id, match, f.gate.accept(handle))
	}
}

// addProtocol notes a protocol that pubsub handles.
func (g *Gate) addProtocol(id protocol.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.protocols = append(g.protocols[:len(g.protocols):len(g.protocols)], id)
	for p, r := range g.peers {
		g.offer(p, r)
	}
	return true
}

// NewStream opens pubsub's stream to an admitted peer.
func (f *facade) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	g := f.gate
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	g.mu.Lock()
	r := g.peers[p]
	if r == nil || !r.admitted {
		g.mu.Unlock()
		return nil, errNotAdmitted
	}
	r.opening = &cancel
	g.mu.Unlock()

	s, err := g.open(ctx, p, ids)
	o, err := g.opened(p, r, &cancel, s, ids, err)
	if err != nil {
		if s != nil {
			s.Reset()
		}
		return nil, err
	}
	return o, nil
}

// opened takes the outcome of opening a stream, which cancel could have ended.
func (g *Gate) opened(p peer.ID, r *gatePeer, cancel *context.CancelFunc, s network.Stream, ids []protocol.ID, err error) (*gateOut, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.opening == cancel {
		r.opening = nil
	} else {
		err = errNotAdmitted // it was evicted meanwhile
	}
	if err != nil {
		// Pubsub has not yet dropped the peer when this returns, so an offer
		// made at once would be overheard.
		g.offerLater(p, r)
		return nil, err
	}
	r.out, r.dying = newGateOut(g, p, ids, s), nil
	r.change()
	return r.out, nil
}

// open opens a stream over an existing connection.
func (g *Gate) open(ctx context.Context, p peer.ID, ids []protocol.ID) (network.Stream, error) {
	return g.host.NewStream(network.WithNoDial(ctx, "smokesignal gate"), p, ids...)
}

// gateIn is a peer's stream for pubsub to read.
type gateIn struct {
	network.Stream
	stranger bool // the peer was not admitted when it came
}

// accept returns the handler for the real host: it passes to handle, which is
// pubsub's, the streams of admitted peers.
func (g *Gate) accept(handle network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		g.mu.Lock()
		if g.closed {
			g.mu.Unlock()
			s.ResetWithError(network.StreamShutdown)
			return
		}
		g.tasks.Add(1)
		g.mu.Unlock()
		defer g.tasks.Done()

		in := &gateIn{Stream: s}
		if err := g.keep(in); err != nil {
			s.ResetWithError(network.StreamGated)
			g.log.Debug("refused a pubsub stream", "peer", s.Conn().RemotePeer(), "error", err)
			return
		}
		handle(in)
		g.leave(in)
		// Pubsub leaves it open when its context ends at the wrong moment.
		s.Reset()
	}
}

// keep waits until pubsub may have the stream.
func (g *Gate) keep(in *gateIn) error {
	timer := time.NewTimer(g.cfg.Wait)
	defer timer.Stop()
	p := in.Conn().RemotePeer()
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.peer(p)
	if !r.admitted {
		if g.strangers >= g.cfg.MaxWaiting {
			g.tidy(p, r)
			return fmt.Errorf("host: gate: %d streams of peers that are not admitted wait already", g.strangers)
		}
		in.stranger = true
		g.strangers++
	}
	r.kept = in
	r.change()
	if r.in != nil {
		// Whoever opens another stream has given up the last. Pubsub must be
		// done with that, or it may take its end for the new one's.
		g.reset(r.in.Stream)
	}
	defer func() {
		if r.kept == in {
			r.kept = nil
			g.tidy(p, r)
		}
		if in.stranger {
			g.strangers--
		}
	}()
	for extended := false; ; {
		switch {
		case g.closed:
			return errGateClosed
		case r.kept != in:
			return fmt.Errorf("host: gate: the peer opened another stream")
		case r.admitted && r.out != nil && r.in == nil:
			r.in = in
			return nil
		case r.admitted && !extended:
			extended = true
			timer.Reset(openTimeout)
		}
		changed, timeout := r.changed, false
		g.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			timeout = true
		}
		g.mu.Lock()
		if timeout {
			return errNotAdmitted
		}
	}
}

// leave notes that pubsub is done with the stream.
func (g *Gate) leave(in *gateIn) {
	p := in.Conn().RemotePeer()
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.peers[p]; r != nil {
		if r.in == in {
			r.in = nil
			r.change()
		}
		g.tidy(p, r)
	}
}
