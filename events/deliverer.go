package events

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// deliverer call handlers for what is in order, which they read from the store.
// Each sender's events are handled one after the other; senders take turns, on as
// many goroutines as there are senders with something to handle, which end when
// nothing waits. A slow handler delays its sender here, and nothing else: what
// falls out of the store before it was read is a gap.
type deliverer struct {
	b *Broadcast

	mu      sync.Mutex
	closed  bool
	queues  map[peer.ID]*deliveryQueue // of senders that wait or are being handled
	ready   []*deliveryQueue           // those that wait for a goroutine
	workers int
	warned  logLimiter
}

const (
	// maxWorkers bounds the goroutines that call handlers; beyond it senders wait.
	maxWorkers = 1024
	// maxQueues bounds the senders that wait: keys cost nothing, and a queue outlives
	// what the store had of its sender. It is about as many as the store has room for.
	maxQueues = 20_000
	// maxRuns bounds what waits of one sender, which a sender could otherwise make
	// grow by leaving out every other event.
	maxRuns = 4096
)

type deliveryQueue struct {
	events eventArena
	runs   []eventRange
}

// eventRange is events [from, to) of a session, which are lost or in the store.
type eventRange struct {
	session  order.SessionKey
	from, to uint64
	lost     bool
}

func (r *deliverer) init(b *Broadcast) {
	r.b = b
	r.queues = make(map[peer.ID]*deliveryQueue)
}

// enqueue adds events behind those of the same sender, or drops those of a new one if too
// many senders wait. It does not block. It needs the inbox's mu.
func (r *deliverer) enqueue(s *order.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		r.countUndelivered(eventRange{from: s.From, to: s.To, lost: s.Lost})
		return
	}
	q := r.queues[s.Sender]
	if q == nil && len(r.queues) >= maxQueues {
		r.countUndelivered(eventRange{from: s.From, to: s.To, lost: s.Lost})
		r.b.driver.engine.MarkHandled(s.Sender, s.Session, s.To) // or the store would keep them for us
		r.warned.warn(r.b.log, time.Now(), s.To-s.From, "events of new senders were dropped since handlers are slow", "sender", s.Sender, "first", s.From, "last", s.To-1)
		return
	}
	if q == nil {
		q = &deliveryQueue{events: eventArena{from: s.Sender}}
		r.queues[s.Sender] = q
		r.ready = append(r.ready, q)
		if r.workers < maxWorkers {
			r.workers++
			ctx, leave := r.b.dispatcher.enter(r.b.ctx)
			go func() {
				defer leave()
				r.work(ctx)
			}()
		}
	}
	if n := len(q.runs); n > 0 {
		switch last := &q.runs[n-1]; {
		case last.session != s.Session || last.to != s.From:
		case last.lost == s.Lost:
			last.to = s.To
			return
		case n >= maxRuns:
			last.to, last.lost = s.To, true
			return
		}
	}
	q.runs = append(q.runs, eventRange{s.Session, s.From, s.To, s.Lost})
}

// countUndelivered counts events that no handler will see.
func (r *deliverer) countUndelivered(x eventRange) {
	if x.lost {
		r.b.stats.lost.Add(x.to - x.from)
	} else {
		r.b.stats.overrun.Add(x.to - x.from)
	}
}

// work handles whatever waits, until nothing does.
func (r *deliverer) work(ctx context.Context) {
	for {
		q, x, ok := r.take()
		if !ok {
			return
		}
		r.deliver(ctx, q, x)
		r.done(q)
	}
}

// take returns the next events of the sender whose turn it is: a whole gap, or
// what is in one batch.
func (r *deliverer) take() (*deliveryQueue, eventRange, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ready) == 0 || r.closed {
		r.workers--
		return nil, eventRange{}, false
	}
	q := r.ready[0]
	r.ready[0] = nil
	r.ready = r.ready[1:]
	return q, q.runs[0], true
}

// done gives the sender its next turn.
func (r *deliverer) done(q *deliveryQueue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
	case len(q.runs) == 0:
		delete(r.queues, q.events.from)
	default:
		r.ready = append(r.ready, q)
	}
}

// advance says that the events of the first run below to are being dealt with. It
// returns false if close has dealt with them.
func (r *deliverer) advance(q *deliveryQueue, to uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	x := &q.runs[0]
	if x.from = to; x.from >= x.to {
		q.runs = q.runs[1:]
		if len(q.runs) == 0 {
			q.runs = nil
		}
	}
	return true
}

// deliver deals with the beginning of a run.
func (r *deliverer) deliver(ctx context.Context, q *deliveryQueue, x eventRange) {
	sender := q.events.from
	if admit := r.b.cfg.Admit; admit != nil {
		if err := admit(ctx, sender); err != nil {
			if r.advance(q, x.to) {
				r.countUndelivered(x)
				r.b.driver.releaseHandled(sender, x.session, x.to)
			}
			r.b.log.Debug("events of a sender that is not admitted", "sender", sender, "events", x.to-x.from, "error", err)
			return
		}
	}
	if x.lost {
		if r.advance(q, x.to) {
			r.reportGap(ctx, sender, x, false)
			r.b.driver.releaseHandled(sender, x.session, x.to)
		}
		return
	}
	o, from, to, ok := r.b.driver.readStored(sender, x)
	if !ok || from > x.from {
		if ok {
			x.to = from
		}
		if r.advance(q, x.to) {
			r.reportGap(ctx, sender, x, true)
		}
		return
	}
	if r.advance(q, to) {
		r.dispatch(ctx, q, o, from, to)
		r.b.driver.releaseHandled(sender, x.session, to)
	}
}

// dispatch calls the handlers for the events [from, to) of a batch.
func (r *deliverer) dispatch(ctx context.Context, q *deliveryQueue, o *signedBatch, from, to uint64) {
	data := o.data
	run := ctx.(*turn) // by enter
	var b []byte
	for n := o.first; n < to; n++ {
		if b, data = cutEvent(data); n < from {
			continue
		}
		if ctx.Err() != nil {
			r.b.stats.overrun.Add(to - n)
			return
		}
		r.b.stats.delivered.Add(1)
		ev, err := q.events.borrowed(b)
		if err != nil {
			r.b.stats.malformed.Add(1)
			r.b.log.Debug("an event that cannot be decoded", "sender", q.events.from, "error", err)
			continue
		}
		handlers := run.handlersFor(ev)
		if run.keeps {
			body := ev.Args
			if len(body) <= ownEvent {
				body = run.Copy(body) // so that who keeps it does not keep the batch
			}
			ev = q.events.kept(body)
		}
		r.b.dispatcher.run(run, handlers, ev)
	}
}

// reportGap reports events that are not delivered.
func (r *deliverer) reportGap(ctx context.Context, sender peer.ID, x eventRange, slow bool) {
	n := x.to - x.from
	if slow {
		r.b.stats.overrun.Add(n)
	} else {
		r.b.stats.lost.Add(n)
	}
	r.warnGap(n, sender, x, slow)
	r.b.dispatcher.gap(ctx, Gap{From: sender, Session: x.session.ID, First: x.from, Last: x.to - 1, Slow: slow})
}

func (r *deliverer) warnGap(n uint64, sender peer.ID, x eventRange, slow bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	msg := "events were lost on the way"
	if slow {
		msg = "events were dropped since handlers are slow"
	}
	r.warned.warn(r.b.log, time.Now(), n, msg, "sender", sender, "first", x.from, "last", x.to-1)
}

// close drops what waits.
func (r *deliverer) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, q := range r.queues {
		for _, x := range q.runs {
			r.countUndelivered(x)
		}
	}
	clear(r.queues)
	r.ready = nil
}

// readStored returns the batch with the first events of x that are in the store: those
// from from to to.
func (in *engineDriver) readStored(sender peer.ID, x eventRange) (o *signedBatch, from, to uint64, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	b, ok := in.engine.NextEntry(sender, x.session, x.from, x.to)
	if !ok {
		return nil, 0, 0, false
	}
	return b.Value, max(x.from, b.First), min(x.to, b.End), true
}

// releaseHandled says that the events of a session below to need not be kept for handlers.
func (in *engineDriver) releaseHandled(sender peer.ID, session order.SessionKey, to uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.engine.MarkHandled(sender, session, to)
}
