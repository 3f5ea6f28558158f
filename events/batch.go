package events

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Limits of what travels on the topic and in marks; docs/wire.md lists them.
const (
	// MaxBatch is the largest batch in bytes. With its signature it stays well
	// below the 1 MiB at which pubsub peers of any kind cut the stream.
	MaxBatch = 768 << 10
	// maxBatchEvents bounds the events of one batch.
	maxBatchEvents = 16384
	// maxMarks bounds the marks told at once.
	maxMarks = 1024
)

// appendBatch appends the envelope of one or more encoded events, of which the
// first has the number first.
func appendBatch(dst []byte, session order.Session, first uint64, events ...[]byte) []byte {
	dst = frame.AppendBytes(dst, 1, session.ID[:])
	dst = frame.AppendUint(dst, 2, session.Start)
	dst = frame.AppendUint(dst, 3, first)
	for _, ev := range events {
		dst = frame.AppendMessage(dst, 4, ev)
	}
	return dst
}

// decodeBatch reads an envelope. The events point into b.
func decodeBatch(b []byte) (session order.Session, first uint64, events [][]byte, err error) {
	fail := func(what string) (order.Session, uint64, [][]byte, error) {
		return order.Session{}, 0, nil, fmt.Errorf("%w: batch: %s", ErrMalformed, what)
	}
	if len(b) > MaxBatch {
		return fail("too large")
	}
	seen := false
	for f, err := range frame.Fields(b) {
		if err != nil {
			return fail(err.Error())
		}
		switch f.Num {
		case 1:
			if len(f.Bytes) != len(session.ID) {
				return fail("bad session")
			}
			seen = true
			copy(session.ID[:], f.Bytes)
		case 2:
			session.Start = f.Uint
		case 3:
			first = f.Uint
		case 4:
			if len(events) == maxBatchEvents {
				return fail("too many events")
			}
			events = append(events, f.Bytes)
		}
	}
	if !seen || first == 0 || len(events) == 0 {
		return fail("something is missing")
	}
	return session, first, events, nil
}

// appendMarks appends the Marks message: {repeated Mark marks = 1}, Mark{bytes
// sender = 1; bytes session = 2; uint64 start_ms = 3; uint64 next = 4; uint64
// above = 5}, above left out when it equals next.
func appendMarks(dst []byte, marks []order.Mark) []byte {
	for _, m := range marks {
		body := frame.AppendBytes(nil, 1, string(m.Sender))
		body = frame.AppendBytes(body, 2, m.Session.ID[:])
		body = frame.AppendUint(body, 3, m.Session.Start)
		body = frame.AppendUint(body, 4, m.Next)
		if m.Above != m.Next {
			body = frame.AppendUint(body, 5, m.Above)
		}
		dst = frame.AppendMessage(dst, 1, body)
	}
	return dst
}

func decodeMarks(b []byte) ([]order.Mark, error) {
	var marks []order.Mark
	for f, err := range frame.Fields(b) {
		if err != nil {
			return nil, fmt.Errorf("%w: marks: %w", ErrMalformed, err)
		}
		if f.Num != 1 {
			continue
		}
		if len(marks) == maxMarks {
			return nil, fmt.Errorf("%w: more than %d marks", ErrMalformed, maxMarks)
		}
		m, err := decodeMark(f.Bytes)
		if err != nil {
			return nil, err
		}
		marks = append(marks, m)
	}
	return marks, nil
}

func decodeMark(b []byte) (m order.Mark, err error) {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return m, fmt.Errorf("%w: mark: %w", ErrMalformed, err)
		}
		switch f.Num {
		case 1:
			if m.Sender, err = peer.IDFromBytes(f.Bytes); err != nil {
				return m, fmt.Errorf("%w: mark: %w", ErrMalformed, err)
			}
		case 2:
			if len(f.Bytes) != len(m.Session.ID) {
				return m, fmt.Errorf("%w: mark: bad session", ErrMalformed)
			}
			copy(m.Session.ID[:], f.Bytes)
		case 3:
			m.Session.Start = f.Uint
		case 4:
			m.Next = f.Uint
		case 5:
			m.Above = f.Uint
		}
	}
	if m.Sender == "" {
		return m, fmt.Errorf("%w: mark without a sender", ErrMalformed)
	}
	m.Above = max(m.Above, m.Next)
	return m, nil
}
