package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Limits of what is read from the wire; docs/wire.md lists them.
const (
	// MaxFrame is the largest frame: 1024 sequence marks and a little more.
	MaxFrame = 128 << 10
	// MaxContacts is the most contacts taken from one message.
	MaxContacts = 16
	// MaxRecord is the largest signed peer record in bytes.
	MaxRecord = 4 << 10
	// MaxNetwork is the longest network name in bytes.
	MaxNetwork = 128

	maxDegree  = 1 << 16
	maxWalkTTL = 8
	maxID      = 64
)

// Field numbers of the messages; docs/wire.md has them as protobuf.
const (
	numRequest = iota + 1
	numAccept
	numReject
	numReady
	numKeepalive
	numLeave
	numWalk
	numHandover
	numSignal
	numShuffle
	numShuffleReply
	numBeacon
	numLookup
	numFound
	numEnd
)

// Append appends the encoding of m, without frame, to b.
func Append(b []byte, m Message) []byte {
	switch m := m.(type) {
	case Request:
		body := frame.AppendBytes(nil, 1, m.Session[:])
		body = frame.AppendBytes(body, 2, m.Network)
		body = frame.AppendBytes(body, 3, m.Record)
		body = frame.AppendUint(body, 4, uint64(m.Degree))
		body = frame.AppendUint(body, 5, uint64(bit(m.Urgent)))
		body = frame.AppendUint(body, 6, uint64(bit(m.Manual)))
		body = appendTag(body, 7, m.Tag)
		body = frame.AppendBytes(body, 8, m.Leaving.Record)
		return frame.AppendMessage(b, numRequest, body)
	case Accept:
		body := frame.AppendBytes(nil, 1, m.Session[:])
		body = frame.AppendBytes(body, 2, m.Record)
		body = frame.AppendUint(body, 3, uint64(m.Degree))
		body = appendContacts(body, 4, m.Contacts)
		body = frame.AppendUint(body, 5, uint64(bit(m.Exchange)))
		return frame.AppendMessage(b, numAccept, body)
	case Reject:
		body := frame.AppendUint(nil, 1, uint64(m.Reason))
		body = frame.AppendBytes(body, 2, m.Network)
		body = appendContacts(body, 3, m.Contacts)
		body = appendTag(body, 4, m.Tag)
		return frame.AppendMessage(b, numReject, body)
	case Ready:
		body := frame.AppendUint(nil, 1, uint64(m.Degree))
		body = frame.AppendBytes(body, 2, m.Greeting)
		return frame.AppendMessage(b, numReady, body)
	case Keepalive:
		body := frame.AppendUint(nil, 1, uint64(m.Degree))
		body = frame.AppendUint(body, 2, uint64(m.Stamp.Microseconds()))
		body = frame.AppendUint(body, 3, uint64(m.Echo.Microseconds()))
		body = frame.AppendUint(body, 4, uint64(m.Hold.Microseconds()))
		return frame.AppendMessage(b, numKeepalive, body)
	case Leave:
		body := frame.AppendUint(nil, 1, uint64(m.Reason))
		body = appendContacts(body, 2, m.Contacts)
		return frame.AppendMessage(b, numLeave, body)
	case Walk:
		body := frame.AppendBytes(nil, 1, m.Origin.Record)
		body = frame.AppendUint(body, 2, uint64(m.TTL))
		body = frame.AppendUint(body, 3, uint64(bit(m.Urgent)))
		return frame.AppendMessage(b, numWalk, body)
	case Handover:
		return frame.AppendMessage(b, numHandover, frame.AppendBytes(nil, 1, m.To.Record))
	case Signal:
		return frame.AppendMessage(b, numSignal, m.Payload)
	case Shuffle:
		body := appendPath(nil, 1, m.Path)
		body = frame.AppendUint(body, 2, uint64(m.TTL))
		body = appendTag(body, 3, m.Tag)
		body = frame.AppendBytes(body, 4, m.Origin.Record)
		body = appendContacts(body, 5, m.Contacts)
		return frame.AppendMessage(b, numShuffle, body)
	case ShuffleReply:
		body := appendPath(nil, 1, m.Path)
		body = appendTag(body, 2, m.Tag)
		body = appendContacts(body, 3, m.Contacts)
		return frame.AppendMessage(b, numShuffleReply, body)
	case Beacon:
		return frame.AppendMessage(b, numBeacon, frame.AppendBytes(nil, 1, m.Owner.Record))
	case Lookup:
		body := appendPath(nil, 1, m.Path)
		body = frame.AppendUint(body, 2, uint64(m.TTL))
		body = frame.AppendUint(body, 3, m.Token)
		body = frame.AppendBytes(body, 4, string(m.Target))
		body = frame.AppendBytes(body, 5, m.Origin.Record)
		return frame.AppendMessage(b, numLookup, body)
	case Found:
		body := appendPath(nil, 1, m.Path)
		body = frame.AppendUint(body, 2, m.Token)
		body = frame.AppendBytes(body, 3, m.Target.Record)
		return frame.AppendMessage(b, numFound, body)
	}
	panic(fmt.Sprintf("overlay: message of unknown type %T", m))
}

// Decode reads one message. Contacts have their Record alone: verifying it and
// reading the ID and the addresses from it is the caller's. It returns nil and
// no error for a message of a kind this version does not know. The message does
// not refer to b.
func Decode(b []byte) (Message, error) {
	var m Message
	for f, err := range frame.Fields(b) {
		if err != nil {
			return nil, fmt.Errorf("overlay: decode message: %w", err)
		}
		if f.Num >= numEnd || f.Type != protowire.BytesType {
			continue
		}
		if m != nil {
			return nil, fmt.Errorf("overlay: decode message: %w: two messages in one frame", frame.ErrMalformed)
		}
		if m, err = decodeBody(int(f.Num), f.Bytes); err != nil {
			return nil, fmt.Errorf("overlay: decode message %d: %w", f.Num, err)
		}
	}
	return m, nil
}

func decodeBody(num int, b []byte) (Message, error) {
	d := decoder{body: b}
	switch num {
	case numRequest:
		var m Request
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				d.session(&m.Session, f)
			case 2:
				m.Network = string(d.bytes(f, MaxNetwork))
			case 3:
				m.Record = d.bytes(f, MaxRecord)
			case 4:
				m.Degree = d.uint(f, maxDegree)
			case 5:
				m.Urgent = f.Uint != 0
			case 6:
				m.Manual = f.Uint != 0
			case 7:
				d.tag(&m.Tag, f)
			case 8:
				m.Leaving.Record = d.bytes(f, MaxRecord)
			}
		})
		return m, d.err
	case numAccept:
		var m Accept
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				d.session(&m.Session, f)
			case 2:
				m.Record = d.bytes(f, MaxRecord)
			case 3:
				m.Degree = d.uint(f, maxDegree)
			case 4:
				d.contact(&m.Contacts, f)
			case 5:
				m.Exchange = f.Uint != 0
			}
		})
		return m, d.err
	case numReject:
		var m Reject
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				m.Reason = d.reason(f)
			case 2:
				m.Network = string(d.bytes(f, MaxNetwork))
			case 3:
				d.contact(&m.Contacts, f)
			case 4:
				d.tag(&m.Tag, f)
			}
		})
		return m, d.err
	case numReady:
		var m Ready
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				m.Degree = d.uint(f, maxDegree)
			case 2:
				m.Greeting = d.bytes(f, MaxFrame)
			}
		})
		return m, d.err
	case numKeepalive:
		var m Keepalive
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				m.Degree = d.uint(f, maxDegree)
			case 2:
				m.Stamp = micros(f)
			case 3:
				m.Echo = micros(f)
			case 4:
				m.Hold = micros(f)
			}
		})
		return m, d.err
	case numLeave:
		var m Leave
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				m.Reason = d.reason(f)
			case 2:
				d.contact(&m.Contacts, f)
			}
		})
		return m, d.err
	case numWalk:
		var m Walk
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				m.Origin.Record = d.bytes(f, MaxRecord)
			case 2:
				m.TTL = min(d.uint(f, maxDegree), maxWalkTTL)
			case 3:
				m.Urgent = f.Uint != 0
			}
		})
		return m, d.err
	case numHandover:
		var m Handover
		d.each(func(f frame.Field) {
			if f.Num == 1 {
				m.To.Record = d.bytes(f, MaxRecord)
			}
		})
		return m, d.err
	case numShuffle:
		var m Shuffle
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				d.path(&m.Path, f)
			case 2:
				m.TTL = min(d.uint(f, maxDegree), maxTTL)
			case 3:
				d.tag(&m.Tag, f)
			case 4:
				m.Origin.Record = d.bytes(f, MaxRecord)
			case 5:
				d.contact(&m.Contacts, f)
			}
		})
		return m, d.err
	case numShuffleReply:
		var m ShuffleReply
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				d.path(&m.Path, f)
			case 2:
				d.tag(&m.Tag, f)
			case 3:
				d.contact(&m.Contacts, f)
			}
		})
		return m, d.err
	case numBeacon:
		var m Beacon
		d.each(func(f frame.Field) {
			if f.Num == 1 {
				m.Owner.Record = d.bytes(f, MaxRecord)
			}
		})
		return m, d.err
	case numLookup:
		var m Lookup
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				d.path(&m.Path, f)
			case 2:
				m.TTL = min(d.uint(f, maxDegree), maxTTL)
			case 3:
				m.Token = f.Uint
			case 4:
				m.Target = peer.ID(d.bytes(f, maxID))
			case 5:
				m.Origin.Record = d.bytes(f, MaxRecord)
			}
		})
		return m, d.err
	case numFound:
		var m Found
		d.each(func(f frame.Field) {
			switch f.Num {
			case 1:
				d.path(&m.Path, f)
			case 2:
				m.Token = f.Uint
			case 3:
				m.Target.Record = d.bytes(f, MaxRecord)
			}
		})
		return m, d.err
	default:
		return Signal{Payload: append([]byte(nil), b...)}, nil
	}
}

// decoder walks the fields of one body and remembers the first error.
type decoder struct {
	body []byte
	err  error
}

func (d *decoder) each(field func(frame.Field)) {
	for f, err := range frame.Fields(d.body) {
		if err != nil {
			d.fail(err)
		}
		if d.err != nil {
			return
		}
		field(f)
	}
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) bytes(f frame.Field, limit int) []byte {
	if len(f.Bytes) > limit {
		d.fail(fmt.Errorf("%w: field %d has %d bytes, the limit is %d", frame.ErrTooLarge, f.Num, len(f.Bytes), limit))
		return nil
	}
	return append([]byte(nil), f.Bytes...)
}

func (d *decoder) uint(f frame.Field, limit int) int { return int(min(f.Uint, uint64(limit))) }

func (d *decoder) reason(f frame.Field) Reason {
	if f.Uint >= uint64(reasonEnd) {
		return ReasonNone // of a later version
	}
	return Reason(f.Uint)
}

func (d *decoder) session(to *Session, f frame.Field) {
	if len(f.Bytes) != len(to) {
		d.fail(fmt.Errorf("%w: a session has %d bytes", frame.ErrMalformed, len(to)))
		return
	}
	copy(to[:], f.Bytes)
}

func (d *decoder) contact(to *[]Contact, f frame.Field) {
	if len(*to) < MaxContacts {
		*to = append(*to, Contact{Record: d.bytes(f, MaxRecord)})
	}
}

func (d *decoder) path(to *[]peer.ID, f frame.Field) {
	if len(*to) == maxPath {
		d.fail(fmt.Errorf("%w: a path of more than %d nodes", frame.ErrTooLarge, maxPath))
		return
	}
	*to = append(*to, peer.ID(d.bytes(f, maxID)))
}

func (d *decoder) tag(to *Tag, f frame.Field) {
	inner := decoder{body: f.Bytes}
	inner.each(func(f frame.Field) {
		switch f.Num {
		case 1:
			to.ID = peer.ID(inner.bytes(f, maxID))
		case 2:
			to.Seq = f.Uint
		}
	})
	if inner.err != nil {
		d.fail(inner.err)
	}
}

func micros(f frame.Field) time.Duration {
	return time.Duration(min(f.Uint, 1<<52)) * time.Microsecond
}

func appendContacts(b []byte, num protowire.Number, contacts []Contact) []byte {
	for _, c := range contacts {
		if len(c.Record) > 0 {
			b = frame.AppendBytes(b, num, c.Record)
		}
	}
	return b
}

func appendPath(b []byte, num protowire.Number, path []peer.ID) []byte {
	for _, id := range path {
		b = frame.AppendMessage(b, num, id)
	}
	return b
}

func appendTag(b []byte, num protowire.Number, t Tag) []byte {
	if t.ID == "" {
		return b
	}
	return frame.AppendMessage(b, num, frame.AppendUint(frame.AppendBytes(nil, 1, string(t.ID)), 2, t.Seq))
}

func bit(v bool) int {
	if v {
		return 1
	}
	return 0
}
