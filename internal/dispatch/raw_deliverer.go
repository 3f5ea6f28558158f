package dispatch

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/fair"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// RawDeliverer hands messages that are just bytes to handlers. No window keeps
// their senders from sending faster than handlers work, so the memory for waiting
// messages is bounded: beyond the bound, the latest message of the sender with the
// most waiting is dropped. The messages of one sender are handled one after the
// other; senders take turns on a bounded number of goroutines.
type RawDeliverer struct {
	dispatcher *Dispatcher
	ctx        context.Context // parent of the handlers' contexts

	mu       sync.Mutex
	handlers []*rawHandler // replaced, not changed
	turns    *fair.Scheduler[peer.ID, *rawQueue]
	weight   int // of all messages that wait or are being handled
	warned   logging.Limiter

	delivered, dropped atomic.Uint64
}

const (
	// maxRaw bounds the weight of waiting messages: four of the largest. A message
	// weighs its bytes and rawWeight, so at most 4,096 small ones wait, and those of
	// at most 4,096 senders.
	maxRaw    = 4 << 20
	rawWeight = 1 << 10
)

type rawHandler struct {
	f   func(context.Context, peer.ID, []byte)
	off atomic.Bool
}

// rawQueue holds the waiting messages of one sender.
type rawQueue struct {
	list   [][]byte
	weight int // of list and of the message that is being handled
}

// Empty implements [fair.Backlog].
func (q *rawQueue) Empty() bool { return len(q.list) == 0 }

func weigh(data []byte) int { return len(data) + rawWeight }

func (r *RawDeliverer) Init(ctx context.Context, m *Dispatcher) {
	r.ctx, r.dispatcher = ctx, m
	r.turns = fair.New(&r.mu, fair.Config[peer.ID, *rawQueue]{
		MaxWorkers: MaxWorkers,
		Go:         func(work func(context.Context)) { m.Start(ctx, work) },
		Turn:       r.deliver,
	})
}

// On registers f, which gets its own copy of the bytes.
func (r *RawDeliverer) On(f func(context.Context, peer.ID, []byte)) (off func()) {
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

// Enqueue adds a message behind those of its sender, or drops one if there is no
// space. It does not block. It returns false if there is no handler.
func (r *RawDeliverer) Enqueue(from peer.ID, data []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.handlers) == 0 {
		return false
	}
	q, ok := r.turns.Queue(from)
	if r.turns.Closed() || !ok && r.tooManySenders(from) || !r.makeSpace(from, weigh(data)) {
		r.dropped.Add(1)
		return true
	}
	if !ok {
		q = new(rawQueue)
		r.turns.Add(from, q)
	}
	q.list = append(q.list, data)
	q.weight += weigh(data)
	r.weight += weigh(data)
	return true
}

// tooManySenders reports whether there is no space for another sender. The weights
// do not bound their number: a sender whose messages were all dropped keeps its
// queue until its turn. It needs mu.
func (r *RawDeliverer) tooManySenders(from peer.ID) bool {
	if r.turns.Len() < maxRaw/rawWeight {
		return false
	}
	r.warn(from)
	return true
}

// makeSpace drops waiting messages of other senders, unless that would leave them
// with less than from has. It needs mu.
func (r *RawDeliverer) makeSpace(from peer.ID, weight int) bool {
	own := weight
	if q, ok := r.turns.Queue(from); ok {
		own += q.weight
	}
	for r.weight+weight > maxRaw {
		var most *rawQueue
		for _, q := range r.turns.All() {
			if len(q.list) > 0 && (most == nil || q.weight > most.weight) {
				most = q
			}
		}
		r.warn(from)
		// A sender that floods must not push out the messages of quieter ones.
		if most == nil || most.weight <= own {
			return false
		}
		last := len(most.list) - 1
		r.subtractWeight(most, most.list[last])
		most.list[last] = nil
		most.list = most.list[:last]
		r.dropped.Add(1)
	}
	return true
}

func (r *RawDeliverer) warn(from peer.ID) {
	r.warned.Log(r.dispatcher.log, slog.LevelWarn, time.Now(), 1, "messages were dropped because handlers are slow", "sender", from)
}

// subtractWeight notes that a message of q was dropped or handled. It needs mu.
func (r *RawDeliverer) subtractWeight(q *rawQueue, data []byte) {
	q.weight -= weigh(data)
	r.weight -= weigh(data)
}

// deliver is one turn of a sender: one message.
func (r *RawDeliverer) deliver(ctx context.Context, from peer.ID, q *rawQueue) {
	data, handlers, ok := r.pop(q)
	if !ok {
		return // its messages were dropped meanwhile, or the channel was closed
	}
	// Deferred, so that it also happens if a handler calls runtime.Goexit.
	defer func() {
		r.delivered.Add(1)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.subtractWeight(q, data)
	}()
	for _, h := range handlers {
		if !h.off.Load() {
			r.call(ctx, h, from, append([]byte{}, data...)) // never nil
		}
	}
}

// pop removes the first message of the queue. Its weight counts until it has been
// handled.
func (r *RawDeliverer) pop(q *rawQueue) (data []byte, handlers []*rawHandler, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.turns.Closed() || len(q.list) == 0 {
		return nil, nil, false
	}
	data = q.list[0]
	q.list[0] = nil
	q.list = q.list[1:]
	return data, r.handlers, true
}

func (r *RawDeliverer) call(ctx context.Context, h *rawHandler, from peer.ID, data []byte) {
	returned := false
	defer r.dispatcher.Catch("a handler of raw messages", "", from, &returned)
	h.f(ctx, from, data)
	returned = true
}

// Counts returns how many messages handlers got, and how many were dropped.
func (r *RawDeliverer) Counts() (delivered, dropped uint64) {
	return r.delivered.Load(), r.dropped.Load()
}

// Close drops the waiting messages, and counts them.
func (r *RawDeliverer) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.turns.All() {
		r.dropped.Add(uint64(len(q.list)))
	}
	r.turns.Close()
}
