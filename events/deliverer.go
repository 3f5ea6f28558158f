package events

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/fair"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// deliverer calls handlers for the events that are in order. It reads the events from
// the store. The events of one sender are handled one after the other; senders take
// turns on a limited number of goroutines. A slow handler delays only its sender's
// events at this node. If the store drops events before they were read, they are
// reported as a gap.
type deliverer struct {
	b *Broadcast

	mu     sync.Mutex
	turns  *fair.Scheduler[peer.ID, *deliveryQueue]
	warned logging.Limiter
}

const (
	// maxQueues is how many senders may have events that wait for handlers. There must
	// be a limit because anybody can use any number of keys, and a queue can outlive
	// its sender's events in the store. The store has space for about this many
	// senders.
	maxQueues = 20_000
	// maxRanges is how many ranges of events may wait for one sender. A sender could
	// make their number grow by leaving out every other event.
	maxRanges = 4096
)

// deliveryQueue lists the events of one sender that wait for handlers.
type deliveryQueue struct {
	arena  event.Arena
	ranges []eventRange
}

// Empty implements [fair.Backlog].
func (q *deliveryQueue) Empty() bool { return len(q.ranges) == 0 }

// eventRange is the events [from, to) of a session. They are in the store, or lost.
type eventRange struct {
	session  order.SessionKey
	from, to uint64
	lost     bool
}

func (d *deliverer) init(b *Broadcast) {
	d.b = b
	d.turns = fair.New(&d.mu, fair.Config[peer.ID, *deliveryQueue]{
		MaxWorkers: dispatch.MaxWorkers,
		Go:         func(work func(context.Context)) { b.dispatcher.Start(b.ctx, work) },
		Turn:       d.deliver,
	})
}

// enqueue adds the events of the step s to the queue of their sender. It does not block.
// If too many senders have a queue and this one has none, it drops the events and
// returns false.
func (d *deliverer) enqueue(s *order.Step) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := eventRange{s.Session, s.From, s.To, s.Lost}
	// The deliverer is closed. close has counted the events that waited then as not
	// handled; the events of this step are counted here.
	if d.turns.Closed() {
		d.countUndelivered(r)
		return true
	}
	q, ok := d.turns.Queue(s.Sender)
	if !ok {
		if d.turns.Len() >= maxQueues {
			d.countUndelivered(r)
			d.warned.Log(d.b.log, slog.LevelWarn, time.Now(), s.To-s.From, "events of new senders were dropped because handlers are slow", "sender", s.Sender, "first", s.From, "last", s.To-1)
			return false
		}
		q = &deliveryQueue{arena: event.Arena{From: s.Sender}}
		d.turns.Add(s.Sender, q)
	}
	q.push(r)
	return true
}

// push adds the range r of events to the end of the queue q. If r is the continuation of
// the last range in q, push extends that range instead.
func (q *deliveryQueue) push(r eventRange) {
	if n := len(q.ranges); n > 0 {
		switch last := &q.ranges[n-1]; {
		case last.session != r.session || last.to != r.from:
			// The events of r do not directly follow those of the last range, so r
			// becomes a range of its own.
		case last.lost == r.lost:
			last.to = r.to
			return
		case n >= maxRanges:
			// The queue has as many ranges as it may have, because lost and present
			// events alternate. The present events are dropped, so that all of them are
			// one lost range.
			last.to, last.lost = r.to, true
			return
		}
	}
	q.ranges = append(q.ranges, r)
}

// countUndelivered adds the events of the range r to the counter of lost events or of
// dropped events, because no handler will see them.
func (d *deliverer) countUndelivered(r eventRange) {
	if r.lost {
		d.b.stats.lost.Add(r.to - r.from)
	} else {
		d.b.stats.overrun.Add(r.to - r.from)
	}
}

// advance removes the events with numbers below to from the first range of the queue q,
// because they are about to be handled or reported as a gap. If the deliverer is closed,
// it returns false, since close has counted these events already.
func (d *deliverer) advance(q *deliveryQueue, to uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turns.Closed() {
		return false
	}
	first := &q.ranges[0]
	if first.from = to; first.from >= first.to {
		q.ranges = q.ranges[1:]
		if len(q.ranges) == 0 {
			q.ranges = nil // frees the memory of the array behind the slice
		}
	}
	return true
}

// deliver is called when it is a sender's turn. It looks at the first range in the
// sender's queue q. If that range is lost, deliver reports it as a gap; otherwise it
// calls the handlers for those events of the range that are in its first batch.
func (d *deliverer) deliver(ctx context.Context, sender peer.ID, q *deliveryQueue) {
	d.mu.Lock()
	closed := d.turns.Closed()
	var r eventRange
	if !closed {
		r = q.ranges[0]
	}
	d.mu.Unlock()
	if closed {
		return
	}
	// The node may first have to complete the link to the sender and to run its callbacks
	// for the link.
	if admit := d.b.node.Admit; admit != nil {
		if err := admit(ctx, sender); err != nil {
			if d.advance(q, r.to) {
				d.countUndelivered(r)
				d.b.driver.releaseHandled(sender, r.session, r.to)
			}
			d.b.log.Debug("events of a sender that is not admitted were dropped", "sender", sender, "events", r.to-r.from, "error", err)
			return
		}
	}
	if r.lost {
		if d.advance(q, r.to) {
			d.reportGap(ctx, sender, r, false)
			d.b.driver.releaseHandled(sender, r.session, r.to)
		}
		return
	}
	o, from, to, ok := d.b.driver.readStored(sender, r)
	if !ok || from > r.from {
		// The store has dropped the first events of the range for lack of space.
		if ok {
			r.to = from
		}
		if d.advance(q, r.to) {
			d.reportGap(ctx, sender, r, true)
		}
		return
	}
	if d.advance(q, to) {
		// This is deferred so that it also happens if a handler calls runtime.Goexit.
		defer d.b.driver.releaseHandled(sender, r.session, to)
		d.dispatch(ctx, q, o, from, to)
	}
}

// dispatch calls the handlers for the events [from, to) of the batch o, one event after
// the other. q is the queue of the sender.
func (d *deliverer) dispatch(ctx context.Context, q *deliveryQueue, o *signedBatch, from, to uint64) {
	data := o.data
	t := dispatch.TurnOf(ctx)
	var b []byte
	for n := o.first; n < to; n++ {
		// A batch has no index of its events, so those before from are skipped one by
		// one.
		if b, data = cutEvent(data); n < from {
			continue
		}
		if ctx.Err() != nil {
			d.b.stats.overrun.Add(to - n)
			return
		}
		d.b.stats.delivered.Add(1)
		ev, err := q.arena.Borrowed(b)
		if err != nil {
			d.b.stats.malformed.Add(1)
			d.b.dispatcher.LogMalformed(q.arena.From, err)
			continue
		}
		if t.Find(ev) {
			args := ev.Args
			if len(args) <= event.OwnEvent {
				args = t.Copy(args) // without a copy, keeping the event would keep the whole batch in memory
			}
			ev = q.arena.Kept(args)
		}
		t.Run(ev)
	}
}

// reportGap counts and logs the events of the range r of a sender, which no handler will
// see, and calls the handlers of OnGap with them. slow means that this node dropped the
// events because handlers were slow; otherwise no neighbor had them.
func (d *deliverer) reportGap(ctx context.Context, sender peer.ID, r eventRange, slow bool) {
	n := r.to - r.from
	if slow {
		d.b.stats.overrun.Add(n)
	} else {
		d.b.stats.lost.Add(n)
	}
	d.warnGap(n, sender, r, slow)
	d.b.gaps.report(ctx, d.b.dispatcher, Gap{From: sender, Session: r.session.ID, First: r.from, Last: r.to - 1, Slow: slow})
}

func (d *deliverer) warnGap(n uint64, sender peer.ID, r eventRange, slow bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	msg := "events were lost on the way"
	if slow {
		msg = "events were dropped because handlers are slow"
	}
	d.warned.Log(d.b.log, slog.LevelWarn, time.Now(), n, msg, "sender", sender, "first", r.from, "last", r.to-1)
}

// close drops the events that wait for handlers, and counts them as not handled.
func (d *deliverer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range d.turns.All() {
		for _, r := range q.ranges {
			d.countUndelivered(r)
		}
	}
	d.turns.Close()
}
