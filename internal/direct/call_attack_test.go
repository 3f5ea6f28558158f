package direct

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// rawAnswer is the frame of an answer, written by hand.
func rawAnswer(fields ...[]byte) []byte {
	var m []byte
	for _, f := range fields {
		m = append(m, f...)
	}
	return frame.Append(nil, frame.AppendMessage(nil, fieldAnswer, m))
}

func uintField(num protowire.Number, v uint64) []byte  { return frame.AppendUint(nil, num, v) }
func bytesField(num protowire.Number, b string) []byte { return frame.AppendMessage(nil, num, b) }

// rawCallee is a host that answers each call of a with what answer returns.
func rawCallee(t *testing.T, a *Direct, listen string, answer func(id uint64) []byte) *remote {
	t.Helper()
	h := newHost(t, listen)
	h.SetStreamHandler(protocol.Events, func(s network.Stream) {
		defer s.Close()
		r := frame.NewReader(s, 1<<20)
		for {
			b, err := r.Next()
			if err != nil {
				return
			}
			if _, id, _ := parseDirectFrame(b); id != 0 {
				s.Write(answer(id))
			}
		}
	})
	hosttest.Connect(t, a.host, h)
	return a.to(h.ID())
}

// A malformed answer ends the stream, and the outcome of the calls on it is unknown.
func TestMalformedAnswerEndsTheStream(t *testing.T) {
	t.Parallel()
	short := timeouts{hello: time.Second, frame: time.Second} // for those that announce more than comes
	id := func(id uint64) []byte { return uintField(fieldCallID, id) }
	ev := eventtest.Encoded(t, "double", 8)
	var now atomic.Value // the one of them in use
	answers := map[string]func(n uint64) []byte{
		"rubbish":         func(uint64) []byte { return []byte("\x04HTTP/1.1 400 Bad Request\r\n\r\n") },
		"length 2^63":     func(uint64) []byte { return protowire.AppendVarint(nil, 1<<63) },
		"above the limit": func(uint64) []byte { return protowire.AppendVarint(nil, event.DefaultMaxSize+envelope+1) },
		"more than comes": func(uint64) []byte { return protowire.AppendVarint(nil, event.DefaultMaxSize) },
		"a hello":         func(uint64) []byte { return good.append(nil) },
		"an event":        func(uint64) []byte { return rawEvent(t, "e") },
		"no id":           func(uint64) []byte { return rawAnswer(bytesField(fieldCallEvent, string(ev))) },
		"an id to come":   func(n uint64) []byte { return rawAnswer(id(n+1), bytesField(fieldCallEvent, string(ev))) },
		"the last id":     func(uint64) []byte { return rawAnswer(id(1<<64 - 1)) },
		"no event":        func(n uint64) []byte { return rawAnswer(id(n)) },
		"an event cut":    func(n uint64) []byte { return rawAnswer(id(n), bytesField(fieldCallEvent, string(ev[:len(ev)-1]))) },
		"another name": func(n uint64) []byte {
			return rawAnswer(id(n), bytesField(fieldCallEvent, string(eventtest.Encoded(t, "x", 8))))
		},
		"too many results": func(n uint64) []byte {
			return rawAnswer(id(n), bytesField(fieldCallEvent, string(ev)+strings.Repeat("\x12\x00", 65)))
		},
		"huge text": func(n uint64) []byte {
			return rawAnswer(id(n), uintField(fieldStatus, 1), bytesField(fieldError, strings.Repeat("x", maxErrorText+1)))
		},
		"text of no UTF-8": func(n uint64) []byte {
			return rawAnswer(id(n), uintField(fieldStatus, 1), bytesField(fieldError, "\xff"))
		},
		"a field cut": func(n uint64) []byte { return frame.Append(nil, []byte{0x22, 5, 8}) },
		"two in one frame": func(n uint64) []byte {
			a := rawAnswer(id(n), uintField(fieldStatus, 2))[1:]
			return frame.Append(nil, append(a, a...))
		},
	}
	overTransports(t, func(t *testing.T, listen string) {
		a := newDirect(t, newHost(t, listen), Config{timeouts: short})
		to := rawCallee(t, a, listen, func(id uint64) []byte { return now.Load().(func(uint64) []byte)(id) })
		n := uint64(0)
		for name, answer := range answers {
			now.Store(answer)
			if _, err := double.Do(t.Context(), to, 4); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, ErrNotConnected) {
				t.Errorf("%s: %v", name, err)
			}
			if name == "more than comes" {
				continue // ends with a deadline
			}
			if n++; a.Stats()["malformed"] != n {
				t.Fatalf("%s is not counted: %+v", name, a.Stats())
			}
		}
		now.Store(func(n uint64) []byte { return rawAnswer(id(n), bytesField(fieldCallEvent, string(ev))) })
		do(t, double, to, 4, 8)
	})
}

// Answers that are late, repeated, from a later version, or for an unknown call do not
// disturb other calls.
func TestStrayAnswersAreIgnored(t *testing.T) {
	a := newDirect(t, newHost(t, tcp), Config{})
	ev := string(eventtest.Encoded(t, "double", 8))
	to := rawCallee(t, a, tcp, func(n uint64) []byte {
		var b []byte
		for i := uint64(1); i <= n; i++ { // all before, and this one with them
			b = append(b, rawAnswer(uintField(fieldCallID, i), bytesField(fieldCallEvent, ev), bytesField(9, "new"))...)
		}
		b = append(b, frame.Append(nil, bytesField(77, "later"))...)
		b = append(b, frame.Append(nil, nil)...)
		return append(b, b...)
	})
	for range 20 {
		do(t, double, to, 4, 8)
	}
	if s := a.Stats(); faults(s) > 0 {
		t.Errorf("%+v", s)
	}
	later := rawCallee(t, a, tcp, func(n uint64) []byte { return rawAnswer(uintField(fieldCallID, n), uintField(fieldStatus, 99)) })
	if _, err := double.Do(t.Context(), later, 1); !errors.Is(err, ErrUnknownOutcome) || !strings.Contains(err.Error(), "status 99") {
		t.Error(err)
	}
}

// A malformed call resets its stream and runs no handler.
func TestMalformedCallsAreReset(t *testing.T) {
	t.Parallel()
	call := func(fields ...[]byte) []byte {
		var m []byte
		for _, f := range fields {
			m = append(m, f...)
		}
		return frame.AppendMessage(nil, fieldCall, m)
	}
	id, ev := uintField(fieldCallID, 1), bytesField(fieldCallEvent, string(eventtest.Encoded(t, "double", 1)))
	whole := call(id, ev)
	a, b := pair(t, tcp, Config{})
	ran := 0
	b.Handle("*", func(context.Context, *event.Event) ([]any, error) { ran++; return nil, nil })
	for name, m := range map[string][]byte{
		"no id":           call(ev),
		"no event":        call(id),
		"nothing":         call(),
		"a field cut":     call(id, ev[:len(ev)-1]),
		"no name":         call(id, bytesField(fieldCallEvent, "")),
		"two calls":       append(whole[:len(whole):len(whole)], whole...),
		"a call and more": append(whole[:len(whole):len(whole)], bytesField(fieldEvent, "\x0a\x01n")...),
		"an answer":       bytesField(fieldAnswer, "\x08\x01"),
	} {
		s := rawStream(t, a, b, good)
		s.Write(frame.Append(nil, m))
		if code := resetCode(t, s); code != network.StreamProtocolViolation {
			t.Errorf("%s: code %x", name, code)
		}
		waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
	}
	if ran != 0 {
		t.Errorf("%d calls ran", ran)
	}
	stillServes(t, a, b)
}

// A call that arrives twice runs once, also over another stream of the same session; the
// same id in another session is another call.
func TestRepeatedCallRunsOnce(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	var ran atomic.Int32
	double.Handle(b, func(_ context.Context, _ peer.ID, n int) (int, error) { ran.Add(1); return 2 * n, nil })
	ev := eventtest.Encoded(t, "double", 1)
	call := func(id uint64) []byte {
		return appendFrame(nil, &event.Outgoing{Size: len(ev), Buf: &event.Buffer{B: ev}}, &pendingCall{id: id})
	}
	for _, c := range []struct {
		session  string
		serial   uint64
		ids      []uint64
		statuses []uint64
	}{
		{"sessionA", 1, []uint64{5, 5, 4, 6}, []uint64{statusDone, statusRepeated, statusRepeated, statusDone}},
		{"sessionA", 2, []uint64{6, 7, 1}, []uint64{statusRepeated, statusDone, statusRepeated}},
		{"sessionB", 1, []uint64{1, 1}, []uint64{statusDone, statusRepeated}},
	} {
		s := rawStream(t, a, b, hello{c.session, "", c.serial})
		s.SetReadDeadline(time.Now().Add(patience))
		r := frame.NewReader(s, 1<<20)
		for i, id := range c.ids {
			s.Write(call(id))
			m, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := parseAnswer(m); err != nil || got.id != id || got.status != c.statuses[i] {
				t.Errorf("%s, stream %d, call %d: %+v, %v; want status %d", c.session, c.serial, id, got, err, c.statuses[i])
			}
		}
		s.Reset()
		waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
	}
	if n := ran.Load(); n != 4 {
		t.Errorf("%d calls ran, want 4", n)
	}
}

// The number of callers that a node remembers is bounded, and a caller with open streams
// is not forgotten.
func TestCallMarksAreBounded(t *testing.T) {
	d := New(newHost(t, tcp), Config{})
	here := &inStream{from: "here", hello: hello{session: "s"}}
	d.inbound["here"] = &peerStreams{}
	mark := d.callerOf(here)
	for i := range 3 * maxCallers {
		d.callerOf(&inStream{from: peer.ID(rune(i)), hello: hello{session: "s"}})
	}
	if n := len(d.callers); n > maxCallers {
		t.Errorf("%d marks", n)
	}
	if d.callerOf(here) != mark {
		t.Error("the mark of a peer that has streams is forgotten")
	}
}

// A caller that does not read its answers delays only itself, and then loses its stream;
// other callers are answered meanwhile.
func TestCallerThatReadsNoAnswersLosesItsStream(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		ha, hb := newHost(t, listen), newHost(t, listen)
		hosttest.Connect(t, ha, hb)
		a, b := newDirect(t, ha, Config{}), newDirect(t, hb, Config{StallTimeout: time.Second})
		c := newDirect(t, newHost(t, listen), Config{})
		hosttest.Connect(t, c.host, hb)
		Call[struct{}, []byte]("much").Handle(b, func(context.Context, peer.ID, struct{}) ([]byte, error) { return make([]byte, 500<<10), nil })
		double.Handle(b, answerDouble)
		s := rawStream(t, a, b, hello{"sessionA", "", 1})
		ev := eventtest.Encoded(t, "much")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for id := uint64(1); ; id++ {
				if _, err := s.Write(appendFrame(nil, &event.Outgoing{Size: len(ev), Buf: &event.Buffer{B: ev}}, &pendingCall{id: id})); err != nil {
					return
				}
			}
		}()
		for {
			do(t, double, c.to(b.id()), 2, 4)
			select {
			case <-ended:
			default:
				continue
			}
			break
		}
		waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
		go io.Copy(io.Discard, s)
		do(t, double, a.to(b.id()), 2, 4)
	})
}

// FuzzAnswer reads arbitrary bytes as the frame of an answer.
func FuzzAnswer(f *testing.F) {
	ev := string(eventtest.Encoded(f, "double", 8))
	for _, b := range [][]byte{
		rawAnswer(uintField(fieldCallID, 1), bytesField(fieldCallEvent, ev)),
		rawAnswer(uintField(fieldCallID, 1<<40), uintField(fieldStatus, statusFailed), bytesField(fieldError, "no such lamp")),
		rawAnswer(uintField(fieldCallID, 3), uintField(fieldStatus, statusNoHandler)),
		good.append(nil),
	} {
		f.Add(b[1:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			if !errors.Is(err, event.ErrMalformed) && !errors.Is(err, frame.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if len(a.text) > maxErrorText || len(a.event) > len(b) {
			t.Fatalf("%+v out of %d bytes", a, len(b))
		}
		if a.id == 0 {
			return
		}
		o, err := a.outcome("p", "double")
		if err != nil {
			return
		}
		if (o.ev == nil) == (o.err == nil) || o.ev != nil && (o.ev.Name != "double" || o.ev.From != "p") {
			t.Fatalf("%+v", o)
		}
		// The same again.
		whole := a.appendFrame(nil, &event.Outgoing{Size: len(a.event), Buf: &event.Buffer{B: a.event}})
		again, err := parseAnswer(whole[frameHeader(t, whole):])
		if a.status == statusDone {
			a.text = ""
		} else {
			a.event = nil
		}
		if err != nil || again.id != a.id || again.status != a.status || again.text != a.text || string(again.event) != string(a.event) {
			t.Fatalf("%+v after %+v: %v", again, a, err)
		}
	})
}
