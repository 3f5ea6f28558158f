package discovery

import (
	"context"
	"slices"
	"sync"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// A dialHost is the host as the driver uses it. It remembers the connections that were made
// by dialing with it, and knows which of them only the node uses.
type dialHost struct {
	corehost.Host
	isSpare func(network.Conn) bool // nil means that all are

	mu     sync.Mutex
	making map[peer.ID]int // calls of Connect under way
	made   map[network.Conn]struct{}
}

// Connect connects to p, and remembers the connections that it has made.
func (h *dialHost) Connect(ctx context.Context, p peer.AddrInfo) error {
	before := h.Network().ConnsToPeer(p.ID)
	h.mu.Lock()
	h.making[p.ID]++
	h.mu.Unlock()
	err := h.Host.Connect(ctx, p)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making[p.ID]--; h.making[p.ID] == 0 {
		delete(h.making, p.ID)
	}
	for c := range h.made {
		if c.IsClosed() {
			delete(h.made, c)
		}
	}
	for _, c := range h.Network().ConnsToPeer(p.ID) {
		if c.Stat().Direction == network.DirOutbound && !slices.Contains(before, c) {
			h.made[c] = struct{}{}
		}
	}
	return err
}

// dialedByOthers returns a direct connection to p that others have dialed on this host, or
// nil.
func (h *dialHost) dialedByOthers(p peer.ID) network.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making[p] > 0 {
		return nil // a new connection may be ours
	}
	for _, c := range h.Network().ConnsToPeer(p) {
		if _, ours := h.made[c]; !ours && c.Stat().Direction == network.DirOutbound && !addr.IsRelayed(c.RemoteMultiaddr()) {
			return c
		}
	}
	return nil
}

// closeSpareConns closes the connections that were made here and that only the node uses.
func (h *dialHost) closeSpareConns() {
	h.mu.Lock()
	defer h.mu.Unlock()
	closeSpare(h, func(yield func(network.Conn) bool) {
		for c := range h.made {
			if !yield(c) {
				return
			}
		}
	})
}

// isSpare reports whether only the node uses a connection, so that it may be closed.
func isSpare(h corehost.Host, c network.Conn) bool {
	d, ok := h.(*dialHost)
	return !ok || d.isSpare == nil || d.isSpare(c)
}

// closeSpare closes the connections that only the node uses. It returns when that is done,
// which takes a tenth of a second at most, even if the other end is frozen.
func closeSpare(h corehost.Host, conns func(yield func(network.Conn) bool)) {
	var closing sync.WaitGroup
	defer closing.Wait()
	for c := range conns {
		if isSpare(h, c) {
			closing.Go(func() { c.Close() })
		}
	}
}
