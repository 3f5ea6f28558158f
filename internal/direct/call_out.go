package direct

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// This file is the calling side of calls. A call goes through the send queue, like an
// event. Its answer arrives on the same stream in the other direction, where it never
// waits for a handler. So a handler of a peer's event can call that peer. If a call was
// written to a stream that then broke, its outcome is unknown, and it is not sent
// again.

// pendingCall is a call that waits for its answer.
type pendingCall struct {
	name   string
	id     uint64
	at     int             // index in the queue's buffer at which the field of this call begins; valid until the writer takes the buffer
	answer chan callResult // receives one value; buffered, so that sending never blocks
}

// A callResult is the answer or the error with which a call ended.
type callResult struct {
	ev  *event.Event
	err error
}

func (d *Direct) call(ctx context.Context, to peer.ID, name string, args []any) (*event.Event, error) {
	size, buf, err := d.prepare(ctx, name, args)
	if err != nil {
		return nil, err
	}
	defer buf.Free()
	// A call without a deadline could wait forever for a peer that does not answer.
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.cfg.CallTimeout)
		defer cancel()
	}
	c := &pendingCall{name: name, answer: make(chan callResult, 1)}
	l, err := d.enqueue(ctx, to, &event.Outgoing{Name: name, Args: args, Size: size, Buf: buf}, c)
	if err != nil {
		return nil, err
	}
	select {
	case o := <-c.answer:
		return o.ev, o.err
	case <-ctx.Done():
		o := l.abandonCall(c, ctx.Err())
		return o.ev, o.err
	}
}

// addCall gives the call its id and registers it, so that its answer can be found. The
// caller must hold mu.
func (l *sendQueue) addCall(c *pendingCall) {
	c.id = l.d.callID.Add(1)
	l.lastCall = c.id
	if l.calls == nil {
		l.calls = make(map[uint64]*pendingCall)
	}
	l.calls[c.id] = c
}

// abandonCall ends the call c with err, unless it has ended meanwhile, and returns the
// result with which it ended. If the call is still in the queue, it is not sent.
func (l *sendQueue) abandonCall(c *pendingCall, err error) callResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls[c.id] != c {
		return <-c.answer
	}
	if c.id > l.lastTakenCall {
		// The call was not sent yet. Its frame stays in the queue, so that the queue's
		// counts remain right, but as a field that the reader skips.
		l.queue.B[c.at] = fieldBlank<<3 | byte(protowire.BytesType)
	} else {
		err = errs.Because(ErrUnknownOutcome, err)
	}
	l.finishCall(c, callResult{err: err})
	return <-c.answer
}

// finishCall ends a call with the result o. The caller must hold mu.
func (l *sendQueue) finishCall(c *pendingCall, o callResult) {
	delete(l.calls, c.id)
	c.answer <- o
	l.change.Broadcast() // a push may be waiting because there were as many calls as MaxCalls allows
}

// noteWritten records that the calls with ids up to last were written to the stream.
// The caller must hold mu.
func (l *sendQueue) noteWritten(out *outStream, last uint64) {
	out.lastCall = max(out.lastCall, last)
	if out.ended {
		l.failWrittenCalls(out)
	}
}

// failWrittenCalls ends the calls that were written to the broken stream out. The caller
// must hold mu.
func (l *sendQueue) failWrittenCalls(out *outStream) {
	why, unread := refusal(out.broken)
	if why == nil {
		why = out.broken
	}
	var err error = errs.Because(ErrNotConnected, why)
	// The peer may have read the calls before the stream broke.
	if !unread {
		err = errs.Because(ErrUnknownOutcome, err)
	}
	for id, c := range l.calls {
		if id <= out.lastCall {
			l.finishCall(c, callResult{err: err})
		}
	}
}

// failAllCalls ends all calls, because the queue is dropped with err. The caller must
// hold mu.
func (l *sendQueue) failAllCalls(err error) {
	unknown := err
	if !errors.Is(err, ErrRefused) && !errors.Is(err, ErrOtherNetwork) { // after these two errors the peer has read nothing
		unknown = errs.Because(ErrUnknownOutcome, err)
	}
	for id, c := range l.calls {
		if id > l.lastTakenCall {
			l.finishCall(c, callResult{err: err})
		} else {
			l.finishCall(c, callResult{err: unknown})
		}
	}
	l.lastTakenCall = l.lastCall
}

// readAnswers handles the answers that arrive on a stream, until the stream ends.
func (l *sendQueue) readAnswers(out *outStream) error {
	r := frame.NewReader(out, max(l.d.cfg.MaxEventSize, maxErrorText)+envelope)
	r.SetTimeout(out, l.d.cfg.timeouts.frame)
	for {
		b, err := r.Next()
		if err != nil {
			return l.rejectAnswer(out, err)
		}
		a, err := parseAnswer(b)
		if err == nil && a.id != 0 {
			// The reader reuses its buffer unless Detach hands it over, so the event
			// needs a copy.
			if a.status == statusDone && !r.Detach() {
				a.event = bytes.Clone(a.event)
			}
			err = l.handleAnswer(a)
		}
		if err != nil {
			return l.rejectAnswer(out, err)
		}
	}
}

// rejectAnswer resets the stream if err means that the peer broke the protocol. It
// returns err.
func (l *sendQueue) rejectAnswer(out *outStream, err error) error {
	if errors.Is(err, event.ErrMalformed) || errors.Is(err, frame.ErrMalformed) || errors.Is(err, frame.ErrTooLarge) {
		l.d.nMalformed.Add(1)
		l.d.log.Debug("a peer sent malformed answers to calls", "peer", l.peer, "error", event.Cut(err.Error(), 256))
		out.ResetWithError(network.StreamProtocolViolation)
	}
	return err
}

// handleAnswer ends the call to which the answer belongs. It ignores an answer to a
// call that has ended already. An answer to a call that was never sent is an error.
func (l *sendQueue) handleAnswer(a answer) error {
	l.mu.Lock()
	c, left := l.calls[a.id], l.lastTakenCall
	l.mu.Unlock()
	if a.id > left {
		return fmt.Errorf("%w: an answer to call %d, the last is %d", event.ErrMalformed, a.id, left)
	}
	if c == nil { // the call's ctx ended before the answer arrived
		return nil
	}
	o, err := a.outcome(l.peer, c.name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls[a.id] == c {
		l.finishCall(c, o)
	}
	return nil
}

// answer is the message that answers a call.
type answer struct {
	id     uint64
	event  []byte // the event with the results, if status is statusDone
	status uint64
	text   string // text of the error, for other statuses
}

// The statuses of an answer.
const (
	statusDone        = 0 // the handler has run; its results are the event's arguments
	statusFailed      = 1 // the handler has run and returned an error
	statusNoHandler   = 2 // no handler has run, as none is registered for the call
	statusBadArgument = 3 // the handler could not read the arguments of the call, so it has done nothing
	statusRepeated    = 4 // the same session of the caller has sent a call with this id, or with a later one, before
)

// maxErrorText is how many bytes of an error's text are sent in an answer.
const maxErrorText = 1 << 10

// parseAnswer decodes the answer in a frame. Its id is 0 if the frame contains no
// answer.
func parseAnswer(b []byte) (answer, error) {
	var a answer
	for f, err := range frame.Fields(b) {
		switch {
		case err != nil:
			return a, err
		case f.Num == fieldHello, f.Num == fieldEvent, f.Num == fieldCall:
			return a, fmt.Errorf("%w: field %d where answers come from", event.ErrMalformed, f.Num)
		case f.Num != fieldAnswer || f.Type != protowire.BytesType:
			continue
		case a.id != 0:
			return a, fmt.Errorf("%w: two answers in a frame", event.ErrMalformed)
		}
		for f, err := range frame.Fields(f.Bytes) {
			switch {
			case err != nil:
				return a, err
			case f.Num == fieldCallID && f.Type == protowire.VarintType:
				a.id = f.Uint
			case f.Num == fieldCallEvent && f.Type == protowire.BytesType:
				a.event = f.Bytes
			case f.Num == fieldStatus && f.Type == protowire.VarintType:
				a.status = f.Uint
			case f.Num == fieldError && f.Type == protowire.BytesType:
				if len(f.Bytes) > maxErrorText || !utf8.Valid(f.Bytes) {
					return a, fmt.Errorf("%w: an error of %d bytes, or not UTF-8", event.ErrMalformed, len(f.Bytes))
				}
				a.text = string(f.Bytes)
			}
		}
		if a.id == 0 {
			return a, fmt.Errorf("%w: an answer without an id", event.ErrMalformed)
		}
	}
	return a, nil
}

// outcome returns the result of a call with the given name to which the peer from has
// sent the answer a. The returned event shares memory with the answer.
func (a answer) outcome(from peer.ID, name string) (callResult, error) {
	switch a.status {
	case statusDone:
		ev, err := event.ParseNamed(from, a.event, name)
		if err != nil {
			return callResult{}, err
		}
		if ev.Name != name {
			return callResult{}, fmt.Errorf("%w: an answer of another name", event.ErrMalformed)
		}
		return callResult{ev: ev}, nil
	case statusFailed:
		return callResult{err: &RemoteError{a.text}}, nil
	case statusNoHandler:
		return callResult{err: ErrNoHandler}, nil
	case statusBadArgument:
		return callResult{err: fmt.Errorf("%w: the other node says %q", event.ErrBadArgument, a.text)}, nil
	case statusRepeated:
		return callResult{err: fmt.Errorf("%w: the other node has received this call before", ErrUnknownOutcome)}, nil
	}
	return callResult{err: fmt.Errorf("%w: the other node answers with status %d", ErrUnknownOutcome, a.status)}, nil
}
