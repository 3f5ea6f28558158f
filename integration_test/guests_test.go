package integration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestGuestsOfEveryKindAreHeard exchanges plain messages, broadcasts and direct events with
// a plain pubsub peer of each kind, over each transport, dialed from either side.
func TestGuestsOfEveryKindAreHeard(t *testing.T) {
	for router := range routers {
		for transport, listen := range transports {
			for _, dials := range []string{"outsider", "node"} {
				t.Run(fmt.Sprintf("%s/%s/%s dials", router, transport, dials), func(t *testing.T) {
					t.Parallel()
					exchangeWithGuest(t, router, listen, dials == "node")
				})
			}
		}
	}
}

func exchangeWithGuest(t *testing.T, router, listen string, nodeDials bool) {
	l := newLocal(t)
	n := l.start(cluster.Spec{Name: "node", Listen: []string{listen}})
	o := newOutsider(t, router, listen, "room", ownTopic)
	var err error
	if nodeDials {
		// The address does not name the node there. On a busy machine, with all cells at
		// once, WebRTC takes longer than the five seconds that Connect allows.
		hosttest.Eventually(t, "connected", func() bool {
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

// TestGuestHearsTheNetworkThroughOneNode connects a plain pubsub peer to one node, and
// expects that all nodes and the peer receive each other's messages and events.
func TestGuestHearsTheNetworkThroughOneNode(t *testing.T) {
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
	hosttest.Eventually(t, "a sees both on the topic", func() bool { return len(topicA.Members()) == 2 })
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

// A conversation is between node a and a guest, on the topic room, on the network's own
// topic and by broadcasts, which node b, a neighbor of a, receives too.
type conversation struct {
	t       *testing.T
	a       *smokesignal.Node
	topic   *smokesignal.Topic
	guest   *outsider
	in, far *collected // what a and b received of the guest
	session [8]byte
	events  uint64 // how many the guest has broadcast
}

func newConversation(t *testing.T, a, b *smokesignal.Node) *conversation {
	t.Helper()
	topic, err := a.Topic("room")
	if err != nil {
		t.Fatal(err)
	}
	o := newOutsider(t, "floodsub", transports["tcp"], "room", ownTopic) // gossipsub refuses too large messages
	connect(t, o.host, a)
	c := &conversation{
		t: t, a: a, topic: topic, guest: o, session: [8]byte{7},
		in: collectFrom(t, a, o.host.ID()), far: collectFrom(t, b, o.host.ID()),
	}
	topic.On(c.in.from("topic", o.host.ID()))
	if err := topic.Ready(within(t, soon)); err != nil {
		t.Fatal(err)
	}
	o.sees(a, "room", ownTopic)
	return c
}

// goesOn waits until messages on both topics and events come through both ways. It repeats
// them, since messages that are on the way when a stream breaks are lost.
func (c *conversation) goesOn(after string) {
	c.t.Helper()
	c.t.Log(after)
	has := func(list [][]byte) bool {
		return slices.ContainsFunc(list, func(b []byte) bool { return string(b) == after })
	}
	c.events++
	hosttest.Eventually(c.t, "they hear each other after "+after, func() bool {
		if err := c.topic.Publish(c.t.Context(), []byte(after)); err != nil && !errors.Is(err, smokesignal.ErrNoPeers) {
			c.t.Fatal(err)
		}
		if err := c.a.Broadcast().Emit(c.t.Context(), "x", []byte(after)); err != nil {
			c.t.Fatal(err)
		}
		c.guest.publish("room", []byte(after))
		c.guest.publish(ownTopic, []byte(after))
		c.guest.publish(ownTopic, batch(c.session, c.events, event("x", []byte(after))))
		c.guest.mu.Lock()
		defer c.guest.mu.Unlock()
		c.in.mu.Lock()
		defer c.in.mu.Unlock()
		c.far.mu.Lock()
		defer c.far.mu.Unlock()
		return has(c.guest.got["room"]) && has(arguments(c.t, c.guest.got[ownTopic])) && has(c.in.got["topic"]) && has(c.in.got["raw"]) &&
			uint64(len(c.in.got["broadcast"])) == c.events && uint64(len(c.far.got["broadcast"])) == c.events
	})
}

// TestGarbageOfAGuestHarmsNobody expects that garbage, the largest message and messages
// that are too large end neither a link nor a connection, nor the talk with their sender.
func TestGarbageOfAGuestHarmsNobody(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	c := newConversation(t, a, b)
	o, topic := c.guest, c.topic
	connection := o.host.Network().ConnsToPeer(a.ID())
	c.goesOn("nothing")

	var onTopic, onOwn [][]byte
	rnd := rand.NewChaCha8([32]byte{1})
	for size := range 20 {
		garbage := make([]byte, 1<<size)
		rnd.Read(garbage)
		o.publish("room", garbage)
		o.publish(ownTopic, garbage)
		onTopic, onOwn = append(onTopic, garbage), append(onOwn, garbage)
	}
	c.goesOn("garbage")

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
	c.goesOn("the largest message")

	for round := range 6 { // pubsub would have given up after four
		tooLarge := make([]byte, 1100<<10)
		o.publish("room", tooLarge)
		o.publish(ownTopic, tooLarge)
		c.goesOn(fmt.Sprint("what is too large ", round))
	}
	if err := topic.Publish(t.Context(), make([]byte, 1100<<10)); !errors.Is(err, smokesignal.ErrTooLarge) {
		t.Errorf("publishing 1.1 MiB returned %v", err)
	}
	c.in.until("all garbage", func(got map[string][][]byte) bool {
		return containsAll(got["topic"], onTopic) && containsAll(got["raw"], onOwn)
	})

	for _, name := range []string{"a frame cut off", "every field, of nested fields"} {
		say(t, o.host, a.ID(), pubsub.FloodSubID, badBytes[name])
		c.goesOn(name)
	}
	if now := o.host.Network().ConnsToPeer(a.ID()); !slices.Equal(now, connection) {
		t.Errorf("the connection was %v and is %v", connection, now)
	}
	l.wantStory(b, "connect", "peer added a", "add a")
	l.check(checker.Config{})
}

// containsAll reports whether all of some are in list.
func containsAll(list, some [][]byte) bool {
	for _, m := range some {
		if !slices.ContainsFunc(list, func(b []byte) bool { return bytes.Equal(b, m) }) {
			return false
		}
	}
	return true
}

// TestGuestThatReadsNothingDelaysNobody sends a subscribed peer that reads nothing ten
// times as much as a node queues for it, and expects that the neighbors get everything.
func TestGuestThatReadsNothingDelaysNobody(t *testing.T) {
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
		t.Fatal("the node has opened no stream to the guest")
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
