package events

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
)

// UnconfirmedError says which neighbours did not confirm in time that they have
// received what was sent. Has is how many of our events each has; Sent is how
// many there are. Err is the end of the context.
type UnconfirmedError struct {
	Peers []peer.ID
	Has   []uint64
	Sent  uint64
	Err   error
}

func (e *UnconfirmedError) Error() string {
	if len(e.Peers) == 0 {
		return fmt.Sprintf("events: %d broadcasts not confirmed by enough neighbours: %v", e.Sent, e.Err)
	}
	var who []string
	for i, p := range e.Peers {
		who = append(who, fmt.Sprintf("%s (it has %d of %d)", p, e.Has[i], e.Sent))
	}
	return fmt.Sprintf("events: broadcasts not confirmed by %s: %v", strings.Join(who, ", "), e.Err)
}

func (e *UnconfirmedError) Unwrap() error { return e.Err }

// Flush waits until every neighbour has received what was sent before the call.
// Who ceases to be a neighbour meanwhile is not waited for, nor who became one
// later; what a neighbour itself had to give up as lost counts as received. When
// ctx ends the error is an [*UnconfirmedError]; it is ErrClosed when the Broadcast
// closes.
func (b *Broadcast) Flush(ctx context.Context) error {
	goal := b.publisher.nextNumber()
	if goal == 1 {
		return nil // nothing was ever sent
	}
	return b.confirm(ctx, goal, 0)
}

// confirm waits until k neighbours, or all if k is 0, have our events below goal.
func (b *Broadcast) confirm(ctx context.Context, goal uint64, k int) error {
	err := b.driver.waitUntil(ctx, func() bool {
		if b.driver.engine.Published() < goal {
			return false
		}
		if k == 0 {
			return len(b.driver.engine.NeighborsLacking(goal)) == 0
		}
		n := 0
		for p := range b.driver.links {
			if b.driver.engine.ReceivedBy(p) >= goal {
				n++
			}
		}
		return n >= k
	})
	if err == nil || errors.Is(err, ErrClosed) {
		return err
	}
	e := &UnconfirmedError{Sent: goal - 1, Err: err}
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	for _, p := range b.driver.engine.NeighborsLacking(goal) {
		e.Peers = append(e.Peers, p)
		e.Has = append(e.Has, max(b.driver.engine.ReceivedBy(p), 1)-1)
	}
	return e
}
