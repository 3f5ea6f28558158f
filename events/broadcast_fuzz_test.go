package events

import (
	"bytes"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Any batch that is read can be written again and says the same.
func FuzzBatch(f *testing.F) {
	f.Add(batchOf(f, rawSession(1), 1, "one"))
	f.Add(batchOf(f, rawSession(2), 1<<40, "one", "two", ""))
	f.Add(append(batchOf(f, rawSession(1), 1, "one"), frame.AppendMessage(nil, 99, "later")...))
	f.Add(appendBatch(nil, order.Session{}, 0, nil))
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeBatch(b)
		if err != nil {
			return
		}
		if len(m.events) == 0 || len(m.events) > maxBatchEvents || m.first == 0 || m.first+uint64(len(m.events)) > order.MaxNumber || m.session.Start == 0 {
			t.Fatalf("%+v", m)
		}
		if m.size < len(b) || m.size > 64*len(b)+1024 {
			t.Fatalf("%d bytes weigh %d", len(b), m.size)
		}
		again, err := decodeBatch(appendBatch(nil, m.session, m.first, m.events...))
		if err != nil {
			t.Fatal(err)
		}
		if again.session != m.session || again.first != m.first || len(again.events) != len(m.events) {
			t.Fatalf("%+v, %+v", m, again)
		}
		for i, ev := range m.events {
			if !bytes.Equal(ev, again.events[i]) {
				t.Fatal(i)
			}
			decodeEvent("sender", ev)
		}
	})
}

func FuzzMarks(f *testing.F) {
	id := peer.ID("\x00\x04abcd")
	f.Add(appendMarks(nil, []order.Mark{{Sender: id, Session: rawSession(1), Next: 1}, {Sender: id, Session: rawSession(2), Next: 5, Above: 9}}))
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		marks, err := decodeMarks(b)
		if err != nil {
			return
		}
		for _, m := range marks {
			if m.Sender == "" || m.Next < 1 || m.Above < m.Next || m.Above > order.MaxNumber || m.Session.Start == 0 {
				t.Fatalf("%+v", m)
			}
		}
		again, err := decodeMarks(appendMarks(nil, marks))
		if err != nil || len(again) > len(marks) {
			t.Fatalf("%v: %+v, %+v", err, marks, again)
		}
		for i, m := range again {
			if m != marks[i] {
				t.Fatalf("%+v, %+v", m, marks[i])
			}
		}
	})
}

func FuzzRepairFrame(f *testing.F) {
	f.Add(appendMarksRequest(nil))
	f.Add(appendMarksRequest(nil, "\x00\x04abcd", "\x00\x01a"))
	f.Add(frame.AppendMessage(nil, numRepairMarks, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		senders, ok, err := decodeMarksRequest(b)
		if len(senders) > maxRequestSenders || (!ok || err != nil) && senders != nil {
			t.Fatalf("%d senders, %v, %v", len(senders), ok, err)
		}
		if !ok || err != nil {
			return
		}
		again, ok, err := decodeMarksRequest(appendMarksRequest(nil, senders...))
		if err != nil || !ok || len(again) != len(senders) {
			t.Fatalf("%v: %q, %q", err, senders, again)
		}
	})
}
