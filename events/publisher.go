package events

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// publisher gathers own events into batches and publishes them, one batch after
// the other. Signing, flooding and verifying a message cost some hundred µs
// whatever its size. So the events that are emitted while a batch is published
// go out as the next one, and a single event leaves at once. When a batch may be
// published is decided by engineDriver.
type publisher struct {
	b *Broadcast

	mu         sync.Mutex
	nextEvent  uint64      // number of the next event
	publishing bool        // an Emit or a goroutine publishes
	detachedAt time.Time   // when the last batch was detached
	changed    notify.Cond // the batch was detached, or nothing is being published

	// The batch that is being gathered, ready to be published.
	pending []byte // nil: there is none
	count   int    // events in it
	waiting bool   // an Emit waits for space in the next batch
	full    notify.Signal
}

// spaceMode says what an Emit does that finds no space in the batch.
type spaceMode int

const (
	waitForSpace spaceMode = iota
	failWithoutSpace
)

const (
	// batchTarget is the size at which a batch accepts no more events: large enough
	// for its cost to be shared by a thousand small ones, small enough for a
	// window to hold several.
	batchTarget = 128 << 10
	// quietTime is the time without a batch after which an Emit publishes its event
	// itself, which saves waking another goroutine. Within that time the event may
	// be part of a burst, which is worth gathering.
	quietTime = time.Millisecond
	// freeBatches is how many batches neighbors may lack before events are gathered
	// although another batch may be published: the last ones may be too young to be
	// acknowledged. For each further batch that they lack, events are gathered for
	// gatherTime longer, or until the batch is full: the busier everybody is, the
	// larger batches become.
	freeBatches = 3
	gatherTime  = time.Millisecond
	// publishRetry is the pause after pubsub has refused a batch.
	publishRetry = 100 * time.Millisecond
)

// enqueue adds an event to the batch and returns its number.
func (p *publisher) enqueue(ctx context.Context, mode spaceMode, ev *event.Outgoing) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		// Checked again after each wait: the Broadcast may have been closed.
		if err := p.b.mayEmit(); err != nil {
			return 0, err
		}
		if p.fits(ev.Size) {
			break
		}
		if mode == failWithoutSpace {
			return 0, ErrQueueFull
		}
		p.waiting = true
		p.full.Set()
		if err := p.b.awaitChange(ctx, &p.changed, &p.mu); err != nil {
			return 0, err
		}
	}
	number := p.appendEvent(ev)
	switch {
	case p.publishing:
		// Whoever publishes comes back for this event.
	case time.Since(p.detachedAt) >= quietTime && p.b.driver.reservePublish(freeBatches):
		p.publishing = true
		p.publishOne()
	default:
		p.publishing = true
		p.b.tasks.Go(p.publishAll)
	}
	return number, nil
}

// publishOne publishes the batch that was reserved, without mu, on the goroutine
// of an Emit. It needs mu.
func (p *publisher) publishOne() {
	data := p.detachBatch()
	p.mu.Unlock()
	again := p.tryPublish(data)
	p.mu.Lock()
	switch {
	case p.b.stageNow() == broadcastClosed:
		p.setIdle()
	case again:
		// The Emit has a ctx, so it must not wait for the next try.
		p.b.tasks.Go(func() {
			if sleep(p.b.ctx, publishRetry) == nil {
				p.publish(data)
				p.publishAll()
			}
		})
	case p.count > 0:
		// Other Emits have added events meanwhile. They have returned already.
		p.b.tasks.Go(p.publishAll)
	default:
		p.setIdle()
	}
}

// fits reports whether an event of n bytes fits into the batch. It needs mu.
func (p *publisher) fits(n int) bool {
	// A batch of one event may have any size that an event may have.
	return p.count == 0 || p.count < maxBatchEvents && len(p.pending)+n+maxEventHeader <= batchTarget
}

// appendEvent adds an event to the batch and returns its number. It needs mu.
func (p *publisher) appendEvent(ev *event.Outgoing) uint64 {
	if p.count == 0 {
		size := ev.Size + maxBatchOverhead
		if p.publishing {
			size = max(size, 4<<10) // more events will follow, so allocate once
		}
		p.pending = appendBatchHeader(make([]byte, 0, size), p.b.session, p.nextEvent)
	}
	p.pending = frame.AppendHeader(p.pending, numBatchEvent, ev.Size)
	p.pending = ev.AppendTo(p.pending)
	p.count++
	p.nextEvent++
	p.b.stats.emitted.Add(1)
	return p.nextEvent - 1
}

// detachBatch returns the gathered batch and begins a new one. It needs mu.
func (p *publisher) detachBatch() []byte {
	data := p.pending
	p.pending, p.count, p.waiting = nil, 0, false
	p.detachedAt = time.Now()
	p.changed.Broadcast()
	return data
}

// setIdle notes that nothing is being published. It needs mu.
func (p *publisher) setIdle() {
	p.publishing = false
	p.changed.Broadcast()
}

// publishAll publishes batches, each as soon as the neighbors can receive it, until
// there are no more events.
func (p *publisher) publishAll() {
	for {
		p.mu.Lock()
		empty := p.count == 0
		if empty {
			p.setIdle()
		}
		p.mu.Unlock()
		if empty {
			return
		}
		behind, err := p.b.driver.awaitCapacity()
		if err != nil {
			return // closed: the rest is dropped
		}
		p.gatherMore(behind)
		if !p.b.driver.reservePublish(math.MaxInt) {
			continue // a neighbor was added meanwhile, and may be far behind
		}
		p.mu.Lock()
		data := p.detachBatch()
		p.mu.Unlock()
		p.publish(data)
	}
}

// gatherMore waits for more events, the longer the more batches the neighbors lack,
// counted from the last batch.
func (p *publisher) gatherMore(behind int) {
	p.mu.Lock()
	full, last := p.waiting, p.detachedAt
	p.mu.Unlock()
	wait := time.Until(last.Add(time.Duration(behind-freeBatches) * gatherTime))
	if full || wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return
		case <-p.b.ctx.Done():
			return
		case <-p.full:
			// The signal may be left over from an earlier batch.
			p.mu.Lock()
			full := p.waiting
			p.mu.Unlock()
			if full {
				return
			}
		}
	}
}

// publish hands a batch to pubsub, which passes it to engineDriver on its way.
func (p *publisher) publish(data []byte) {
	for p.tryPublish(data) && sleep(p.b.ctx, publishRetry) == nil {
	}
}

// tryPublish hands a batch to pubsub and reports whether to do it again.
func (p *publisher) tryPublish(data []byte) (again bool) {
	err := p.b.sub.Topic.Publish(p.b.ctx, data)
	if err == nil || p.b.ctx.Err() != nil {
		return false
	}
	// These errors are those of a pubsub that its owner has ended: it never comes
	// back. Validators, the only other cause, may change their mind.
	if errors.Is(err, context.Canceled) || errors.Is(err, pubsub.ErrTopicClosed) {
		p.b.log.Error("nothing can be broadcast any more", "error", ErrPubSubEnded)
		p.b.orphaned.Store(true)
		p.mu.Lock()
		p.changed.Broadcast()
		p.mu.Unlock()
		return false
	}
	p.b.log.Warn("a broadcast could not be published and is tried again", "error", err)
	return true
}

// nextNumber returns the number of the next event.
func (p *publisher) nextNumber() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nextEvent
}

// close wakes the Emits that wait. Events that were not published are dropped.
func (p *publisher) close() {
	// Taking mu also waits for an Emit that is about to start a task.
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed.Broadcast()
}

// maxEventHeader is the size of an event's header in a batch.
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
