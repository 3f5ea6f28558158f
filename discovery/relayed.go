package discovery

import (
	"context"
	"errors"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

var circuitAddr = ma.StringCast("/p2p-circuit")

// dialsRelays reports whether the host can dial through relays. It returns false for a host
// that hides its swarm.
func dialsRelays(h corehost.Host) bool {
	s, ok := h.Network().(interface {
		TransportForDialing(ma.Multiaddr) transport.Transport
	})
	return ok && s.TransportForDialing(circuitAddr) != nil
}

// awaitDirect waits until a peer that is connected has a direct connection. One comes after a
// connection through a relay when a hole is punched, or when the other side can dial us;
// libp2p tries both by itself. awaitDirect returns ErrRelayed at the deadline of ctx, or the
// error of ctx if it was canceled.
func awaitDirect(ctx context.Context, h corehost.Host, p peer.ID) error {
	n := h.Network()
	if addr.HasDirect(n, p) {
		return nil
	}
	connected := notify.NewSignal()
	defer whenConnected(n, p, func(network.Conn) { connected.Set() })()
	for !addr.HasDirect(n, p) {
		select {
		case <-connected:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return ErrRelayed
		}
	}
	return nil
}

// staleAfter is the age at which both ends of a connection through a relay have given up
// punching holes.
const staleAfter = 6 * time.Second

// closeStale closes the connections to p through relays that are that old and led to no
// direct one, except those that others use. libp2p punches holes only when a connection is
// made, so without them the next dial is the next try.
func closeStale(h corehost.Host, p peer.ID, age time.Duration) {
	if addr.HasDirect(h.Network(), p) {
		return
	}
	for _, c := range h.Network().ConnsToPeer(p) {
		if time.Since(c.Stat().Opened) >= age && isSpare(h, c) {
			c.Close()
		}
	}
}

// findRelayed is meet for an address behind a relay.
func findRelayed(ctx context.Context, h corehost.Host, t seed.Target) targetResult {
	relay, _, _ := addr.SplitRelay(t.Addrs[0])
	switch {
	case t.ID == h.ID():
		return targetResult{target: t, err: withText(ErrSelf)}
	case addr.HasDirect(h.Network(), t.ID):
		return targetResult{target: t, info: peer.AddrInfo{ID: t.ID, Addrs: t.Addrs}}
	case relay == h.ID():
		return targetResult{target: t, err: &failure{kind: ErrUnreachable, text: "this node is its relay, and it is not connected", rank: rankRefused}}
	case !dialsRelays(h):
		return targetResult{target: t, err: &failure{kind: ErrUnreachable, text: "it is behind a relay, and this node punches no holes", rank: rankSkipped}}
	}
	closeStale(h, t.ID, staleAfter)
	clearBackoff(h, t.ID)
	a := connect(ctx, h, t, t.ID, t.Addrs)
	if a.err != nil {
		return a
	}
	if err := awaitDirect(ctx, h, t.ID); err != nil {
		return targetResult{target: t, err: explain(err)}
	}
	return a
}
