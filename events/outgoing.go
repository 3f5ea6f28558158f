package events

import (
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// DefaultMaxEventSize is how many bytes an encoded event may have: its name, its
// arguments, and a few bytes for each.
const DefaultMaxEventSize = 512 << 10

// outgoingEvent is an event on its way into a queue. If all its arguments are raw
// bytes it is encoded right there; else before, as encoding runs code of the
// user that must not run under a lock.
type outgoingEvent struct {
	name  string
	args  []any
	raw   []byte // the only argument, if isRaw
	isRaw bool
	size  int     // of the encoded event
	buf   *buffer // the encoded event, or nil
}

// prepare checks an event, and encodes it unless all its arguments are raw
// bytes. The parts of an outgoing come one by one so that args can stay on the
// caller's stack; for the same reason a call is not one of them.
func prepare(codec Codec, name string, args []any, max int) (size int, buf *buffer, err error) {
	if size, ok := rawSize(name, args); ok && size <= max && len(args) <= maxArgs {
		return size, nil, checkName(name)
	}
	buf = getBuffer()
	if buf.b, err = codec.encodeEvent(buf.b, name, args, max); err != nil {
		buf.free()
		return 0, nil, err
	}
	return len(buf.b), buf, nil
}

// appendEvent appends the event's message to dst.
func (o *outgoingEvent) appendEvent(dst []byte) []byte {
	if o.buf != nil {
		return append(dst, o.buf.b...)
	}
	dst = append(frame.AppendHeader(dst, payload.FieldName, len(o.name)), o.name...)
	if o.isRaw {
		return appendRaw(dst, o.raw)
	}
	for _, a := range o.args {
		dst = appendRaw(dst, a.([]byte))
	}
	return dst
}

// buffer is a pooled byte slice. Whoever gets one must free it, once.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 1<<10)} }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

// maxBuffer bounds the buffers that go back into the pool. A queue of the default size
// stays below it.
const maxBuffer = 2 << 20

func (b *buffer) free() {
	if b == nil {
		return // the event was not encoded in advance
	}
	// A very large buffer is left to the garbage collector.
	if cap(b.b) <= maxBuffer {
		b.b = b.b[:0]
		buffers.Put(b)
	}
}
