package smokesignal

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
)

// hooks is a list of functions a user registered for one occasion.
type hooks[F any] struct {
	mu   sync.Mutex
	list []*F
}

// on adds f and returns what removes it again. Both may be called at any time,
// also from one of the functions.
func (h *hooks[F]) on(f F) (off func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	entry := &f
	h.list = append(h.list, entry)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.list = slices.DeleteFunc(slices.Clone(h.list), func(x *F) bool { return x == entry })
	}
}

// each calls call with every function, in the order of registration.
func (h *hooks[F]) each(call func(F)) {
	h.mu.Lock()
	list := h.list[:len(h.list):len(h.list)]
	h.mu.Unlock()
	for _, f := range list {
		call(*f)
	}
}

func (h *hooks[F]) empty() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.list) == 0
}

// callbacks runs functions one after the other on a goroutine of its own, so
// that what a node reports comes in order and may do whatever it likes.
type callbacks struct {
	log *slog.Logger
	ctx context.Context // given to the user's functions

	panics atomic.Uint64 // of the user's functions

	mu      sync.Mutex
	queue   []func()
	running bool
	idle    chan struct{} // closed when not running
}

// callbackKey marks the context of a callback, so that Shutdown given it does not
// wait for it.
type callbackKey struct{}

func newCallbacks(ctx context.Context, log *slog.Logger) *callbacks {
	c := &callbacks{log: log, idle: make(chan struct{})}
	c.ctx = context.WithValue(ctx, callbackKey{}, c)
	close(c.idle)
	return c
}

// post appends f; the goroutine lives only while there is something to run.
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
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.running = false
			close(c.idle)
			c.mu.Unlock()
			return
		}
		f := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		f()
	}
}

// guard calls one function of the user. A panic is caught, as in event handlers.
func (c *callbacks) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			c.panics.Add(1)
			c.log.Error("a callback panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	f()
}

// wait returns when everything posted has run, when ctx ends, or at once when
// caller is the context of a callback, which cannot wait for itself.
func (c *callbacks) wait(ctx, caller context.Context) error {
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
