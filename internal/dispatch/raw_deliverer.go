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

// RawDeliverer passes messages that are just bytes to handlers. Their senders are not
// slowed down if they send faster than handlers work. So the memory for waiting
// messages is limited: at the limit, the latest message of the sender with the most
// waiting is dropped. The messages of one sender are handled one after the other;
// senders take turns on a limited number of goroutines.
type RawDeliverer struct {
	dispatcher *Dispatcher
	ctx        context.Context // parent of the contexts given to handlers

	mu       sync.Mutex
	handlers []*rawHandler // copied on each change, so that it can be read without mu
	turns    *fair.Scheduler[peer.ID, *rawQueue]
	weight   int // weight of all messages that wait or are being handled; see rawWeight
	warned   logging.Limiter

	delivered, dropped atomic.Uint64
}

const (
	// maxRaw is the greatest weight of all waiting messages together. A message weighs
	// its size in bytes plus rawWeight. So four messages of the largest size can wait,
	// or 4,096 small ones, from at most 4,096 senders.
	maxRaw    = 4 << 20
	rawWeight = 1 << 10
)

// rawHandler is a registered function for raw messages.
type rawHandler struct {
	f   func(context.Context, peer.ID, []byte)
	off atomic.Bool
}

// rawQueue holds the waiting messages of one sender.
type rawQueue struct {
	list   [][]byte
	weight int // weight of the messages in list and of the one that is being handled
}

// Empty implements [fair.Backlog].
func (q *rawQueue) Empty() bool { return len(q.list) == 0 }

// weigh returns how much a message counts toward maxRaw.
func weigh(data []byte) int { return len(data) + rawWeight }

// Init must be called before all other methods. ctx is the parent of the handlers'
// contexts.
func (r *RawDeliverer) Init(ctx context.Context, m *Dispatcher) {
	r.ctx, r.dispatcher = ctx, m
	r.turns = fair.New(&r.mu, fair.Config[peer.ID, *rawQueue]{
		MaxWorkers: MaxWorkers,
		Go:         func(work func(context.Context)) { m.Start(ctx, work) },
		Turn:       r.deliver,
	})
}

// On registers f, which gets its own copy of each message.
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

// Enqueue adds a message to the queue of its sender. If there is no space, it drops
// this or another message. It does not block. It returns false if there is no handler.
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

// tooManySenders reports whether there is no space for the queue of another sender. If
// so, it logs that a message of from is dropped. Weights do not limit the number of
// senders: a sender whose messages were all dropped keeps its queue until it has its
// turn. The caller must hold mu.
func (r *RawDeliverer) tooManySenders(from peer.ID) bool {
	if r.turns.Len() < maxRaw/rawWeight {
		return false
	}
	r.warn(from)
	return true
}

// makeSpace drops waiting messages of the senders with the most weight until there is
// space for a message of the sender from with the given weight. It returns false if no
// other sender has more weight than from would have. The caller must hold mu.
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
		// A sender that floods must not displace the messages of quieter ones.
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

// subtractWeight notes that the message data of the queue q was dropped or handled. The
// caller must hold mu.
func (r *RawDeliverer) subtractWeight(q *rawQueue, data []byte) {
	q.weight -= weigh(data)
	r.weight -= weigh(data)
}

// deliver is called when it is a sender's turn. It passes one message to the handlers.
func (r *RawDeliverer) deliver(ctx context.Context, from peer.ID, q *rawQueue) {
	data, handlers, ok := r.pop(q)
	if !ok {
		return // its messages were dropped meanwhile, or Close was called
	}
	// This is deferred so that it also happens if a handler calls runtime.Goexit.
	defer func() {
		r.delivered.Add(1)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.subtractWeight(q, data)
	}()
	for _, h := range handlers {
		if !h.off.Load() {
			r.call(ctx, h, from, append([]byte{}, data...)) // never nil, even if empty
		}
	}
}

// pop removes the first message from the queue. The message still counts by its weight
// until it was handled.
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

// Counts returns how many messages were passed to handlers, and how many were dropped.
func (r *RawDeliverer) Counts() (delivered, dropped uint64) {
	return r.delivered.Load(), r.dropped.Load()
}

// Close drops the waiting messages, and counts them as dropped.
func (r *RawDeliverer) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.turns.All() {
		r.dropped.Add(uint64(len(q.list)))
	}
	r.turns.Close()
}
