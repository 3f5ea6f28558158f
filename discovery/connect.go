package discovery

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

const (
	// firstStreamTimeout bounds the time for which dial waits until a peer that is not a
	// node opens a stream. A peer with pubsub opens one as soon as it is connected.
	firstStreamTimeout = 3 * time.Second
	// firstStreamPoll is the interval at which dial looks for that stream. libp2p does not
	// report new streams to code other than the handler of their protocol.
	firstStreamPoll = 10 * time.Millisecond
)

// dial connects to the peer at the seed's address, which may run any libp2p program, and
// makes no link. If the peer is not a node but speaks one of protocols, dial makes sure that
// it can open a stream of such a protocol; see reconnect. The error is ErrSelf,
// ErrUnreachable, ErrRelayed, ErrUnresolvable, ErrNotSmokesignal (if a program without libp2p
// answered), a *WrongIDError, or the cause of ctx if it was canceled. A peer that does not
// answer is ErrUnreachable after five seconds.
func (d *Driver) dial(ctx context.Context, s *seed.Seed, protocols []protocol.ID) (peer.ID, error) {
	began := time.Now()
	info, err := d.findSeed(ctx, s)
	if err != nil {
		return "", err
	}
	// A seed without an id was first dialed to learn the id. Over WebRTC, that dial leaves a
	// dead connection at the peer. Only guests are affected, since a node opens its streams
	// by other rules.
	asked := s.ID() == "" && overWebRTC(info)
	if asked && d.isGuest(info.ID, protocols) && !d.awaitStream(ctx, info.ID, protocols) {
		if err := d.reconnect(ctx, info, began); err != nil {
			return "", err
		}
	}
	return info.ID, nil
}

func overWebRTC(info peer.AddrInfo) bool {
	return slices.ContainsFunc(info.Addrs, func(a ma.Multiaddr) bool {
		_, err := a.ValueForProtocol(ma.P_WEBRTC_DIRECT)
		return err == nil
	})
}

// isGuest reports whether p is known to speak one of protocols, but not the protocol of the
// overlay.
func (d *Driver) isGuest(p peer.ID, protocols []protocol.ID) bool {
	node, err := d.host.Peerstore().SupportsProtocols(p, protocol.Overlay)
	if err != nil || len(node) > 0 {
		return false // a node, or nothing is known of its protocols
	}
	spoken, err := d.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(spoken) > 0
}

// awaitStream waits until p, which is connected, opens a stream of one of protocols. It
// reports false if p does not do so within firstStreamTimeout.
func (d *Driver) awaitStream(ctx context.Context, p peer.ID, protocols []protocol.ID) bool {
	late := time.NewTimer(firstStreamTimeout)
	defer late.Stop()
	poll := time.NewTicker(firstStreamPoll)
	defer poll.Stop()
	for {
		for _, c := range d.host.Network().ConnsToPeer(p) {
			for _, s := range c.GetStreams() {
				// Only a stream that the peer itself has opened shows that it can use the
				// connection.
				if s.Stat().Direction == network.DirInbound && slices.Contains(protocols, s.Protocol()) {
					return true
				}
			}
		}
		select {
		case <-poll.C:
		case <-late.C:
			return false
		case <-ctx.Done():
			return true // the caller gives up; the peer is connected, so that is not an error
		}
	}
}

// reconnect closes the connections to a peer that this host made since began, and dials the
// peer again. The first dial to an address learns the id of the peer and ends during the
// handshake. Over WebRTC, the peer has completed its side by then, so for the peer this is a
// connection, although a dead one. If the pubsub of the peer chooses it for its stream, it
// does not try another connection as long as it has one. The second dial knows the id, so it
// leaves no dead connection.
func (d *Driver) reconnect(ctx context.Context, info peer.AddrInfo, began time.Time) error {
	for _, c := range d.host.Network().ConnsToPeer(info.ID) {
		// Connections that existed before, or that the peer has made, are not affected.
		if c.Stat().Direction == network.DirOutbound && !c.Stat().Opened.Before(began) {
			c.Close()
		}
	}
	known, err := seed.Parse(info.Addrs[0].String() + "/p2p/" + info.ID.String())
	if err == nil {
		_, err = d.findSeed(ctx, known)
	}
	return err
}
