package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Flush waits for the arrival at the neighbours, and not for handlers.
func TestFlushWaitsForArrival(t *testing.T) {
	pair := line(t, 2, overTCP)
	release := make(chan struct{})
	defer close(release)
	pair[1].On("x", func(context.Context, *Event) { <-release })
	for range 20 {
		for i := range 50 {
			pair[0].emit("%d", i)
		}
		if err := pair[0].Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m, _ := pair[1].in.mark(pair[0].id()); m.Next != pair[0].nextNumber() {
			t.Fatalf("confirmed %d, has %d", pair[0].nextNumber(), m.Next)
		}
	}
}

// Some only relay: pubsub without our protocol. They are named, with the
// reason, when the time is over.
func TestFlushNamesWhoDidNotConfirm(t *testing.T) {
	a := newStation(t, overTCP, BroadcastConfig{})
	good := newStation(t, overTCP, BroadcastConfig{})
	link(t, a, good)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	plain := newStationHost(t, overTCP)
	ps, err := pubsub.NewFloodSub(ctx, plain)
	if err != nil {
		t.Fatal(err)
	}
	topic, err := ps.Join(testTopic)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topic.Subscribe(); err != nil {
		t.Fatal(err)
	}
	connect(t, a.host, plain)
	eventually(t, "both are seen", func() bool { return len(a.neighbours()) == 2 })
	if err := a.Flush(t.Context()); err != nil { // nothing was sent
		t.Fatal(err)
	}
	a.emit("0")
	ctx, end := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer end()
	err = a.Flush(ctx)
	missed, ok := errors.AsType[*UnconfirmedError](err)
	if !ok || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	if !slices.Equal(missed.Peers, []peer.ID{plain.ID()}) || !strings.Contains(err.Error(), "protocols not supported") {
		t.Errorf("%v", err)
	}
}

// Who is no neighbour any more is not waited for.
func TestFlushDoesNotWaitForWhoLeft(t *testing.T) {
	pair := line(t, 2, overTCP)
	// It gets nothing any more and stays connected.
	pair[1].host.RemoveStreamHandler(ProtocolRepair)
	pair[0].emit("0")
	done := make(chan error, 1)
	go func() { done <- pair[0].Flush(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("%v although nobody could confirm", err)
	case <-time.After(50 * time.Millisecond):
	}
	pair[1].Close(t.Context())
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFlushEndsWithClose(t *testing.T) {
	pair := line(t, 2, overTCP)
	pair[1].host.RemoveStreamHandler(ProtocolRepair)
	pair[0].emit("0")
	done := make(chan error, 1)
	go func() { done <- pair[0].Flush(t.Context()) }()
	if err := pair[0].Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

// What a third party says of a sender is no confirmation to that sender.
func TestHearsayConfirmsNothing(t *testing.T) {
	s := newStation(t, overTCP, BroadcastConfig{})
	r := newRawPeer(t, s)
	lie := appendMarks(nil, []order.Mark{{Sender: r.host.ID(), Session: rawSession(1), Next: 1000}})
	if err := s.Learn("liar", lie); err != nil {
		t.Fatal(err)
	}
	if marks, err := decodeMarks(s.answer([]peer.ID{r.host.ID()})); err != nil || len(marks) != 0 {
		t.Errorf("%+v, %v", marks, err)
	}
	if err := s.Learn(r.host.ID(), lie); err != nil { // the sender itself may say so
		t.Fatal(err)
	}
	if marks, err := decodeMarks(s.answer([]peer.ID{r.host.ID()})); err != nil || len(marks) != 1 || marks[0].Next != 1000 {
		t.Errorf("%+v, %v", marks, err)
	}
}

// asker opens a stream of questions.
func asker(t *testing.T, from corehost.Host, to *station) (network.Stream, *frame.Reader) {
	t.Helper()
	s, err := from.NewStream(t.Context(), to.id(), ProtocolRepair)
	if err != nil {
		t.Fatal(err)
	}
	return s, frame.NewReader(s, maxRepairFrame)
}

func askFor(t *testing.T, s network.Stream, r *frame.Reader, frames ...[]byte) ([]order.Mark, error) {
	t.Helper()
	for _, f := range frames {
		if _, err := s.Write(frame.Append(nil, f)); err != nil {
			return nil, err
		}
	}
	msg, err := r.Next()
	if err != nil {
		return nil, err
	}
	body, ok, err := repairField(msg, numRepairMarks)
	if err != nil || !ok {
		t.Fatalf("%q: %v, %v", msg, ok, err)
	}
	return decodeMarks(body)
}

func TestMarksAreAnswered(t *testing.T) {
	s := newStation(t, overTCP, BroadcastConfig{})
	r := newRawPeer(t, s)
	r.batch(rawSession(1), 1, "a", "b")
	r.batch(rawSession(1), 5, "c")
	s.wait(r.asStation(), "a", "b")
	eventually(t, "the one behind the gap came", func() bool { m, _ := s.in.mark(r.host.ID()); return m.Above == 6 })
	stream, reader := asker(t, r.host, s)
	want := order.Mark{Sender: r.host.ID(), Session: rawSession(1), Next: 3, Above: 6}
	for range 3 {
		marks, err := askFor(t, stream, reader, appendMarksRequest(nil, "\x00\x01a", r.host.ID()))
		if err != nil || !slices.Equal(marks, []order.Mark{want}) {
			t.Errorf("%+v, %v", marks, err)
		}
		// A frame of a later version is skipped.
		marks, err = askFor(t, stream, reader, frame.AppendMessage(nil, 9, "later"), nil, appendMarksRequest(nil))
		if err != nil || len(marks) != 2 || marks[0].Sender != s.id() || marks[1] != want {
			t.Errorf("%+v, %v", marks, err)
		}
	}
	stream.CloseWrite()
	if _, err := reader.Next(); err != io.EOF {
		t.Errorf("%v instead of the end", err)
	}
}

func TestBadQuestionsEndTheStream(t *testing.T) {
	s := newStation(t, overTCP, BroadcastConfig{})
	h := newStationHost(t, overTCP)
	connect(t, h, s.host)
	for what, raw := range map[string][]byte{
		"no protobuf":      frame.Append(nil, []byte{0xff}),
		"bad request":      frame.Append(nil, frame.AppendMessage(nil, numRepairRequest, "\xff")),
		"bad peer id":      frame.Append(nil, appendMarksRequest(nil, "no peer id")),
		"too many senders": frame.Append(nil, appendMarksRequest(nil, slices.Repeat([]peer.ID{h.ID()}, maxRequestSenders+1)...)),
		"too large":        frame.Append(nil, make([]byte, maxRepairRequest+1)),
		"endless":          {0x80, 0x80, 0x80, 0x80, 0x80, 0x80},
	} {
		stream, reader := asker(t, h, s)
		if _, err := stream.Write(raw); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Next(); err == nil || err == io.EOF {
			t.Errorf("%s: %v", what, err)
		}
	}
	stream, reader := asker(t, h, s)
	if marks, err := askFor(t, stream, reader, appendMarksRequest(nil)); err != nil || len(marks) != 1 {
		t.Errorf("%+v, %v", marks, err)
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	allowed := make(chan peer.ID, 1)
	s := newStation(t, overTCP, BroadcastConfig{Serve: func(p peer.ID) bool {
		select {
		case q := <-allowed:
			allowed <- q
			return p == q
		default:
			return false
		}
	}})
	h, stranger := newStationHost(t, overTCP), newStationHost(t, overTCP)
	allowed <- h.ID()
	connect(t, h, s.host)
	connect(t, stranger, s.host)
	stream, reader := asker(t, stranger, s)
	if _, err := askFor(t, stream, reader, appendMarksRequest(nil)); err == nil {
		t.Error("a stranger is answered")
	}
	type asking struct {
		s network.Stream
		r *frame.Reader
	}
	var open []asking
	for i := range 5 {
		stream, reader := asker(t, h, s)
		_, err := askFor(t, stream, reader, appendMarksRequest(nil))
		if (err == nil) != (i < maxRepairStreams) {
			t.Errorf("stream %d: %v", i, err)
		}
		open = append(open, asking{stream, reader})
	}
	open[0].s.Reset()
	eventually(t, "another is served", func() bool {
		stream, reader := asker(t, h, s)
		_, err := askFor(t, stream, reader, appendMarksRequest(nil))
		return err == nil
	})
	// Close ends those that are open.
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := open[1].r.Next(); err == nil {
		t.Error("a stream goes on after Close")
	}
	if len(s.serving) != 0 {
		t.Errorf("%v are being served", s.serving)
	}
}

// However many senders are known, the marks fit.
func TestMarksFit(t *testing.T) {
	var marks []order.Mark
	for i := range 2000 {
		id := peer.ID(fmt.Sprintf("\x00\x24\x08\x01\x12\x20%032d", i))
		marks = append(marks, order.Mark{Sender: id, Session: order.Session{ID: [8]byte{1}, Start: 1 << 41}, Next: order.MaxNumber - 1, Above: order.MaxNumber})
	}
	b := appendMarks([]byte("before"), marks)
	b = b[len("before"):]
	got, err := decodeMarks(b)
	if err != nil || len(b) > maxMarksSize || len(b) < maxMarksSize-200 || !slices.Equal(got, marks[:len(got)]) {
		t.Errorf("%d bytes, %d marks, %v", len(b), len(got), err)
	}
	for i := range marks {
		marks[i].Sender = peer.ID(fmt.Sprintf("\x00\x04%04d", i))
	}
	if got, err := decodeMarks(appendMarks(nil, marks)); err != nil || len(got) != maxMarks {
		t.Errorf("%d marks, %v", len(got), err)
	}
}
