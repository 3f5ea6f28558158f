package events

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

// connectionEndWait is how long after its streams a connection may end: of QUIC they fail first.
// It is milliseconds on a busy machine.
const connectionEndWait = 100 * time.Millisecond

// connectionEnded tells whether one of these connections is at its end. err is why a stream on one
// of them failed; where that may be the first sign of the end, ended waits for the rest.
func connectionEnded(ctx context.Context, n network.Network, conns []network.Conn, err error) bool {
	gone := make(chan struct{}, 1)
	hears := &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		if slices.Contains(conns, c) {
			select {
			case gone <- struct{}{}:
			default:
			}
		}
	}}
	n.Notify(hears)
	defer n.StopNotify(hears)
	switch {
	case slices.ContainsFunc(conns, network.Conn.IsClosed):
		return true
	case len(conns) == 0 || isStreamRefusal(err):
		return false
	}
	patience := time.NewTimer(connectionEndWait)
	defer patience.Stop()
	select {
	case <-gone:
		return true
	case <-patience.C:
	case <-ctx.Done():
	}
	return false
}

// isStreamRefusal tells whether the peer itself ended a stream, or knows no protocol of ours.
func isStreamRefusal(err error) bool {
	_, reset := errors.AsType[*network.StreamError](err)
	_, unknown := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err)
	return reset || unknown
}
