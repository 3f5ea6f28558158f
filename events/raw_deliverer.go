package events

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// rawDeliverer hand messages that are just bytes to handlers. Nothing keeps a sender of
// those from sending more than handlers are through with, so what waits has a
// bound, and beyond it the latest of the sender of whom most waits is dropped.
// The messages of one sender are handled one after the other; senders take turns, on
// as many goroutines as there are senders with something to handle.
type rawDeliverer struct {
	dispatcher *dispatcher
	ctx        context.Context // of handlers

	mu       sync.Mutex
	closed   bool
	handlers []*rawHandler // replaced, not changed
	queues   map[peer.ID]*rawQueue
	ready    []*rawQueue // those that wait for a goroutine
	workers  int
	waiting  int // weight of all that waits or is being handled
	warned   logLimiter

	delivered, dropped atomic.Uint64
}

const (
	// maxRaw bounds what waits for handlers, and is four of the largest messages. A
	// message counts its bytes and rawWeight, so of small ones 4096 wait at most, and
	// those of 4096 senders.
	maxRaw    = 4 << 20
	rawWeight = 1 << 10
)

type rawHandler struct {
	f   func(context.Context, peer.ID, []byte)
	off atomic.Bool
}

// rawQueue is what waits of one sender.
type rawQueue struct {
	from   peer.ID
	list   [][]byte
	weight int // of list, and of what is being handled
}

func weigh(data []byte) int { return len(data) + rawWeight }

func (r *rawDeliverer) init(ctx context.Context, m *dispatcher) {
	r.ctx, r.dispatcher = ctx, m
	r.queues = make(map[peer.ID]*rawQueue)
}

// on registers f, which is given bytes of its own.
func (r *rawDeliverer) on(f func(context.Context, peer.ID, []byte)) (off func()) {
	h := &rawHandler{f: f}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handlers = append(r.handlers[:len(r.handlers):len(r.handlers)], h)
	return func() {
		h.off.Store(true)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.handlers = slices.DeleteFunc(slices.Clone(r.handlers), func(other *rawHandler) bool { return other == h })
	}
}

// put adds a message behind those of its sender, or drops one if there is no room. It
// does not block. It returns false if nobody would handle it.
func (r *rawDeliverer) put(from peer.ID, data []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.handlers) == 0 {
		return false
	}
	q := r.queues[from]
	if r.closed || q == nil && r.crowded(from) || !r.makeRoom(from, weigh(data)) {
		r.dropped.Add(1)
		return true
	}
	if q == nil {
		q = &rawQueue{from: from}
		r.queues[from] = q
		r.ready = append(r.ready, q)
		if r.workers < maxWorkers {
			r.workers++
			ctx, leave := r.dispatcher.enter(r.ctx)
			go func() {
				defer leave()
				r.work(ctx)
			}()
		}
	}
	if data == nil {
		data = []byte{} // which nil is not: it stands for no message
	}
	q.list = append(q.list, data)
	q.weight += weigh(data)
	r.waiting += weigh(data)
	return true
}

// crowded reports whether there is no room for another sender: one whose messages were
// all dropped for others keeps its turn, and weighs nothing. It needs mu.
func (r *rawDeliverer) crowded(from peer.ID) bool {
	if len(r.queues) < maxRaw/rawWeight {
		return false
	}
	r.warned.warn(r.dispatcher.log, time.Now(), 1, "messages were dropped since handlers are slow", "sender", from)
	return true
}

// makeRoom drops what waits of others, unless that would leave them with less than
// the sender has. It needs mu.
func (r *rawDeliverer) makeRoom(from peer.ID, weight int) bool {
	own := weight
	if q := r.queues[from]; q != nil {
		own += q.weight
	}
	for r.waiting+weight > maxRaw {
		var most *rawQueue
		for _, q := range r.queues {
			if len(q.list) > 0 && (most == nil || q.weight > most.weight) {
				most = q
			}
		}
		r.warned.warn(r.dispatcher.log, time.Now(), 1, "messages were dropped since handlers are slow", "sender", from)
		if most == nil || most.weight <= own {
			return false
		}
		last := len(most.list) - 1
		r.took(most, most.list[last])
		most.list[last] = nil
		most.list = most.list[:last]
		r.dropped.Add(1)
	}
	return true
}

// took notes that a message of q waits no more. It needs mu.
func (r *rawDeliverer) took(q *rawQueue, data []byte) {
	q.weight -= weigh(data)
	r.waiting -= weigh(data)
}

// work handles whatever waits, until nothing does.
func (r *rawDeliverer) work(ctx context.Context) {
	for {
		q, data, handlers, ok := r.take()
		if !ok {
			return
		}
		if data != nil {
			for _, h := range handlers {
				if !h.off.Load() {
					r.call(ctx, h, q.from, bytes.Clone(data))
				}
			}
			r.delivered.Add(1)
		}
		r.done(q, data)
	}
}

// take returns the next message of the sender whose turn it is. It has none if that
// was dropped meanwhile.
func (r *rawDeliverer) take() (q *rawQueue, data []byte, handlers []*rawHandler, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ready) == 0 || r.closed {
		r.workers--
		return nil, nil, nil, false
	}
	q = r.ready[0]
	r.ready[0] = nil
	r.ready = r.ready[1:]
	if len(q.list) > 0 {
		data = q.list[0]
		q.list[0] = nil
		q.list = q.list[1:]
	}
	return q, data, r.handlers, true
}

// done gives the sender its next turn.
func (r *rawDeliverer) done(q *rawQueue, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if data != nil {
		r.took(q, data)
	}
	switch {
	case r.closed:
	case len(q.list) == 0:
		delete(r.queues, q.from)
	default:
		r.ready = append(r.ready, q)
	}
}

func (r *rawDeliverer) call(ctx context.Context, h *rawHandler, from peer.ID, data []byte) {
	defer r.dispatcher.recovered("a handler of raw messages panicked", from)
	h.f(ctx, from, data)
}

// close drops what waits.
func (r *rawDeliverer) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, q := range r.queues {
		r.dropped.Add(uint64(len(q.list)))
	}
	clear(r.queues)
	r.ready = nil
}
