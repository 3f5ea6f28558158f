package events

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A Gap is broadcasts of a sender that are not delivered, and never will be. It is
// reported in its place among the events of that sender.
type Gap struct {
	Sender  peer.ID
	Session [8]byte // which run of the sender
	// From and To are the numbers of the first event that is missing, and of the
	// first that is not. A sender numbers its events from 1 in each run.
	From, To uint64
	// Slow says that the events came but were dropped since the handlers here were
	// too slow; else no neighbour had them any more.
	Slow bool
}

// Len returns the number of events that are missing.
func (g Gap) Len() uint64 { return g.To - g.From }

func (g Gap) String() string {
	why := "were lost on the way"
	if g.Slow {
		why = "were dropped since handlers are slow"
	}
	return fmt.Sprintf("events %d to %d of %s %s", g.From, g.To-1, g.Sender, why)
}

// gapHandlers are the handlers of gaps.
type gapHandlers struct {
	mu   sync.RWMutex
	list []*func(context.Context, Gap) // replaced, not changed
}

func (h *gapHandlers) on(f func(context.Context, Gap)) (off func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list[:len(h.list):len(h.list)], &f)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.list = slices.DeleteFunc(slices.Clone(h.list), func(g *func(context.Context, Gap)) bool { return g == &f })
	}
}

func (h *gapHandlers) all() []*func(context.Context, Gap) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.list
}

// gap calls the handlers of gaps one after the other.
func (m *mux) gap(ctx context.Context, g Gap) {
	for _, f := range m.gaps.all() {
		m.callGap(ctx, *f, g)
	}
}

func (m *mux) callGap(ctx context.Context, f func(context.Context, Gap), g Gap) {
	defer m.recovered("a handler of gaps panicked", g.Sender)
	f(ctx, g)
}
