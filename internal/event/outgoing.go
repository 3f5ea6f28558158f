package event

import (
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// DefaultMaxSize is how many bytes an encoded event may have: its name, its
// arguments, and a few bytes for each.
const DefaultMaxSize = 512 << 10

// Outgoing is an event on its way into a queue. If all its arguments are raw
// bytes it is encoded right there; else before, as encoding runs code of the
// user that must not run under a lock.
type Outgoing struct {
	Name  string
	Args  []any
	Raw   []byte // the only argument, if isRaw
	IsRaw bool
	Size  int     // of the encoded event
	Buf   *Buffer // the encoded event, or nil
}

// Prepare checks an event, and encodes it unless all its arguments are raw
// bytes. The parts of an outgoing come one by one so that args can stay on the
// caller's stack; for the same reason a call is not one of them.
func Prepare(codec Codec, name string, args []any, max int) (size int, buf *Buffer, err error) {
	if size, ok := rawSize(name, args); ok && size <= max && len(args) <= maxArgs {
		return size, nil, CheckName(name)
	}
	buf = GetBuffer()
	if buf.B, err = codec.Encode(buf.B, name, args, max); err != nil {
		buf.Free()
		return 0, nil, err
	}
	return len(buf.B), buf, nil
}

// AppendTo appends the event's message to dst.
func (o *Outgoing) AppendTo(dst []byte) []byte {
	if o.Buf != nil {
		return append(dst, o.Buf.B...)
	}
	dst = append(frame.AppendHeader(dst, payload.FieldName, len(o.Name)), o.Name...)
	if o.IsRaw {
		return appendRaw(dst, o.Raw)
	}
	for _, a := range o.Args {
		dst = appendRaw(dst, a.([]byte))
	}
	return dst
}

// Buffer is a pooled byte slice. Whoever gets one must free it, once.
type Buffer struct{ B []byte }

var buffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, 0, 1<<10)} }}

func GetBuffer() *Buffer { return buffers.Get().(*Buffer) }

// maxBuffer bounds the buffers that go back into the pool. A queue of the default size
// stays below it.
const maxBuffer = 2 << 20

func (b *Buffer) Free() {
	if b == nil {
		return // the event was not encoded in advance
	}
	// A very large buffer is left to the garbage collector.
	if cap(b.B) <= maxBuffer {
		b.B = b.B[:0]
		buffers.Put(b)
	}
}
