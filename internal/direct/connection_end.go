package direct

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// connectionEndWait is how long connectionEnded waits for a connection to end after one
// of its streams has failed. With QUIC the streams fail first, and the connection ends
// within milliseconds, even on a busy machine.
const connectionEndWait = 100 * time.Millisecond

// connectionEnded reports whether one of conns has ended, or ends within
// connectionEndWait. err is the error with which a stream on one of them failed. If err
// cannot be a sign of the end of a connection, connectionEnded does not wait.
func connectionEnded(ctx context.Context, n network.Network, conns []network.Conn, err error) bool {
	gone := notify.NewSignal()
	watch := &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		if slices.Contains(conns, c) {
			gone.Set()
		}
	}}
	// The notification is registered before IsClosed is called, so that an end between
	// the two is not missed.
	n.Notify(watch)
	defer n.StopNotify(watch)
	switch {
	case slices.ContainsFunc(conns, network.Conn.IsClosed):
		return true
	case len(conns) == 0 || isStreamRefusal(err):
		return false // the peer has answered, so its connection works
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

// isStreamRefusal reports whether err means that the peer has reset the stream, or does
// not speak our protocol.
func isStreamRefusal(err error) bool {
	_, reset := errors.AsType[*network.StreamError](err)
	_, unknown := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err)
	return reset || unknown
}
