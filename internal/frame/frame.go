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
	// ErrTooLarge is returned when a frame is longer than the reader's limit.
	ErrTooLarge = errors.New("frame: too large")
	// ErrMalformed is returned when the length of a frame is not a minimal varint of at most
	// five bytes, or when a message is not well-formed protobuf.
	ErrMalformed = errors.New("frame: malformed")
)

// maxLengthBytes is the largest number of bytes in the varint length of a frame. Five bytes
// hold 35 bits, which is more than any frame limit of this library.
const maxLengthBytes = 5

// Append appends payload as one frame to dst and returns the extended slice.
func Append(dst, payload []byte) []byte {
	dst = protowire.AppendVarint(dst, uint64(len(payload)))
	return append(dst, payload...)
}

// A Reader reads frames from a stream. It is not safe for concurrent use.
type Reader struct {
	rd         io.Reader
	max        int
	buf        []byte // buf[r:w] was read from rd and is not returned yet
	r, w       int
	err        error  // the error that rd returned; Next returns it after all bytes that were read before it
	maxBuffer  int    // the largest size of buf in bytes
	lowReads   int    // how many reads in a row have filled at most a quarter of buf
	big        []byte // holds a frame that is larger than maxBuffer
	detachable bool   // true if the last frame that Next returned is in big

	stream  Deadliner     // see SetTimeout
	timeout time.Duration // see SetTimeout
	armed   bool          // stream has a read deadline
	started bool          // the read deadline was set for the current frame
}

// A Deadliner is a stream with a read deadline, which a Reader uses to limit the time of a frame.
type Deadliner interface {
	SetReadDeadline(time.Time) error
}

const (
	defaultBuffer = 4 << 10
	// shrinkAfter is how many reads in a row must fill at most a quarter of the buffer before
	// the buffer shrinks.
	shrinkAfter = 64
	// firstRead is the memory in bytes that is allocated for a large frame at first. Later the
	// memory is at most twice the bytes that have arrived. After the frame, the Reader keeps
	// no buffer that is larger than this.
	firstRead = 64 << 10
)

// NewReader returns a Reader of r that refuses frames of more than max bytes. Its buffer has
// 4 KiB.
func NewReader(r io.Reader, max int) *Reader {
	return &Reader{rd: r, max: max, buf: make([]byte, defaultBuffer), maxBuffer: defaultBuffer}
}

// SetLimit changes the size of the largest frame to max bytes, from the next frame on.
func (r *Reader) SetLimit(max int) { r.max = max }

// SetBuffer lets the buffer grow to at most the given number of bytes (at least 4 KiB) while
// reads fill it, and shrink again when reads bring few bytes.
func (r *Reader) SetBuffer(most int) { r.maxBuffer = max(most, defaultBuffer) }

// SetTimeout limits the time from the first byte of a frame to its last byte: it may be at most
// d. There is no limit on the time between frames. s must be the stream that the Reader reads
// from: the Reader sets and clears its read deadline. If the time is over, Next returns the
// stream's error.
func (r *Reader) SetTimeout(s Deadliner, d time.Duration) { r.stream, r.timeout = s, d }

// Next returns the next frame, which is valid until the next call of Next, or for ever after
// Detach. At the end of the stream it returns io.EOF, or io.ErrUnexpectedEOF if the end is
// inside a frame. It returns ErrTooLarge or ErrMalformed before it allocates memory for the
// frame; the rest of the stream cannot be read then.
func (r *Reader) Next() ([]byte, error) {
	// Fast path: nearly every frame is short and is in the buffer already.
	if r.r < r.w {
		n := int(r.buf[r.r])
		if from := r.r + 1; n < 0x80 && n <= r.w-from && n <= r.max {
			r.r = from + n
			r.detachable = false
			return r.buf[from:r.r:r.r], nil
		}
	}
	return r.next()
}

func (r *Reader) next() ([]byte, error) {
	r.started, r.detachable = false, false
	if cap(r.big) > firstRead {
		r.big = nil
	}
	if r.r == r.w {
		if err := r.awaitFrame(); err != nil {
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
	if whole > r.maxBuffer {
		r.r += size
		return r.large(int(n))
	}
	if err := r.ensure(whole); err != nil {
		return nil, err
	}
	b := r.buf[r.r+size : r.r+whole : r.r+whole]
	r.r += whole
	return b, nil
}

// Detach gives the memory of the last frame that Next returned to the caller, who may keep the
// frame then. It returns false for a frame in the Reader's buffer, which must be copied instead.
func (r *Reader) Detach() bool {
	if !r.detachable {
		return false
	}
	r.big, r.detachable = nil, false
	return true
}

// Buffered returns the number of bytes that can be read without blocking.
func (r *Reader) Buffered() int { return r.w - r.r }

// awaitFrame waits for the first byte of a frame, without a deadline.
func (r *Reader) awaitFrame() error {
	if r.armed {
		r.armed = false
		if err := r.stream.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	return r.fill(1)
}

// ensure reads until the buffer has n unread bytes. n is at most maxBuffer.
func (r *Reader) ensure(n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if err := r.startDeadline(); err != nil {
		return err
	}
	return inside(r.fill(n))
}

// startDeadline sets the read deadline for the current frame, if a timeout is set and the
// deadline was not set before.
func (r *Reader) startDeadline() error {
	if r.stream == nil || r.started {
		return nil
	}
	r.started, r.armed = true, true
	return r.stream.SetReadDeadline(time.Now().Add(r.timeout))
}

// fill moves the unread bytes to the beginning of the buffer and reads until there are n unread
// bytes.
func (r *Reader) fill(n int) error {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	if n > len(r.buf) {
		r.setBuffer(min(max(n, 2*len(r.buf)), r.maxBuffer))
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
		r.lowReads = 0
		r.setBuffer(min(2*size, r.maxBuffer))
	case r.w > size/4:
		r.lowReads = 0
	default:
		if r.lowReads++; r.lowReads >= shrinkAfter {
			r.lowReads = 0
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

// read reads at least one byte from the stream into p, or returns an error.
func (r *Reader) read(p []byte) (int, error) {
	for range 100 {
		if n, err := r.rd.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// length decodes the varint length at the beginning of the unread bytes. It returns the length
// of the frame, and the size of the varint, which stays unread.
func (r *Reader) length() (n uint64, size int, err error) {
	for i := range maxLengthBytes {
		if r.w-r.r <= i {
			if err := r.ensure(i + 1); err != nil {
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

// large reads a frame of n bytes that does not fit into the buffer. Its memory grows with the
// bytes that have arrived, so a peer cannot make the Reader allocate memory just by announcing
// a long frame.
func (r *Reader) large(n int) ([]byte, error) {
	if err := r.startDeadline(); err != nil {
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
			r.big, r.detachable = big, true
			return big[:n:n], nil
		}
		big = append(make([]byte, 0, min(n, 2*got)), big...)
		big = big[:cap(big)]
	}
}

// inside returns err, or io.ErrUnexpectedEOF for io.EOF: the stream ended inside a frame.
func inside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A Field is one field of a protobuf message. Uint is the value of a varint or fixed-size
// field, Bytes that of a length-delimited field. Bytes shares the memory of the message.
type Field struct {
	Num   protowire.Number
	Type  protowire.Type
	Uint  uint64
	Bytes []byte
}

// Fields yields the fields of the message b in order. The iteration ends after an error. A
// group, which is a field type that protobuf no longer uses, is an error.
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

// Cut returns the first field of the message b, which must not be empty, and the rest of b.
// A loop that calls Cut is a little faster than one over Fields.
func Cut(b []byte) (f Field, rest []byte, err error) {
	// Fast path: nearly every field of our messages has a tag of one byte and a short length.
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

// CutShort does the same as Cut, but only for a length-delimited field that has a tag of one
// byte and less than 16 KiB of content. For any other field it returns 0 as the tag.
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

// AppendHeader appends the tag and the length of a length-delimited field whose content has n
// bytes. The number of the field must be below 16, so that the tag has one byte.
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

// AppendUint appends a varint field. It appends nothing if v is zero, protobuf's default.
func AppendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

// AppendBytes appends a length-delimited field. It appends nothing if v is empty, protobuf's
// default. Use AppendMessage if an empty field means something else than a missing one.
func AppendBytes[T ~[]byte | ~string](b []byte, num protowire.Number, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return AppendMessage(b, num, v)
}

// AppendMessage appends a length-delimited field with the number num and the content v to b,
// even if v is empty.
func AppendMessage[T ~[]byte | ~string](b []byte, num protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}
