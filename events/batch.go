package events

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// One kind of message travels on the topic, in the data of a signed pubsub message. The
// author of the pubsub message, which the signature proves, is the sender of the batch:
//
//	message Batch {
//	  bytes session = 1;     // 8 random bytes, drawn when the sender started
//	  uint64 start_ms = 2;   // when the sender started, in ms since 1970; at least 1
//	  uint64 first = 3;      // number of the first event, at least 1
//	  repeated bytes event = 4; // Event messages, 1 to 16,384 of them
//	}
//
// A sender numbers its events from 1 in each session, without gaps; the events of a
// batch have consecutive numbers. The later of two sessions of a sender is the one with
// the greater start_ms, or with the greater session if the start_ms are equal. After a
// node has handled an event of the later session, it handles no more events of the
// earlier one. A batch has at most 768 KiB, an event is not empty, and all numbers are
// below 2^62. Unknown fields are skipped. A message that breaks one of these rules, or
// is not a Batch at all, is counted and otherwise ignored.
const (
	// maxBatch is the largest size of a batch in bytes. Together with its signature it
	// is well below 1 MiB, which is the limit of every pubsub implementation.
	maxBatch = 768 << 10
	// maxBatchEvents is how many events one batch may contain.
	maxBatchEvents = 16384
	// maxBatchOverhead is the most bytes that a batch with a single event has besides the
	// bytes of that event.
	maxBatchOverhead = 64
)

const (
	numBatchSession = 1
	numBatchStart   = 2
	numBatchFirst   = 3
	numBatchEvent   = 4
)

// appendBatchHeader appends to dst the fields of a batch of the given session that stand
// before its events, and returns the extended dst. first is the number of the first
// event in the batch.
func appendBatchHeader(dst []byte, session order.SessionKey, first uint64) []byte {
	dst = frame.AppendBytes(dst, numBatchSession, session.ID[:])
	dst = frame.AppendUint(dst, numBatchStart, session.Start)
	return frame.AppendUint(dst, numBatchFirst, first)
}

// An arrivedBatch is a Batch message that this node has received.
type arrivedBatch struct {
	session order.SessionKey
	first   uint64
	count   int    // how many events data contains
	data    []byte // the bytes of the Batch message from its first event to its end
}

// nextSeq returns the number after that of the last event in the batch.
func (m *arrivedBatch) nextSeq() uint64 { return m.first + uint64(m.count) }

// parse decodes the Batch message b into m, or returns an error if b is not valid. It
// does not copy b, so m refers to the memory of b afterwards.
func (m *arrivedBatch) parse(b []byte) error {
	if len(b) > maxBatch {
		return fmt.Errorf("%w batch: %d bytes, at most %d", event.ErrMalformed, len(b), maxBatch)
	}
	var session []byte
	for len(b) > 0 {
		f, rest, err := frame.Cut(b)
		switch {
		case err != nil:
			return fmt.Errorf("%w batch: %w", event.ErrMalformed, err)
		case f.Num == numBatchEvent && f.Type == protowire.BytesType:
			switch {
			case m.count == maxBatchEvents:
				return fmt.Errorf("%w batch: more than %d events", event.ErrMalformed, maxBatchEvents)
			case len(f.Bytes) == 0:
				return fmt.Errorf("%w batch: event %d is empty", event.ErrMalformed, m.count+1)
			case m.count == 0:
				m.data = b // data may contain other fields between the events; cutEvent skips them
			}
			m.count++
		case f.Num == numBatchSession && f.Type == protowire.BytesType:
			session = f.Bytes
		case f.Num == numBatchStart && f.Type == protowire.VarintType:
			m.session.Start = f.Uint
		case f.Num == numBatchFirst && f.Type == protowire.VarintType:
			m.first = f.Uint
		}
		b = rest
	}
	if err := parseSession(&m.session, session); err != nil {
		return fmt.Errorf("%w batch: %w", event.ErrMalformed, err)
	}
	// The last condition refuses event numbers above order.MaxNumber. It does not compute
	// first+count, because that sum could overflow.
	if m.first == 0 || m.count == 0 || m.first > order.MaxNumber-uint64(m.count) {
		return fmt.Errorf("%w batch: %d events from %d", event.ErrMalformed, m.count, m.first)
	}
	return nil
}

// cutEvent returns the first event in data, which is the rest of a batch, and the data
// after that event. ev is nil if there is no event.
func cutEvent(data []byte) (ev, rest []byte) {
	for len(data) > 0 {
		f, rest, err := frame.Cut(data)
		if err != nil {
			return nil, nil // parse has decoded all fields of this batch before, so this error cannot happen
		}
		if f.Num == numBatchEvent && f.Type == protowire.BytesType {
			return f.Bytes, rest
		}
		data = rest
	}
	return nil, nil
}

// parseSession copies id, the bytes of a session in a message, into s. The caller must
// have set the start of s. parseSession returns an error if id has the wrong length or
// the start is zero.
func parseSession(s *order.SessionKey, id []byte) error {
	if len(id) != len(s.ID) {
		return fmt.Errorf("a session of %d bytes", len(id))
	}
	if s.Start == 0 {
		return fmt.Errorf("a session without a start time")
	}
	copy(s.ID[:], id)
	return nil
}

// A node informs each neighbor how far it has received the events of the senders that
// it knows:
//
//	message Marks { repeated Mark mark = 1; } // at most 1,024 marks and 64 KiB
//	message Mark {
//	  bytes sender = 1;     // peer id
//	  bytes session = 2;    // the latest session of the sender, as in Batch
//	  uint64 start_ms = 3;
//	  uint64 next = 4;      // every event below it was received, or given up as lost
//	  uint64 above = 5;     // no event from this number on was received; 0 or left out: next
//	  uint64 begin = 6;     // all from here to next were received; 0 or left out: next
//	  uint64 floor = 7;     // the lowest number that is still stored; 0: none
//	  uint64 withheld = 8;  // the receiver of the mark counts only the numbers below
//	                        // next - withheld as acknowledged
//	  bool ask = 9;         // the receiver should send its own mark of the sender back
//	}
//
// A neighbor gets all marks when the link is made, after it was seen on the topic.
// Every event that this node sends or forwards later also goes to the neighbor. So the
// neighbor can expect every event after the marks (after above, if it is given). A node
// believes the marks of a sender about itself. It takes the marks of other nodes as
// hints, which never make it skip an event for good.
const (
	maxMarks     = 1024
	maxMarksSize = 64 << 10
)

const (
	numMarksMark = 1

	// Fields 1 to 3 of a Mark message identify the sender and its session: see runFields.
	numMarkNext  = 4
	numMarkAbove = 5
	numMarkBegin = 6
	numMarkFloor = 7
	numMarkHeld  = 8
	numMarkAsk   = 9
)

// appendMarks appends to dst a Marks message with the first of the marks, as many as fit
// into one message, and returns the extended dst.
func appendMarks(dst []byte, marks []engine.Mark) []byte {
	start := len(dst)
	var buf [192]byte
	for _, m := range marks[:min(len(marks), maxMarks)] {
		body := frame.AppendBytes(buf[:0], numRunSender, m.Sender)
		body = frame.AppendBytes(body, numRunSession, m.Session.ID[:])
		body = frame.AppendUint(body, numRunStart, m.Session.Start)
		body = frame.AppendUint(body, numMarkNext, m.Next)
		// If the field above or begin is left out of a mark, it means the same number as
		// next. Leaving it out saves bytes.
		if m.Above > m.Next {
			body = frame.AppendUint(body, numMarkAbove, m.Above)
		}
		if m.Begin < m.Next {
			body = frame.AppendUint(body, numMarkBegin, m.Begin)
		}
		body = frame.AppendUint(body, numMarkFloor, m.Floor)
		body = frame.AppendUint(body, numMarkHeld, m.Next-min(m.Through, m.Next))
		if m.Ask {
			body = frame.AppendUint(body, numMarkAsk, 1)
		}
		if len(dst)-start+len(body)+4 > maxMarksSize { // 4 bytes are for the tag and the length of this mark
			break
		}
		dst = frame.AppendMessage(dst, numMarksMark, body)
	}
	return dst
}

// decodeMarks decodes a Marks message.
func decodeMarks(b []byte) ([]engine.Mark, error) {
	if len(b) > maxMarksSize {
		return nil, fmt.Errorf("%w marks: %d bytes, at most %d", event.ErrMalformed, len(b), maxMarksSize)
	}
	var marks []engine.Mark
	for f, err := range frame.Fields(b) {
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w marks: %w", event.ErrMalformed, err)
		case f.Num != numMarksMark || f.Type != protowire.BytesType:
			continue // this field is of a later version of the protocol, so it is skipped
		case len(marks) == maxMarks:
			return nil, fmt.Errorf("%w marks: more than %d", event.ErrMalformed, maxMarks)
		}
		m, err := decodeMark(f.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w marks: mark %d: %w", event.ErrMalformed, len(marks)+1, err)
		}
		marks = append(marks, m)
	}
	return marks, nil
}

// readID decodes a peer id. It refuses an id of more than protocol.MaxAuthor bytes, because
// messages of such a sender are refused, too.
func readID(b []byte) (peer.ID, error) {
	if len(b) > protocol.MaxAuthor {
		return "", fmt.Errorf("a peer id of %d bytes, at most %d", len(b), protocol.MaxAuthor)
	}
	return peer.IDFromBytes(b)
}

// Numbers of the fields that the messages Mark and Want have in common. Together these
// fields identify a session of a sender, which is one run of its program.
const (
	numRunSender  = 1
	numRunSession = 2
	numRunStart   = 3
)

// runFields holds the fields of a Mark or Want message that name a session of a sender.
type runFields struct {
	sender  peer.ID
	session []byte
	start   uint64
}

// read decodes the field f into r if f is one of the fields that runFields holds. found
// reports whether it is.
func (r *runFields) read(f frame.Field) (found bool, err error) {
	switch {
	case f.Num == numRunSender && f.Type == protowire.BytesType:
		r.sender, err = readID(f.Bytes)
	case f.Num == numRunSession && f.Type == protowire.BytesType:
		r.session = f.Bytes
	case f.Num == numRunStart && f.Type == protowire.VarintType:
		r.start = f.Uint
	default:
		return false, nil
	}
	return true, err
}

// key returns the session that the fields name, or an error if the fields are invalid.
// It must be called after all fields of the message were read.
func (r *runFields) key() (order.SessionKey, error) {
	s := order.SessionKey{Start: r.start}
	return s, parseSession(&s, r.session)
}

func decodeMark(b []byte) (m engine.Mark, err error) {
	var run runFields
	var held uint64
	for f, err := range frame.Fields(b) {
		if err != nil {
			return m, err
		}
		found, err := run.read(f)
		if err != nil {
			return m, err
		}
		switch {
		case found, f.Type != protowire.VarintType:
			// run.read has decoded the field, or the field is of a later version of the
			// protocol.
		case f.Num == numMarkNext:
			m.Next = f.Uint
		case f.Num == numMarkAbove:
			m.Above = f.Uint
		case f.Num == numMarkBegin:
			m.Begin = f.Uint
		case f.Num == numMarkFloor:
			m.Floor = f.Uint
		case f.Num == numMarkHeld:
			held = f.Uint
		case f.Num == numMarkAsk:
			m.Ask = f.Uint != 0
		}
	}
	m.Sender = run.sender
	m.Above = max(m.Above, m.Next)
	// The sender of the mark has left out the field begin. Then begin is the same number
	// as next.
	if m.Begin == 0 {
		m.Begin = m.Next
	}
	m.Through = m.Next - min(held, m.Next)
	switch {
	case m.Sender == "":
		return m, fmt.Errorf("it has no sender")
	case m.Next == 0 || m.Above > order.MaxNumber || m.Begin > m.Next || m.Floor > order.MaxNumber:
		return m, fmt.Errorf("its numbers are invalid: begin %d, next %d, above %d, floor %d", m.Begin, m.Next, m.Above, m.Floor)
	}
	m.Session, err = run.key()
	return m, err
}
