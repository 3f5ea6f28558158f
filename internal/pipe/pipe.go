// Package pipe makes a stream of bytes, which can be read and written, out of events
// whose arguments are bytes.
package pipe

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// EventName is the name of the events of a pipe. Each has bytes as its only argument.
const EventName = "data"

// Limits of the events that a pipe holds for its reader. One event larger than
// pipeBytes fits into an empty pipe.
const (
	MaxEvents = 256
	pipeBytes = 64 << 10
)

// pipe is a stream of bytes in each direction, made of the events named EventName.
type pipe struct {
	emit     func([]byte) error
	maxWrite int // most bytes in one event
	off      func()

	mu      sync.Mutex
	changed notify.Cond // its waiters wake up when one of the fields below changes
	queue   [][]byte    // events that were not read yet; the first may have been read in part
	bytes   int         // how many bytes queue contains
	drained bool        // no further event will arrive
	closed  bool
}

// New returns a pipe that emits with emit and receives by registering a handler with
// on. An encoded event has at most maxEvent bytes. Close calls the function that on
// returned, so that function can also end a blocked emit. When the channel of the pipe
// (direct or broadcast) closes, Finish must be called, so that the reader gets io.EOF.
func New(maxEvent int, emit func([]byte) error, on func(func(context.Context, *event.Event)) (off func())) *pipe {
	p := &pipe{emit: emit, maxWrite: max(maxEvent-event.RawOverhead(EventName, maxEvent), 1)}
	p.off = on(p.deliver)
	return p
}

// deliver is the handler of the events. It blocks while the reader is slow, which holds
// back the sender of the event.
func (p *pipe) deliver(ctx context.Context, ev *event.Event) {
	b, ok := ev.Bytes(0)
	if !ok {
		if t := dispatch.TurnOf(ctx); t != nil {
			t.Undecodable(ev.Name, ev.From, fmt.Errorf("%w: a pipe needs one argument of raw bytes", event.ErrUndecodable))
		}
		return
	}
	if len(b) == 0 {
		return // a Read must not return 0 bytes
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.full(b) && !p.drained {
		if p.changed.Wait(ctx, &p.mu) != nil {
			return // the node closes, so the event is dropped
		}
	}
	if p.drained {
		return // nothing will be read any more
	}
	p.queue = append(p.queue, b)
	p.bytes += len(b)
	p.changed.Broadcast()
}

// full reports whether the bytes b of an event must wait because the pipe is full. The
// caller must hold mu.
func (p *pipe) full(b []byte) bool {
	return len(p.queue) == MaxEvents || len(p.queue) > 0 && p.bytes+len(b) > pipeBytes
}

// Read waits for an event and returns its bytes. If b is too small for them, the next
// Read returns the rest. It never mixes the bytes of two events, so never those of two
// senders. It returns io.EOF after Close. When the node closes, it returns io.EOF after
// everything was read.
func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	for len(p.queue) == 0 {
		if p.drained {
			return 0, io.EOF
		}
		p.changed.Wait(context.Background(), &p.mu) // Close and Finish end this wait
	}
	n := copy(b, p.queue[0])
	p.bytes -= n
	if p.queue[0] = p.queue[0][n:]; len(p.queue[0]) == 0 {
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
	p.changed.Broadcast()
	return n, nil
}

// Write emits b as one event, or as several if b is too large for one. It blocks and
// fails as Emit does, and returns how many bytes were emitted. An empty b sends
// nothing.
func (p *pipe) Write(b []byte) (n int, err error) {
	if p.isClosed() {
		return 0, errs.ErrClosed
	}
	for n < len(b) {
		part := b[n:min(len(b), n+p.maxWrite)]
		if err := p.emit(part); err != nil {
			if p.isClosed() { // Close is what made emit fail
				err = errs.ErrClosed
			}
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

func (p *pipe) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// Close ends the pipe: a blocked Read returns io.EOF, a blocked Write returns
// ErrClosed, and events that were not read are dropped. It always returns nil.
func (p *pipe) Close() error {
	p.off()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drained, p.closed = true, true
	p.queue, p.bytes = nil, 0
	p.changed.Broadcast()
	return nil
}

// Finish lets the reader read the remaining events and then get io.EOF.
func (p *pipe) Finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drained = true
	p.changed.Broadcast()
}
