package gate

import (
	"context"
	"time"
)

// AwaitRoom waits while more than half of [Config.MaxPending] bytes are queued for at least
// one peer that is still reading. A caller that calls AwaitRoom before each message loses
// no messages to a slow peer. AwaitRoom returns after [Config.StallTimeout] at the latest.
// Its only error is the cause of ctx, if ctx ends earlier. If it waits for a peer for that
// long, later calls ignore this peer until its queue is empty, so a slow peer delays
// callers only once.
func (g *Gate) AwaitRoom(ctx context.Context) error {
	var timeout <-chan time.Time
	for ctx.Err() == nil {
		change := g.crowdedChange()
		if change == nil {
			return nil
		}
		// Most calls return above, without a timer. So the timer is made only here.
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

// crowdedChange returns a channel that is closed when the queue of a peer changes for which
// AwaitRoom has to wait. It returns nil if AwaitRoom has to wait for no peer.
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

// skipCrowded makes later calls of AwaitRoom ignore the peers whose queues are now more
// than half full.
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
