package events

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// On the topic travels one message, in the data of a signed pubsub message.
// Who sent it is the author whom the signature proves:
//
//	message Batch {
//	  bytes session = 1;     // 8 bytes: random, drawn when the sender started
//	  uint64 start_ms = 2;   // when that was, ms since 1970; at least 1
//	  uint64 first = 3;      // number of the first event, at least 1
//	  repeated bytes event = 4; // Event messages, 1 to 16,384 of them
//	}
//
// A sender numbers its events from 1 in each session and skips none; the events
// of a batch have consecutive numbers. Of two sessions of one sender the later
// has the greater start_ms, or the greater session if both are equal; once an
// event of the later one was handled, no more of the earlier ones are. A batch
// has at most 768 KiB, an event is not empty, all numbers are below 2^62.
// Unknown fields are skipped. What breaks one of these rules is counted and
// otherwise ignored, as is everything on the topic that is not a Batch.
const (
	// MaxBatch is the largest batch in bytes. With its signature it stays well
	// below the 1 MiB at which pubsub peers of any kind cut the stream.
	MaxBatch = 768 << 10
	// maxBatchEvents bounds the events of one batch.
	maxBatchEvents = 16384
	// maxBatchOverhead is what a batch of one event has besides the event.
	maxBatchOverhead = 64
)

const (
	numBatchSession = 1
	numBatchStart   = 2
	numBatchFirst   = 3
	numBatchEvent   = 4
)

// appendBatchHeader appends what a batch has before its events, of which the first
// has the number first.
func appendBatchHeader(dst []byte, session order.SessionKey, first uint64) []byte {
	dst = frame.AppendBytes(dst, numBatchSession, session.ID[:])
	dst = frame.AppendUint(dst, numBatchStart, session.Start)
	return frame.AppendUint(dst, numBatchFirst, first)
}

// A batch is a Batch that arrived.
type batch struct {
	session order.SessionKey
	first   uint64
	count   int    // events
	data    []byte // the message from its first event on
}

func (m *batch) end() uint64 { return m.first + uint64(m.count) }

// parse reads a Batch. It copies nothing: the batch keeps b.
func (m *batch) parse(b []byte) error {
	if len(b) > MaxBatch {
		return fmt.Errorf("%w batch: %d bytes, at most %d", ErrMalformed, len(b), MaxBatch)
	}
	var session []byte
	for len(b) > 0 {
		f, rest, err := frame.Cut(b)
		switch {
		case err != nil:
			return fmt.Errorf("%w batch: %w", ErrMalformed, err)
		case f.Num == numBatchEvent && f.Type == protowire.BytesType:
			switch {
			case m.count == maxBatchEvents:
				return fmt.Errorf("%w batch: more than %d events", ErrMalformed, maxBatchEvents)
			case len(f.Bytes) == 0:
				return fmt.Errorf("%w batch: event %d is empty", ErrMalformed, m.count+1)
			case m.count == 0:
				m.data = b
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
		return fmt.Errorf("%w batch: %w", ErrMalformed, err)
	}
	if m.first == 0 || m.count == 0 || m.first > order.MaxNumber-uint64(m.count) {
		return fmt.Errorf("%w batch: %d events from %d", ErrMalformed, m.count, m.first)
	}
	return nil
}

// cutEvent returns the next event in data, a part of a batch, and what follows it;
// nil if there is none.
func cutEvent(data []byte) (ev, rest []byte) {
	for len(data) > 0 {
		f, rest, err := frame.Cut(data)
		if err != nil {
			return nil, nil // parse has seen that it is good
		}
		if f.Num == numBatchEvent && f.Type == protowire.BytesType {
			return f.Bytes, rest
		}
		data = rest
	}
	return nil, nil
}

// parseSession completes a session of which the start is set.
func parseSession(s *order.SessionKey, id []byte) error {
	if len(id) != len(s.ID) {
		return fmt.Errorf("a session of %d bytes", len(id))
	}
	if s.Start == 0 {
		return fmt.Errorf("a session without a start")
	}
	copy(s.ID[:], id)
	return nil
}

// How far a node is with the senders it knows travels as
//
//	message Marks { repeated Mark mark = 1; } // 1,024 and 64 KiB at most
//	message Mark {
//	  bytes sender = 1;     // peer id
//	  bytes session = 2;    // its latest, as in Batch
//	  uint64 start_ms = 3;
//	  uint64 next = 4;      // every number below was received, or given up as lost
//	  uint64 above = 5;     // none from here on was received; 0 or left out: next
//	  uint64 begin = 6;     // from here on it was received; 0 or left out: next
//	  uint64 floor = 7;     // the lowest number that is still kept; 0: none
//	  uint64 withheld = 8;  // who gave the events is asked to count only those below
//	                        // next - withheld as acknowledged
//	  bool ask = 9;         // the other's mark of the sender is wanted in turn
//	}
//
// A neighbour gets the marks when the link is made, after it was seen on the
// topic. What is sent or passed on after that goes to it as well, so from the
// marks on (above, where it is given) it is owed everything. It believes a
// sender about itself; the word of others it takes as a hint, which never makes
// it skip anything for good.
const (
	maxMarks     = 1024
	maxMarksSize = 64 << 10
)

const (
	numMarksMark = 1

	numMarkSender  = 1
	numMarkSession = 2
	numMarkStart   = 3
	numMarkNext    = 4
	numMarkAbove   = 5
	numMarkBegin   = 6
	numMarkFloor   = 7
	numMarkHeld    = 8
	numMarkAsk     = 9
)

// appendMarks appends a Marks message with as many of the marks as fit.
func appendMarks(dst []byte, marks []engine.Mark) []byte {
	start := len(dst)
	var buf [192]byte
	for _, m := range marks[:min(len(marks), maxMarks)] {
		body := frame.AppendBytes(buf[:0], numMarkSender, m.Sender)
		body = frame.AppendBytes(body, numMarkSession, m.Session.ID[:])
		body = frame.AppendUint(body, numMarkStart, m.Session.Start)
		body = frame.AppendUint(body, numMarkNext, m.Next)
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
		if len(dst)-start+len(body)+4 > maxMarksSize {
			break
		}
		dst = frame.AppendMessage(dst, numMarksMark, body)
	}
	return dst
}

// decodeMarks reads a Marks message.
func decodeMarks(b []byte) ([]engine.Mark, error) {
	if len(b) > maxMarksSize {
		return nil, fmt.Errorf("%w marks: %d bytes, at most %d", ErrMalformed, len(b), maxMarksSize)
	}
	var marks []engine.Mark
	for f, err := range frame.Fields(b) {
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w marks: %w", ErrMalformed, err)
		case f.Num != numMarksMark || f.Type != protowire.BytesType:
			continue
		case len(marks) == maxMarks:
			return nil, fmt.Errorf("%w marks: more than %d", ErrMalformed, maxMarks)
		}
		m, err := decodeMark(f.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w marks: mark %d: %w", ErrMalformed, len(marks)+1, err)
		}
		marks = append(marks, m)
	}
	return marks, nil
}

// readID reads a peer id. One of more than maxAuthor bytes is no sender's whose messages
// pass.
func readID(b []byte) (peer.ID, error) {
	if len(b) > maxAuthor {
		return "", fmt.Errorf("a peer id of %d bytes, at most %d", len(b), maxAuthor)
	}
	return peer.IDFromBytes(b)
}

func decodeMark(b []byte) (m engine.Mark, err error) {
	var session []byte
	var held uint64
	for f, err := range frame.Fields(b) {
		if err != nil {
			return m, err
		}
		switch {
		case f.Num == numMarkSender && f.Type == protowire.BytesType:
			if m.Sender, err = readID(f.Bytes); err != nil {
				return m, err
			}
		case f.Num == numMarkSession && f.Type == protowire.BytesType:
			session = f.Bytes
		case f.Type != protowire.VarintType:
			// Not a field of ours.
		case f.Num == numMarkStart:
			m.Session.Start = f.Uint
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
	m.Above = max(m.Above, m.Next)
	if m.Begin == 0 {
		m.Begin = m.Next
	}
	m.Through = m.Next - min(held, m.Next)
	switch {
	case m.Sender == "":
		return m, fmt.Errorf("it has no sender")
	case m.Next == 0 || m.Above > order.MaxNumber || m.Begin > m.Next || m.Floor > order.MaxNumber:
		return m, fmt.Errorf("it is from %d to %d", m.Next, m.Above)
	}
	return m, parseSession(&m.Session, session)
}
