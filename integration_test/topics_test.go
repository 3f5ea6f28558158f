package integration_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	libevent "github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestTopicsOfANode expects that the network's own topic is refused, that one name returns
// one Topic while it is open, and that the node closes its topics.
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

// TestConnectOverWebRTCUntilPubSubComes: a dial that asks for the id at a WebRTC address
// is a short connection for the other side, whose pubsub may choose it for its only
// stream; Dial then connects again.
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

// TestClosedTopicsAreFreed expects that a node keeps nothing of closed topics, and that
// Close waits for their handlers, even when the name of the topic is in use again.
func TestClosedTopicsAreFreed(t *testing.T) {
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

// TestTopicBetweenNetworks expects that connected nodes of two networks hear each other on a topic,
// and exchange no broadcasts of their networks.
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
