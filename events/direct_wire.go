package events

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// A stream of direct events goes one way. Its first frame is a hello, every
// later one an event; the reader answers nothing. A frame with neither is of a
// later version and skipped. As in docs/wire.md:
//
//	message DirectFrame { Hello hello = 1; Event event = 2; }
//	message Hello       { bytes session = 1; string network = 2; uint64 serial = 3; }
//
// serial counts the streams that a session has opened, so that a reader can
// tell which of two streams is the older one. 0 is unknown.
const (
	fieldHello = 1
	fieldEvent = 2

	fieldSession = 1
	fieldNetwork = 2
	fieldSerial  = 3

	sessionLen = 8
	maxHello   = 1 << 10 // bytes of the first frame
	envelope   = 64      // bytes of a frame beside its event
)

// The codes with which a reader resets a stream. Those of libp2p that say the
// same are used as they are.
const (
	codeOtherNetwork network.StreamErrorCode = 0x5301 // 'S', 1
	codeRefused      network.StreamErrorCode = 0x5302
)

type hello struct {
	session string
	network string
	serial  uint64
}

func (h hello) append(dst []byte) []byte {
	var m []byte
	m = frame.AppendBytes(m, fieldSession, h.session)
	m = frame.AppendBytes(m, fieldNetwork, h.network)
	m = frame.AppendUint(m, fieldSerial, h.serial)
	return frame.Append(dst, frame.AppendMessage(nil, fieldHello, m))
}

func parseHello(b []byte) (hello, error) {
	var h hello
	var found bool
	for f, err := range frame.Fields(b) {
		if err != nil {
			return h, err
		}
		if f.Num != fieldHello || f.Type != protowire.BytesType {
			continue
		}
		found = true
		for f, err := range frame.Fields(f.Bytes) {
			switch {
			case err != nil:
				return h, err
			case f.Num == fieldSession && f.Type == protowire.BytesType:
				h.session = string(f.Bytes)
			case f.Num == fieldNetwork && f.Type == protowire.BytesType:
				h.network = string(f.Bytes)
			case f.Num == fieldSerial && f.Type == protowire.VarintType:
				h.serial = f.Uint
			}
		}
	}
	if !found {
		return h, fmt.Errorf("%w: the first frame is no hello", ErrMalformed)
	}
	if len(h.session) != sessionLen {
		return h, fmt.Errorf("%w: a session of %d bytes", ErrMalformed, len(h.session))
	}
	return h, nil
}

// outgoing is an event on its way into a queue. If all its arguments are raw
// bytes it is encoded right there; else before, as encoding runs code of the
// user that must not run under a lock.
type outgoing struct {
	name string
	args []any
	size int     // of the encoded event
	buf  *buffer // the encoded event, or nil
}

// prepare checks an event, and encodes it unless all its arguments are raw
// bytes. The parts of an outgoing come one by one so that args can stay on the
// caller's stack.
func prepare(name string, args []any, max int) (size int, buf *buffer, err error) {
	if size, ok := rawSize(name, args); ok && size <= max && len(args) <= maxArgs {
		return size, nil, checkName(name)
	}
	buf = getBuffer()
	if buf.b, err = encodeEvent(buf.b, name, args, max); err != nil {
		buf.free()
		return 0, nil, err
	}
	return len(buf.b), buf, nil
}

// appendFrame appends the event's frame to dst.
func (o outgoing) appendFrame(dst []byte) []byte {
	dst = slices.Grow(dst, o.size+envelope)
	dst = appendLen(dst, 1+protowire.SizeBytes(o.size))
	dst = appendHeader(dst, fieldEvent, o.size)
	if o.buf != nil {
		return append(dst, o.buf.b...)
	}
	dst = append(appendHeader(dst, fieldName, len(o.name)), o.name...)
	for _, a := range o.args {
		dst = appendRaw(dst, a.([]byte))
	}
	return dst
}

// parseEventFrame returns the event in a frame, nil if there is none.
func parseEventFrame(b []byte) (ev []byte, err error) {
	if tag, short, rest := cutShort(b); tag == tagEvent && len(rest) == 0 {
		return short, nil // as nearly all are
	}
	for len(b) > 0 {
		f, rest, err := frame.Cut(b)
		b = rest
		switch {
		case err != nil:
			return nil, err
		case f.Num == fieldEvent && f.Type == protowire.BytesType:
			if ev != nil {
				return nil, fmt.Errorf("%w: two events in a frame", ErrMalformed)
			}
			ev = f.Bytes
		case f.Num == fieldHello:
			return nil, fmt.Errorf("%w: a second hello", ErrMalformed)
		}
	}
	return ev, nil
}

const tagEvent = fieldEvent<<3 | byte(protowire.BytesType)

// eventMaker makes the events of one stream. Memory is most of what a small
// event costs, so several share one allocation: who keeps an event may keep
// seven others with it, and their bytes, at most 32 KiB together. An event
// above 4 KiB comes alone.
type eventMaker struct {
	from   peer.ID
	name   string // of the last event
	events []Event
	bytes  []byte
}

const (
	eventSlab = 8            // events, which are 448 bytes, a size class of Go
	byteSlab  = 8 << 10      // bytes
	ownBytes  = byteSlab / 4 // above this, bytes have an allocation of their own ...
	ownEvent  = 2 * ownBytes // ... and above this, events, too
)

// event returns the event in b, which it copies.
func (m *eventMaker) event(b []byte) (*Event, error) {
	return m.owning(m.copy(b))
}

// owning returns the event in b, which it keeps.
func (m *eventMaker) owning(b []byte) (*Event, error) {
	var e *Event
	if len(b) > ownEvent {
		e = new(Event)
	} else {
		if len(m.events) == 0 {
			m.events = make([]Event, eventSlab)
		}
		e = &m.events[0]
		m.events = m.events[1:]
	}
	if err := e.parse(b, m.name); err != nil {
		return nil, err
	}
	m.name = e.Name
	e.From = m.from
	return e, nil
}

func (m *eventMaker) copy(b []byte) []byte {
	if len(b) > ownBytes {
		return bytes.Clone(b)
	}
	if len(m.bytes) < len(b) {
		m.bytes = make([]byte, byteSlab)
	}
	c := m.bytes[:len(b):len(b)]
	m.bytes = m.bytes[len(b):]
	copy(c, b)
	return c
}

// framesWithin returns how many frames of buf end within its first n bytes, and
// where the last of them ends. buf holds whole frames that this process made.
func framesWithin(buf []byte, n int) (frames, end int) {
	for end < n {
		size, k := protowire.ConsumeVarint(buf[end:])
		next := end + k + int(size)
		if next > n {
			break
		}
		frames, end = frames+1, next
	}
	return frames, end
}
