// Package notify lets goroutines wake each other: a [Cond] wakes all goroutines that wait for
// a change of state, and a [Signal] wakes one goroutine.
package notify

import (
	"context"
	"sync"
)

// A Cond lets goroutines wait until the state that a mutex guards has changed. It is a
// [sync.Cond] with a context. The zero value is ready for use. The caller of a method holds
// the mutex. After Wait it has to check the state again:
//
//	mu.Lock()
//	defer mu.Unlock()
//	for !ready {
//		if err := changed.Wait(ctx, &mu); err != nil {
//			return err
//		}
//	}
type Cond struct {
	changed chan struct{} // closed by the next Broadcast; nil while nobody waits
}

// Wait unlocks mu, waits for a Broadcast or for the end of ctx, and locks mu again. It
// returns nil after a Broadcast, and ctx.Err() if ctx ended without one.
func (c *Cond) Wait(ctx context.Context, mu sync.Locker) error {
	changed := c.Changed()
	mu.Unlock()
	defer mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
	}
	// If both have happened, the Broadcast counts, since the caller may have what it waits for.
	select {
	case <-changed:
		return nil
	default:
		return ctx.Err()
	}
}

// Changed returns a channel that the next Broadcast closes, for a caller that has to wait in a
// select. Check the state and call Changed without unlocking the mutex in between, then unlock
// it and wait.
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
	// Nobody waits in most cases. Then there is no channel.
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// A Signal is a channel with which other goroutines wake one goroutine, which receives from it.
// Several calls of Set before it receives wake it once. A Set while the goroutine is busy is
// not lost: its next receive returns at once.
type Signal chan struct{}

// NewSignal returns a Signal that is not set.
func NewSignal() Signal { return make(Signal, 1) }

// Set wakes the receiving goroutine now, or when it next receives. It does not block.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default: // set already
	}
}
