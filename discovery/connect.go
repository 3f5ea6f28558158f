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
	// firstStreamTimeout is how long dial waits for the first stream of another
	// program. Pubsub opens its stream as soon as it sees the connection.
	firstStreamTimeout = 3 * time.Second
	// firstStreamPoll is how often dial looks for that stream. libp2p does not report
	// new streams of protocols that somebody else handles.
	firstStreamPoll = 10 * time.Millisecond
)

// dial connects to the peer at the seed's address, which may run any libp2p program,
// and makes no link. A peer that speaks one of protocols and is not a node is expected to
// open a stream of one of them; see reconnect for the one case in which it cannot. The error
// is ErrSelf, ErrUnreachable, ErrRelayed, ErrUnresolvable, ErrNotSmokesignal (if the answer
// was not that of a libp2p host), a *WrongIDError, or that of ctx if it was canceled. Without
// an answer it is ErrUnreachable after five seconds.
func (d *Driver) dial(ctx context.Context, s *seed.Seed, protocols []protocol.ID) (peer.ID, error) {
	began := time.Now()
	info, err := d.findSeed(ctx, s)
	if err != nil {
		return "", err
	}
	// Only a dial that asked for the peer's id leaves a dead connection behind, and only
	// over WebRTC. A node opens its streams over the overlay's own rules.
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

// isGuest reports whether p says that it speaks one of protocols and not the overlay's.
func (d *Driver) isGuest(p peer.ID, protocols []protocol.ID) bool {
	node, err := d.host.Peerstore().SupportsProtocols(p, protocol.Overlay)
	if err != nil || len(node) > 0 {
		return false
	}
	spoken, err := d.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(spoken) > 0
}

// awaitStream waits until p, which is connected, has opened a stream of one of protocols.
// It reports false if none came in time.
func (d *Driver) awaitStream(ctx context.Context, p peer.ID, protocols []protocol.ID) bool {
	late := time.NewTimer(firstStreamTimeout)
	defer late.Stop()
	poll := time.NewTicker(firstStreamPoll)
	defer poll.Stop()
	for {
		for _, c := range d.host.Network().ConnsToPeer(p) {
			for _, s := range c.GetStreams() {
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
			return true // the peer is connected, which is all that was promised
		}
	}
}

// reconnect replaces the connections to a peer that were made since began. To learn the
// id of the peer at an address, a dial is given up in its handshake. With WebRTC the other
// side has finished its own part by then, and its pubsub may choose that dead connection
// for its stream. It does not try again as long as it has any other connection, so all of
// ours are closed before the next dial, which knows the id and needs no such question.
func (d *Driver) reconnect(ctx context.Context, info peer.AddrInfo, began time.Time) error {
	for _, c := range d.host.Network().ConnsToPeer(info.ID) {
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
