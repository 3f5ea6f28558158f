package events

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
)

// A Gap is a range of broadcasts of one sender that are missing and will not arrive. It
// is reported in its place among the events of that sender.
type Gap struct {
	From    peer.ID // the sender of the missing events
	Session [8]byte // the session (the run of the sender's program) to which the missing events belong
	// First and Last are the numbers of the first and the last missing event. A sender
	// numbers the events of each session from 1.
	First, Last uint64
	// Slow means that the events arrived but were dropped, because handlers at this
	// node were too slow. If it is false, no neighbor had the events any more.
	Slow bool
}

// Len returns the number of missing events.
func (g Gap) Len() uint64 { return g.Last - g.First + 1 }

func (g Gap) String() string {
	why := "were lost on the way"
	if g.Slow {
		why = "were dropped because handlers are slow"
	}
	return fmt.Sprintf("events %d to %d of %s %s", g.First, g.Last, g.From, why)
}

// gapHandlers are the handlers registered with OnGap.
type gapHandlers struct {
	mu   sync.RWMutex
	list []*func(context.Context, Gap) // copied on each change, so that it can be read without mu
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

// report calls the handlers of OnGap with the gap g, one after the other. It catches a
// panic of a handler and calls the next handler all the same.
func (h *gapHandlers) report(ctx context.Context, d *dispatch.Dispatcher, g Gap) {
	for _, f := range h.all() {
		callGap(ctx, d, *f, g)
	}
}

func callGap(ctx context.Context, d *dispatch.Dispatcher, f func(context.Context, Gap), g Gap) {
	returned := false
	defer d.Catch("a handler of gaps", "", g.From, &returned)
	f(ctx, g)
	returned = true
}
