package events

import (
	"context"
	"errors"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// publisher gathers our events into batches and publishes them, one batch after the
// other. Signing, flooding and checking a message cost some hundred µs whatever
// is in it; so what is emitted while a batch is published goes out as the next
// one, and a lone event leaves at once.
type publisher struct {
	b *Broadcast

	mu         sync.Mutex
	nextEvent  uint64        // number of the next event
	pending    []byte        // the batch that is gathered, ready to be published; nil: none
	count      int           // events in it
	publishing bool          // somebody publishes
	detachedAt time.Time     // when a batch was taken
	waiting    bool          // an event waits for room
	full       chan struct{} // has a value when one has begun to wait
	change     chan struct{} // closed when pending is taken or all is published; nil: nobody waits
}

const (
	// batchTarget is at which size a batch takes no more events: large enough
	// for its cost to be shared by a thousand small ones, small enough for a
	// window to hold several.
	batchTarget = 128 << 10
	// restTime is after how long without a batch the next event is published by its
	// Emit, which saves the waking of another goroutine; before that it may be
	// part of a burst, which is worth gathering.
	restTime = time.Millisecond
	// calmBatches is how many batches neighbours may lack before more is gathered
	// although there is room: the last ones may be too young to be
	// acknowledged. For each one they lack more, gatherTime is waited, or until a
	// batch is full: the more there is to do for everybody, the larger batches are.
	calmBatches = 3
	gatherTime  = time.Millisecond
	// publishRetry is the pause after pubsub has refused a batch.
	publishRetry = 100 * time.Millisecond
)

// enqueue accepts an event and returns its number. It waits for room, unless it is a
// try.
func (o *publisher) enqueue(ctx context.Context, try bool, ev *outgoingEvent) (uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if err := o.b.mayEmit(); err != nil {
			return 0, err
		}
		if o.fits(ev.size) {
			break
		}
		if try {
			return 0, ErrQueueFull
		}
		o.waiting = true
		signal(o.full)
		if err := o.wait(ctx); err != nil {
			return 0, err
		}
	}
	number := o.appendEvent(ev)
	switch {
	case o.publishing:
	case time.Since(o.detachedAt) >= restTime && o.b.driver.reservePublish(true):
		o.publishing = true
		o.publishOne()
	default:
		o.publishing = true
		o.b.tasks.Go(o.publishAll)
	}
	return number, nil
}

// publishOne publishes the batch for which there is room, without the lock. What pubsub
// refuses is left to a task, since the Emit that calls this has a ctx.
func (o *publisher) publishOne() {
	data := o.detachBatch()
	o.mu.Unlock()
	again := o.tryPublish(data)
	o.mu.Lock()
	switch {
	case o.b.stageNow() == broadcastClosed:
		o.setIdle()
	case again:
		o.b.tasks.Go(func() {
			if sleep(o.b.ctx, publishRetry) == nil {
				o.publish(data)
				o.publishAll()
			}
		})
	case o.count > 0:
		o.b.tasks.Go(o.publishAll)
	default:
		o.setIdle()
	}
}

// fits reports whether an event of n bytes fits into the batch. As all below, it
// needs mu.
func (o *publisher) fits(n int) bool {
	return o.count == 0 || o.count < maxBatchEvents && len(o.pending)+n+maxEventHeader <= batchTarget
}

// appendEvent adds an event to the batch.
func (o *publisher) appendEvent(ev *outgoingEvent) uint64 {
	if o.count == 0 {
		size := ev.size + maxBatchOverhead
		if o.publishing {
			size = max(size, 4<<10) // more is coming
		}
		o.pending = appendBatchHeader(make([]byte, 0, size), o.b.session, o.nextEvent)
	}
	o.pending = frame.AppendHeader(o.pending, numBatchEvent, ev.size)
	o.pending = ev.appendEvent(o.pending)
	o.count++
	o.nextEvent++
	o.b.stats.emitted.Add(1)
	return o.nextEvent - 1
}

// detachBatch takes the batch away.
func (o *publisher) detachBatch() []byte {
	data := o.pending
	o.pending, o.count, o.waiting = nil, 0, false
	o.detachedAt = time.Now()
	o.changed()
	return data
}

// setIdle says that nothing more is to be published for now.
func (o *publisher) setIdle() {
	o.publishing = false
	o.changed()
}

// wait waits, without the lock, until something has changed.
func (o *publisher) wait(ctx context.Context) error {
	if o.change == nil {
		o.change = make(chan struct{})
	}
	change := o.change
	o.mu.Unlock()
	defer o.mu.Lock()
	select {
	case <-change:
		return nil
	case <-ctx.Done():
		return o.b.closedOr(ctx)
	case <-o.b.ctx.Done():
		return ErrClosed
	}
}

func (o *publisher) changed() {
	if o.change != nil {
		close(o.change)
		o.change = nil
	}
}

// publishAll publishes batches, each as soon as the neighbours have room for it,
// until nothing waits.
func (o *publisher) publishAll() {
	for {
		o.mu.Lock()
		empty := o.count == 0
		if empty {
			o.setIdle()
		}
		o.mu.Unlock()
		if empty {
			return
		}
		behind, err := o.b.driver.awaitCapacity()
		if err != nil {
			return
		}
		o.gatherMore(behind)
		if !o.b.driver.reservePublish(false) {
			continue // a neighbour came
		}
		o.mu.Lock()
		data := o.detachBatch()
		o.mu.Unlock()
		o.publish(data)
	}
}

// gatherMore waits for more to publish, the longer the more batches neighbours lack,
// counted from the last batch.
func (o *publisher) gatherMore(behind int) {
	o.mu.Lock()
	full, last := o.waiting, o.detachedAt
	o.mu.Unlock()
	wait := time.Until(last.Add(time.Duration(behind-calmBatches) * gatherTime))
	if full || wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return
		case <-o.b.ctx.Done():
			return
		case <-o.full: // perhaps of an earlier batch
			o.mu.Lock()
			full := o.waiting
			o.mu.Unlock()
			if full {
				return
			}
		}
	}
}

// publish hands a batch to pubsub, on its way through which it enters the store.
func (o *publisher) publish(data []byte) {
	for o.tryPublish(data) && sleep(o.b.ctx, publishRetry) == nil {
	}
}

// tryPublish is publish once, and reports whether to do it again.
func (o *publisher) tryPublish(data []byte) (again bool) {
	err := o.b.topic.Publish(o.b.ctx, data)
	if err == nil || o.b.ctx.Err() != nil {
		return false
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, pubsub.ErrTopicClosed) {
		o.b.log.Error("nothing more can be broadcast", "error", ErrPubSubEnded)
		o.b.orphaned.Store(true)
		o.mu.Lock()
		o.changed()
		o.mu.Unlock()
		return false
	}
	o.b.log.Warn("a broadcast could not be published and is tried again", "error", err)
	return true
}

// nextNumber returns the number of the next event.
func (o *publisher) nextNumber() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.nextEvent
}

// close waits for those who are about to put something, and wakes those who wait.
// What was not published is dropped.
func (o *publisher) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changed()
}

// maxEventHeader is what an event has in a batch besides itself.
const maxEventHeader = 1 + 5

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
