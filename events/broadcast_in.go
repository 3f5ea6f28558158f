package events

import (
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// receiver takes messages from pubsub, brings them into order and hands them to
// one goroutine per sender, which calls the handlers.
type receiver struct {
	b *Broadcast

	mu      sync.Mutex
	closed  bool
	arrived []*pubsub.Message // taken in pubsub's event loop, not yet ordered
	tells   []told            // marks of neighbours, likewise
	bytes   int               // of arrived and of all queues
	queues  map[peer.ID]*senderQueue
	wake    chan struct{}

	core   *order.Core[[][]byte] // under coreMu
	coreMu sync.Mutex
	lastAt time.Time // of the last warning about lost events
}

type told struct {
	from  peer.ID
	marks []order.Mark
}

// senderQueue holds the events of one sender that wait for their handlers. A
// goroutine lives only while there are any.
type senderQueue struct {
	events [][]byte
	bytes  int
}

func (r *receiver) init(b *Broadcast) {
	r.b = b
	r.queues = map[peer.ID]*senderQueue{}
	r.wake = make(chan struct{}, 1)
	r.core = order.New[[][]byte](order.Config{})
}

// take is the subscription's filter. It runs in pubsub's event loop and must not
// wait; refusing the message keeps it out of the subscription's own queue.
func (r *receiver) take(m *pubsub.Message) bool {
	if m.GetFrom() == r.b.host.ID() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	// Ordering is much faster than what pubsub can deliver, so this bound is
	// reached only by a flood; what it drops shows as a gap.
	if r.bytes > 2*r.b.cfg.Backlog {
		return false
	}
	r.arrived = append(r.arrived, m)
	r.bytes += len(m.Data)
	r.poke()
	return false
}

func (r *receiver) learn(from peer.ID, marks []order.Mark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tells = append(r.tells, told{from, marks})
	r.poke()
}

func (r *receiver) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *receiver) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.arrived, r.tells = nil, nil
}

// loop orders what has arrived.
func (r *receiver) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		r.mu.Lock()
		arrived, tells := r.arrived, r.tells
		r.arrived, r.tells = nil, nil
		r.mu.Unlock()

		r.coreMu.Lock()
		now := time.Now()
		var steps []order.Step[[][]byte]
		for _, t := range tells {
			for _, m := range t.marks {
				if m.Sender != r.b.host.ID() {
					steps = r.core.Learn(now, m, m.Sender == t.from, steps)
				}
			}
		}
		for _, m := range arrived {
			steps = r.receive(now, m, steps)
		}
		steps = r.core.Advance(now, steps)
		next := r.core.Next()
		r.coreMu.Unlock()

		for _, step := range steps {
			r.perform(now, step)
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = max(time.Until(next), time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-r.wake:
		case <-timer.C:
		case <-r.b.ctx.Done():
			return
		}
	}
}

func (r *receiver) receive(now time.Time, m *pubsub.Message, steps []order.Step[[][]byte]) []order.Step[[][]byte] {
	r.mu.Lock()
	r.bytes -= len(m.Data)
	r.mu.Unlock()
	session, first, events, err := decodeBatch(m.Data)
	if err != nil {
		// Plain pubsub peers may share the topic: this is nobody's fault.
		r.b.nForeign.Add(1)
		return steps
	}
	batch := order.Batch[[][]byte]{Session: session, First: first, Count: len(events), Size: len(m.Data), Value: events}
	_, steps = r.core.Receive(now, m.GetFrom(), batch, steps)
	return steps
}

// perform carries out one step of the core.
func (r *receiver) perform(now time.Time, step order.Step[[][]byte]) {
	if step.Lost {
		n := step.To - step.From
		r.b.nLost.Add(n)
		if now.Sub(r.lastAt) > time.Second {
			r.lastAt = now
			r.b.log.Warn("broadcasts were lost on the way", "sender", step.Sender, "from", step.From, "events", n)
		}
		return
	}
	for _, ev := range step.Value[step.Skip:][:step.To-step.From] {
		r.queue(now, step.Sender, ev)
	}
}

// queue hands an event to the goroutine of its sender. When handlers are too slow
// the sender with the most to wait for loses its newest.
func (r *receiver) queue(now time.Time, sender peer.ID, ev []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	q := r.queues[sender]
	if q == nil {
		q = &senderQueue{}
		r.queues[sender] = q
		r.b.tasks.Go(func() { r.handle(sender, q) })
	}
	q.events = append(q.events, ev)
	q.bytes += len(ev)
	r.bytes += len(ev)
	for r.bytes > r.b.cfg.Backlog {
		most := q
		for _, other := range r.queues {
			if other.bytes > most.bytes {
				most = other
			}
		}
		last := len(most.events) - 1
		if last < 0 {
			break // all of it has yet to be ordered
		}
		n := len(most.events[last])
		most.events[last] = nil
		most.events = most.events[:last]
		most.bytes -= n
		r.bytes -= n
		r.b.nOverrun.Add(1)
		if now.Sub(r.lastAt) > time.Second {
			r.lastAt = now
			r.b.log.Warn("broadcasts were dropped: handlers are too slow", "backlog", r.b.cfg.Backlog)
		}
	}
}

// handle calls the handlers for one sender's events until none is left.
func (r *receiver) handle(sender peer.ID, q *senderQueue) {
	ctx, leave := r.b.mux.enter(r.b.ctx)
	defer leave()
	refused := r.b.cfg.Admit != nil && r.b.cfg.Admit(ctx, sender) != nil
	for {
		r.mu.Lock()
		if len(q.events) == 0 || r.closed {
			if r.queues[sender] == q {
				delete(r.queues, sender)
			}
			r.mu.Unlock()
			return
		}
		events := q.events
		r.bytes -= q.bytes
		q.events, q.bytes = nil, 0
		r.mu.Unlock()
		for _, data := range events {
			if refused || ctx.Err() != nil {
				break
			}
			ev, err := decodeEvent(sender, data)
			if err != nil {
				r.b.mux.nUndecodable.Add(1)
				continue
			}
			r.b.mux.dispatch(ctx, ev)
		}
	}
}

func (r *receiver) marks(n int) []order.Mark {
	r.coreMu.Lock()
	defer r.coreMu.Unlock()
	return r.core.Marks(n)
}
