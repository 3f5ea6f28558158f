package integration_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	libevent "github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

const (
	ownTopic       = "smokesignal/default"
	directProtocol = protocol.ID("/smokesignal/events/1.0.0")
)

// outsider is an application with a libp2p host and a pubsub, which knows of
// smokesignal what docs/wire.md says.
type outsider struct {
	*collected
	host   corehost.Host
	ps     *pubsub.PubSub
	topics map[string]*pubsub.Topic
}

// collected is what has come, by where.
type collected struct {
	t    *testing.T
	mu   sync.Mutex
	got  map[string][][]byte
	news chan struct{} // closed when got changed
}

func collect(t *testing.T) *collected {
	return &collected{t: t, got: map[string][][]byte{}, news: make(chan struct{})}
}

// routers are the kinds of pubsub an application may have.
var routers = map[string]func(context.Context, corehost.Host) (*pubsub.PubSub, error){
	"floodsub": func(ctx context.Context, h corehost.Host) (*pubsub.PubSub, error) {
		return pubsub.NewFloodSub(ctx, h, inOrder...)
	},
	"gossipsub": func(ctx context.Context, h corehost.Host) (*pubsub.PubSub, error) {
		return pubsub.NewGossipSub(ctx, h, inOrder...)
	},
}

// inOrder makes a test's pubsub check one signature at a time, as more reorder.
var inOrder = []pubsub.Option{pubsub.WithValidateWorkers(1), pubsub.WithPeerOutboundQueueSize(1 << 12), pubsub.WithValidateQueueSize(1 << 12)}

// transports are where a node and an outsider listen.
var transports = map[string]string{
	"tcp":           "/ip4/127.0.0.1/tcp/0",
	"websocket":     "/ip4/127.0.0.1/tcp/0/ws",
	"quic":          "/ip4/127.0.0.1/udp/0/quic-v1",
	"webrtc-direct": "/ip4/127.0.0.1/udp/0/webrtc-direct",
}

func newOutsider(t *testing.T, router, listen string, topics ...string) *outsider {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.DisableMetrics(), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); h.Close() })
	o := &outsider{collected: collect(t), host: h, topics: map[string]*pubsub.Topic{}}
	if o.ps, err = routers[router](ctx, h); err != nil {
		t.Fatal(err)
	}
	for _, name := range topics {
		topic, err := o.ps.Join(name)
		if err != nil {
			t.Fatal(err)
		}
		sub, err := topic.Subscribe(pubsub.WithBufferSize(1 << 12))
		if err != nil {
			t.Fatal(err)
		}
		o.topics[name] = topic
		go func() {
			for {
				m, err := sub.Next(ctx)
				if err != nil {
					return
				}
				if m.ReceivedFrom != h.ID() {
					o.take(name, m.Data)
				}
			}
		}()
	}
	h.SetStreamHandler(directProtocol, o.serveDirect)
	return o
}

func (o *collected) take(where string, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got[where] = append(o.got[where], data)
	close(o.news)
	o.news = make(chan struct{})
}

// until waits for what has come to be so.
func (o *collected) until(what string, ok func(got map[string][][]byte) bool) {
	o.t.Helper()
	timeout := time.After(soon)
	for {
		o.mu.Lock()
		done, news := ok(o.got), o.news
		o.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-timeout:
			o.mu.Lock()
			defer o.mu.Unlock()
			for where, list := range o.got {
				o.t.Logf("%s: %d messages", where, len(list))
			}
			o.t.Fatalf("not within %v: %s", soon, what)
		}
	}
}

// want waits until just these have come.
func (o *collected) want(where string, want ...[]byte) {
	o.t.Helper()
	o.until(fmt.Sprintf("%d messages on %s", len(want), where), func(got map[string][][]byte) bool {
		return len(got[where]) >= len(want)
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.EqualFunc(o.got[where], want, bytes.Equal) {
		o.t.Errorf("on %s came %s, want %s", where, brief(o.got[where]), brief(want))
	}
}

// brief shows messages, long ones by their length.
func brief(list [][]byte) string {
	var b strings.Builder
	for _, m := range list {
		if len(m) > 20 {
			fmt.Fprintf(&b, "[%d bytes] ", len(m))
		} else {
			fmt.Fprintf(&b, "%q ", m)
		}
	}
	return b.String()
}

func (o *outsider) publish(topic string, data []byte) {
	o.t.Helper()
	if err := o.topics[topic].Publish(o.t.Context(), data); err != nil {
		o.t.Fatal(err)
	}
}

// sees waits until the outsider would send to the node what it publishes.
func (o *outsider) sees(n *smokesignal.Node, topics ...string) {
	o.t.Helper()
	for _, name := range topics {
		until(o.t, "the outsider sees the node on "+name, func() bool { return slices.Contains(o.ps.ListPeers(name), n.ID()) })
	}
}

// event is an Event message with one raw argument, as in docs/wire.md.
func event(name string, data []byte) []byte {
	b := frame.AppendMessage(nil, 1, []byte(name))
	return frame.AppendMessage(b, 2, frame.AppendMessage(nil, 2, data))
}

// batch is a Batch message.
func batch(session [8]byte, first uint64, events ...[]byte) []byte {
	b := frame.AppendMessage(nil, 1, session[:])
	b = frame.AppendUint(b, 2, 1_700_000_000_000)
	b = frame.AppendUint(b, 3, first)
	for _, ev := range events {
		b = frame.AppendMessage(b, 4, ev)
	}
	return b
}

// field returns the fields of that number.
func field(t *testing.T, b []byte, num int) (list [][]byte) {
	for f, err := range frame.Fields(b) {
		if err != nil {
			t.Error(err)
			return nil
		}
		if int(f.Num) == num {
			list = append(list, f.Bytes)
		}
	}
	return list
}

// argument returns the data of an Event's only argument.
func argument(t *testing.T, ev []byte) []byte {
	for _, arg := range field(t, ev, 2) {
		for _, data := range field(t, arg, 2) {
			return data
		}
	}
	return []byte{}
}

// arguments returns those of the events in batches.
func arguments(t *testing.T, batches [][]byte) (list [][]byte) {
	for _, b := range batches {
		for _, ev := range field(t, b, 4) {
			list = append(list, argument(t, ev))
		}
	}
	return list
}

// serveDirect reads the direct events of a node.
func (o *outsider) serveDirect(s network.Stream) {
	defer s.Reset()
	r := frame.NewReader(s, 1<<20)
	for {
		b, err := r.Next()
		if err != nil {
			return
		}
		for _, ev := range field(o.t, b, 2) {
			o.take("direct", bytes.Clone(argument(o.t, ev)))
		}
	}
}

// direct opens a stream of direct events and writes these.
func (o *outsider) direct(to peer.ID, name string, list [][]byte) {
	o.t.Helper()
	s, err := o.host.NewStream(o.t.Context(), to, directProtocol)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { s.Reset() })
	hello := frame.AppendMessage(nil, 1, []byte("sessionX"))
	hello = frame.AppendMessage(hello, 2, []byte("default"))
	out := frame.Append(nil, frame.AppendMessage(nil, 1, frame.AppendUint(hello, 3, 1)))
	for _, data := range list {
		out = frame.Append(out, frame.AppendMessage(nil, 2, event(name, data)))
	}
	if _, err := s.Write(out); err != nil {
		o.t.Fatal(err)
	}
}

// from returns a handler that takes what one author says.
func (c *collected) from(where string, author peer.ID) func(context.Context, peer.ID, []byte) {
	return func(_ context.Context, from peer.ID, data []byte) {
		if from == author {
			c.take(where, data)
		}
	}
}

// collectFrom takes what comes to a node from one author: raw on its own topic, as
// broadcast and directly.
func collectFrom(t *testing.T, n *smokesignal.Node, author peer.ID) *collected {
	in := collect(t)
	n.Broadcast().OnRaw(in.from("raw", author))
	smokesignal.Name[[]byte]("x").On(n.Broadcast(), in.from("broadcast", author))
	smokesignal.Name[[]byte]("x").On(n.Direct(), in.from("direct", author))
	return in
}

// payloads are what is sent each way in each cell.
var payloads = [][]byte{[]byte("text, größer als ASCII"), {0, 1, 0xff, 0, 0xfe}, {}, bytes.Repeat([]byte("\x00\xff0123456"), 11_112), []byte("end")}

// Every kind of pubsub over every transport, whoever has dialled: plain messages on a
// topic that is nobody's, plain ones on our own, events broadcast and direct, both
// ways.
func TestForeignMatrix(t *testing.T) {
	for router := range routers {
		for transport, listen := range transports {
			for _, dials := range []string{"outsider", "node"} {
				t.Run(fmt.Sprintf("%s/%s/%s dials", router, transport, dials), func(t *testing.T) {
					t.Parallel()
					foreignCell(t, router, listen, dials == "node")
				})
			}
		}
	}
}

func foreignCell(t *testing.T, router, listen string, nodeDials bool) {
	l := newLocal(t)
	n := l.start(cluster.Spec{Name: "node", Listen: []string{listen}})
	o := newOutsider(t, router, listen, "room", ownTopic)
	var err error
	if nodeDials {
		// The address does not say who is there. On a busy machine, with all cells at
		// once, WebRTC takes longer than the five seconds that Connect allows.
		until(t, "connected", func() bool {
			_, err = n.Dial(within(t, soon), o.host.Addrs()[0].String())
			return err == nil || !errors.Is(err, smokesignal.ErrUnreachable)
		})
	} else {
		err = o.host.Connect(within(t, soon), peer.AddrInfo{ID: n.ID(), Addrs: n.Host().Addrs()})
	}
	if err != nil {
		t.Fatal(err)
	}
	// On the own topic an outsider is let in as the node is, on another one because
	// the node asks for it.
	in := collectFrom(t, n, o.host.ID())
	o.sees(n, ownTopic)
	for _, p := range payloads {
		o.publish(ownTopic, p)
	}
	in.want("raw", payloads...)
	topic, err := n.Topic("room")
	if err != nil {
		t.Fatal(err)
	}
	topic.On(in.from("topic", o.host.ID()))
	if err := topic.Ready(within(t, soon)); err != nil {
		t.Fatal(err)
	}
	o.sees(n, "room")
	if m := topic.Members(); len(m) != 1 || m[0] != o.host.ID() {
		t.Errorf("members %v", m)
	}
	for _, p := range payloads {
		if err := topic.Publish(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		o.publish("room", p)
	}
	o.want("room", payloads...)
	in.want("topic", payloads...)

	session := [8]byte{1}
	for i, p := range payloads {
		o.publish(ownTopic, batch(session, uint64(i)+1, event("x", p)))
		if err := n.Broadcast().Emit(t.Context(), "x", p); err != nil {
			t.Fatal(err)
		}
	}
	in.want("broadcast", payloads...)
	o.until("all broadcasts", func(got map[string][][]byte) bool { return len(arguments(t, got[ownTopic])) >= len(payloads) })
	if got := arguments(t, o.got[ownTopic]); !slices.EqualFunc(got, payloads, bytes.Equal) {
		t.Errorf("broadcast were %s, want %s", brief(got), brief(payloads))
	}

	o.direct(n.ID(), "x", payloads)
	in.want("direct", payloads...)
	for _, p := range payloads {
		if err := n.Peer(o.host.ID()).Emit(within(t, soon), "x", p); err != nil {
			t.Fatal(err)
		}
	}
	o.want("direct", payloads...)

	if n.Peers().Len() != 0 || n.Connected() {
		t.Error("an outsider is a peer")
	}
	if st := topic.Stats(); st["dropped"] != 0 || st["received"] != uint64(len(payloads)) {
		t.Errorf("%+v", st)
	}
}

// An outsider that knows one node of a network hears all of it, and is heard by all,
// raw and by events; so it is on a topic that is nobody's.
func TestForeignThroughANode(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	in := func(n *smokesignal.Node) *smokesignal.Topic {
		topic, err := n.Topic("room")
		if err != nil {
			t.Fatal(err)
		}
		return topic
	}
	topicA, topicB := in(a), in(b)
	o := newOutsider(t, "gossipsub", transports["tcp"], "room", ownTopic)
	connect(t, o.host, a)
	o.sees(a, "room", ownTopic)
	for _, topic := range []*smokesignal.Topic{topicA, topicB} {
		if err := topic.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "a sees both on the topic", func() bool { return len(topicA.Members()) == 2 })
	far := collectFrom(t, b, o.host.ID())
	topicB.On(far.from("topic", o.host.ID()))
	o.publish("room", []byte("room"))
	o.publish(ownTopic, []byte("raw"))
	o.publish(ownTopic, batch([8]byte{1}, 1, event("x", []byte("1")), event("x", []byte("2"))))
	far.want("topic", []byte("room"))
	far.want("raw", []byte("raw"))
	far.want("broadcast", []byte("1"), []byte("2"))
	if err := b.Broadcast().Emit(t.Context(), "x", []byte("back")); err != nil {
		t.Fatal(err)
	}
	if err := topicB.Publish(t.Context(), []byte("from b")); err != nil {
		t.Fatal(err)
	}
	o.want("room", []byte("from b"))
	o.until("the broadcast", func(got map[string][][]byte) bool {
		return slices.ContainsFunc(arguments(t, got[ownTopic]), func(b []byte) bool { return string(b) == "back" })
	})
	l.check(checker.Config{})
}

// Nothing that an outsider puts on a topic, or on the wire, ends a link, a connection or
// the conversation with itself: garbage, the largest message there can be, one that is
// too large.
func TestForeignGarbageDeafensNobody(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	topic, err := a.Topic("room")
	if err != nil {
		t.Fatal(err)
	}
	o := newOutsider(t, "floodsub", transports["tcp"], "room", ownTopic) // gossipsub refuses what is too large
	connect(t, o.host, a)
	in, far := collectFrom(t, a, o.host.ID()), collectFrom(t, b, o.host.ID())
	topic.On(in.from("topic", o.host.ID()))
	if err := topic.Ready(within(t, soon)); err != nil {
		t.Fatal(err)
	}
	o.sees(a, "room", ownTopic)
	connection := o.host.Network().ConnsToPeer(a.ID())

	var onTopic, onOwn [][]byte
	session, events := [8]byte{7}, uint64(0)
	// bothWays waits until messages on both topics and events come through: what is
	// under way when a stream breaks is lost.
	bothWays := func(what string) {
		t.Helper()
		t.Log(what)
		has := func(list [][]byte) bool {
			return slices.ContainsFunc(list, func(b []byte) bool { return string(b) == what })
		}
		events++
		until(t, "they hear each other after "+what, func() bool {
			if err := topic.Publish(t.Context(), []byte(what)); err != nil && !errors.Is(err, smokesignal.ErrNoPeers) {
				t.Fatal(err)
			}
			if err := a.Broadcast().Emit(t.Context(), "x", []byte(what)); err != nil {
				t.Fatal(err)
			}
			o.publish("room", []byte(what))
			o.publish(ownTopic, []byte(what))
			o.publish(ownTopic, batch(session, events, event("x", []byte(what))))
			o.mu.Lock()
			defer o.mu.Unlock()
			in.mu.Lock()
			defer in.mu.Unlock()
			far.mu.Lock()
			defer far.mu.Unlock()
			return has(o.got["room"]) && has(arguments(t, o.got[ownTopic])) && has(in.got["topic"]) && has(in.got["raw"]) &&
				uint64(len(in.got["broadcast"])) == events && uint64(len(far.got["broadcast"])) == events
		})
	}
	bothWays("nothing")

	rnd := rand.NewChaCha8([32]byte{1})
	for size := range 20 {
		garbage := make([]byte, 1<<size)
		rnd.Read(garbage)
		o.publish("room", garbage)
		o.publish(ownTopic, garbage)
		onTopic, onOwn = append(onTopic, garbage), append(onOwn, garbage)
	}
	bothWays("garbage")

	largest := make([]byte, topic.MaxSize())
	rnd.Read(largest)
	o.publish("room", largest)
	if err := topic.Publish(t.Context(), largest); err != nil {
		t.Fatal(err)
	}
	onTopic = append(onTopic, largest)
	o.until("the largest message", func(got map[string][][]byte) bool {
		return slices.ContainsFunc(got["room"], func(b []byte) bool { return bytes.Equal(b, largest) })
	})
	bothWays("the largest message")

	for round := range 6 { // pubsub would have given up after four
		tooLarge := make([]byte, 1100<<10)
		o.publish("room", tooLarge)
		o.publish(ownTopic, tooLarge)
		bothWays(fmt.Sprint("what is too large ", round))
	}
	if err := topic.Publish(t.Context(), make([]byte, 1100<<10)); !errors.Is(err, smokesignal.ErrTooLarge) {
		t.Errorf("publishing 1.1 MiB returned %v", err)
	}
	in.until("all garbage", func(got map[string][][]byte) bool {
		return containsAll(got["topic"], onTopic) && containsAll(got["raw"], onOwn)
	})

	for _, name := range []string{"a frame cut off", "every field, of nested fields"} {
		say(t, o.host, a.ID(), pubsub.FloodSubID, badBytes[name])
		bothWays(name)
	}
	if now := o.host.Network().ConnsToPeer(a.ID()); !slices.Equal(now, connection) {
		t.Errorf("the connection was %v and is %v", connection, now)
	}
	l.wantStory(b, "connect", "peer added a", "add a")
	l.check(checker.Config{})
}

// containsAll tells whether all of some are in list.
func containsAll(list, some [][]byte) bool {
	for _, m := range some {
		if !slices.ContainsFunc(list, func(b []byte) bool { return bytes.Equal(b, m) }) {
			return false
		}
	}
	return true
}

// The node's own topic cannot be had, a name means one Topic as long as that is open,
// and the node closes its topics.
func TestTopicsOfANode(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	n := l.create(cluster.Spec{Name: "n"})
	if _, err := n.Topic(ownTopic); err == nil || !strings.Contains(err.Error(), "Broadcast().OnRaw") {
		t.Errorf("the own topic: %v", err)
	}
	if _, err := n.Topic(""); err == nil {
		t.Error("a topic without a name")
	}
	first, err := n.Topic("room") // before Start
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, err := n.Topic("room"); again != first || err != nil {
		t.Errorf("another Topic, %v", err)
	}
	first.Close()
	second, err := n.Topic("room")
	if err != nil || second == first {
		t.Fatalf("the closed Topic, %v", err)
	}
	other, err := n.Topic("other")
	if err != nil {
		t.Fatal(err)
	}
	o := newOutsider(t, "floodsub", transports["tcp"], "room")
	connect(t, o.host, n)
	o.sees(n, "room")
	entered, ended := make(chan struct{}), make(chan struct{})
	second.On(func(ctx context.Context, _ peer.ID, _ []byte) {
		close(entered)
		<-ctx.Done()
		close(ended)
	})
	o.publish("room", []byte("x"))
	<-entered
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("Close has not waited for a handler")
	}
	for _, topic := range []*smokesignal.Topic{second, other} {
		if err := topic.Publish(t.Context(), nil); !errors.Is(err, smokesignal.ErrClosed) {
			t.Errorf("publish after Close: %v", err)
		}
	}
	if _, err := n.Topic("late"); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("a topic of a closed node: %v", err)
	}
}

// The dial that asks who is at an address is a connection for the other side of WebRTC,
// for a moment; a pubsub that chose that one for its stream opens no other. Connect then
// connects again.
func TestConnectOverWebRTCUntilPubSubComes(t *testing.T) {
	t.Parallel()
	n := newLocal(t).start(cluster.Spec{Name: "n"})
	o, err := libp2p.New(libp2p.ListenAddrStrings(transports["webrtc-direct"]), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	o.SetStreamHandler(pubsub.FloodSubID, func(s network.Stream) {})
	identified, err := o.EventBus().Subscribe(new(libevent.EvtPeerIdentificationCompleted))
	if err != nil {
		t.Fatal(err)
	}
	defer identified.Close()
	opened := make(chan error, 1)
	go func() {
		for range 2 { // the first time as if the stream had failed
			select {
			case <-identified.Out():
			case <-t.Context().Done():
			}
		}
		s, err := o.NewStream(t.Context(), n.ID(), pubsub.FloodSubID)
		if err == nil {
			_, err = s.Write([]byte{0})
		}
		opened <- err
	}()
	if id, err := n.Dial(within(t, soon), o.Addrs()[0].String()); err != nil || id != o.ID() {
		t.Fatalf("connected to %v: %v", id, err)
	}
	select {
	case err := <-opened:
		if err != nil {
			t.Error(err)
		}
	case <-within(t, soon).Done():
		t.Error("it did not connect again")
	}
	if conns := n.Host().Network().ConnsToPeer(o.ID()); len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
}

// A node that takes part in ever new topics keeps nothing of those that are closed. The
// handlers of each are waited for all the same, when its name is in use again too.
func TestClosedTopicsAreForgotten(t *testing.T) {
	t.Parallel()
	n := newLocal(t).start(cluster.Spec{Name: "n"})
	var closed []weak.Pointer[smokesignal.Topic]
	for i := range 20 {
		topic, err := n.Topic(fmt.Sprint("room ", i%15))
		if err != nil {
			t.Fatal(err)
		}
		topic.On(func(context.Context, smokesignal.ID, []byte) {})
		closed = append(closed, weak.Make(topic))
		topic.Close()
	}
	for deadline := time.Now().Add(soon); ; runtime.GC() {
		closed = slices.DeleteFunc(closed, func(p weak.Pointer[smokesignal.Topic]) bool { return p.Value() == nil })
		if len(closed) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d closed topics are still held", len(closed))
		}
	}

	first, err := n.Topic("room")
	if err != nil {
		t.Fatal(err)
	}
	o := newOutsider(t, "floodsub", transports["tcp"], "room")
	connect(t, o.host, n)
	o.sees(n, "room")
	entered, leave, left := make(chan struct{}), make(chan struct{}), make(chan struct{})
	first.On(func(context.Context, smokesignal.ID, []byte) {
		close(entered)
		<-leave
		close(left)
	})
	o.publish("room", []byte("x"))
	<-entered
	first.Close()
	if _, err := n.Topic("room"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range smokesignal.Name[string]("never").All(context.Background(), n.Direct()) {
		} // which ends when the node begins to close
		close(leave)
	}()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-left:
	default:
		t.Error("Close has not waited for a handler of the topic that was closed before")
	}
}

// An outsider that subscribes and reads nothing holds up nobody: what it would get is
// ten times what waits for it.
func TestForeignPeerThatReadsNothing(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	frozen := rawHost(t)
	streams := make(chan network.Stream, 16)
	frozen.SetStreamHandler(pubsub.FloodSubID, func(s network.Stream) { streams <- s })
	connect(t, frozen, a)
	s, err := frozen.NewStream(within(t, soon), a.ID(), pubsub.FloodSubID)
	if err != nil {
		t.Fatal(err)
	}
	sub := frame.AppendMessage(frame.AppendUint(nil, 1, 1), 2, []byte(ownTopic))
	if _, err := s.Write(frame.Append(nil, frame.AppendMessage(nil, 1, sub))); err != nil {
		t.Fatal(err)
	}
	select {
	case first := <-streams:
		io.ReadFull(first, make([]byte, binary.MaxVarintLen16)) // it is announced to
	case <-time.After(soon):
		t.Fatal("the node has opened no stream to the foreign peer")
	}
	in := listen(t, b.Broadcast(), "x")
	const n = 200
	for range n {
		if err := a.Broadcast().Emit(within(t, soon), "x", make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	in.wait(n, soon)
}

// Nodes that are not linked, here of two networks, meet on a topic all the same, and
// tell each other nothing of their own networks.
func TestTopicBetweenNetworks(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	var nodes []*smokesignal.Node
	var topics []*smokesignal.Topic
	var in []*collected
	for _, name := range []string{"one", "two"} {
		n := l.start(cluster.Spec{Name: name, Network: name})
		topic, err := n.Topic("room")
		if err != nil {
			t.Fatal(err)
		}
		nodes, topics = append(nodes, n), append(topics, topic)
	}
	for i, n := range nodes {
		in = append(in, collectFrom(t, n, nodes[1-i].ID()))
		topics[i].On(in[i].from("topic", nodes[1-i].ID()))
	}
	if id, err := nodes[0].Dial(within(t, soon), addr(nodes[1])); err != nil || id != nodes[1].ID() {
		t.Fatalf("connected to %v: %v", id, err)
	}
	for i, topic := range topics {
		if err := topic.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
		if err := nodes[i].Broadcast().Emit(t.Context(), "x"); !errors.Is(err, smokesignal.ErrNoPeers) {
			t.Errorf("a broadcast to nobody: %v", err)
		}
	}
	for i, topic := range topics {
		if err := topic.Publish(t.Context(), []byte(topic.Name())); err != nil {
			t.Fatal(err)
		}
		in[1-i].want("topic", []byte("room"))
	}
	if nodes[0].Connected() || nodes[1].Connected() {
		t.Error("nodes of two networks are linked")
	}
}
