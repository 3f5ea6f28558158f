package discovery

import (
	"context"
	"errors"
	"slices"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// ErrRelayed is returned for a node that was reached through a relay, when no direct
// connection to it came about. Nothing is sent to it: a relay is there for two nodes
// to find each other, and ends a connection after two minutes or 128 KiB.
var ErrRelayed = errs.ErrRelayed

var circuitAddr = ma.StringCast("/p2p-circuit")

// dialsRelays tells whether the host has what it takes to dial through relays, where
// its swarm can be reached.
func dialsRelays(h corehost.Host) bool {
	s, ok := h.Network().(interface {
		TransportForDialing(ma.Multiaddr) transport.Transport
	})
	return ok && s.TransportForDialing(circuitAddr) != nil
}

// awaitDirect returns when there is a direct connection to p, which is connected. A
// connection through a relay becomes one when the holes are punched, or the other
// side could dial us; both begin by themselves. Otherwise it returns ErrRelayed when
// ctx ends, or the error of ctx if that was cancelled.
func awaitDirect(ctx context.Context, h corehost.Host, p peer.ID) error {
	n := h.Network()
	if addr.HasDirect(n, p) {
		return nil
	}
	came := make(chan struct{}, 1)
	defer whenConnected(n, p, func(network.Conn) {
		select {
		case came <- struct{}{}:
		default:
		}
	})()
	for !addr.HasDirect(n, p) {
		select {
		case <-came:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return ErrRelayed
		}
	}
	return nil
}

// staleAfter is when those at both ends of a connection through a relay have given up
// punching holes.
const staleAfter = 6 * time.Second

// dropStale closes the connections through relays to p of that age from which nothing
// came, except those that others use, since holes are punched when one is made: the
// next dial is the next try.
func dropStale(h corehost.Host, p peer.ID, age time.Duration) {
	if addr.HasDirect(h.Network(), p) {
		return
	}
	for _, c := range h.Network().ConnsToPeer(p) {
		if time.Since(c.Stat().Opened) >= age && spare(h, c) {
			c.Close()
		}
	}
}

// findRelayed is find for an address behind a relay.
func (t target) findRelayed(ctx context.Context, h corehost.Host) answer {
	relay, _, _ := addr.SplitRelay(t.addrs[0])
	switch {
	case t.id == h.ID():
		return answer{target: t, err: ErrSelf}
	case addr.HasDirect(h.Network(), t.id):
		return answer{target: t, info: peer.AddrInfo{ID: t.id, Addrs: t.addrs}}
	case relay == h.ID():
		return answer{target: t, err: &failure{kind: ErrUnreachable, text: "this node is its relay, and it is not connected", rank: rankRefused}}
	case !dialsRelays(h):
		return answer{target: t, err: &failure{kind: ErrUnreachable, text: "it is behind a relay, and this node punches no holes", rank: rankSkipped}}
	}
	dropStale(h, t.id, staleAfter)
	clearBackoff(h, t.id)
	a := connect(ctx, h, t, t.id, t.addrs)
	if a.err != nil {
		return a
	}
	if err := awaitDirect(ctx, h, t.id); err != nil {
		return answer{target: t, err: explain(err)}
	}
	return a
}

// relayed tells whether the target is behind a relay.
func (t target) relayed() bool { return addr.IsRelayed(t.addrs[0]) }

// Relayed tells whether the seed is an address behind a relay, which only a host that
// punches holes can use.
func (s *Seed) Relayed() bool { return slices.ContainsFunc(s.targets, target.relayed) }
