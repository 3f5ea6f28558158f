package peers

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// list updates the list of neighbors after the change c. It is called after the part
// Broadcast of the node was told of the change. So a peer is in the list only when
// broadcasts reach it.
func (r *Registry) list(c *Transition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case c.Added():
		r.neighbors = append(r.neighbors, c.Peer)
	case c.Removed():
		r.neighbors = slices.DeleteFunc(r.neighbors, func(p peer.ID) bool { return p == c.Peer })
	}
}

// Neighbors returns the neighbors in the order in which they were added. The caller may
// change the slice.
func (r *Registry) Neighbors() []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.neighbors)
}

// Has reports whether p is a neighbor.
func (r *Registry) Has(p peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.neighbors, p)
}

// Len returns the number of neighbors.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.neighbors)
}

// Full reports whether the node has as many neighbors as Config.Max allows.
func (r *Registry) Full() bool { return r.cfg.Max >= 0 && r.Len() >= r.cfg.Max }

// Sufficient reports whether the node has at least Config.Min neighbors.
func (r *Registry) Sufficient() bool { return r.Len() >= r.cfg.Min }
