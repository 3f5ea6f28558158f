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

// publisher collects the events of this node in batches and publishes one batch after
// the other. Signing, flooding and verifying a message costs several hundred µs
// whatever its size. So the events that are emitted while one batch is being published
// form the next batch. A single event is published at once. engineDriver decides when a
// batch may be published.
type publisher struct {
	b *Broadcast

	mu         sync.Mutex
	nextEvent  uint64      // the number that the next event gets
	publishing bool        // an Emit call or a goroutine of the publisher is publishing batches
	detachedAt time.Time   // when the last batch was taken for publishing
	changed    notify.Cond // its waiters wake up when a new batch begins, or when publishing has stopped

	// The next batch, which collects events until it is published.
	pending []byte // the encoded batch; nil: it has no events
	count   int    // how many events pending contains
	waiting bool   // an Emit call waits because the batch is full
	// full wakes gatherMore when waiting becomes true.
	full notify.Signal
}

// spaceMode says what Emit does if the batch has no space for another event.
type spaceMode int

const (
	waitForSpace spaceMode = iota
	failWithoutSpace
)

const (
	// batchTarget is the size in bytes at which a batch accepts no more events. It is
	// large enough that a thousand small events share the cost of a signature, and
	// small enough that a window (what neighbors may lack) holds several batches.
	batchTarget = 128 << 10
	// If no batch was published for quietTime, an Emit publishes its event itself, which
	// saves the time to wake another goroutine. An event that is emitted sooner may be
	// one of many in quick succession, which are better collected in a batch.
	quietTime = time.Millisecond
	// freeBatches is how many batches neighbors may lack before the next batch is
	// delayed. They may lack a few just because their acknowledgments are still on the
	// way. For each further batch that they lack, the publisher collects events for
	// gatherTime longer, or until the batch is full. So batches become larger under
	// load.
	freeBatches = 3
	gatherTime  = time.Millisecond
	// publishRetry is the pause after pubsub has refused to publish a batch.
	publishRetry = 100 * time.Millisecond
)

// enqueue adds the event ev to the batch that is published next, and returns the event's
// number. mode says what enqueue does if that batch is full.
func (p *publisher) enqueue(ctx context.Context, mode spaceMode, ev *event.Outgoing) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		// This is checked after each wait, too: the Broadcast may have been closed.
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
		// A goroutine is publishing an earlier batch. It will then publish the batch with
		// this event.
	case time.Since(p.detachedAt) >= quietTime && p.b.driver.reservePublish(freeBatches):
		// No batch is under way, so this event need not wait for others.
		p.publishing = true
		p.publishOne()
	default:
		p.publishing = true
		p.b.tasks.Go(p.publishAll)
	}
	return number, nil
}

// publishOne publishes the batch on the goroutine of an Emit, which has reserved the
// right to publish. The caller must hold mu, which is released meanwhile.
func (p *publisher) publishOne() {
	data := p.detachBatch()
	p.mu.Unlock()
	again := p.tryPublish(data)
	p.mu.Lock()
	switch {
	case p.b.stageNow() == broadcastClosed:
		p.setIdle()
	case again:
		// Emit must return when its ctx ends, so another goroutine waits and tries
		// again.
		p.b.tasks.Go(func() {
			if sleep(p.b.ctx, publishRetry) == nil {
				p.publish(data)
				p.publishAll()
			}
		})
	case p.count > 0:
		// Other Emit calls have added events meanwhile and have returned already.
		p.b.tasks.Go(p.publishAll)
	default:
		p.setIdle()
	}
}

// fits reports whether an event of n bytes fits into the batch. The caller must hold
// mu.
func (p *publisher) fits(n int) bool {
	// The first event of a batch always fits: batchTarget may be less than the largest
	// event.
	return p.count == 0 || p.count < maxBatchEvents && len(p.pending)+n+maxEventHeader <= batchTarget
}

// appendEvent adds an event to the batch and returns the event's number. The caller
// must hold mu.
func (p *publisher) appendEvent(ev *event.Outgoing) uint64 {
	if p.count == 0 {
		size := ev.Size + maxBatchOverhead
		if p.publishing {
			size = max(size, 4<<10) // more events are likely to follow, so allocate for them at once
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

// detachBatch returns the collected batch and begins a new one. The caller must hold
// mu.
func (p *publisher) detachBatch() []byte {
	data := p.pending
	p.pending, p.count, p.waiting = nil, 0, false
	p.detachedAt = time.Now()
	p.changed.Broadcast()
	return data
}

// setIdle notes that no batch is being published. The caller must hold mu.
func (p *publisher) setIdle() {
	p.publishing = false
	p.changed.Broadcast()
}

// publishAll publishes batches until there are no more events. It publishes each batch
// as soon as the neighbors can receive it.
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
			return // the Broadcast was closed; the remaining events are dropped
		}
		p.gatherMore(behind)
		if !p.b.driver.reservePublish(math.MaxInt) {
			continue // a neighbor that lacks too much was added meanwhile, so wait again
		}
		p.mu.Lock()
		data := p.detachBatch()
		p.mu.Unlock()
		p.publish(data)
	}
}

// gatherMore waits while the batch collects events. The more batches the neighbors lack
// (behind), the longer it waits. The time is counted from the moment at which the last
// batch was taken for publishing.
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
			// The signal full may have been set for an earlier batch, so check that this
			// batch is full.
			p.mu.Lock()
			full := p.waiting
			p.mu.Unlock()
			if full {
				return
			}
		}
	}
}

// publish passes a batch to pubsub until pubsub accepts it. Pubsub's event loop in turn
// passes it to engineDriver.
func (p *publisher) publish(data []byte) {
	for p.tryPublish(data) && sleep(p.b.ctx, publishRetry) == nil {
	}
}

// tryPublish passes the batch data to pubsub. It reports whether that has failed and
// must be tried again.
func (p *publisher) tryPublish(data []byte) (again bool) {
	err := p.b.sub.Topic.Publish(p.b.ctx, data)
	if err == nil || p.b.ctx.Err() != nil {
		return false
	}
	// These errors mean that the application has ended the pubsub or closed the topic,
	// for good. Any other error comes from a validator of the application, which may
	// accept the batch later.
	if errors.Is(err, context.Canceled) || errors.Is(err, pubsub.ErrTopicClosed) {
		p.b.log.Error("nothing can be broadcast any more", "error", ErrPubSubEnded)
		p.b.orphaned.Store(true)
		p.mu.Lock()
		p.changed.Broadcast()
		p.mu.Unlock()
		return false
	}
	p.b.log.Warn("a batch could not be published; trying again", "error", err)
	return true
}

// nextNumber returns the number that the next event gets.
func (p *publisher) nextNumber() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nextEvent
}

// close wakes the Emit calls that wait for space. Events that were not published are
// dropped.
func (p *publisher) close() {
	// Locking mu also waits for an Emit call that is about to start a goroutine.
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed.Broadcast()
}

// maxEventHeader is how many bytes the header of an event takes in a batch at most: a
// tag and a length.
const maxEventHeader = 1 + 5

// sleep waits for the duration d, or until ctx ends, whose error it then returns.
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
