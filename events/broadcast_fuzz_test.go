package events

import (
	"bytes"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// FuzzBatch checks that a batch that can be read is the same after it is written and read
// again.
func FuzzBatch(f *testing.F) {
	f.Add(batchOf(f, rawSession(1), 1, "one"))
	f.Add(batchOf(f, rawSession(2), 1<<40, "one", "two", ""))
	f.Add(append(batchOf(f, rawSession(1), 1, "one"), frame.AppendMessage(nil, 99, "later")...))
	f.Add(appendBatch(nil, order.SessionKey{}, 0, nil))
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again arrivedBatch
		if m.parse(b) != nil {
			return
		}
		if m.count == 0 || m.count > maxBatchEvents || m.first == 0 || m.nextSeq() > order.MaxNumber || m.session.Start == 0 {
			t.Fatalf("%+v", m)
		}
		var list [][]byte
		for ev, rest := cutEvent(m.data); ev != nil; ev, rest = cutEvent(rest) {
			list = append(list, ev)
			event.Parse("sender", ev)
		}
		if err := again.parse(appendBatch(nil, m.session, m.first, list...)); err != nil {
			t.Fatal(err)
		}
		if again.session != m.session || again.first != m.first || again.count != m.count || len(list) != m.count {
			t.Fatalf("%+v, %+v, %d events", m, again, len(list))
		}
	})
}

// FuzzMarks checks that decoded marks are valid, and the same after they are encoded and
// decoded again.
func FuzzMarks(f *testing.F) {
	id := peer.ID("\x00\x04abcd")
	f.Add(appendMarks(nil, []engine.Mark{markOf(id, rawSession(1), 1), {
		Progress: order.Progress{Sender: id, Session: rawSession(2), Begin: 2, Next: 5, Above: 9}, Floor: 3, Through: 4, Ask: true,
	}}))
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		marks, err := decodeMarks(b)
		if err != nil {
			return
		}
		for _, m := range marks {
			if m.Sender == "" || m.Next < 1 || m.Above < m.Next || m.Begin > m.Next || m.Through > m.Next || m.Above > order.MaxNumber || m.Session.Start == 0 {
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

// FuzzRepairFrame checks that a decoded question is valid, and the same after it is
// encoded and decoded again.
func FuzzRepairFrame(f *testing.F) {
	key := repair.Subject{Sender: "\x00\x04abcd", Session: rawSession(1)}
	f.Add(repairRequest{Subject: key, from: 1, to: 2}.append(nil))
	f.Add(repairRequest{Subject: key, from: 5, to: order.MaxNumber, passOn: true}.append(nil))
	f.Add(frame.AppendMessage(nil, numRepairTold, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		num, body, err := repairField(b)
		if err != nil || num != numRepairWant {
			return
		}
		q, err := decodeRepairRequest(body)
		if err != nil {
			return
		}
		if q.from < 1 || q.from >= q.to || q.to > order.MaxNumber || q.Sender == "" || q.Session.Start == 0 {
			t.Fatalf("%+v", q)
		}
		_, body, err = repairField(q.append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeRepairRequest(body); err != nil || again != q {
			t.Fatalf("%v: %+v, %+v", err, q, again)
		}
	})
}

// FuzzOriginal checks that only the sender can make a valid signed batch.
func FuzzOriginal(f *testing.F) {
	h := newStationHost(f)
	r := &rawPeer{t: f, host: h}
	good, err := proto.Marshal(r.message(batchOf(f, rawSession(1), 1, "one")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeSignedBatch(b, h.ID(), testTopic)
		if err == nil && !bytes.Equal(o.msg.Data, batchOf(t, rawSession(1), 1, "one")) {
			t.Fatalf("%x is believed", b)
		}
	})
}
