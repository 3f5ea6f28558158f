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
	"github.com/go-smokesignal/smokesignal/internal/handling"
)

// The receiving side of calls. The goroutine that reads the caller's stream handles a
// call, in order with the other events of that caller, and then writes the answer. So
// a caller that does not read its answers holds up only itself.

// callHandler answers calls.
type callHandler struct {
	f   func(context.Context, *event.Event) ([]any, error)
	off atomic.Bool
}

// callKey is what a handler of calls is registered for; an empty from is any caller.
type callKey struct {
	from peer.ID
	name string
}

// callHandlers are the handlers of calls of a Direct.
type callHandlers struct {
	mu   sync.RWMutex
	list map[callKey][]*callHandler
}

// register registers a handler for the calls of a name, or for the name "*", from
// one sender, or any if from is empty.
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

// find returns the handler for a call, nil if there is none.
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

// callerState remembers the last call that a session has made to this node.
type callerState struct {
	session string
	last    uint64
}

// maxCallers bounds the peers whose callerState is kept when they have no stream.
const maxCallers = 1024

// callerOf returns the callerState of the session that opened s. Only one goroutine at
// a time reads the streams of a peer, so only one uses the callerState. The lock of d
// is held.
func (d *Direct) callerOf(s *inStream) *callerState {
	m := d.callers[s.from]
	if m != nil && m.session == s.hello.session {
		return m
	}
	if m == nil && len(d.callers) >= maxCallers {
		for p := range d.callers {
			if d.inbound[p] == nil { // any peer without a stream
				delete(d.callers, p)
				break
			}
		}
	}
	m = &callerState{session: s.hello.session}
	d.callers[s.from] = m
	return m
}

// maxAnswerBuffer bounds the buffer that a stream keeps for its next answer, in bytes.
const maxAnswerBuffer = 64 << 10

// serveCall handles a call and writes its answer. It returns an error if the stream fails.
func (d *Direct) serveCall(ctx context.Context, s *inStream, id uint64, ev *event.Event) error {
	a := answer{id: id, status: statusRepeated}
	var results event.Outgoing
	// The ids of a session grow, so a call that comes again on a new stream does not
	// run twice.
	if id > s.caller.last {
		s.caller.last = id
		results, a.status, a.text = d.handleCall(ctx, ev)
	}
	s.answer = a.appendFrame(s.answer[:0], &results)
	results.Buf.Free()
	err := s.write(s.answer, d.cfg.StallTimeout)
	if cap(s.answer) > maxAnswerBuffer { // one large answer should not keep its memory
		s.answer = nil
	}
	return err
}

// handleCall calls the handler and encodes its results.
func (d *Direct) handleCall(ctx context.Context, ev *event.Event) (results event.Outgoing, status uint64, text string) {
	h := d.calls.find(ev)
	if h == nil || h.off.Load() {
		d.dispatcher.CountUnhandled()
		return results, statusNoHandler, ""
	}
	returned := false
	defer func() {
		if !returned {
			// catch below has recovered from the panic, so these are the results. (If
			// the handler called runtime.Goexit, no answer is written at all.)
			results, status, text = event.Outgoing{}, statusFailed, "the handler panicked"
		}
	}()
	defer d.dispatcher.Catch("a handler of calls", ev.Name, ev.From, &returned)
	args, err := h.f(ctx, ev)
	returned = true
	if bad, ok := errors.AsType[*handling.BadArgument](err); ok {
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

// errorText returns the text of an error for the wire: valid UTF-8 of limited length.
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

// appendFrame appends the answer's frame to dst, with the results if the
// status is done.
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

// write writes an answer. The caller has at least half of timeout to read each chunk of it.
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
