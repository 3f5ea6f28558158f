package gate

import (
	"context"
	"time"
)

// AwaitRoom waits while more than half of [Config.MaxPending] waits for a peer that
// reads it. A caller that calls it before each message loses no message for a peer that
// is merely slow. It returns after [Config.StallTimeout] at the latest; its only error
// is the cause of ctx, if that ends before. A peer that one call timed out on is
// skipped by later calls until its queue is empty, so a slow peer can delay callers
// only once.
func (g *Gate) AwaitRoom(ctx context.Context) error {
	var timeout <-chan time.Time
	for ctx.Err() == nil {
		change := g.crowdedChange()
		if change == nil {
			return nil
		}
		// Most calls do not get here, so the timer is made late.
		if timeout == nil {
			t := time.NewTimer(g.cfg.StallTimeout)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-change:
		case <-timeout:
			g.skipCrowded()
			return nil
		case <-g.ctx.Done():
			return nil
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// crowdedChange returns a channel that is closed when something changes at a peer that
// AwaitRoom waits for, or nil if there is no such peer.
func (g *Gate) crowdedChange() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.peers {
		if r.out == nil {
			continue
		}
		if change := r.out.crowdedChange(); change != nil {
			return change
		}
	}
	return nil
}

func (o *writeStream) crowdedChange() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || o.queue.stalled || o.queue.skipped || !o.queue.crowded() {
		return nil
	}
	return o.changed.Changed()
}

// skipCrowded makes AwaitRoom skip the peers that it has waited for.
func (g *Gate) skipCrowded() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.peers {
		if r.out != nil {
			r.out.skipIfCrowded()
		}
	}
}

func (o *writeStream) skipIfCrowded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.queue.crowded() {
		o.queue.skipped = true
	}
}
