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

// A dialHost wraps the host for the driver. It remembers which connections the driver has
// made with it, and reports whether other parts of the program use a connection.
type dialHost struct {
	corehost.Host
	isSpare func(network.Conn) bool // reports whether no part of the program but the node uses a connection; a nil isSpare means yes

	mu     sync.Mutex
	making map[peer.ID]int // the running calls of Connect
	made   map[network.Conn]struct{}
}

// Connect connects to p like the method of the host, and remembers the connections that it
// has made.
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
		if c.IsClosed() { // remove closed connections, so that the map made does not grow for ever
			delete(h.made, c)
		}
	}
	for _, c := range h.Network().ConnsToPeer(p.ID) {
		// An outbound connection to p that did not exist before was made by this
		// call of Connect.
		if c.Stat().Direction == network.DirOutbound && !slices.Contains(before, c) {
			h.made[c] = struct{}{}
		}
	}
	return err
}

// dialedByOthers returns a direct connection to p that another part of the program, and not
// the driver, has dialed on this host. It returns nil if there is none.
func (h *dialHost) dialedByOthers(p peer.ID) network.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making[p] > 0 {
		return nil // the driver is dialing p now, so a connection to p may come from that dial
	}
	for _, c := range h.Network().ConnsToPeer(p) {
		if _, ours := h.made[c]; !ours && c.Stat().Direction == network.DirOutbound && !addr.IsRelayed(c.RemoteMultiaddr()) {
			return c
		}
	}
	return nil
}

// closeSpareConns closes the connections that the driver has made and that no other part of
// the program uses.
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

// isSpare reports whether no other part of the program uses a connection, so that the driver
// may close it.
func isSpare(h corehost.Host, c network.Conn) bool {
	d, ok := h.(*dialHost)
	return !ok || d.isSpare == nil || d.isSpare(c)
}

// closeSpare closes those connections in conns, which are connections of h, that no other
// part of the program uses. It waits until they are closed, which takes at most a tenth of
// a second even if the peer does not answer.
func closeSpare(h corehost.Host, conns func(yield func(network.Conn) bool)) {
	var closing sync.WaitGroup
	defer closing.Wait()
	for c := range conns {
		if isSpare(h, c) {
			closing.Go(func() { c.Close() })
		}
	}
}
