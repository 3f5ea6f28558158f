package events

import (
	"context"
	"errors"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// outbox gathers our events into batches and publishes them, one batch after the
// other. Signing, flooding and checking a message cost some hundred µs whatever
// is in it; so what is emitted while a batch is published goes out as the next
// one, and a lone event leaves at once.
type outbox struct {
	b *Broadcast

	mu      sync.Mutex
	next    uint64        // number of the next event
	pending []byte        // the batch that is gathered, ready to be published; nil: none
	count   int           // events in it
	busy    bool          // somebody publishes
	last    time.Time     // when a batch was taken
	wanted  bool          // an event waits for room
	full    chan struct{} // has a value when one has begun to wait
	change  chan struct{} // closed when pending is taken or all is published; nil: nobody waits
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

// put accepts an event and returns its number. It waits for room, unless it is a
// try.
func (o *outbox) put(ctx context.Context, try bool, ev *outgoing) (uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if err := o.b.mayEmit(); err != nil {
			return 0, err
		}
		if o.room(ev.size) {
			break
		}
		if try {
			return 0, ErrQueueFull
		}
		o.wanted = true
		signal(o.full)
		if err := o.wait(ctx); err != nil {
			return 0, err
		}
	}
	number := o.append(ev)
	switch {
	case o.busy:
	case time.Since(o.last) >= restTime && o.b.in.reserve(true):
		o.busy = true
		o.publishOne()
	default:
		o.busy = true
		o.b.tasks.Go(o.publishAll)
	}
	return number, nil
}

// publishOne publishes the batch for which there is room, without the lock. What pubsub
// refuses is left to a task, since the Emit that calls this has a ctx.
func (o *outbox) publishOne() {
	data := o.take()
	o.mu.Unlock()
	again := o.tryPublish(data)
	o.mu.Lock()
	switch {
	case o.b.stageNow() == broadcastClosed:
		o.rest()
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
		o.rest()
	}
}

// room reports whether an event of n bytes fits into the batch. As all below, it
// needs mu.
func (o *outbox) room(n int) bool {
	return o.count == 0 || o.count < maxBatchEvents && len(o.pending)+n+maxEventHeader <= batchTarget
}

// append adds an event to the batch.
func (o *outbox) append(ev *outgoing) uint64 {
	if o.count == 0 {
		size := ev.size + maxBatchOverhead
		if o.busy {
			size = max(size, 4<<10) // more is coming
		}
		o.pending = appendBatchHeader(make([]byte, 0, size), o.b.session, o.next)
	}
	o.pending = frame.AppendHeader(o.pending, numBatchEvent, ev.size)
	o.pending = ev.appendEvent(o.pending)
	o.count++
	o.next++
	o.b.stats.emitted.Add(1)
	return o.next - 1
}

// take takes the batch away.
func (o *outbox) take() []byte {
	data := o.pending
	o.pending, o.count, o.wanted = nil, 0, false
	o.last = time.Now()
	o.changed()
	return data
}

// rest says that nothing more is to be published for now.
func (o *outbox) rest() {
	o.busy = false
	o.changed()
}

// wait waits, without the lock, until something has changed.
func (o *outbox) wait(ctx context.Context) error {
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
		return o.b.ended(ctx)
	case <-o.b.ctx.Done():
		return ErrClosed
	}
}

func (o *outbox) changed() {
	if o.change != nil {
		close(o.change)
		o.change = nil
	}
}

// publishAll publishes batches, each as soon as the neighbours have room for it,
// until nothing waits.
func (o *outbox) publishAll() {
	for {
		o.mu.Lock()
		empty := o.count == 0
		if empty {
			o.rest()
		}
		o.mu.Unlock()
		if empty {
			return
		}
		behind, err := o.b.in.awaitRoom()
		if err != nil {
			return
		}
		o.gather(behind)
		if !o.b.in.reserve(false) {
			continue // a neighbour came
		}
		o.mu.Lock()
		data := o.take()
		o.mu.Unlock()
		o.publish(data)
	}
}

// gather waits for more to publish, the longer the more batches neighbours lack,
// counted from the last batch.
func (o *outbox) gather(behind int) {
	o.mu.Lock()
	full, last := o.wanted, o.last
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
			full := o.wanted
			o.mu.Unlock()
			if full {
				return
			}
		}
	}
}

// publish hands a batch to pubsub, on its way through which it enters the store.
func (o *outbox) publish(data []byte) {
	for o.tryPublish(data) && sleep(o.b.ctx, publishRetry) == nil {
	}
}

// tryPublish is publish once, and reports whether to do it again.
func (o *outbox) tryPublish(data []byte) (again bool) {
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

// goal returns the number of the next event.
func (o *outbox) goal() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next
}

// close waits for those who are about to put something, and wakes those who wait.
// What was not published is dropped.
func (o *outbox) close() {
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
