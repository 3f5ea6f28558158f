package gate

import (
	"context"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/internal/addr"
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
		if r := n.gate.peers[p]; r != nil && r.admitted() && addr.HasDirect(n.Network, p) {
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
	g.judgeAll()
	return true
}

// NewStream opens pubsub's stream to an admitted peer.
func (f *facade) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	g := f.gate
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	g.mu.Lock()
	r := g.peers[p]
	if r == nil || !r.admitted() {
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
func (g *Gate) opened(p peer.ID, r *peerRecord, cancel *context.CancelFunc, s network.Stream, ids []protocol.ID, err error) (*outStream, error) {
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
	r.out, r.dying, r.heard = newGateOut(g, p, ids, s), nil, false
	r.out.guest.Store(!r.linked)
	r.change()
	return r.out, nil
}

// open opens a stream over an existing connection, and never through a relay.
func (g *Gate) open(ctx context.Context, p peer.ID, ids []protocol.ID) (network.Stream, error) {
	if !addr.HasDirect(g.host.Network(), p) {
		return nil, errRelayed // libp2p would wait for a direct connection
	}
	s, err := g.host.NewStream(network.WithNoDial(ctx, "smokesignal gate"), p, ids...)
	if err == nil && addr.IsRelayed(s.Conn().RemoteMultiaddr()) {
		s.Reset()
		return nil, errRelayed
	}
	return s, err
}
