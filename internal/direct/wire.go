package direct

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// On one stream, events and calls go in one direction, and the answers to its calls
// come back in the other. The first frame is a hello, and each later one is an event or
// a call. A frame with neither is skipped: it is of a later version, or a call that was
// abandoned before it was sent. As in docs/wire.md:
//
//	message DirectFrame { Hello hello = 1; Event event = 2; Call call = 3; Answer answer = 4; }
//	message Hello       { bytes session = 1; string network = 2; uint64 serial = 3; }
//	message Call        { uint64 id = 1; Event event = 2; }
//	message Answer      { uint64 id = 1; Event event = 2; uint32 status = 3; string error = 4; }
//
// serial numbers the streams that a session has opened, so that the reader knows which
// of two streams is older; 0 means unknown. The ids of a session's calls increase.
const (
	fieldHello  = 1
	fieldEvent  = 2
	fieldCall   = 3
	fieldAnswer = 4
	fieldBlank  = 15 // has no meaning; replaces the field of an abandoned call

	fieldSession = 1
	fieldNetwork = 2
	fieldSerial  = 3

	fieldCallID    = 1
	fieldCallEvent = 2
	fieldStatus    = 3
	fieldError     = 4

	maxHello = 1 << 10 // most bytes of the first frame
	envelope = 64      // most bytes of a frame besides its event
)

// Error codes with which a reader resets a stream. For other reasons libp2p's own codes
// are used.
const (
	codeOtherNetwork network.StreamErrorCode = 0x5301 // 'S', 1
	codeRefused      network.StreamErrorCode = 0x5302
)

// hello is the first frame of a stream. It says who sends on it.
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
		return h, fmt.Errorf("%w: the first frame is not a hello", event.ErrMalformed)
	}
	if len(h.session) != len(protocol.Session{}) {
		return h, fmt.Errorf("%w: a session of %d bytes", event.ErrMalformed, len(h.session))
	}
	return h, nil
}

// appendFrame appends to dst the frame of the event o. If the event is a call, c is that
// call; otherwise c is nil.
func appendFrame(dst []byte, o *event.Outgoing, c *pendingCall) []byte {
	dst = slices.Grow(dst, o.Size+envelope)
	if c != nil {
		n := protowire.SizeTag(fieldCallID) + protowire.SizeVarint(c.id) + 1 + protowire.SizeBytes(o.Size)
		dst = frame.AppendLength(dst, 1+protowire.SizeBytes(n))
		c.at = len(dst)
		dst = frame.AppendHeader(dst, fieldCall, n)
		dst = frame.AppendUint(dst, fieldCallID, c.id)
	} else {
		dst = frame.AppendLength(dst, 1+protowire.SizeBytes(o.Size))
	}
	return o.AppendTo(frame.AppendHeader(dst, fieldEvent, o.Size)) // fieldEvent and fieldCallEvent are the same number
}

// parseDirectFrame returns the event in a frame, or nil if there is none. If the event
// is a call's, call is the id of the call; otherwise call is 0.
func parseDirectFrame(b []byte) (ev []byte, call uint64, err error) {
	if tag, body, rest := frame.CutShort(b); tag == tagEvent && len(rest) == 0 {
		return body, 0, nil // the fast path, for nearly all frames
	}
	for len(b) > 0 {
		f, rest, err := frame.Cut(b)
		b = rest
		switch {
		case err != nil:
			return nil, 0, err
		case f.Num == fieldHello:
			return nil, 0, fmt.Errorf("%w: a second hello", event.ErrMalformed)
		case f.Num == fieldAnswer:
			return nil, 0, fmt.Errorf("%w: an answer where calls come from", event.ErrMalformed)
		case f.Num != fieldEvent && f.Num != fieldCall || f.Type != protowire.BytesType:
		case ev != nil:
			return nil, 0, fmt.Errorf("%w: two events in a frame", event.ErrMalformed)
		case f.Num == fieldEvent:
			ev = f.Bytes
		default:
			if ev, call, err = parseCall(f.Bytes); err != nil {
				return nil, 0, err
			}
		}
	}
	return ev, call, nil
}

func parseCall(b []byte) (ev []byte, id uint64, err error) {
	found := false
	for f, err := range frame.Fields(b) {
		switch {
		case err != nil:
			return nil, 0, err
		case f.Num == fieldCallID && f.Type == protowire.VarintType:
			id = f.Uint
		case f.Num == fieldCallEvent && f.Type == protowire.BytesType:
			ev, found = f.Bytes, true
		}
	}
	if id == 0 || !found {
		return nil, 0, fmt.Errorf("%w: a call without an id or an event", event.ErrMalformed)
	}
	return ev, id, nil
}

const tagEvent = fieldEvent<<3 | byte(protowire.BytesType)

// framesWithin returns how many frames of buf end within its first n bytes, where the
// last of them ends, and the id of the last call among them. buf must contain whole
// frames that this process has encoded.
func framesWithin(buf []byte, n int) (frames, end int, call uint64) {
	for end < n {
		size, k := protowire.ConsumeVarint(buf[end:])
		next := end + k + int(size)
		if next > n {
			break
		}
		if _, id, _ := parseDirectFrame(buf[end+k : next]); id != 0 {
			call = id
		}
		frames, end = frames+1, next
	}
	return frames, end, call
}
