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
	// firstStreamPoll is the interval at which dial checks whether the peer has opened
	// a stream. libp2p reports a new stream only to the handler of its protocol, which
	// is not part of this package.
	firstStreamPoll = 10 * time.Millisecond
)

// dial connects to the peer at the address of the seed s, which may run any libp2p program,
// and makes no link. If the peer is not a node but speaks one of protocols, dial makes sure
// that the peer can open a stream of such a protocol to this node. dial returns the id of
// the peer. The error is ErrSelf, ErrUnreachable, ErrRelayed, ErrUnresolvable,
// ErrNotSmokesignal (if a program without libp2p answered), a *WrongIDError, or the cause
// of ctx if it was canceled. If the peer does not answer within five seconds, the error is
// ErrUnreachable.
func (d *Driver) dial(ctx context.Context, s *seed.Seed, protocols []protocol.ID) (peer.ID, error) {
	began := time.Now()
	info, err := d.findSeed(ctx, s)
	if err != nil {
		return "", err
	}
	// If the seed had no id, findSeed has first dialed the address only to learn the
	// id. Over WebRTC, that first dial leaves a dead connection at the peer. It can
	// harm only a guest, whose pubsub may choose that connection for its stream.
	asked := s.ID() == "" && overWebRTC(info.Addrs)
	if asked && d.isGuest(info.ID, protocols) && !d.awaitStream(ctx, info.ID, protocols) {
		if err := d.reconnect(ctx, info, began); err != nil {
			return "", err
		}
	}
	return info.ID, nil
}

func overWebRTC(addrs []ma.Multiaddr) bool {
	return slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool {
		_, err := a.ValueForProtocol(ma.P_WEBRTC_DIRECT)
		return err == nil
	})
}

// isGuest reports whether p is known to speak one of protocols, but not the protocol of the
// overlay.
func (d *Driver) isGuest(p peer.ID, protocols []protocol.ID) bool {
	node, err := d.host.Peerstore().SupportsProtocols(p, protocol.Overlay)
	if err != nil || len(node) > 0 {
		return false // p is a node, or its protocols are not known
	}
	spoken, err := d.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(spoken) > 0
}

// awaitStream waits until p, which is connected, opens a stream of one of protocols to this
// node. It reports false if p does not do so within firstStreamTimeout. If ctx ends first,
// it reports true.
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
			return true // ctx has ended, so the caller gives up; p is connected, so that is not an error
		}
	}
}

// reconnect closes the connections to the peer info that this host has dialed since began,
// and dials the peer again. It repairs this: the first dial to an address serves to learn
// the id of the peer, and ends during the handshake. Over WebRTC, the peer has completed
// its side of the handshake by then, so it keeps a dead connection. If the pubsub of the
// peer opens its stream on the dead connection, it does not try the live one. The second
// dial knows the id, so it leaves no dead connection.
func (d *Driver) reconnect(ctx context.Context, info peer.AddrInfo, began time.Time) error {
	for _, c := range d.host.Network().ConnsToPeer(info.ID) {
		// Connections from before began, and connections that the peer has dialed,
		// stay open.
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
