// Package notify holds the two ways in which one goroutine wakes another: [Cond]
// wakes all goroutines that wait for a change of state, and [Signal] wakes the one
// goroutine that looks after something.
package notify

import (
	"context"
	"sync"
)

// A Cond lets goroutines wait until state that a mutex guards has changed. It is
// [sync.Cond] with a context. The zero value is ready for use. All methods need the
// mutex. Check the state again after Wait:
//
//	mu.Lock()
//	defer mu.Unlock()
//	for !ready {
//		if err := changed.Wait(ctx, &mu); err != nil {
//			return err
//		}
//	}
type Cond struct {
	changed chan struct{} // nil while nobody waits
}

// Wait unlocks mu, waits for Broadcast or for the end of ctx, and locks mu again. It
// returns nil after a Broadcast, and ctx.Err() when ctx has ended without one.
func (c *Cond) Wait(ctx context.Context, mu sync.Locker) error {
	changed := c.Changed()
	mu.Unlock()
	defer mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
	}
	// If both happened, the new state says more than the end of ctx does.
	select {
	case <-changed:
		return nil
	default:
		return ctx.Err()
	}
}

// Changed returns a channel that the next Broadcast closes, for a caller that also
// waits for something else than a context. Get it before unlocking the mutex under
// which the state was checked, and wait after that.
func (c *Cond) Changed() <-chan struct{} {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// Waited reports whether a goroutine has begun to wait since the last Broadcast.
func (c *Cond) Waited() bool { return c.changed != nil }

// Broadcast wakes all waiting goroutines.
func (c *Cond) Broadcast() {
	// Most changes happen while nobody waits; they cost no channel.
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// A Signal wakes one goroutine, which receives from it. Any number of Sets before the
// goroutine receives count as one, and none is missed while the goroutine is busy.
type Signal chan struct{}

// NewSignal returns a Signal that is not set.
func NewSignal() Signal { return make(Signal, 1) }

// Set wakes the receiver, now or when it receives next. It does not block.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default: // set already
	}
}
