package events

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/handling"
)

// anyName is what On takes for every name.
const anyName = "*"

// dispatcher holds the handlers of one channel (direct or broadcast) and calls them.
// Its methods may be called from any goroutine, also from handlers.
type dispatcher struct {
	log *slog.Logger

	mu           sync.RWMutex
	seq          uint64 // of the last registration
	handlers     map[handlerKey][]*handler
	callHandlers map[handlerKey][]*callHandler

	gaps gapHandlers

	generation atomic.Uint64 // counts changes of handlers, from 1

	running sync.Map // *running -> struct{}: goroutines that call handlers

	nPanics      atomic.Uint64
	nUndecodable atomic.Uint64
	nUnhandled   atomic.Uint64
}

// handlerKey is the kind of events a handler is for; from is empty for any sender.
type handlerKey struct {
	from peer.ID
	name string
}

type handler struct {
	seq     uint64
	f       func(context.Context, *Event)
	borrows bool // f keeps nothing of the event
	off     atomic.Bool
}

func newDispatcher(log *slog.Logger) *dispatcher {
	m := &dispatcher{log: log, handlers: make(map[handlerKey][]*handler), callHandlers: make(map[handlerKey][]*callHandler)}
	m.generation.Store(1)
	return m
}

// on registers f for the name, or for every name if it is "*". A handler for a
// name that no event can have is never called; that is a programmer's slip and
// logged as an error.
func (m *dispatcher) on(name string, f func(context.Context, *Event)) (off func()) {
	return m.onFrom("", name, f)
}

// onFrom is on for the events of one sender.
func (m *dispatcher) onFrom(from peer.ID, name string, f func(context.Context, *Event)) (off func()) {
	return m.register(from, name, &handler{f: f})
}

func (m *dispatcher) register(from peer.ID, name string, h *handler) (off func()) {
	if name != anyName {
		if err := checkName(name); err != nil {
			m.log.Error("a handler that can never be called", "error", err)
			return func() {}
		}
	}
	k := handlerKey{from, name}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	h.seq = m.seq
	// The slices are replaced and not changed, since dispatch goes through
	// them without the lock.
	old := m.handlers[k]
	m.handlers[k] = append(old[:len(old):len(old)], h)
	m.generation.Add(1)
	return func() { m.remove(k, h) }
}

func (m *dispatcher) remove(k handlerKey, h *handler) {
	if h.off.Swap(true) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.generation.Add(1)
	old := m.handlers[k]
	if len(old) == 1 {
		delete(m.handlers, k)
		return
	}
	list := make([]*handler, 0, len(old)-1)
	for _, other := range old {
		if other != h {
			list = append(list, other)
		}
	}
	m.handlers[k] = list
}

// dispatch calls the event's handlers one after the other, in the order in
// which they were registered, and returns when the last has returned. A panic
// of one is caught, counted and logged; the next is called all the same. The
// caller's ctx should come from enter; if it does not, dispatch enters for the
// time of this event.
func (m *dispatcher) dispatch(ctx context.Context, ev *Event) {
	r, ok := ctx.(*turn)
	if !ok || r.m != m {
		var leave func()
		ctx, leave = m.enter(ctx)
		defer leave()
		r = ctx.(*turn)
	}
	m.run(ctx, r.handlersFor(ev), ev)
}

// run is dispatch to the handlers that were found for the event.
func (m *dispatcher) run(ctx context.Context, handlers []*handler, ev *Event) {
	if len(handlers) == 0 {
		m.nUnhandled.Add(1)
		return
	}
	for _, h := range handlers {
		if !h.off.Load() {
			m.call(ctx, h, ev)
		}
	}
}

// handlersOf returns the handlers of an event in the order of their registration.
func (m *dispatcher) handlersOf(ev *Event) []*handler {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []*handler
	merged := false
	for _, k := range [...]handlerKey{{"", ev.Name}, {"", anyName}, {ev.From, ev.Name}, {ev.From, anyName}} {
		l := m.handlers[k]
		if len(found) == 0 {
			found = l
		} else if len(l) > 0 {
			found = append(found[:len(found):len(found)], l...)
			merged = true
		}
	}
	if merged {
		slices.SortFunc(found, func(a, b *handler) int { return cmp.Compare(a.seq, b.seq) })
	}
	return found
}

func (m *dispatcher) call(ctx context.Context, h *handler, ev *Event) {
	defer func() {
		if v := recover(); v != nil {
			m.panicked(ev, v)
		}
	}()
	h.f(ctx, ev)
}

// panicked counts and logs what was recovered from a handler.
func (m *dispatcher) panicked(ev *Event, v any) {
	m.nPanics.Add(1)
	m.log.Error("a handler panicked", "event", quote(ev.Name), "from", ev.From, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
}

// recovered, deferred, catches the panic of a handler of something else than events.
func (m *dispatcher) recovered(what string, from peer.ID) {
	if v := recover(); v != nil {
		m.nPanics.Add(1)
		m.log.Error(what, "from", from, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// panics returns how many handlers panicked.
func (m *dispatcher) panics() uint64 { return m.nPanics.Load() }

// turn is one goroutine that calls handlers of m, and their context.
type turn struct {
	context.Context
	m    *dispatcher
	done chan struct{}

	// What find said last, as the next event is often like the last one.
	from       peer.ID
	name       string
	generation uint64
	found      []*handler
	keeps      bool // one of them may keep the event

	bytes []byte // see Copy
}

// byteSlab is so many bytes that share an allocation: memory is most of what a
// small event costs. A quarter of it or more has one of its own.
const byteSlab = 8 << 10

// Undecodable counts and logs that a handler could not decode an event.
func (r *turn) Undecodable(name string, from peer.ID, err error) {
	r.m.nUndecodable.Add(1)
	// The message may repeat what the sender wrote.
	r.m.log.Debug("undecodable event", "event", quote(name), "from", from, "error", cut(err.Error(), 256))
}

// Copy returns a copy of b, for the goroutine that runs the handlers. A small copy
// shares its 8 KiB of memory with others, so keeping one keeps them all.
func (r *turn) Copy(b []byte) []byte {
	if len(b) > byteSlab/4 {
		return bytes.Clone(b)
	}
	if len(r.bytes) < len(b) {
		r.bytes = make([]byte, byteSlab)
	}
	c := r.bytes[:len(b):len(b)]
	r.bytes = r.bytes[len(b):]
	copy(c, b)
	return c
}

func (r *turn) handlersFor(ev *Event) []*handler {
	gen := r.m.generation.Load()
	if r.generation != gen || r.name != ev.Name || r.from != ev.From {
		r.from, r.name, r.generation = ev.From, ev.Name, gen
		r.found = r.m.handlersOf(ev)
		r.keeps = slices.ContainsFunc(r.found, func(h *handler) bool { return !h.borrows })
	}
	return r.found
}

// enter notes that the calling goroutine is going to call handlers, until
// leave. The returned context is the one to give to dispatch: through it a
// Close that a handler calls knows which goroutine not to wait for.
func (m *dispatcher) enter(ctx context.Context) (_ context.Context, leave func()) {
	r := &turn{Context: ctx, m: m, done: make(chan struct{})}
	m.running.Store(r, struct{}{})
	return r, func() {
		m.running.Delete(r)
		close(r.done)
	}
}

// Value is that of a context; under handling.Key it is the goroutine itself.
func (r *turn) Value(key any) any {
	if key == (handling.Key{}) {
		return r
	}
	return r.Context.Value(key)
}

// InHandler reports whether ctx is the context that a handler of this package
// was called with, or comes from one.
func InHandler(ctx context.Context) bool {
	return ctx.Value(handling.Key{}) != nil
}

// handlersTimeout is how long a Close in a handler waits when it is given no
// other end.
const handlersTimeout = 5 * time.Second

// waitContext returns the context for waiting in a Close called with ctx. As
// closing ends the contexts of handlers, only the deadline of such a ctx
// counts, or five seconds.
func waitContext(ctx context.Context) (context.Context, context.CancelFunc) {
	if !InHandler(ctx) {
		return ctx, func() {}
	}
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(handlersTimeout)
	}
	return context.WithDeadline(context.WithoutCancel(ctx), end)
}

// wait waits until every goroutine that has entered has left, or until ctx
// ends. It does not wait for the goroutine whose handler was called with ctx.
func (m *dispatcher) wait(ctx context.Context) error {
	self := ctx.Value(handling.Key{})
	ctx, cancel := waitContext(ctx)
	defer cancel()
	for r := range m.running.Range {
		if r == self {
			continue
		}
		select {
		case <-r.(*turn).done:
		case <-ctx.Done():
			return fmt.Errorf("events: a handler still runs: %w", ctx.Err())
		}
	}
	return nil
}

// waitAll is wait for the end of a channel: handlers first, then its own tasks,
// until ctx ends. what says who is late then.
func (m *dispatcher) waitAll(ctx context.Context, tasks *sync.WaitGroup, what string) error {
	ctx, cancel := waitContext(ctx)
	defer cancel()
	if err := m.wait(ctx); err != nil {
		return err
	}
	idle := make(chan struct{})
	go func() {
		tasks.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("events: %s still closing: %w", what, ctx.Err())
	}
}
