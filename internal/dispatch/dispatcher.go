// Package dispatch calls the handlers of a channel, and knows the goroutines on which they
// run, so that closing the channel can wait for them. A channel is the direct events of a
// node, its broadcasts, or a topic.
package dispatch

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

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// AnyName is the name with which a handler is registered for events of all names.
const AnyName = "*"

// MaxWorkers is how many goroutines call the handlers of one channel (direct, broadcast
// or topic) at once, at most.
const MaxWorkers = 1024

// Dispatcher holds the handlers of one channel (direct, broadcast or topic) and calls
// them. Its methods may be called from any goroutine, and from handlers.
type Dispatcher struct {
	log *slog.Logger

	// Handlers.
	mu         sync.RWMutex
	seq        uint64 // number of the last registration
	handlers   map[handlerKey][]*handler
	generation atomic.Uint64 // counts the changes of handlers, beginning with 1

	// Goroutines that call handlers.
	running sync.Map // a set: the keys are *Turn

	// Faults.
	nPanics      atomic.Uint64
	nUndecodable atomic.Uint64
	nUnhandled   atomic.Uint64
	logMu        sync.Mutex      // guards unreadable
	unreadable   logging.Limiter // limits the log lines about events that cannot be decoded
}

// handlerKey says for which events a handler is registered; an empty from means those
// of any sender.
type handlerKey struct {
	from peer.ID
	name string
}

// handler is a registered function for events.
type handler struct {
	seq     uint64
	f       func(context.Context, *event.Event)
	borrows bool // f keeps neither the event nor its bytes after it returns
	off     atomic.Bool
}

// New returns a Dispatcher without handlers.
func New(log *slog.Logger) *Dispatcher {
	m := &Dispatcher{log: log, handlers: make(map[handlerKey][]*handler)}
	m.generation.Store(1)
	return m
}

// On registers f for events with the given name, or for all events if the name is "*".
// No event can have an invalid name, so to register a handler for one is a mistake in
// the program. It is logged as an error.
func (m *Dispatcher) On(name string, f func(context.Context, *event.Event)) (off func()) {
	return m.OnFrom("", name, f)
}

// OnFrom is On for the events of one sender.
func (m *Dispatcher) OnFrom(from peer.ID, name string, f func(context.Context, *event.Event)) (off func()) {
	return m.register(from, name, &handler{f: f})
}

// OnBorrowed is OnFrom for an f that keeps neither the event nor its bytes after it
// returns.
func (m *Dispatcher) OnBorrowed(from peer.ID, name string, f func(context.Context, *event.Event)) (off func()) {
	return m.register(from, name, &handler{f: f, borrows: true})
}

func (m *Dispatcher) register(from peer.ID, name string, h *handler) (off func()) {
	if name != AnyName {
		if err := event.CheckName(name); err != nil {
			logging.Loud(m.log).Error("a handler can never be called, because no event can have its name", "error", err)
			return func() {}
		}
	}
	k := handlerKey{from, name}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	h.seq = m.seq
	// Turn.Run reads these slices without the mutex, so they are replaced and never
	// changed.
	old := m.handlers[k]
	m.handlers[k] = append(old[:len(old):len(old)], h)
	m.generation.Add(1)
	return func() { m.remove(k, h) }
}

func (m *Dispatcher) remove(k handlerKey, h *handler) {
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

// Dispatch calls the handlers of an event one after the other, in the order of their
// registration, and returns when the last has returned. A panic of a handler is caught,
// counted and logged, and the next handler is called all the same. ctx should come from
// Enter or Start; otherwise Dispatch calls Enter for this one event.
func (m *Dispatcher) Dispatch(ctx context.Context, ev *event.Event) {
	t, ok := ctx.(*Turn)
	if !ok || t.m != m {
		var leave func()
		ctx, leave = m.Enter(ctx)
		defer leave()
		t = TurnOf(ctx)
	}
	t.Find(ev)
	t.Run(ev)
}

// handlersOf returns the handlers of an event in the order of their registration.
func (m *Dispatcher) handlersOf(ev *event.Event) []*handler {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found []*handler
	merged := false
	for _, k := range [...]handlerKey{{"", ev.Name}, {"", AnyName}, {ev.From, ev.Name}, {ev.From, AnyName}} {
		l := m.handlers[k]
		if len(found) == 0 {
			found = l
		} else if len(l) > 0 {
			found = append(found[:len(found):len(found)], l...)
			merged = true
		}
	}
	if merged { // a single list is already in the order of registration
		slices.SortFunc(found, func(a, b *handler) int { return cmp.Compare(a.seq, b.seq) })
	}
	return found
}

func (m *Dispatcher) call(ctx context.Context, h *handler, ev *event.Event) {
	returned := false
	defer m.Catch("a handler", ev.Name, ev.From, &returned)
	h.f(ctx, ev)
	returned = true
}

// Catch must be deferred by a function that calls a handler. It catches a panic of the
// handler, counts it and logs it. It counts and logs a call of runtime.Goexit, too,
// which cannot be caught: then *returned is still false. what describes the handler for
// the log; name is the name of its event, or empty.
func (m *Dispatcher) Catch(what, name string, from peer.ID, returned *bool) {
	v := recover()
	if v == nil && *returned {
		return
	}
	m.nPanics.Add(1)
	// These lines are logged even if logging is off, as it is by default. Otherwise the
	// program would only seem to ignore events.
	log := logging.Loud(m.log)
	if name != "" {
		log = log.With("event", event.Quote(name))
	}
	if v == nil {
		log.Error(what+" called runtime.Goexit, which ends its goroutine", "from", from, "stack", string(debug.Stack()))
		return
	}
	log.Error(what+" panicked", "from", from, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
}

// Undecodable returns how many events a handler could not decode.
func (m *Dispatcher) Undecodable() uint64 { return m.nUndecodable.Load() }

// Unhandled returns how many events had no handler.
func (m *Dispatcher) Unhandled() uint64 { return m.nUnhandled.Load() }

// CountUnhandled counts an event or call for which there is no handler.
func (m *Dispatcher) CountUnhandled() { m.nUnhandled.Add(1) }

// Panics returns how many handlers panicked or called runtime.Goexit.
func (m *Dispatcher) Panics() uint64 { return m.nPanics.Load() }

// logUnreadable logs that an event could not be decoded. It logs at most once per
// second, because any peer can send such events.
func (m *Dispatcher) logUnreadable(msg, name string, from peer.ID, err error) {
	m.logMu.Lock()
	defer m.logMu.Unlock()
	// The text of the error may contain bytes that the sender chose, so it is cut.
	m.unreadable.Log(logging.Loud(m.log), slog.LevelError, time.Now(), 1, msg, "event", name, "from", from, "error", event.Cut(err.Error(), 256))
}

// LogMalformed logs that bytes from a sender are not a valid event.
func (m *Dispatcher) LogMalformed(from peer.ID, err error) {
	m.logUnreadable("an event is malformed", "", from, err)
}

// Turn is a goroutine that calls handlers. It is also the context that it passes to
// them.
type Turn struct {
	context.Context
	m    *Dispatcher
	done chan struct{}

	// The result of handlersOf for the last event. It is kept because the next event
	// often has the same sender and name.
	from       peer.ID
	name       string
	generation uint64
	found      []*handler
	keeps      bool // one of found may keep the event

	slab []byte // the unused rest of an allocation that small copies share
}

// slabSize is the size in bytes of an allocation that small copies share, since
// allocating memory is most of the cost of a small event. A copy of more than a quarter
// of slabSize has an allocation of its own.
const slabSize = 8 << 10

// Undecodable counts and logs that a handler could not decode an event.
func (t *Turn) Undecodable(name string, from peer.ID, err error) {
	t.m.nUndecodable.Add(1)
	t.m.logUnreadable("a handler cannot decode an event; do both ends use the same types?", event.Quote(name), from, err)
}

// Copy returns a copy of b. Only the goroutine of t may call it. A small copy shares an
// allocation of 8 KiB with others, so keeping one copy keeps all of them in memory.
func (t *Turn) Copy(b []byte) []byte {
	if len(b) > slabSize/4 {
		return bytes.Clone(b)
	}
	if len(t.slab) < len(b) {
		t.slab = make([]byte, slabSize)
	}
	c := t.slab[:len(b):len(b)]
	t.slab = t.slab[len(b):]
	copy(c, b)
	return c
}

// Find looks up the handlers of an event for the next call of Run. It reports whether
// one of them may keep the event.
func (t *Turn) Find(ev *event.Event) (keeps bool) {
	generation := t.m.generation.Load()
	if t.generation != generation || t.name != ev.Name || t.from != ev.From {
		t.from, t.name, t.generation = ev.From, ev.Name, generation
		t.found = t.m.handlersOf(ev)
		t.keeps = slices.ContainsFunc(t.found, func(h *handler) bool { return !h.borrows })
	}
	return t.keeps
}

// Run calls the handlers that Find has looked up for the event.
func (t *Turn) Run(ev *event.Event) {
	if len(t.found) == 0 {
		t.m.nUnhandled.Add(1)
		return
	}
	for _, h := range t.found {
		// A handler may have been removed by the one before it.
		if !h.off.Load() {
			t.m.call(t, h, ev)
		}
	}
}

// turnKey is the key under which the context of a handler holds its [Turn].
type turnKey struct{}

// TurnOf returns the turn whose handler was called with ctx, or nil if ctx is not the
// context of a handler, nor derived from one.
func TurnOf(ctx context.Context) *Turn {
	if t, ok := ctx.(*Turn); ok { // the usual case; the search below costs more
		return t
	}
	t, _ := ctx.Value(turnKey{}).(*Turn)
	return t
}

// Enter registers the calling goroutine as one that calls handlers, until it calls
// leave. The returned context is a *Turn, which it must pass to Dispatch. If a handler
// calls Close with that context, Close knows by it for which goroutine it must not
// wait.
func (m *Dispatcher) Enter(ctx context.Context) (_ context.Context, leave func()) {
	t := &Turn{Context: ctx, m: m, done: make(chan struct{})}
	m.running.Store(t, struct{}{})
	return t, func() {
		m.running.Delete(t)
		close(t.done)
	}
}

// Start calls f on a new goroutine, with a context from Enter.
func (m *Dispatcher) Start(ctx context.Context, f func(context.Context)) {
	ctx, leave := m.Enter(ctx) // called here and not on the new goroutine, so that wait cannot miss it
	go func() {
		defer leave()
		f(ctx)
	}()
}

// Value implements [context.Context]. For turnKey it returns the Turn.
func (t *Turn) Value(key any) any {
	if key == (turnKey{}) {
		return t
	}
	return t.Context.Value(key)
}

// InHandler reports whether ctx is the context of a handler of this package, or derived
// from one.
func InHandler(ctx context.Context) bool {
	return TurnOf(ctx) != nil
}

// handlersTimeout is how long a Close that a handler calls waits if its ctx has no
// deadline.
const handlersTimeout = 5 * time.Second

// waitContext returns the context for the waiting of a Close that was called with ctx.
// If ctx is the context of a handler, closing cancels it, so only its deadline counts;
// without a deadline it is handlersTimeout.
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

// wait waits until every goroutine that has called Enter has left, or until ctx ends.
// It does not wait for the goroutine whose handler was given ctx.
func (m *Dispatcher) wait(ctx context.Context) error {
	self := TurnOf(ctx)
	ctx, cancel := waitContext(ctx)
	defer cancel()
	for t := range m.running.Range {
		if t == self {
			continue // this goroutine would wait for itself
		}
		select {
		case <-t.(*Turn).done:
		case <-ctx.Done():
			return fmt.Errorf("events: a handler still runs: %w", ctx.Err())
		}
	}
	return nil
}

// WaitAll waits for the end of a channel (direct, broadcast or topic) that was closed,
// until ctx ends: first for its handlers, then for its tasks. Its error names the tasks
// by the words in what, a subject and a verb such as "streams are".
func (m *Dispatcher) WaitAll(ctx context.Context, tasks *sync.WaitGroup, what string) error {
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
