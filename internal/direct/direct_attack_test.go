package direct

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
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
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/internal/payload"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// In these tests an attacker is a host that writes its streams by hand.

var good = hello{"attacker", "", 0}

// stillServes checks that b still serves an honest peer, and the attacker.
func stillServes(t *testing.T, a, b *Direct) {
	t.Helper()
	got := make(chan string, 1)
	off := b.On("alive?", func(context.Context, *event.Event) { got <- "yes" })
	defer off()
	honest := newDirect(t, newHost(t, tcp), Config{})
	hosttest.Connect(t, honest.host, b.host)
	emit(t, honest, b.id(), "alive?")
	want(t, got, "yes")
	emit(t, a, b.id(), "alive?")
	want(t, got, "yes")
}

// A malformed stream is reset and counted, and other peers are still served.
func TestMalformedStreamsAreReset(t *testing.T) {
	t.Parallel()
	eventFrame := func(m []byte) []byte { return frame.Append(nil, frame.AppendMessage(nil, fieldEvent, m)) }
	named := func(name string) []byte { return eventFrame(frame.AppendMessage(nil, payload.FieldName, name)) }
	hi := good.append(nil)
	after := map[string][]byte{
		"length 2^63":            protowire.AppendVarint(nil, 1<<63),
		"length above limit":     protowire.AppendVarint(nil, event.DefaultMaxSize+envelope+1),
		"length not minimal":     {0x80, 0},
		"endless length":         bytes.Repeat([]byte{0xff}, 100),
		"a field cut":            frame.Append(nil, []byte{0x12, 5}),
		"a group":                frame.Append(nil, []byte{0x0b}),
		"an event cut":           eventFrame([]byte{0x0a, 5}),
		"no name":                eventFrame(nil),
		"empty name":             named(""),
		"long name":              named(strings.Repeat("n", 129)),
		"name of all":            named("*"),
		"name no UTF-8":          named("\xff\xfe"),
		"too many arguments":     eventFrame(append(frame.AppendMessage(nil, payload.FieldName, "n"), bytes.Repeat([]byte{0x12, 0}, 65)...)),
		"an argument cut":        eventFrame(append(frame.AppendMessage(nil, payload.FieldName, "n"), 0x12, 2, 0x12, 9)),
		"two events":             frame.Append(nil, frame.AppendMessage(frame.AppendMessage(nil, fieldEvent, "\x0a\x01n"), fieldEvent, "\x0a\x01n")),
		"a second hello":         hi,
		"hello after an event":   append(named("ok"), hi...),
		"no name after an event": append(named("ok"), eventFrame(nil)...),
	}
	first := map[string][]byte{
		"event before hello": named("n"),
		"empty frame":        frame.Append(nil, nil),
		"no session":         hello{"", "", 1}.append(nil),
		"short session":      hello{"short", "", 1}.append(nil),
		"large hello":        hello{"attacker", strings.Repeat("n", maxHello), 1}.append(nil),
		"rubbish":            []byte("GET / HTTP/1.1\r\n\r\n"),
	}
	short := timeouts{hello: time.Second, frame: time.Second} // for those that announce more than comes
	overTransports(t, func(t *testing.T, listen string) {
		var log bytes.Buffer
		ha, hb := newHost(t, listen), newHost(t, listen)
		hosttest.Connect(t, ha, hb)
		a, b := newDirect(t, ha, Config{}), newDirect(t, hb, Config{Log: eventtest.LogTo(&log), timeouts: short})
		events := 0
		off := b.On("*", func(context.Context, *event.Event) { events++ })
		n := uint64(0)
		attack := func(name string, bytes []byte) {
			s, err := a.host.NewStream(t.Context(), b.id(), protocol.Events)
			if err != nil {
				t.Fatal(err)
			}
			s.Write(bytes)
			if code := resetCode(t, s); code != network.StreamProtocolViolation {
				t.Errorf("%s: code %x", name, code)
			}
			s.Reset()
			// One stream at a time, so that none is refused for being many.
			waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
			if n++; b.Stats()["malformed"] != n {
				t.Fatalf("%s is not counted: %+v", name, b.Stats())
			}
		}
		for name, bytes := range after {
			attack(name, append(good.append(nil), bytes...))
		}
		for name, bytes := range first {
			attack(name, bytes)
		}
		if events != 2 { // those before
			t.Errorf("%d events out of rubbish", events)
		}
		off()
		text := log.String()
		if !strings.Contains(text, "level=DEBUG") || strings.Contains(text, "level=WARN") || strings.Contains(text, "\xff") {
			t.Error("the log:", text)
		}
		stillServes(t, a, b)
	})
}

// Unknown frames and fields of later versions are skipped.
func TestFramesOfLaterVersionsAreSkipped(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	got := collect(b)
	h := frame.AppendMessage(frame.AppendUint(nil, 9, 1), fieldHello,
		frame.AppendUint(frame.AppendMessage(nil, fieldSession, "attacker"), 99, 7))
	s, err := a.host.NewStream(t.Context(), b.id(), protocol.Events)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	out := frame.Append(nil, h)
	out = frame.Append(out, frame.AppendMessage(nil, 5, "later"))
	out = frame.Append(out, nil)
	out = append(out, rawEvent(t, "x", 1)...)
	out = frame.Append(out, frame.AppendUint(frame.AppendMessage(nil, 77, "new"), 78, 1))
	out = append(out, rawEvent(t, "y")...)
	s.Write(out)
	want(t, got, "x1")
	want(t, got, "y")
}

// A frame that is cut anywhere is not delivered; the frames before it are.
func TestCutFramesAreNotDelivered(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		got := collect(b)
		whole, rest := rawEvent(t, "whole"), rawEvent(t, "cut", "argument")
		for at := range len(rest) {
			s := rawStream(t, a, b, good)
			s.Write(append(whole[:len(whole):len(whole)], rest[:at]...))
			s.CloseWrite()
			want(t, got, "whole")
			waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
			s.Reset()
		}
		// Streams that are reset at random.
		for range 100 {
			s := rawStream(t, a, b, good)
			s.Write(rest[:rand.IntN(len(rest))])
			s.Reset()
		}
		waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
		if len(got) != 0 {
			t.Error("delivered:", <-got)
		}
		stillServes(t, a, b)
	})
}

// A peer that sends a frame or its hello byte by byte loses the stream; a peer that is
// idle between frames does not.
func TestSlowFramesAreReset(t *testing.T) {
	const timeout = 300 * time.Millisecond
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{timeouts: timeouts{hello: timeout, frame: timeout}})
		honest := newDirect(t, newHost(t, listen), Config{})
		hosttest.Connect(t, honest.host, b.host)
		got := collect(b)
		idle := rawStream(t, honest, b, good)
		idle.Write(rawEvent(t, "before"))
		want(t, got, "before")

		var drips sync.WaitGroup
		drip := func(s network.Stream, bytes []byte) {
			start := time.Now()
			drips.Go(func() {
				for i := range bytes {
					if _, err := s.Write(bytes[i : i+1]); err != nil {
						return
					}
					time.Sleep(timeout / 10)
				}
			})
			if code := resetCode(t, s); code != network.StreamProtocolViolation {
				t.Errorf("code %x", code)
			}
			if d := time.Since(start); d < timeout/2 || d > 20*timeout {
				t.Errorf("reset after %v", d)
			}
			s.Reset()
		}
		drip(rawStream(t, a, b, good), rawEvent(t, "slow", make([]byte, 200)))
		s, err := a.host.NewStream(t.Context(), b.id(), protocol.Events)
		if err != nil {
			t.Fatal(err)
		}
		drip(s, hello{"attacker", strings.Repeat("n", 200), 1}.append(nil))
		drips.Wait()
		if s := b.Stats(); s["malformed"] != 2 {
			t.Errorf("%+v", s)
		}
		idle.Write(rawEvent(t, "after"))
		want(t, got, "after")
	})
}

// However many streams a peer opens, at most four are open at a time, and the others leave
// no memory in use.
func TestStreamsOfAPeerAreBounded(t *testing.T) {
	total := 10_000
	if testing.Short() {
		total = 1000
	}
	a, b := pair(t, tcp, Config{})
	hold := rawStream(t, a, b, good)
	var most atomic.Int64
	b.On("x", func(context.Context, *event.Event) {})
	waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 1 })
	before := leaks.Heap()
	goroutines := runtime.NumGoroutine()
	hi := good.append(nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range total / 8 {
				s, err := a.host.NewStream(t.Context(), b.id(), protocol.Events)
				if err != nil {
					continue // the resource manager's limit
				}
				s.Write(hi)
				if n := int64(len(inboundOf(b, a.id()))); n > most.Load() {
					most.Store(n)
				}
				s.Reset()
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { return len(inboundOf(b, a.id())) <= 1 })
	waitFor(t, func() bool { return runtime.NumGoroutine() <= goroutines+8 })
	leaks.WantHeap(t, before, 2<<20)
	if n := most.Load(); n > maxInbound {
		t.Errorf("%d streams at once", n)
	}
	t.Logf("%d streams at once, %+v", most.Load(), b.Stats())
	hold.Close()
	stillServes(t, a, b)
}

// A peer may open four streams at a time; further ones are reset with a code that says
// why.
func TestFifthStreamIsRefused(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	hosttest.Connect(t, ha, hb)
	a := newDirect(t, ha, Config{})
	b := newDirect(t, hb, Config{Admit: func(ctx context.Context, _ peer.ID) error { <-ctx.Done(); return ctx.Err() }})
	for i := range maxInbound {
		rawStream(t, a, b, good)
		waitFor(t, func() bool { return len(inboundOf(b, a.id())) == i+1 })
	}
	if code := resetCode(t, rawStream(t, a, b, good)); code != network.StreamResourceLimitExceeded {
		t.Errorf("code %x", code)
	}
	if s := b.Stats(); s["refused"] != 1 {
		t.Errorf("%+v", s)
	}
}

// A flood of small frames to a slow handler slows down its sender, loses no event, and
// does not raise the receiver's memory.
func TestFloodToASlowHandlerSlowsTheSender(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		const total = 20_000
		a, b := pair(t, listen, Config{StallTimeout: time.Hour})
		next, done := 0, make(chan struct{})
		var handled, ahead atomic.Int64
		Name[int]("n").On(b, func(_ context.Context, _ peer.ID, n int) {
			if n != next {
				t.Errorf("event %d when %d was due", n, next)
			}
			next++
			handled.Add(1)
			if n%100 == 0 {
				time.Sleep(time.Millisecond) // slow is what is tested
			}
			if next == total {
				close(done)
			}
		})
		before := leaks.Heap()
		for n := range total {
			if err := Name[int]("n").Emit(t.Context(), emitterTo{a, b.id()}, n); err != nil {
				t.Fatal(err)
			}
			ahead.Store(max(ahead.Load(), int64(n)-handled.Load()))
		}
		<-done
		leaks.WantHeap(t, before, 4<<20)
		t.Logf("the sender was at most %d events ahead", ahead.Load())
	})
}

// Frames that are mutated at random on many streams at once crash nothing, and an honest
// peer is served as before.
func TestRubbishDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	type point struct {
		X, Y int
		Note string `json:",omitempty"`
	}
	overTransports(t, func(t *testing.T, listen string) {
		b := newDirect(t, newHost(t, listen), Config{MaxEventSize: 10_000})
		Name[point]("point").On(b, func(context.Context, peer.ID, point) {})
		stream := good.append(nil)
		stream = append(stream, rawEvent(t, "point", point{1, 2, "x"})...)
		stream = append(stream, rawEvent(t, "b", []byte("raw"), nil, 7)...)
		stream = append(stream, rawEvent(t, "c", make([]byte, 5000))...)
		var last *Direct
		for range 4 {
			a := newDirect(t, newHost(t, listen), Config{})
			hosttest.Connect(t, a.host, b.host)
			last = a
			for range rounds {
				s, err := a.host.NewStream(t.Context(), b.id(), protocol.Events)
				if err != nil {
					t.Fatal(err)
				}
				bad := bytes.Clone(stream)
				for range 1 + rand.IntN(4) {
					bad[rand.IntN(len(bad))] ^= byte(1 << rand.IntN(8))
				}
				waitFor(t, func() bool { return len(inboundOf(b, a.id())) < maxInbound })
				s.Write(bad[:1+rand.IntN(len(bad))])
				s.Close()
			}
			waitFor(t, func() bool { return len(inboundOf(b, a.id())) == 0 })
		}
		t.Logf("%+v", b.Stats())
		stillServes(t, last, b)
	})
}

// FuzzDirectFrame reads arbitrary bytes as the frames of a stream.
func FuzzDirectFrame(f *testing.F) {
	f.Add(good.append(nil)[1:])
	f.Add(hello{"12345678", "home", 1 << 40}.append(nil)[1:])
	f.Add(rawEvent(f, "e", 1, []byte("x"))[1:])
	f.Add(frame.AppendMessage(nil, 5, "later"))
	f.Add(frame.AppendMessage(nil, fieldCall, "\x08\x07\x12\x03\x0a\x01e"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHello(b); err == nil {
			again, err := parseHello(h.append(nil)[frameHeader(t, h.append(nil)):])
			if err != nil || again != h {
				t.Fatalf("%+v after %+v: %v", again, h, err)
			}
		}
		ev, id, err := parseDirectFrame(b)
		if err != nil || ev == nil {
			return
		}
		maker := event.Arena{From: "p"}
		if e, err := maker.Borrowed(ev); err == nil {
			o := &event.Outgoing{Size: len(ev), Buf: &event.Buffer{B: ev}}
			var c *pendingCall
			if id != 0 {
				c = &pendingCall{id: id}
			}
			whole := appendFrame(nil, o, c)
			if n, end, last := framesWithin(whole, len(whole)); n != 1 || end != len(whole) || last != id {
				t.Fatal(n, end, last)
			}
			if n, end, last := framesWithin(whole, len(whole)-1); n != 0 || end != 0 || last != 0 {
				t.Fatal(n, end, last)
			}
			if e.From != "p" || event.CheckName(e.Name) != nil {
				t.Fatalf("%+v", e)
			}
		}
	})
}

// frameHeader returns the size of a frame's length prefix.
func frameHeader(t *testing.T, b []byte) int {
	_, n := protowire.ConsumeVarint(b)
	if n < 0 {
		t.Fatal("no length")
	}
	return n
}
