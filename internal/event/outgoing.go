package event

import (
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// DefaultMaxSize is how many bytes an encoded event may have by default: its name, its
// arguments, and a few bytes for each of them.
const DefaultMaxSize = 512 << 10

// Outgoing is an event that is about to be put into a queue. If all its arguments are
// raw bytes, it is encoded straight into the queue. Otherwise it was encoded before
// into Buf, because encoding can run code of the user, which must not run while a lock
// is held.
type Outgoing struct {
	Name  string
	Args  []any
	Raw   []byte // the only argument, if IsRaw is set
	IsRaw bool
	Size  int     // size of the encoded event
	Buf   *Buffer // the encoded event; nil: all arguments are raw bytes
}

// Prepare checks an event, and encodes it unless all its arguments are raw bytes. It
// returns the parts of an Outgoing one by one, so that args can stay on the caller's
// stack.
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

// AppendTo appends the encoded event to dst.
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

// Buffer is a pooled byte slice. Whoever gets one must call Free, once.
type Buffer struct{ B []byte }

var buffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, 0, 1<<10)} }}

// GetBuffer returns an empty buffer from the pool.
func GetBuffer() *Buffer { return buffers.Get().(*Buffer) }

// maxBuffer is the largest buffer in bytes that is put back into the pool. The buffer
// of a queue of the default size is smaller.
const maxBuffer = 2 << 20

// Free puts the buffer back into the pool. It does nothing for nil.
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
