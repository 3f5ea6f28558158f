package events

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
)

// UnconfirmedError is returned when neighbors have not confirmed in time that they
// received all events of this node.
type UnconfirmedError struct {
	Peers []peer.ID // the neighbors that lack events
	Has   []uint64  // for each neighbor in Peers, how many of this node's events it has received
	Sent  uint64    // how many events this node has emitted
	Err   error     // why the wait ended: the error of the context, or that the neighbors do not answer
}

func (e *UnconfirmedError) Error() string {
	if len(e.Peers) == 0 {
		return fmt.Sprintf("events: %d broadcasts not confirmed by enough neighbors: %v", e.Sent, e.Err)
	}
	var lacking []string
	for i, p := range e.Peers {
		lacking = append(lacking, fmt.Sprintf("%s (it has %d of %d)", p, e.Has[i], e.Sent))
	}
	return fmt.Sprintf("events: broadcasts not confirmed by %s: %v", strings.Join(lacking, ", "), e.Err)
}

func (e *UnconfirmedError) Unwrap() error { return e.Err }

// Flush waits until every neighbor has received the events that were emitted before the
// call. It does not wait for neighbors that are removed during the call or added later.
// Events that a neighbor has given up as lost count as received. If ctx ends first, the
// error is an [*UnconfirmedError]; if the Broadcast is closed, it is ErrClosed.
func (b *Broadcast) Flush(ctx context.Context) error {
	goal := b.publisher.nextNumber()
	if goal == 1 {
		return nil // no event was ever emitted
	}
	return b.confirm(ctx, goal, 0)
}

// confirm waits until k neighbors, or all of them if k is 0, have received this node's
// events below the number goal.
func (b *Broadcast) confirm(ctx context.Context, goal uint64, k int) error {
	err := b.driver.waitUntil(ctx, func() bool {
		if b.driver.engine.Published() < goal {
			return false // the last event is still on its way through pubsub
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
		e.add(p, b.driver.engine.ReceivedBy(p))
	}
	return e
}
