package events

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// StreamName is the name of the events behind a Stream: each Write emits one
// of them with the bytes as its only argument.
const StreamName = "data"

// What a stream view holds for its reader; a larger event fits an empty one.
const (
	viewEvents = 256
	viewBytes  = 64 << 10
)

// pipe shows the events named StreamName as a byte stream in each
// direction.
type pipe struct {
	emit func([]byte) error
	off  func()

	mu      sync.Mutex
	change  sync.Cond // of what follows
	queue   [][]byte  // events not read; the first may be read in part
	bytes   int       // in queue
	drained bool      // nothing will come any more
	closed  bool
}

// newPipe subscribes with on and returns the view. Its Close calls off,
// so whoever makes the view can put there what ends a blocked emit. The view
// of a channel that closes is to be ended, so that its reader sees io.EOF.
func newPipe(emit func([]byte) error, on func(func(context.Context, *Event)) (off func())) *pipe {
	v := &pipe{emit: emit}
	v.change.L = &v.mu
	v.off = on(v.deliver)
	return v
}

// deliver is the handler: it blocks while the reader is behind, which holds
// back the sender of this event.
func (v *pipe) deliver(ctx context.Context, ev *Event) {
	b, ok := ev.Bytes(0)
	if !ok {
		ev.undecodable(ctx, fmt.Errorf("%w: a stream takes one argument of raw bytes", ErrUndecodable))
		return
	}
	if len(b) == 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.full(b) {
		stop := context.AfterFunc(ctx, func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.change.Broadcast()
		})
		defer stop()
		for v.full(b) && !v.drained && ctx.Err() == nil {
			v.change.Wait()
		}
	}
	if v.drained || v.full(b) {
		return
	}
	v.queue = append(v.queue, b)
	v.bytes += len(b)
	v.change.Broadcast()
}

func (v *pipe) full(b []byte) bool {
	return len(v.queue) == viewEvents || len(v.queue) > 0 && v.bytes+len(b) > viewBytes
}

// Read waits for an event and returns its bytes, or as many as fit; the next
// Read returns the rest. It never returns bytes of two events, so never of two
// senders. After Close, and after the node has closed and everything was read,
// it returns io.EOF.
func (v *pipe) Read(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(v.queue) == 0 {
		if v.drained {
			return 0, io.EOF
		}
		v.change.Wait()
	}
	n := copy(p, v.queue[0])
	v.bytes -= n
	if v.queue[0] = v.queue[0][n:]; len(v.queue[0]) == 0 {
		v.queue[0] = nil
		v.queue = v.queue[1:]
	}
	v.change.Broadcast()
	return n, nil
}

// Write emits p as one event, as Emit does. Nothing is sent for an empty p.
func (v *pipe) Write(p []byte) (int, error) {
	if v.isClosed() {
		return 0, ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := v.emit(p); err != nil {
		if v.isClosed() { // which is what ended it
			err = ErrClosed
		}
		return 0, err
	}
	return len(p), nil
}

func (v *pipe) isClosed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}

// Close ends the view: a blocked Read returns io.EOF, a blocked Write
// ErrClosed, what was not read is dropped. It always returns nil.
func (v *pipe) Close() error {
	v.off()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drained, v.closed = true, true
	v.queue, v.bytes = nil, 0
	v.change.Broadcast()
	return nil
}

// end lets the reader read what is left and then see io.EOF.
func (v *pipe) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drained = true
	v.change.Broadcast()
}
