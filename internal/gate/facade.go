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

// A facade is the libp2p host that pubsub gets. Pubsub uses only the methods defined here,
// the host's id, and the private key in the peerstore.
type facade struct {
	corehost.Host
	gate    *Gate
	network *facadeNetwork
}

// A facadeNetwork is the libp2p network that pubsub gets from the gate. In it, only the peers
// that the gate admits (linked peers and guests) are connected.
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

// addProtocol records a protocol for which pubsub sets a stream handler. It returns false
// if the gate is closed; then no handler may be set, because Close would not remove it.
func (g *Gate) addProtocol(id protocol.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	// Make a copy, because makeOffers may be reading the old slice without holding mu.
	g.protocols = append(g.protocols[:len(g.protocols):len(g.protocols)], id)
	for p, r := range g.peers {
		g.offerLocked(p, r)
	}
	return true
}

// NewStream opens the stream on which pubsub sends to p. It fails if p is not admitted.
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

	s, err := g.openStream(ctx, p, ids)
	o, err := g.streamOpened(p, r, &cancel, s, ids, err)
	if err != nil {
		if s != nil {
			s.Reset()
		}
		return nil, err
	}
	return o, nil
}

// streamOpened records the result of NewStream: s, the stream of pubsub to p, or err.
// cancel identifies the attempt. If r.opening is another pointer, p was no longer admitted
// at some time during the attempt, and the attempt has failed. streamOpened returns the
// stream for pubsub.
func (g *Gate) streamOpened(p peer.ID, r *peerRecord, cancel *context.CancelFunc, s network.Stream, ids []protocol.ID, err error) (*writeStream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.opening == cancel {
		r.opening = nil
	} else {
		err = errNotAdmitted // p was no longer admitted at some time during the attempt
	}
	if err != nil {
		// Pubsub forgets the peer only after NewStream returns. Until then, it
		// would ignore an offer, that is, a notification that the peer is there. So
		// the next offer is made later.
		g.offerLaterLocked(p, r)
		return nil, err
	}
	r.out, r.ending, r.hadIn = newWriteStream(g, p, ids, s), nil, false
	r.out.guest.Store(!r.Linked)
	r.changed.Broadcast()
	return r.out, nil
}

// openStream opens a stream to p over an existing direct connection. It does not dial.
func (g *Gate) openStream(ctx context.Context, p peer.ID, ids []protocol.ID) (network.Stream, error) {
	// Without this check, the NewStream of the host would wait for a direct connection
	// until ctx ends.
	if !addr.HasDirect(g.host.Network(), p) {
		return nil, errRelayed
	}
	s, err := g.host.NewStream(network.WithNoDial(ctx, "smokesignal gate"), p, ids...)
	// The direct connection may have closed meanwhile.
	if err == nil && addr.IsRelayed(s.Conn().RemoteMultiaddr()) {
		s.Reset()
		return nil, errRelayed
	}
	return s, err
}
