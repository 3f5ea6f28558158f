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

// dialHost is the host as the driver uses it: it notes the connections that are made
// by dialling with it, and knows which serve nobody but the node.
type dialHost struct {
	corehost.Host
	isSpare func(network.Conn) bool // nil: all are

	mu     sync.Mutex
	making map[peer.ID]int // calls of Connect that go on
	made   map[network.Conn]struct{}
}

// Connect notes the connections to p that it makes.
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

// given returns a direct connection to p that was dialled by others than this, or nil.
func (h *dialHost) given(p peer.ID) network.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making[p] > 0 {
		return nil
	}
	for _, c := range h.Network().ConnsToPeer(p) {
		if _, ours := h.made[c]; !ours && c.Stat().Direction == network.DirOutbound && !addr.IsRelayed(c.RemoteMultiaddr()) {
			return c
		}
	}
	return nil
}

// tidy closes the connections that were made here and serve nobody else.
func (h *dialHost) tidy() {
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

// spare tells whether a connection may be closed, since nobody but the node uses it.
func spare(h corehost.Host, c network.Conn) bool {
	d, ok := h.(*dialHost)
	return !ok || d.isSpare == nil || d.isSpare(c)
}

// closeSpare closes those of the connections that are spare. It returns when that is
// done, a tenth of a second later at most if an end of one is frozen.
func closeSpare(h corehost.Host, conns func(yield func(network.Conn) bool)) {
	var closing sync.WaitGroup
	defer closing.Wait()
	for c := range conns {
		if spare(h, c) {
			closing.Go(func() { c.Close() })
		}
	}
}
