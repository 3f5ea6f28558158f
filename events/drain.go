package events

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// errNoAnswer is returned when a neighbor that lacks events does not answer any more.
var errNoAnswer = errors.New("the neighbor does not answer any more")

// Drain refuses new events from now on (ErrClosed), and then waits as [Broadcast.Flush]
// does until the neighbors have received the accepted ones. Unlike Flush, it does not
// wait for neighbors that have died: it ends the link to a neighbor that lacks events
// if the neighbor does not answer within one second, plus one second per 128 KiB that
// it lacks. The error contains these neighbors, too. Drain is the first step of closing
// without loss.
func (b *Broadcast) Drain(ctx context.Context) error {
	b.mu.Lock()
	if b.stageNow() < broadcastDraining {
		b.setStage(broadcastDraining)
	}
	b.mu.Unlock()
	goal := b.publisher.nextNumber()
	if goal == 1 {
		return nil // no event was ever emitted
	}
	watching, stop := context.WithCancel(ctx)
	gone := make(chan *UnconfirmedError, 1)
	go func() { gone <- b.unlinkGone(watching, goal) }()
	err := b.confirm(ctx, goal, 0)
	stop()
	return joinUnconfirmed(err, <-gone)
}

// joinUnconfirmed returns the error of a Drain: err, together with the neighbors in
// gone, which did not answer.
func joinUnconfirmed(err error, gone *UnconfirmedError) error {
	if len(gone.Peers) == 0 {
		return err
	}
	if e, ok := errors.AsType[*UnconfirmedError](err); ok {
		e.Peers, e.Has = append(e.Peers, gone.Peers...), append(e.Has, gone.Has...)
		return e
	}
	return errors.Join(gone, err)
}

// unlinkGone ends the links to neighbors that lack events below the number goal and do
// not answer, until ctx ends. It returns these neighbors as an error, which may contain
// none.
func (b *Broadcast) unlinkGone(ctx context.Context, goal uint64) *UnconfirmedError {
	e := &UnconfirmedError{Sent: goal - 1, Err: errNoAnswer}
	f := newFarewell()
	tick := time.NewTicker(farewellInterval)
	defer tick.Stop()
	for {
		b.driver.unlinkGone(f, goal, e)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return e
		}
	}
}

// unlinkGone lets f decide about the neighbors that lack events of this node below the
// number goal. It asks those that f names for a sign of life. It ends the links to the
// neighbors that f considers gone, and adds these to e.
func (d *engineDriver) unlinkGone(f *farewell, goal uint64, e *UnconfirmedError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	now := time.Now()
	ask, gone := f.decide(now, d.lackingNeighbors(goal))
	for _, p := range ask {
		d.engine.AskForMark(now, p)
	}
	for _, p := range gone {
		d.b.log.Info("closing does not wait for a neighbor that does not answer", "peer", p)
		e.add(p, d.engine.ReceivedBy(p))
		d.removeLink(p)
	}
	d.carryOut(now)
}

// lackingNeighbors returns the neighbors that lack events of this node below the number
// goal. The caller must hold mu.
func (d *engineDriver) lackingNeighbors(goal uint64) (list []lackingNeighbor) {
	for _, p := range d.engine.NeighborsLacking(goal) {
		// The engine may still know a neighbor whose link has ended.
		if d.links[p] != nil {
			list = append(list, lackingNeighbor{id: p, heardAt: d.engine.HeardAt(p), lacked: d.engine.BytesLacked(p)})
		}
	}
	return list
}

// add adds the neighbor p to e. next is the number of the first event of this node that
// p lacks.
func (e *UnconfirmedError) add(p peer.ID, next uint64) {
	e.Peers = append(e.Peers, p)
	e.Has = append(e.Has, max(next, 1)-1) // next is zero if the neighbor has confirmed nothing
}
