package smokesignal

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// listeners is a list of the functions that a user registered for one kind of event, such
// as "a peer was added". Each function gets an argument of type A.
type listeners[A any] struct {
	mu   sync.Mutex
	list []*func(context.Context, A)
}

// on adds f to the list and returns off, a function that removes f again. on and off may be
// called at any time, also from a function in the list.
func (h *listeners[A]) on(f func(context.Context, A)) (off func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	entry := &f
	h.list = append(h.list, entry)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		// A running call of the functions still reads the old list, so the old list is not
		// changed.
		h.list = slices.DeleteFunc(slices.Clone(h.list), func(x *func(context.Context, A)) bool { return x == entry })
	}
}

// call calls every function of the list with arg, in the order of registration. It runs on the
// goroutine of c.
func (h *listeners[A]) call(c *callbacks, arg A) {
	h.mu.Lock()
	list := h.list[:len(h.list):len(h.list)]
	h.mu.Unlock()
	for _, f := range list {
		c.guard(func() { (*f)(c.ctx, arg) })
	}
}

// notifyAll queues a call of every function in h, with arg, on the goroutine of c. The
// functions called are those that are registered when it is the turn of this call in the queue.
func notifyAll[A any](c *callbacks, h *listeners[A], arg A) {
	c.post(func() { h.call(c, arg) })
}

func (h *listeners[A]) empty() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.list) == 0
}

// callbacks is a queue of functions with one goroutine that runs them one after the other.
// So a user's callbacks run in order, and may block without blocking the node.
type callbacks struct {
	log *slog.Logger
	ctx context.Context // of the user's functions

	panics atomic.Uint64 // of the user's functions

	mu      sync.Mutex
	queue   []func()
	running bool
	idle    chan struct{} // closed when not running
}

// callbackKey marks the context of a callback, so that a Shutdown that is given this
// context does not wait for the callback.
type callbackKey struct{}

func newCallbacks(ctx context.Context, log *slog.Logger) *callbacks {
	c := &callbacks{log: log, idle: make(chan struct{})}
	c.ctx = context.WithValue(ctx, callbackKey{}, c)
	close(c.idle)
	return c
}

// post appends f to the queue. The goroutine lives only while there is something to run.
func (c *callbacks) post(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, f)
	if !c.running {
		c.running = true
		c.idle = make(chan struct{})
		go c.run()
	}
}

func (c *callbacks) run() {
	done := false
	defer func() {
		if !done {
			// A callback ended this goroutine with runtime.Goexit. The callbacks that
			// are still in the queue need a new goroutine.
			go c.run()
		}
	}()
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.running = false
			close(c.idle)
			c.mu.Unlock()
			done = true
			return
		}
		f := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		f()
	}
}

// guard calls one callback of the user. A panic is caught, counted and logged. If f calls
// runtime.Goexit, the callbacks registered after f for the same kind of event do not run
// this time; all other queued functions do.
func (c *callbacks) guard(f func()) {
	returned := false
	defer func() {
		v := recover()
		if returned {
			return
		}
		if v == nil { // there was no panic
			v = "runtime.Goexit"
		}
		c.panics.Add(1)
		logging.Loud(c.log).Error("a callback panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}()
	f()
	returned = true
}

// wait returns nil when the queue is empty, or the cause of ctx when ctx ends first. If
// caller is the context of a callback, waiting would deadlock, so it returns nil at once.
func (c *callbacks) wait(ctx, caller context.Context) error {
	// The callback would wait for itself.
	if caller.Value(callbackKey{}) == c {
		return nil
	}
	c.mu.Lock()
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
