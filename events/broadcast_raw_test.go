package events

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// rawPeer speaks floodsub by hand to one station.
type rawPeer struct {
	t      testing.TB
	host   corehost.Host
	stream network.Stream
	seqno  uint64
}

func newRawPeer(t testing.TB, to *station) *rawPeer {
	t.Helper()
	r := &rawPeer{t: t, host: newStationHost(t, overTCP)}
	// It has to take the station's stream, or it does not count as a peer.
	r.host.SetStreamHandler(pubsub.FloodSubID, func(s network.Stream) {
		buf := make([]byte, 1<<10)
		for err := error(nil); err == nil; {
			_, err = s.Read(buf)
		}
		s.Reset()
	})
	hosttest.Connect(t, r.host, to.host)
	r.open(to)
	return r
}

func (r *rawPeer) open(to *station) {
	r.t.Helper()
	var err error
	if r.stream, err = r.host.NewStream(context.Background(), to.id(), pubsub.FloodSubID); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rawPeer) key() crypto.PrivKey { return r.host.Peerstore().PrivKey(r.host.ID()) }

// message returns a message of the raw peer, with a signature.
func (r *rawPeer) message(data []byte) *pb.Message {
	r.t.Helper()
	r.seqno++
	m := &pb.Message{From: []byte(r.host.ID()), Data: data, Topic: proto.String(testTopic)}
	m.Seqno = binary.BigEndian.AppendUint64(nil, r.seqno)
	sign(r.t, m, r.key())
	return m
}

func sign(t testing.TB, m *pb.Message, key crypto.PrivKey) {
	t.Helper()
	m.Signature, m.Key = nil, nil
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if m.Signature, err = key.Sign(append([]byte(pubsub.SignPrefix), b...)); err != nil {
		t.Fatal(err)
	}
}

func (r *rawPeer) send(rpc *pb.RPC) {
	r.t.Helper()
	b, err := proto.Marshal(rpc)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.stream.Write(frame.Append(nil, b)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rawPeer) publish(ms ...*pb.Message) {
	r.t.Helper()
	r.send(&pb.RPC{Publish: ms})
}

// batch publishes events of a session.
func (r *rawPeer) batch(session order.SessionKey, first uint64, texts ...string) {
	r.t.Helper()
	r.publish(r.message(batchOf(r.t, session, first, texts...)))
}

func batchOf(t testing.TB, session order.SessionKey, first uint64, texts ...string) []byte {
	t.Helper()
	var evs [][]byte
	for _, text := range texts {
		ev, err := event.JSON.Encode(nil, "x", []any{[]byte(text)}, maxBatch)
		if err != nil {
			t.Fatal(err)
		}
		evs = append(evs, ev)
	}
	return appendBatch(nil, session, first, evs...)
}

// session returns the n-th session of a raw peer.
func rawSession(n int) order.SessionKey {
	return order.SessionKey{ID: [8]byte{byte(n)}, Start: uint64(1000 + n)}
}

// asStation returns a station with the raw peer's id, for station.wait.
func (r *rawPeer) asStation() *station { return &station{host: r.host} }

// Late events are waited for, duplicates are dropped, and lost events are given up.
func TestBroadcastRestoresTheOrder(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	one := rawSession(1)
	r.batch(one, 1, "1")
	r.batch(one, 4, "4")
	r.batch(one, 3, "3")
	r.batch(one, 3, "3")
	r.batch(one, 2, "2")
	r.batch(one, 4, "4", "5", "6")
	r.batch(one, 2, "2")
	s.wait(r.asStation(), "1", "2", "3", "4", "5", "6")
	r.batch(one, 8, "8")
	r.batch(rawSession(2), 1, "next 1")
	start := time.Now()
	s.wait(r.asStation(), "1", "2", "3", "4", "5", "6", "8", "next 1")
	if d := time.Since(start); d < time.Second || d > 10*time.Second {
		t.Errorf("the gap was given up after %v", d)
	}
	r.batch(one, 7, "7")
	r.batch(rawSession(2), 2, "next 2")
	s.wait(r.asStation(), "1", "2", "3", "4", "5", "6", "8", "next 1", "next 2")
	if st := s.Stats(); st["delivered"] != 9 || st["lost"] != 1 || st["duplicates"] != 2 || st["old_sessions"] != 1 {
		t.Errorf("%+v", st)
	}
}

// A greeting has the marks of all known senders, and a node that gets one waits for the
// events from those marks on.
func TestGreetingHasTheMarksOfAllSenders(t *testing.T) {
	t.Parallel()
	pair := line(t, 2, overTCP)
	a, b := pair[0], pair[1]
	for i := range 5 {
		a.emit("%d", i)
	}
	b.wait(a, texts(5)...)
	marks, err := decodeMarks(b.greeting())
	if err != nil {
		t.Fatal(err)
	}
	want := []engine.Mark{markOf(b.id(), b.session, 1), markOf(a.id(), a.session, 6)}
	want[1].Begin, want[1].Floor = 1, 1
	if !slices.Equal(marks, want) {
		t.Errorf("marks %+v, want %+v", marks, want)
	}

	// A newcomer that knows the marks notices that the first it gets is not
	// the first it is owed.
	c := newStation(t, overTCP, Config{})
	r := newRawPeer(t, c)
	if err := c.link("somebody", appendMarks(nil, []engine.Mark{markOf(r.host.ID(), rawSession(1), 5)})); err != nil {
		t.Fatal(err)
	}
	r.batch(rawSession(1), 7, "7")
	r.batch(rawSession(1), 5, "5")
	r.batch(rawSession(1), 6, "6")
	c.wait(r.asStation(), "5", "6", "7")
}

// Events that a station sends while another one links to it reach the new neighbor from
// the marks of its greeting on.
func TestNewNeighborMissesNothingAfterTheMarks(t *testing.T) {
	t.Parallel()
	a := newStation(t, overTCP, Config{})
	other := newStation(t, overTCP, Config{})
	link(t, a, other)
	stop := make(chan struct{})
	done := make(chan int)
	go func() {
		i := 0
		for ; ; i++ {
			select {
			case <-stop:
				done <- i
				return
			default:
				a.emit("%d", i)
			}
		}
	}()
	var late []*station
	for range 5 {
		s := newStation(t, overTCP, Config{})
		link(t, a, s)
		late = append(late, s)
	}
	close(stop)
	n := <-done
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	other.wait(a, texts(n)...)
	for i, s := range late {
		eventually(t, "the last has come", func() bool {
			got := s.received(a)
			return len(got) > 0 && got[len(got)-1] == fmt.Sprint(n-1)
		})
		if st := s.Stats(); st["lost"] != 0 {
			t.Errorf("station %d missed something: %+v", i, st)
		}
	}
}

// A message of an attacker is not accepted in another sender's name, does not crash the
// node, and does not delay other senders.
func TestBroadcastRefusesForgedMessages(t *testing.T) {
	t.Parallel()
	pair := line(t, 2, overTCP)
	victim, honest := pair[0], pair[1]
	r := newRawPeer(t, victim)
	evil := batchOf(t, rawSession(1), 1, "evil")

	forge := func(change func(m *pb.Message)) *pb.Message {
		m := r.message(evil)
		change(m)
		return m
	}
	publicKey, err := crypto.MarshalPublicKey(r.key().GetPublic())
	if err != nil {
		t.Fatal(err)
	}
	rejected := []*pb.Message{
		forge(func(m *pb.Message) { m.From = []byte(honest.id()) }),
		forge(func(m *pb.Message) { m.From = []byte(honest.id()); sign(t, m, r.key()) }),
		forge(func(m *pb.Message) { m.From = []byte(honest.id()); sign(t, m, r.key()); m.Key = publicKey }),
		forge(func(m *pb.Message) { m.From = []byte(victim.id()); sign(t, m, r.key()) }),
		forge(func(m *pb.Message) { m.From = nil; sign(t, m, r.key()) }),
		forge(func(m *pb.Message) { m.From = []byte("nobody"); sign(t, m, r.key()) }),
		forge(func(m *pb.Message) { m.Signature = nil }),
		forge(func(m *pb.Message) { m.Signature = []byte{} }),
		forge(func(m *pb.Message) { m.Signature = []byte("short") }),
		forge(func(m *pb.Message) { m.Signature[5] ^= 1 }),
		forge(func(m *pb.Message) { m.Data = append(m.Data, 0) }),
		forge(func(m *pb.Message) { m.Seqno[0] ^= 1 }),
	}
	r.publish(rejected...)
	huge := bytes.Repeat([]byte{1}, 60<<10)
	pad := func(n int) func(m *pb.Message) {
		return func(m *pb.Message) {
			m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 100, protowire.BytesType), make([]byte, n)))
			sign(t, m, r.key())
		}
	}
	r.publish(forge(pad(1000))) // which nobody would count
	refused := []*pb.Message{
		forge(pad(protocol.MaxKey)),
		forge(func(m *pb.Message) { m.Seqno = make([]byte, protocol.MaxSeqno+1); sign(t, m, r.key()) }),
		forge(func(m *pb.Message) { m.Seqno = huge; sign(t, m, r.key()) }),
		forge(func(m *pb.Message) { m.From = huge }),
		forge(func(m *pb.Message) { m.Key = huge }),
		forge(func(m *pb.Message) { m.Signature = huge }),
	}
	for _, m := range refused {
		r.publish(m)
	}
	foreign := [][]byte{
		nil, []byte("hello, this is text"), make([]byte, 1000), bytes.Repeat([]byte{0xff}, 1000),
		appendBatch(nil, order.SessionKey{}, 1, []byte{1}),             // no start
		appendBatch(nil, rawSession(1), 0, []byte{1}),                  // no number
		appendBatch(nil, rawSession(1), 1),                             // no event
		appendBatch(nil, rawSession(1), 1, nil),                        // an empty one
		appendBatch(nil, rawSession(1), order.MaxNumber, []byte{1}),    // too high
		appendBatch(nil, rawSession(1), 1<<64-1, []byte{1}, []byte{1}), // an overflow
		evil[:len(evil)-1],
		appendBatch(nil, rawSession(1), 1, make([]byte, maxBatch)),
		appendBatch(nil, rawSession(1), 1, slices.Repeat([][]byte{{1}}, maxBatchEvents+1)...),
	}
	for _, data := range foreign {
		r.publish(r.message(data))
	}
	// A sequence number of one byte is strange, and killed a validator of
	// pubsub that is not used here.
	for n := range 8 {
		m := forge(func(m *pb.Message) {
			m.Seqno = make([]byte, n)
			m.Data = batchOf(t, rawSession(2), uint64(1+n), fmt.Sprint(n))
			sign(t, m, r.key())
		})
		r.publish(m)
	}
	// Events that cannot be decoded count, the others of their batch are heard.
	good, _ := event.JSON.Encode(nil, "x", []any{[]byte("8")}, 100)
	r.publish(r.message(appendBatch(nil, rawSession(2), 9, []byte{0xff}, []byte("text"), good, []byte{0x0a, 1, '*'})))
	victim.wait(r.asStation(), "0", "1", "2", "3", "4", "5", "6", "7", "8")

	// All the time the stream was not cut, and others are heard.
	honest.emit("honest")
	victim.emit("victim")
	victim.wait(honest, "honest")
	honest.wait(victim, "victim")
	honest.wait(r.asStation(), "0", "1", "2", "3", "4", "5", "6", "7", "8")
	if len(victim.received(victim)) != 0 {
		t.Error("the victim heard itself")
	}
	st := victim.guard.Stats()
	if n := st["rejected"]; n != uint64(len(rejected)) {
		t.Errorf("%d rejected, want %d", n, len(rejected))
	}
	if n := st["refused"]; n != uint64(len(refused)) {
		t.Errorf("%d refused, want %d", n, len(refused))
	}
	if st := victim.Stats(); st["foreign"] != uint64(len(foreign)) || st["undecodable"] != 4 {
		t.Errorf("%+v", st)
	}
	if st := honest.guard.Stats(); st["rejected"]+st["refused"] != 0 {
		t.Error("forgeries were passed on")
	}
}

// A replayed batch is delivered once, whatever sequence number of pubsub it has.
func TestBroadcastReplayIsDeliveredOnce(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	var old []*pb.Message
	for i := range 50 {
		m := r.message(batchOf(t, rawSession(1), uint64(i+1), fmt.Sprint(i)))
		old = append(old, m)
		r.publish(m)
	}
	r.batch(rawSession(2), 1, "new")
	for _, m := range old {
		r.publish(m) // pubsub remembers these
		m = proto.Clone(m).(*pb.Message)
		m.Seqno = append(m.Seqno, 1) // only its author can do that
		sign(t, m, r.key())
		r.publish(m)
	}
	r.batch(rawSession(2), 2, "end")
	s.wait(r.asStation(), append(texts(50), "new", "end")...)
	if st := s.Stats(); st["old_sessions"] != 50 || st["delivered"] != 52 {
		t.Errorf("%+v", st)
	}
}

// A peer that sends raw floodsub messages, few and large or many and tiny, on many topics
// and from many senders, uses a bounded amount of memory.
func TestBroadcastMemoryIsBounded(t *testing.T) {
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	r.batch(rawSession(1), 1, "begin")
	s.wait(r.asStation(), "begin")
	before := leaks.Heap()
	var rpc pb.RPC
	for i := range 20_000 { // topics
		sub := &pb.RPC_SubOpts{Subscribe: proto.Bool(true), Topicid: proto.String(fmt.Sprintf("topic %d %s", i, strings.Repeat("x", 100)))}
		if rpc.Subscriptions = append(rpc.Subscriptions, sub); len(rpc.Subscriptions) == 400 {
			r.send(&rpc)
			rpc.Subscriptions = nil
		}
	}
	for range 200 { // sequence numbers
		m := r.message(nil)
		m.Seqno = make([]byte, 50<<10)
		rand.Read(m.Seqno)
		r.publish(m)
	}
	for range 50 { // the least messages there are
		r.publish(slices.Repeat([]*pb.Message{{}}, 30_000)...)
	}
	for i := range 100 { // gaps
		r.publish(r.message(batchOf(t, rawSession(1), uint64(10+2*i), strings.Repeat("x", 200<<10))))
	}
	for i := range 5000 { // marks of others
		id := peer.ID(fmt.Sprintf("\x00\x24\x08\x01\x12\x20%032d", i))
		s.link("somebody", appendMarks(nil, []engine.Mark{markOf(id, rawSession(1), 1)}))
	}
	r.batch(rawSession(2), 1, "end")
	eventually(t, "the end was handled", func() bool {
		got := s.received(r.asStation())
		return len(got) > 0 && got[len(got)-1] == "end"
	})
	s.mu.Lock()
	clear(s.got)
	s.mu.Unlock()
	leaks.WantHeap(t, before, 16<<20+8<<20)
	const remembered = 64 // topics of one peer
	if n := s.guard.Stats()["topics"]; n != 20_000-remembered {
		t.Errorf("%d topics refused", n)
	}
	if n := s.guard.TopicsOf(r.host.ID()); n != remembered {
		t.Errorf("%d topics remembered", n)
	}
}
