package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// Limits of what is read from the wire; docs/wire.md lists them.
const (
	// MaxFrame is the largest frame: 1024 sequence marks and a little more.
	MaxFrame = 128 << 10
	// MaxContacts is the most contacts taken from one message.
	MaxContacts = 16
	// MaxRecord is the largest signed peer record in bytes.
	MaxRecord = 4 << 10

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

// OpenRecords returns m with the contacts that its records make, as Decode leaves them
// without: a node that m is about by one, those of a list by list, which leaves out
// those for which it returns false. It reports false when one does.
func OpenRecords(m Message, one, list func(record []byte) (Contact, bool)) (Message, bool) {
	ok := true
	open := func(c *Contact) {
		if contact, good := one(c.Record); good {
			*c = contact
		} else {
			ok = false
		}
	}
	openAll := func(contacts *[]Contact) {
		var kept []Contact
		for _, c := range *contacts {
			if contact, good := list(c.Record); good {
				kept = append(kept, contact)
			}
		}
		*contacts = kept
	}
	switch v := m.(type) {
	case Request:
		if len(v.Leaving.Record) > 0 {
			open(&v.Leaving)
		}
		m = v
	case Accept:
		openAll(&v.Contacts)
		m = v
	case Reject:
		openAll(&v.Contacts)
		m = v
	case Leave:
		openAll(&v.Contacts)
		m = v
	case Walk:
		open(&v.Origin)
		m = v
	case Handover:
		if len(v.To.Record) > 0 {
			open(&v.To)
		}
		m = v
	case Shuffle:
		open(&v.Origin)
		openAll(&v.Contacts)
		m = v
	case ShuffleReply:
		openAll(&v.Contacts)
		m = v
	case Beacon:
		open(&v.Owner)
		m = v
	case Lookup:
		open(&v.Origin)
		m = v
	case Found:
		open(&v.Target)
		m = v
	}
	return m, ok
}

func decodeBody(num int, b []byte) (Message, error) {
	switch num {
	case numRequest:
		var m Request
		err := read(b, session(&m.Session), text(&m.Network, protocol.MaxNetwork), octets(&m.Record, MaxRecord), number(&m.Degree, maxDegree),
			flag(&m.Urgent), flag(&m.Manual), tag(&m.Tag), octets(&m.Leaving.Record, MaxRecord))
		return m, err
	case numAccept:
		var m Accept
		err := read(b, session(&m.Session), octets(&m.Record, MaxRecord), number(&m.Degree, maxDegree), contacts(&m.Contacts), flag(&m.Exchange))
		return m, err
	case numReject:
		var m Reject
		err := read(b, reason(&m.Reason), text(&m.Network, protocol.MaxNetwork), contacts(&m.Contacts), tag(&m.Tag))
		return m, err
	case numReady:
		var m Ready
		err := read(b, number(&m.Degree, maxDegree), octets(&m.Greeting, MaxFrame))
		return m, err
	case numKeepalive:
		var m Keepalive
		err := read(b, number(&m.Degree, maxDegree), micros(&m.Stamp), micros(&m.Echo), micros(&m.Hold))
		return m, err
	case numLeave:
		var m Leave
		err := read(b, reason(&m.Reason), contacts(&m.Contacts))
		return m, err
	case numWalk:
		var m Walk
		err := read(b, octets(&m.Origin.Record, MaxRecord), number(&m.TTL, maxWalkTTL), flag(&m.Urgent))
		return m, err
	case numHandover:
		var m Handover
		err := read(b, octets(&m.To.Record, MaxRecord))
		return m, err
	case numShuffle:
		var m Shuffle
		err := read(b, path(&m.Path), number(&m.TTL, maxTTL), tag(&m.Tag), octets(&m.Origin.Record, MaxRecord), contacts(&m.Contacts))
		return m, err
	case numShuffleReply:
		var m ShuffleReply
		err := read(b, path(&m.Path), tag(&m.Tag), contacts(&m.Contacts))
		return m, err
	case numBeacon:
		var m Beacon
		err := read(b, octets(&m.Owner.Record, MaxRecord))
		return m, err
	case numLookup:
		var m Lookup
		err := read(b, path(&m.Path), number(&m.TTL, maxTTL), integer(&m.Token), text(&m.Target, maxID), octets(&m.Origin.Record, MaxRecord))
		return m, err
	case numFound:
		var m Found
		err := read(b, path(&m.Path), integer(&m.Token), octets(&m.Target.Record, MaxRecord))
		return m, err
	default:
		return Signal{Payload: append([]byte(nil), b...)}, nil
	}
}

// A reader takes one field of a message. What it takes does not refer to the field.
type reader func(frame.Field) error

// read gives the fields of b to readers, field 1 to the first. Others are of a later
// version.
func read(b []byte, readers ...reader) error {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return err
		}
		if f.Num > protowire.Number(len(readers)) {
			continue
		}
		if err := readers[f.Num-1](f); err != nil {
			return err
		}
	}
	return nil
}

func octets(to *[]byte, limit int) reader {
	return func(f frame.Field) error {
		if len(f.Bytes) > limit {
			return fmt.Errorf("%w: field %d has %d bytes, the limit is %d", frame.ErrTooLarge, f.Num, len(f.Bytes), limit)
		}
		*to = append([]byte(nil), f.Bytes...)
		return nil
	}
}

func text[T ~string](to *T, limit int) reader {
	return func(f frame.Field) error {
		var b []byte
		err := octets(&b, limit)(f)
		*to = T(b)
		return err
	}
}

// number reads what is greater than limit as that.
func number(to *int, limit int) reader {
	return func(f frame.Field) error {
		*to = int(min(f.Uint, uint64(limit)))
		return nil
	}
}

func integer(to *uint64) reader {
	return func(f frame.Field) error {
		*to = f.Uint
		return nil
	}
}

func flag(to *bool) reader {
	return func(f frame.Field) error {
		*to = f.Uint != 0
		return nil
	}
}

func micros(to *time.Duration) reader {
	return func(f frame.Field) error {
		*to = time.Duration(min(f.Uint, 1<<52)) * time.Microsecond
		return nil
	}
}

func reason(to *Reason) reader {
	return func(f frame.Field) error {
		*to = ReasonNone // for one of a later version
		if f.Uint < uint64(reasonEnd) {
			*to = Reason(f.Uint)
		}
		return nil
	}
}

func session(to *Session) reader {
	return func(f frame.Field) error {
		if len(f.Bytes) != len(to) {
			return fmt.Errorf("%w: a session has %d bytes", frame.ErrMalformed, len(to))
		}
		copy(to[:], f.Bytes)
		return nil
	}
}

// contacts reads the first MaxContacts.
func contacts(to *[]Contact) reader {
	return func(f frame.Field) error {
		if len(*to) == MaxContacts {
			return nil
		}
		var c Contact
		err := octets(&c.Record, MaxRecord)(f)
		*to = append(*to, c)
		return err
	}
}

func path(to *[]peer.ID) reader {
	return func(f frame.Field) error {
		if len(*to) == maxPath {
			return fmt.Errorf("%w: a path of more than %d nodes", frame.ErrTooLarge, maxPath)
		}
		var id peer.ID
		err := text(&id, maxID)(f)
		*to = append(*to, id)
		return err
	}
}

func tag(to *Tag) reader {
	return func(f frame.Field) error { return read(f.Bytes, text(&to.ID, maxID), integer(&to.Seq)) }
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
