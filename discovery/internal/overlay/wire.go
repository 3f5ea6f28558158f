package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// This file encodes and decodes the messages. Each message lists its fields once, in the
// order of their protobuf field numbers; encoding, decoding and OpenRecords follow that
// list. docs/wire.md describes the same format as protobuf.

// The limits of a message that is received. docs/wire.md lists them.
const (
	// MaxFrame is the largest size of a frame in bytes. A Ready with 1024 high-water marks
	// of package events in its Greeting fits.
	MaxFrame = 128 << 10
	// MaxContacts is the number of contacts that are read from a list; later ones are
	// dropped.
	MaxContacts = 16
	// MaxRecord is the largest size of a signed peer record in bytes.
	MaxRecord = 4 << 10

	maxDegree  = 1 << 16 // the largest number of links that a message can state
	maxWalkTTL = 8       // the largest number of hops of a Walk
	maxID      = 64      // the largest size of a peer id in bytes
)

// A frame is a protobuf message with one field, whose number is the kind of the message.
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

func (Request) number() protowire.Number      { return numRequest }
func (Accept) number() protowire.Number       { return numAccept }
func (Reject) number() protowire.Number       { return numReject }
func (Ready) number() protowire.Number        { return numReady }
func (Keepalive) number() protowire.Number    { return numKeepalive }
func (Leave) number() protowire.Number        { return numLeave }
func (Walk) number() protowire.Number         { return numWalk }
func (Handover) number() protowire.Number     { return numHandover }
func (Signal) number() protowire.Number       { return numSignal }
func (Shuffle) number() protowire.Number      { return numShuffle }
func (ShuffleReply) number() protowire.Number { return numShuffleReply }
func (Beacon) number() protowire.Number       { return numBeacon }
func (Lookup) number() protowire.Number       { return numLookup }
func (Found) number() protowire.Number        { return numFound }

func (m *Request) fields() []fieldCodec {
	return []fieldCodec{
		session(&m.Session), text(&m.Network, protocol.MaxNetwork), octets(&m.Record, MaxRecord), number(&m.Degree, maxDegree),
		flag(&m.Urgent), flag(&m.Manual), tag(&m.Tag), optionalContact(&m.Leaving),
	}
}

func (m *Accept) fields() []fieldCodec {
	return []fieldCodec{session(&m.Session), octets(&m.Record, MaxRecord), number(&m.Degree, maxDegree), contacts(&m.Contacts), flag(&m.Exchange)}
}

func (m *Reject) fields() []fieldCodec {
	return []fieldCodec{reason(&m.Reason), text(&m.Network, protocol.MaxNetwork), contacts(&m.Contacts), tag(&m.Tag)}
}

func (m *Ready) fields() []fieldCodec {
	return []fieldCodec{number(&m.Degree, maxDegree), octets(&m.Greeting, MaxFrame)}
}

func (m *Keepalive) fields() []fieldCodec {
	return []fieldCodec{number(&m.Degree, maxDegree), micros(&m.Stamp), micros(&m.Echo), micros(&m.Hold)}
}

func (m *Leave) fields() []fieldCodec { return []fieldCodec{reason(&m.Reason), contacts(&m.Contacts)} }

func (m *Walk) fields() []fieldCodec {
	return []fieldCodec{contact(&m.Origin), number(&m.TTL, maxWalkTTL), flag(&m.Urgent)}
}

func (m *Handover) fields() []fieldCodec { return []fieldCodec{optionalContact(&m.To)} }

func (m *Shuffle) fields() []fieldCodec {
	return []fieldCodec{path(&m.Path), number(&m.TTL, maxTTL), tag(&m.Tag), contact(&m.Origin), contacts(&m.Contacts)}
}

func (m *ShuffleReply) fields() []fieldCodec {
	return []fieldCodec{path(&m.Path), tag(&m.Tag), contacts(&m.Contacts)}
}

func (m *Beacon) fields() []fieldCodec { return []fieldCodec{contact(&m.Owner)} }

func (m *Lookup) fields() []fieldCodec {
	return []fieldCodec{path(&m.Path), number(&m.TTL, maxTTL), integer(&m.Token), text(&m.Target, maxID), contact(&m.Origin)}
}

func (m *Found) fields() []fieldCodec {
	return []fieldCodec{path(&m.Path), integer(&m.Token), contact(&m.Target)}
}

// A layout describes the fields of one kind of message. It makes a copy of the message m, or an
// empty message if m is nil. It returns a codec for each field of the copy, and a function that
// returns the copy after the codecs have decoded new values into it.
type layout func(m Message) (fields []fieldCodec, message func() Message)

func layoutOf[M Message, P interface {
	*M
	fields() []fieldCodec
}](m Message) ([]fieldCodec, func() Message) {
	message := new(M)
	if m != nil {
		*message = m.(M)
	}
	return P(message).fields(), func() Message { return *message }
}

// layouts holds the layout of each kind of message, which lists the fields to encode, by the
// number of that kind. Signal has no layout, since its whole body is its payload.
var layouts = [numEnd]layout{
	numRequest:      layoutOf[Request],
	numAccept:       layoutOf[Accept],
	numReject:       layoutOf[Reject],
	numReady:        layoutOf[Ready],
	numKeepalive:    layoutOf[Keepalive],
	numLeave:        layoutOf[Leave],
	numWalk:         layoutOf[Walk],
	numHandover:     layoutOf[Handover],
	numShuffle:      layoutOf[Shuffle],
	numShuffleReply: layoutOf[ShuffleReply],
	numBeacon:       layoutOf[Beacon],
	numLookup:       layoutOf[Lookup],
	numFound:        layoutOf[Found],
}

// Append appends the encoding of m to b, without the length that begins a frame.
func Append(b []byte, m Message) []byte {
	if signal, ok := m.(Signal); ok {
		return frame.AppendMessage(b, numSignal, signal.Payload)
	}
	fields, _ := layouts[m.number()](m)
	var body []byte
	for i, f := range fields {
		body = f.append(body, protowire.Number(i+1))
	}
	return frame.AppendMessage(b, m.number(), body)
}

// Decode decodes one message. Of its contacts, only Record is set; OpenRecords fills in the
// other fields. For a kind of message that this version does not know, Decode returns nil
// and no error. The message keeps no reference to b.
func Decode(b []byte) (Message, error) {
	var m Message
	for f, err := range frame.Fields(b) {
		if err != nil {
			return nil, fmt.Errorf("overlay: decode message: %w", err)
		}
		if f.Num >= numEnd || f.Type != protowire.BytesType {
			continue // a kind of message that a later version added
		}
		if m != nil {
			return nil, fmt.Errorf("overlay: decode message: %w: two messages in one frame", frame.ErrMalformed)
		}
		if m, err = decodeBody(f.Num, f.Bytes); err != nil {
			return nil, fmt.Errorf("overlay: decode message %d: %w", f.Num, err)
		}
	}
	return m, nil
}

func decodeBody(num protowire.Number, b []byte) (Message, error) {
	if num == numSignal {
		return Signal{Payload: append([]byte(nil), b...)}, nil
	}
	fields, message := layouts[num](nil)
	if err := readFields(b, fields); err != nil {
		return nil, err
	}
	return message(), nil
}

// readFields decodes b, the body of a message, into fields, where fields[0] is the field with
// the protobuf number 1.
func readFields(b []byte, fields []fieldCodec) error {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return err
		}
		if f.Num > protowire.Number(len(fields)) {
			continue // a field that a later version added
		}
		if err := fields[f.Num-1].read(f); err != nil {
			return err
		}
	}
	return nil
}

// OpenRecords returns m after it has filled in each contact from its signed record. open
// decodes one record and reports whether it is valid. If a required contact, such as the
// origin of a walk, has no valid record, OpenRecords reports false. In a list, contacts
// without a valid record or without an address to dial are dropped.
func OpenRecords(m Message, open func(record []byte) (Contact, bool)) (Message, bool) {
	if _, ok := m.(Signal); ok {
		return m, true // a Signal carries no records
	}
	fields, message := layouts[m.number()](m)
	for _, f := range fields {
		if f.open != nil && !f.open(open) {
			return m, false
		}
	}
	return message(), true
}

// A fieldCodec encodes and decodes one field of a message.
type fieldCodec struct {
	append func(b []byte, num protowire.Number) []byte
	// read decodes the field. It must not keep a reference to the bytes of the field.
	read func(frame.Field) error
	// open, if not nil, fills in the contacts of the field from their records. It reports
	// false if the record of a required contact is not valid.
	open func(func(record []byte) (Contact, bool)) bool
}

// octets is the codec of a byte slice. More than limit bytes are an error.
func octets(v *[]byte, limit int) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendBytes(b, num, *v) },
		read: func(f frame.Field) error {
			if len(f.Bytes) > limit {
				return fmt.Errorf("%w: field %d has %d bytes, the limit is %d", frame.ErrTooLarge, f.Num, len(f.Bytes), limit)
			}
			*v = append([]byte(nil), f.Bytes...)
			return nil
		},
	}
}

// text is the codec of a string. More than limit bytes are an error.
func text[T ~string](v *T, limit int) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendBytes(b, num, *v) },
		read: func(f frame.Field) error {
			var b []byte
			err := octets(&b, limit).read(f)
			*v = T(b)
			return err
		},
	}
}

// number is the codec of an int. It reads a value above limit as limit.
func number(v *int, limit int) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendUint(b, num, uint64(*v)) },
		read: func(f frame.Field) error {
			*v = int(min(f.Uint, uint64(limit)))
			return nil
		},
	}
}

func integer(v *uint64) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendUint(b, num, *v) },
		read: func(f frame.Field) error {
			*v = f.Uint
			return nil
		},
	}
}

func flag(v *bool) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendUint(b, num, uint64(bit(*v))) },
		read: func(f frame.Field) error {
			*v = f.Uint != 0
			return nil
		},
	}
}

func micros(v *time.Duration) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte {
			return frame.AppendUint(b, num, uint64(v.Microseconds()))
		},
		read: func(f frame.Field) error {
			*v = time.Duration(min(f.Uint, 1<<52)) * time.Microsecond
			return nil
		},
	}
}

// reason is the codec of a Reason. It reads a number that this version does not know, as a
// later version may send, as ReasonNone.
func reason(v *Reason) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendUint(b, num, uint64(*v)) },
		read: func(f frame.Field) error {
			*v = ReasonNone
			if f.Uint < uint64(reasonEnd) {
				*v = Reason(f.Uint)
			}
			return nil
		},
	}
}

func session(v *protocol.Session) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte { return frame.AppendBytes(b, num, v[:]) },
		read: func(f frame.Field) error {
			if len(f.Bytes) != len(v) {
				return fmt.Errorf("%w: a session has %d bytes", frame.ErrMalformed, len(v))
			}
			copy(v[:], f.Bytes)
			return nil
		},
	}
}

// contact is the codec of a required contact: OpenRecords reports false if the contact has
// no valid record.
func contact(v *Contact) fieldCodec {
	f := octets(&v.Record, MaxRecord)
	f.open = func(open func([]byte) (Contact, bool)) bool {
		c, ok := open(v.Record)
		if ok {
			*v = c
		}
		return ok
	}
	return f
}

// optionalContact is the codec of a contact that may be missing, but must have a valid
// record if it is present.
func optionalContact(v *Contact) fieldCodec {
	f := contact(v)
	required := f.open
	f.open = func(open func([]byte) (Contact, bool)) bool { return len(v.Record) == 0 || required(open) }
	return f
}

// contacts is the codec of a list of contacts. It reads only the first MaxContacts.
func contacts(v *[]Contact) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte {
			for _, c := range *v {
				if len(c.Record) > 0 {
					b = frame.AppendBytes(b, num, c.Record)
				}
			}
			return b
		},
		read: func(f frame.Field) error {
			if len(*v) == MaxContacts {
				return nil
			}
			var c Contact
			err := octets(&c.Record, MaxRecord).read(f)
			*v = append(*v, c)
			return err
		},
		open: func(open func([]byte) (Contact, bool)) bool {
			var valid []Contact
			for _, c := range *v {
				if c, ok := open(c.Record); ok && len(c.Addrs) > 0 {
					valid = append(valid, c)
				}
			}
			*v = valid
			return true // one invalid contact does not make the message invalid
		},
	}
}

func path(v *[]peer.ID) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte {
			for _, id := range *v {
				b = frame.AppendMessage(b, num, id)
			}
			return b
		},
		read: func(f frame.Field) error {
			if len(*v) == maxPath {
				return fmt.Errorf("%w: a path of more than %d nodes", frame.ErrTooLarge, maxPath)
			}
			var id peer.ID
			err := text(&id, maxID).read(f)
			*v = append(*v, id)
			return err
		},
	}
}

func tag(v *Tag) fieldCodec {
	return fieldCodec{
		append: func(b []byte, num protowire.Number) []byte {
			if v.ID == "" {
				return b
			}
			return frame.AppendMessage(b, num, frame.AppendUint(frame.AppendBytes(nil, 1, string(v.ID)), 2, v.Seq))
		},
		read: func(f frame.Field) error {
			return readFields(f.Bytes, []fieldCodec{text(&v.ID, maxID), integer(&v.Seq)})
		},
	}
}

func bit(v bool) int {
	if v {
		return 1
	}
	return 0
}
