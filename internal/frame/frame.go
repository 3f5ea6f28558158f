// Package frame reads and writes the frames of every stream of smokesignal. A frame is
// an unsigned varint length, followed by that many bytes of one protobuf message. The
// package also has helpers that read and write such messages field by field, so that
// limits can be checked before anything is allocated.
package frame

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

var (
	// ErrTooLarge is returned when a frame's length is above the reader's limit.
	ErrTooLarge = errors.New("frame: too large")
	// ErrMalformed is returned for a length that is not a minimal varint of at
	// most five bytes, and for a message that is not well-formed protobuf.
	ErrMalformed = errors.New("frame: malformed")
)

// maxLengthBytes bounds the length prefix: five bytes hold 35 bits, more than
// any limit of ours.
const maxLengthBytes = 5

// Append appends payload as one frame to dst and returns the extended slice.
func Append(dst, payload []byte) []byte {
	dst = protowire.AppendVarint(dst, uint64(len(payload)))
	return append(dst, payload...)
}

// A Reader reads frames from a stream. It is not safe for concurrent use.
type Reader struct {
	rd   io.Reader
	max  int
	buf  []byte // buf[r:w] has been read and not yet returned
	r, w int
	err  error  // the error of rd; returned after the bytes before it
	most int    // bytes that buf may grow to
	idly int    // how many reads in a row brought little
	big  []byte // for frames larger than buf
	last bool   // the last frame is all of big

	stream  Deadliner
	timeout time.Duration
	armed   bool // the stream has a read deadline
	started bool // that deadline is this frame's
}

// A Deadliner is what a Reader needs of a stream to bound the time of a frame.
type Deadliner interface {
	SetReadDeadline(time.Time) error
}

const (
	defaultBuffer = 4 << 10
	// shrinkAfter is how many reads in a row have to leave three quarters of
	// the buffer empty before it shrinks.
	shrinkAfter = 64
	// firstRead is the memory allocated for a large frame before any of its bytes has
	// arrived. Later the memory at most doubles with the bytes that did arrive. Between
	// frames a reader keeps a buffer of at most this size.
	firstRead = 64 << 10
)

// NewReader returns a Reader that refuses frames of more than max bytes. It
// buffers 4 KiB.
func NewReader(r io.Reader, max int) *Reader {
	return &Reader{rd: r, max: max, buf: make([]byte, defaultBuffer), most: defaultBuffer}
}

// SetLimit changes the largest frame to max bytes, from the next frame on.
func (r *Reader) SetLimit(max int) { r.max = max }

// SetBuffer lets the buffer grow up to most bytes, at least 4 KiB, while much
// comes. When little comes it shrinks again.
func (r *Reader) SetBuffer(most int) { r.most = max(most, defaultBuffer) }

// SetTimeout bounds how long a frame may take from its first byte to its last;
// between frames the stream may be idle for ever. The Reader then sets and
// clears the read deadline of s, which must be the stream it reads from, and
// Next returns the stream's error for a deadline that has passed.
func (r *Reader) SetTimeout(s Deadliner, d time.Duration) { r.stream, r.timeout = s, d }

// Next returns the next frame, which is valid until the next call (but see
// Take). At the end of the stream it returns io.EOF, and io.ErrUnexpectedEOF
// inside a frame. It returns ErrTooLarge or ErrMalformed before it allocates;
// the stream is then out of step and has to be reset.
func (r *Reader) Next() ([]byte, error) {
	// Nearly every frame is short and here already.
	if r.r < r.w {
		n := int(r.buf[r.r])
		if from := r.r + 1; n < 0x80 && n <= r.w-from && n <= r.max {
			r.r = from + n
			r.last = false
			return r.buf[from:r.r:r.r], nil
		}
	}
	return r.next()
}

func (r *Reader) next() ([]byte, error) {
	r.started, r.last = false, false
	if cap(r.big) > firstRead {
		r.big = nil
	}
	if r.r == r.w {
		if err := r.idle(); err != nil {
			return nil, err
		}
	}
	n, size, err := r.length()
	if err != nil {
		return nil, err
	}
	if n > uint64(r.max) {
		return nil, fmt.Errorf("%w: %d bytes announced, the limit is %d", ErrTooLarge, n, r.max)
	}
	whole := size + int(n)
	if whole > r.most {
		r.r += size
		return r.large(int(n))
	}
	if err := r.need(whole); err != nil {
		return nil, err
	}
	b := r.buf[r.r+size : r.r+whole : r.r+whole]
	r.r += whole
	return b, nil
}

// Take makes the frame that Next returned last the caller's, who may then keep
// it, if it has memory of its own; it reports whether that is so. Frames that
// fit into the buffer have not.
func (r *Reader) Take() bool {
	if !r.last {
		return false
	}
	r.big, r.last = nil, false
	return true
}

// Buffered returns the number of bytes that can be read without blocking.
func (r *Reader) Buffered() int { return r.w - r.r }

// idle waits for the first byte of a frame.
func (r *Reader) idle() error {
	if r.armed {
		r.armed = false
		if err := r.stream.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	return r.fill(1)
}

// need returns when the next n bytes are in the buffer, where they have room.
func (r *Reader) need(n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if err := r.begun(); err != nil {
		return err
	}
	return inside(r.fill(n))
}

// begun starts the time of a frame that is not here as a whole.
func (r *Reader) begun() error {
	if r.stream == nil || r.started {
		return nil
	}
	r.started, r.armed = true, true
	return r.stream.SetReadDeadline(time.Now().Add(r.timeout))
}

// fill reads until there are n bytes in the buffer, where they have room.
func (r *Reader) fill(n int) error {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	if n > len(r.buf) {
		r.setBuffer(min(max(n, 2*len(r.buf)), r.most))
	}
	for r.w < n {
		if r.err != nil {
			return r.err
		}
		m, err := r.read(r.buf[r.w:])
		r.w += m
		r.err = err
		r.resize(n)
	}
	return nil
}

// resize adapts the size of the buffer to the size of the last reads. The buffer always
// keeps space for n bytes.
func (r *Reader) resize(n int) {
	size := len(r.buf)
	switch {
	case r.w == size:
		r.idly = 0
		r.setBuffer(min(2*size, r.most))
	case r.w > size/4:
		r.idly = 0
	default:
		if r.idly++; r.idly >= shrinkAfter {
			r.idly = 0
			r.setBuffer(max(size/2, defaultBuffer, n))
		}
	}
}

func (r *Reader) setBuffer(size int) {
	if size != len(r.buf) {
		b := make([]byte, size)
		copy(b, r.buf[:r.w])
		r.buf = b
	}
}

// read is a Read that makes progress or fails.
func (r *Reader) read(p []byte) (int, error) {
	for range 100 {
		if n, err := r.rd.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// length returns the frame's length and that of its prefix, which stays in
// the buffer.
func (r *Reader) length() (n uint64, size int, err error) {
	for i := range maxLengthBytes {
		if r.w-r.r <= i {
			if err := r.need(i + 1); err != nil {
				return 0, 0, err
			}
		}
		c := r.buf[r.r+i]
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if i > 0 && c == 0 {
				return 0, 0, fmt.Errorf("%w: length is not a minimal varint", ErrMalformed)
			}
			return n, i + 1, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: length of more than %d bytes", ErrMalformed, maxLengthBytes)
}

// large reads a frame that does not fit into the buffer. Memory grows with
// what has come, so that announcing much costs a stranger as much.
func (r *Reader) large(n int) ([]byte, error) {
	if err := r.begun(); err != nil {
		return nil, err
	}
	if cap(r.big) < min(n, firstRead) {
		r.big = make([]byte, min(n, firstRead))
	}
	big := r.big[:min(n, cap(r.big))]
	got := copy(big, r.buf[r.r:r.w])
	r.r += got
	for {
		for got < len(big) {
			if r.err != nil {
				return nil, inside(r.err)
			}
			m, err := r.read(big[got:])
			got += m
			r.err = err
		}
		if got == n {
			r.big, r.last = big, true
			return big[:n:n], nil
		}
		big = append(make([]byte, 0, min(n, 2*got)), big...)
		big = big[:cap(big)]
	}
}

// inside makes the end of the stream an unexpected one.
func inside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A Field is one field of a protobuf message. Uint holds varints and fixed
// numbers, Bytes length-delimited ones; Bytes points into the message.
type Field struct {
	Num   protowire.Number
	Type  protowire.Type
	Uint  uint64
	Bytes []byte
}

// Fields yields the fields of the message b in order. Groups, which protobuf
// no longer uses, are malformed here. After an error the iteration ends.
func Fields(b []byte) iter.Seq2[Field, error] {
	return func(yield func(Field, error) bool) {
		for len(b) > 0 {
			f, rest, err := Cut(b)
			if !yield(f, err) || err != nil {
				return
			}
			b = rest
		}
	}
}

// Cut returns the first field of the message b, which is not empty, and what
// follows it. Fields is made of it; a loop over Cut is for where every
// nanosecond counts.
func Cut(b []byte) (f Field, rest []byte, err error) {
	// Nearly every field of ours has a tag of one byte and a short length.
	if len(b) > 1 && b[0]&7 == byte(protowire.BytesType) && b[0] > 7 && b[0] < 0x80 && b[1] < 0x80 {
		if end := 2 + int(b[1]); end <= len(b) {
			return Field{Num: protowire.Number(b[0] >> 3), Type: protowire.BytesType, Bytes: b[2:end]}, b[end:], nil
		}
	}
	return cut(b)
}

func cut(b []byte) (f Field, rest []byte, err error) {
	var n int
	f.Num, f.Type, n = protowire.ConsumeTag(b)
	if n < 0 {
		return Field{}, nil, fmt.Errorf("%w: bad field tag", ErrMalformed)
	}
	b = b[n:]
	switch f.Type {
	case protowire.VarintType:
		f.Uint, n = protowire.ConsumeVarint(b)
	case protowire.Fixed32Type:
		var v uint32
		v, n = protowire.ConsumeFixed32(b)
		f.Uint = uint64(v)
	case protowire.Fixed64Type:
		f.Uint, n = protowire.ConsumeFixed64(b)
	case protowire.BytesType:
		f.Bytes, n = protowire.ConsumeBytes(b)
	default:
		n = -1
	}
	if n < 0 {
		return Field{}, nil, fmt.Errorf("%w: bad field %d", ErrMalformed, f.Num)
	}
	return f, b[n:], nil
}

// CutShort is Cut for a length-delimited field with a tag of one byte and less
// than 16 KiB of content. For any other field it returns a tag of 0.
func CutShort(b []byte) (tag byte, content, rest []byte) {
	if len(b) < 3 {
		return 0, nil, nil
	}
	at, n := 2, int(b[1])
	if n >= 0x80 {
		at, n = 3, n&0x7f|int(b[2])<<7
	}
	if n > len(b)-at || n >= 1<<14 {
		return 0, nil, nil
	}
	return b[0], b[at : at+n], b[at+n:]
}

// AppendHeader begins a length-delimited field of n bytes. Its number must be
// below 16, so that the tag has one byte.
func AppendHeader(dst []byte, num protowire.Number, n int) []byte {
	return AppendLength(append(dst, byte(num<<3)|byte(protowire.BytesType)), n)
}

// AppendLength appends n as a varint.
func AppendLength(dst []byte, n int) []byte {
	if n < 0x80 {
		return append(dst, byte(n))
	}
	return protowire.AppendVarint(dst, uint64(n))
}

// AppendUint appends a varint field; zero, the default, is left out.
func AppendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

// AppendBytes appends a length-delimited field; empty, the default, is left
// out. Use AppendMessage where presence matters.
func AppendBytes[T ~[]byte | ~string](b []byte, num protowire.Number, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return AppendMessage(b, num, v)
}

// AppendMessage appends a length-delimited field, also when it is empty.
func AppendMessage[T ~[]byte | ~string](b []byte, num protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}
