package events

import (
	"context"
	"slices"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// handMade is a leaf written by hand after docs/wire.md: it is on the topic, publishes
// nothing there, and does only the steps of the test.
type handMade struct {
	t       *testing.T
	host    corehost.Host
	session order.SessionKey
	told    chan []engine.Mark // that the station tells
	first   chan []engine.Mark // the first of them on each stream
	wanted  chan repairRequest // that it asks
	streams chan network.Stream
	out     network.Stream
}

func newHandMade(t *testing.T, s *station) *handMade {
	t.Helper()
	l := &handMade{
		t: t, host: newStationHost(t, overTCP), session: order.SessionKey{ID: [8]byte{1}, Start: 1},
		told: make(chan []engine.Mark, 100), first: make(chan []engine.Mark, 100), wanted: make(chan repairRequest, 10), streams: make(chan network.Stream, 10),
	}
	l.host.SetStreamHandler(protocol.Repair, l.serve)
	ps, err := pubsub.NewFloodSub(t.Context(), l.host)
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
	hosttest.Connect(t, s.host, l.host)
	eventually(t, "the leaf is on the topic", func() bool { return slices.Contains(s.ps.ListPeers(testTopic), l.host.ID()) })
	s.link(l.host.ID(), nil)
	return l
}

func (l *handMade) serve(st network.Stream) {
	r := frame.NewReader(st, maxRepairQuestion)
	for first := true; ; first = false {
		b, err := r.Next()
		if err != nil {
			return
		}
		num, body, err := repairField(b)
		if err != nil {
			l.t.Error(err)
		}
		switch num {
		case numRepairTold:
			marks, err := decodeMarks(body)
			if err != nil {
				l.t.Error(err)
			}
			l.told <- marks
			if first {
				l.first <- marks
			}
		case numRepairWant:
			q, err := decodeRepairRequest(body)
			if err != nil {
				l.t.Error(err)
			}
			l.streams <- st
			l.wanted <- q
		}
	}
}

// mark is the leaf's mark of itself.
func (l *handMade) mark(next uint64) engine.Mark {
	m := markOf(l.host.ID(), l.session, next)
	m.Begin, m.Floor = 1, 1
	return m
}

// sendMarks sends marks on a stream that stays open.
func (l *handMade) sendMarks(s *station, marks ...engine.Mark) {
	l.t.Helper()
	if l.out == nil {
		var err error
		if l.out, err = l.host.NewStream(l.t.Context(), s.id(), protocol.Repair); err != nil {
			l.t.Fatal(err)
		}
	}
	l.write(l.out, frame.AppendMessage(nil, numRepairTold, appendMarks(nil, marks)))
}

func (l *handMade) write(st network.Stream, b []byte) {
	l.t.Helper()
	if _, err := st.Write(frame.Append(nil, b)); err != nil {
		l.t.Fatal(err)
	}
}

// await returns the next mark of s that the leaf receives and that ok accepts.
func (l *handMade) await(s *station, ok func(engine.Mark) bool) engine.Mark {
	l.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case marks := <-l.told:
			for _, m := range marks {
				if m.Sender == s.id() && ok(m) {
					return m
				}
			}
		case <-timeout:
			l.t.Fatal("no such mark is told")
		}
	}
}

// original is a batch that the leaf has signed.
func (l *handMade) original(first uint64, texts ...string) []byte {
	l.t.Helper()
	var evs [][]byte
	for _, text := range texts {
		ev, err := event.JSON.Encode(nil, "x", []any{[]byte(text)}, event.DefaultMaxSize)
		if err != nil {
			l.t.Fatal(err)
		}
		evs = append(evs, ev)
	}
	msg := &pb.Message{
		From: []byte(l.host.ID()), Seqno: []byte{1}, Topic: proto.String(testTopic),
		Data: appendBatch(nil, l.session, first, evs...),
	}
	b, err := proto.Marshal(msg)
	if err == nil {
		msg.Signature, err = l.host.Peerstore().PrivKey(l.host.ID()).Sign(append([]byte(pubsub.SignPrefix), b...))
	}
	if err == nil {
		b, err = proto.Marshal(msg)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// A leaf that receives no events by pubsub learns of them from marks, gets them by asking,
// and is waited for until it acknowledges.
func TestLeafGetsMissingEventsByAsking(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{Node: new(wiring.Broadcasts)})
	l := newHandMade(t, s)
	if m := l.await(s, func(engine.Mark) bool { return true }); m.Next != 1 {
		t.Errorf("the greeting is %+v", m)
	}
	l.sendMarks(s, l.mark(1))
	for i := range 5 {
		s.emit("%d", i)
	}
	m := l.await(s, func(m engine.Mark) bool { return m.Ask && m.Next == 6 })
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Flush(short); err == nil {
		t.Error("nobody waits for the leaf")
	}
	st, err := l.host.NewStream(t.Context(), s.id(), protocol.Repair)
	if err != nil {
		t.Fatal(err)
	}
	q := repairRequest{from: 1, to: 6}
	q.Sender, q.Session = s.id(), m.Session
	l.write(st, q.append(nil))
	r := frame.NewReader(st, maxRepairAnswer)
	next := uint64(1)
	for ended := false; !ended; {
		b, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch num, body, _ := repairField(b); num {
		case numRepairOriginal:
			o, err := decodeSignedBatch(body, s.id(), testTopic)
			if err != nil || o.first != next {
				t.Fatalf("events from %d on, want %d; %v", o.first, next, err)
			}
			next = o.nextSeq()
		case numRepairEnd:
			ended = true
		}
	}
	if next != 6 {
		t.Errorf("the answer ends before %d", next)
	}
	l.sendMarks(s, markOf(s.id(), m.Session, 6))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Flush(ctx); err != nil {
		t.Error(err)
	}
}

// Missing events that a leaf has sent are asked of the leaf, from its greeting on.
func TestLeafIsAskedForItsMissingEvents(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{Node: new(wiring.Broadcasts)})
	l := newHandMade(t, s)
	l.sendMarks(s, l.mark(3)) // the greeting: what is below is of before the station's time
	l.sendMarks(s, l.mark(6))
	for done := false; !done; {
		q := <-l.wanted
		st := <-l.streams
		if q.Sender != l.host.ID() || q.Session != l.session {
			t.Fatalf("it wants %+v", q)
		}
		done = q.from >= 3
		if done {
			if q.from != 3 || q.to != 6 {
				t.Errorf("it wants %d to %d", q.from, q.to)
			}
			l.write(st, frame.AppendMessage(nil, numRepairOriginal, l.original(3, "3", "4", "5")))
		} // else it fills its store
		l.write(st, frame.AppendMessage(nil, numRepairEnd, appendMarks(nil, []engine.Mark{l.mark(6)})))
	}
	leaf := &station{host: l.host}
	s.wait(leaf, "3", "4", "5")
}

// Each stream of marks to a leaf begins with the marks of all senders, also one that
// replaces another.
func TestLeafIsGreetedOnEachStream(t *testing.T) {
	t.Parallel()
	s, far := newStation(t, overTCP, Config{Node: new(wiring.Broadcasts)}), newStation(t, overTCP, Config{})
	hosttest.Connect(t, s.host, far.host)
	eventually(t, "both see each other", func() bool {
		// far also has to know its neighbor, or its first event is an error.
		return slices.Contains(s.ps.ListPeers(testTopic), far.id()) && slices.Contains(far.neighbors(), s.id())
	})
	if err := s.link(far.id(), far.greeting()); err != nil {
		t.Fatal(err)
	}
	far.emit("far")
	s.wait(far, "far")
	l := newHandMade(t, s)
	for i := range 3 {
		senders := map[peer.ID]uint64{}
		for _, m := range <-l.first {
			senders[m.Sender] = m.Next
		}
		if senders[far.id()] != 2 || senders[s.id()] != uint64(i)+1 {
			t.Errorf("greeting %d has the marks %v", i+1, senders)
		}
		for _, c := range l.host.Network().ConnsToPeer(s.id()) {
			for _, st := range c.GetStreams() {
				if st.Protocol() == protocol.Repair {
					st.Reset()
				}
			}
		}
		s.emit("%d", i) // the nudge finds the stream broken
	}
	s.unlink(l.host.ID())
	if got := s.neighbors(); len(got) != 1 {
		t.Errorf("the neighbors are %v", got)
	}
}
