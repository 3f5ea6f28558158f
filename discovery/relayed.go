package discovery

import (
	"context"
	"errors"
	"slices"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/backoff"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

var circuitAddr = ma.StringCast("/p2p-circuit")

// dialsRelays reports whether the host can dial through relays. It reports false if h does not
// give access to its swarm.
func dialsRelays(h corehost.Host) bool {
	s, ok := h.Network().(interface {
		TransportForDialing(ma.Multiaddr) transport.Transport
	})
	return ok && s.TransportForDialing(circuitAddr) != nil
}

// awaitDirect waits until there is a direct connection to p, which may be connected through a
// relay only. libp2p makes a direct connection by itself, by hole punching or by a dial from
// the other side. At the deadline of ctx, awaitDirect returns ErrRelayed; if ctx was canceled,
// it returns the error of ctx.
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

// staleAfter is the age of a connection through a relay after which both of its ends have
// given up hole punching.
const staleAfter = 6 * time.Second

// closeStale closes the connections to p through relays that are at least as old as age,
// unless there is a direct connection to p. It spares connections that other parts of the
// program use. libp2p tries hole punching only when a connection is made, so only a new dial
// leads to another attempt.
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

// connectDirect connects to the node id at addrs, which do not lead through relays, and makes
// sure that there is a direct connection. Before it dials, it closes connections through
// relays that are at least as old as age, since libp2p would return such a connection and not
// dial. If there is only a connection through a relay then, connectDirect waits until libp2p
// makes a direct one. At the deadline of ctx the error is ErrRelayed.
//
// It does not use network.WithForceDirectDial: libp2p's swarm panics if it is closed while
// it chooses the addresses for such a dial.
func connectDirect(ctx context.Context, h corehost.Host, t seed.Target, id peer.ID, addrs []ma.Multiaddr, age time.Duration) targetResult {
	var a targetResult
	for range 2 { // a relayed connection may be made during the first dial, and is closed before the second
		closeStale(h, id, age)
		restore := hideRelayed(h, id)
		a = connect(ctx, h, t, id, addrs)
		restore()
		if a.err != nil || !addr.HasOnlyRelayed(h.Network(), id) {
			return a
		}
	}
	if err := awaitDirect(ctx, h, id); err != nil {
		return targetResult{target: t, err: explain(err)}
	}
	return a
}

// hideRelayed removes the addresses of p behind relays from the peerstore until restore is
// called, so that a dial to p does not use them. If there is a direct connection to p, it does
// nothing, since libp2p does not dial then.
func hideRelayed(h corehost.Host, p peer.ID) (restore func()) {
	if addr.HasDirect(h.Network(), p) {
		return func() {}
	}
	relayed := slices.DeleteFunc(h.Peerstore().Addrs(p), func(a ma.Multiaddr) bool { return !addr.IsRelayed(a) })
	if len(relayed) == 0 {
		return func() {}
	}
	h.Peerstore().SetAddrs(p, relayed, 0)
	return func() { h.Peerstore().AddAddrs(p, relayed, peerstore.RecentlyConnectedAddrTTL) }
}

// findRelayed connects to the node at the target t, whose address is behind a relay, and
// waits for a direct connection to it.
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
	backoff.Clear(h, t.ID)
	a := connect(ctx, h, t, t.ID, t.Addrs)
	if a.err != nil {
		return a
	}
	if err := awaitDirect(ctx, h, t.ID); err != nil {
		return targetResult{target: t, err: explain(err)}
	}
	return a
}
