package direct

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// This file is the receiving side of calls. The goroutine that reads a caller's stream
// handles each call, in order with the caller's other events, and then writes the
// answer. So a caller that does not read its answers holds up only itself.

// callHandler is a function that answers calls, and whether it was removed.
type callHandler struct {
	f   func(context.Context, *event.Event) ([]any, error)
	off atomic.Bool
}

// callKey says which calls a handler answers; an empty from means those of any caller.
type callKey struct {
	from peer.ID
	name string
}

// callHandlers are the registered handlers of calls.
type callHandlers struct {
	mu   sync.RWMutex
	list map[callKey][]*callHandler
}

// register registers f as the handler for the calls with the given name, or for all
// calls if the name is "*". If from is not empty, f answers only the calls of that peer.
// off removes f.
func (m *callHandlers) register(log *slog.Logger, from peer.ID, name string, f func(context.Context, *event.Event) ([]any, error)) (off func()) {
	if name != dispatch.AnyName {
		if err := event.CheckName(name); err != nil {
			log.Error("this handler of calls can never run, because its name is not valid", "error", err)
			return func() {}
		}
	}
	k, h := callKey{from, name}, &callHandler{f: f}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		m.list = make(map[callKey][]*callHandler)
	}
	m.list[k] = append(m.list[k], h)
	return func() {
		h.off.Store(true)
		m.mu.Lock()
		defer m.mu.Unlock()
		list := slices.DeleteFunc(m.list[k], func(other *callHandler) bool { return other == h })
		if m.list[k] = list; len(list) == 0 {
			delete(m.list, k)
		}
	}
}

// find returns the handler for a call, or nil if there is none.
func (m *callHandlers) find(ev *event.Event) *callHandler {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, k := range [...]callKey{{ev.From, ev.Name}, {"", ev.Name}, {ev.From, dispatch.AnyName}, {"", dispatch.AnyName}} {
		if list := m.list[k]; len(list) > 0 {
			return list[len(list)-1]
		}
	}
	return nil
}

// callerState is the id of the last call that a session of a peer has made to this
// node. A call with this id or a lower one has been handled already.
type callerState struct {
	session string
	last    uint64
}

// maxCallers is how many peers may have a callerState before those of peers without a
// stream are removed.
const maxCallers = 1024

// callerOf returns the callerState of the session that opened s. The callerState needs
// no lock of its own, as only one goroutine at a time reads the streams of a peer. The
// caller must hold d.mu.
func (d *Direct) callerOf(s *inStream) *callerState {
	m := d.callers[s.from]
	if m != nil && m.session == s.hello.session {
		return m
	}
	if m == nil && len(d.callers) >= maxCallers {
		for p := range d.callers {
			if d.inbound[p] == nil { // any peer without an open stream
				delete(d.callers, p)
				break
			}
		}
	}
	m = &callerState{session: s.hello.session}
	d.callers[s.from] = m
	return m
}

// maxAnswerBuffer is the most bytes of buffer that a stream keeps for its next answer.
const maxAnswerBuffer = 64 << 10

// serveCall handles the call ev with the given id, and writes its answer to s. It
// returns an error if the stream s fails.
func (d *Direct) serveCall(ctx context.Context, s *inStream, id uint64, ev *event.Event) error {
	a := answer{id: id, status: statusRepeated}
	var results event.Outgoing
	// The ids within a session increase. So a call that the peer sends again on a new
	// stream is recognized, and does not run twice.
	if id > s.caller.last {
		s.caller.last = id
		results, a.status, a.text = d.handleCall(ctx, ev)
	}
	s.answer = a.appendFrame(s.answer[:0], &results)
	results.Buf.Free()
	err := s.write(s.answer, d.cfg.StallTimeout)
	if cap(s.answer) > maxAnswerBuffer { // a single large answer should not occupy its memory for long
		s.answer = nil
	}
	return err
}

// handleCall calls the handler of a call and encodes its results.
func (d *Direct) handleCall(ctx context.Context, ev *event.Event) (results event.Outgoing, status uint64, text string) {
	h := d.calls.find(ev)
	if h == nil || h.off.Load() {
		d.dispatcher.CountUnhandled()
		return results, statusNoHandler, ""
	}
	returned := false
	defer func() {
		if !returned {
			// Catch, deferred below, has caught a panic, so this is the answer. (If the
			// handler called runtime.Goexit, no answer is written at all.)
			results, status, text = event.Outgoing{}, statusFailed, "the handler panicked"
		}
	}()
	defer d.dispatcher.Catch("a handler of calls", ev.Name, ev.From, &returned)
	args, err := h.f(ctx, ev)
	returned = true
	if bad, ok := errors.AsType[*BadArgument](err); ok {
		return results, statusBadArgument, errorText(bad.Err)
	}
	if err == nil {
		results = event.Outgoing{Name: ev.Name, Args: args}
		if results.Size, results.Buf, err = event.Prepare(d.cfg.Codec, ev.Name, args, d.cfg.MaxEventSize); err == nil {
			return results, statusDone, ""
		}
		d.log.Error("a call's results cannot be sent", "call", event.Quote(ev.Name), "error", err)
		err = errs.Because(errors.New("its results cannot be sent"), err)
	}
	return event.Outgoing{}, statusFailed, errorText(err)
}

// errorText returns the text of an error as it is sent: valid UTF-8 of at most
// maxErrorText bytes.
func errorText(err error) string {
	text := strings.ToValidUTF8(errs.Text(err), "\ufffd")
	if len(text) <= maxErrorText {
		return text
	}
	n := maxErrorText
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// appendFrame appends the frame of the answer to dst. It includes the results if the
// status is statusDone.
func (a answer) appendFrame(dst []byte, results *event.Outgoing) []byte {
	n := protowire.SizeTag(fieldCallID) + protowire.SizeVarint(a.id)
	if a.status == statusDone {
		n += protowire.SizeTag(fieldCallEvent) + protowire.SizeBytes(results.Size)
	} else {
		n += protowire.SizeTag(fieldStatus) + protowire.SizeVarint(a.status)
		if a.text != "" {
			n += protowire.SizeTag(fieldError) + protowire.SizeBytes(len(a.text))
		}
	}
	dst = slices.Grow(dst, n+envelope)
	dst = frame.AppendLength(dst, 1+protowire.SizeBytes(n))
	dst = frame.AppendHeader(dst, fieldAnswer, n)
	dst = frame.AppendUint(dst, fieldCallID, a.id)
	if a.status == statusDone {
		return results.AppendTo(frame.AppendHeader(dst, fieldCallEvent, results.Size))
	}
	dst = frame.AppendUint(dst, fieldStatus, a.status)
	return frame.AppendBytes(dst, fieldError, a.text)
}

// errUnreadAnswer is returned when a caller does not read its answers.
var errUnreadAnswer = errors.New("events: the caller does not read its answers")

// write writes an answer. The peer that made the call has at least half of timeout to
// read each chunk of the answer.
func (s *inStream) write(b []byte, timeout time.Duration) error {
	for len(b) > 0 {
		n, err := s.writer.Write(b, timeout)
		b = b[n:]
		if errors.Is(err, deadline.ErrTimeout) {
			return errUnreadAnswer
		}
		if err != nil {
			return err
		}
	}
	return nil
}
