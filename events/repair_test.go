package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// openRepair opens a stream of marks and questions.
func openRepair(t *testing.T, from corehost.Host, to *station) (network.Stream, *frame.Reader) {
	t.Helper()
	s, err := from.NewStream(t.Context(), to.id(), protocol.Repair)
	if err != nil {
		t.Fatal(err)
	}
	return s, frame.NewReader(s, maxRepairAnswer)
}

// askFor writes frames and reads one answer to its end.
func askFor(t *testing.T, s network.Stream, r *frame.Reader, frames ...[]byte) (originals [][]byte, marks []engine.Mark, err error) {
	t.Helper()
	for _, f := range frames {
		if _, err := s.Write(frame.Append(nil, f)); err != nil {
			return nil, nil, err
		}
	}
	for {
		msg, err := r.Next()
		if err != nil {
			return nil, nil, err
		}
		switch num, body, err := repairField(msg); {
		case err != nil:
			t.Fatal(err)
		case num == numRepairOriginal:
			originals = append(originals, slices.Clone(body))
		case num == numRepairEnd:
			marks, err = decodeMarks(body)
			return originals, marks, err
		}
	}
}

func questionFor(r *rawPeer, from, to uint64) repairRequest {
	var q repairRequest
	q.Sender, q.Session, q.from, q.to = r.host.ID(), rawSession(1), from, to
	return q
}

// A neighbor that asks gets the signed batches and the marks of the node.
func TestQuestionsAreAnswered(t *testing.T) {
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	r.batch(rawSession(1), 1, "1", "2")
	r.batch(rawSession(1), 3, "3")
	r.batch(rawSession(1), 7, "7")
	s.wait(r.asStation(), "1", "2", "3")
	eventually(t, "the one behind the gap came", func() bool { m, _ := s.driver.mark(r.host.ID()); return m.Above == 8 })
	other := newStation(t, overTCP, Config{})
	link(t, other, s)
	stream, reader := openRepair(t, other.host, s)
	for _, c := range []struct {
		from, to uint64
		want     []uint64 // the first of each original
	}{{1, 8, []uint64{1, 3, 7}}, {2, 3, []uint64{1}}, {3, 7, []uint64{3}}, {4, 7, nil}, {8, 100, nil}} {
		// A frame of a later version is skipped.
		originals, marks, err := askFor(t, stream, reader, frame.AppendMessage(nil, 9, "later"), nil, questionFor(r, c.from, c.to).append(nil))
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		for _, b := range originals {
			o, err := decodeSignedBatch(b, r.host.ID(), testTopic)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, o.first)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d to %d: got %v, want %v", c.from, c.to, got, c.want)
		}
		if len(marks) != 1 || marks[0].Sender != r.host.ID() || marks[0].Next != 4 || marks[0].Above != 8 || marks[0].Floor != 1 {
			t.Errorf("%+v", marks)
		}
	}
}

// A malformed question ends its stream, and a good one on another stream is answered.
func TestBadQuestionsEndTheStream(t *testing.T) {
	s := newStation(t, overTCP, Config{})
	other := newStation(t, overTCP, Config{})
	link(t, other, s)
	r := &rawPeer{t: t, host: other.host}
	none := questionFor(r, 5, 5)
	for what, raw := range map[string][]byte{
		"no protobuf": frame.Append(nil, []byte{0xff}),
		"bad want":    frame.Append(nil, frame.AppendMessage(nil, numRepairWant, "\xff")),
		"empty want":  frame.Append(nil, none.append(nil)),
		"bad marks":   frame.Append(nil, frame.AppendMessage(nil, numRepairTold, "\xff")),
		"too large":   frame.Append(nil, make([]byte, maxRepairQuestion+1)),
		"endless":     {0x80, 0x80, 0x80, 0x80, 0x80, 0x80},
	} {
		stream, reader := openRepair(t, other.host, s)
		if _, err := stream.Write(raw); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Next(); errors.Is(err, context.DeadlineExceeded) || err == nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	stream, reader := openRepair(t, other.host, s)
	if _, _, err := askFor(t, stream, reader, questionFor(r, 1, 2).append(nil)); err != nil {
		t.Error(err)
	}
}

// Streams of peers without a link, and too many streams of a neighbor, are refused; Close
// ends the others.
func TestRepairStreamsAreBounded(t *testing.T) {
	s := newStation(t, overTCP, Config{})
	other := newStation(t, overTCP, Config{})
	link(t, other, s)
	r := &rawPeer{t: t, host: other.host}
	ask := questionFor(r, 1, 2).append(nil)
	unlinked := newStationHost(t, overTCP)
	hosttest.Connect(t, unlinked, s.host)
	for range maxUnlinked {
		stream, _ := openRepair(t, unlinked, s)
		stream.Write(frame.Append(nil, ask))
	}
	eventually(t, "they wait", func() bool {
		s.driver.mu.Lock()
		defer s.driver.mu.Unlock()
		return s.driver.unlinkedStreams == maxUnlinked
	})
	stream, reader := openRepair(t, unlinked, s)
	if _, _, err := askFor(t, stream, reader, ask); err == nil {
		t.Error("a peer without a link is answered")
	}
	var readers []*frame.Reader
	for i := range maxRepairStreams + 1 {
		stream, reader := openRepair(t, other.host, s)
		if _, _, err := askFor(t, stream, reader, ask); err != nil && i < maxRepairStreams-1 || err == nil && i == maxRepairStreams {
			t.Errorf("stream %d: %v", i, err)
		}
		readers = append(readers, reader)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := readers[1].Next(); err == nil {
		t.Error("a stream goes on after Close")
	}
}

// However many senders are known, the encoded marks stay within the limits of size and
// number.
func TestEncodedMarksStayWithinTheLimit(t *testing.T) {
	var marks []engine.Mark
	for i := range 2000 {
		id := peer.ID(fmt.Sprintf("\x00\x24\x08\x01\x12\x20%032d", i))
		marks = append(marks, engine.Mark{
			Progress: order.Progress{Sender: id, Session: order.SessionKey{ID: [8]byte{1}, Start: 1 << 41}, Begin: 1, Next: order.MaxNumber - 1, Above: order.MaxNumber},
			Floor:    order.MaxNumber, Through: 1, Ask: true,
		})
	}
	b := appendMarks([]byte("before"), marks)
	b = b[len("before"):]
	got, err := decodeMarks(b)
	if err != nil || len(b) > maxMarksSize || len(b) < maxMarksSize-200 || !slices.Equal(got, marks[:len(got)]) {
		t.Errorf("%d bytes, %d marks, %v", len(b), len(got), err)
	}
	for i := range marks {
		marks[i].Floor, marks[i].Through = 1, marks[i].Next
		marks[i].Sender = peer.ID(fmt.Sprintf("\x00\x04%04d", i))
	}
	if got, err := decodeMarks(appendMarks(nil, marks)); err != nil || len(got) != maxMarks {
		t.Errorf("%d marks, %v", len(got), err)
	}
}
