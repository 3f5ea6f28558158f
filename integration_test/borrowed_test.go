package integration_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// A pubsubMaker makes a pubsub of an application's.
type pubsubMaker func(ctx context.Context, h corehost.Host, opts ...pubsub.Option) (*pubsub.PubSub, error)

var pubsubs = map[string]pubsubMaker{"floodsub": pubsub.NewFloodSub, "gossipsub": pubsub.NewGossipSub}

// lentPubSub is a pubsub on h that ends with the test.
func lentPubSub(t testing.TB, h corehost.Host, make pubsubMaker, opts ...pubsub.Option) *pubsub.PubSub {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ps, err := make(ctx, h, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

// lentNode is a started node on a host that is lent. The test lays its links.
func lentNode(t testing.TB, h corehost.Host, opts ...smokesignal.Option) *smokesignal.Node {
	t.Helper()
	node, err := smokesignal.New(append([]smokesignal.Option{smokesignal.WithHost(h), smokesignal.PeerLimits(0, 10)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return node
}

// nodesOnLentPubSubs are nodes on hosts and pubsubs of their own applications, which have the
// pubsub's defaults and these options.
func nodesOnLentPubSubs(t *testing.T, n int, make pubsubMaker, opts ...pubsub.Option) (list []*smokesignal.Node) {
	t.Helper()
	for range n {
		h := rawHost(t)
		list = append(list, lentNode(t, h, smokesignal.WithPubSub(lentPubSub(t, h, make, opts...))))
	}
	return list
}

// introduce makes a add b, and waits until both have each other.
func introduce(t testing.TB, a, b *smokesignal.Node) {
	t.Helper()
	if _, err := a.Connect(within(t, soon), addr(b)); err != nil {
		t.Fatal(err)
	}
	hosttest.Eventually(t, "both have each other", func() bool { return a.Peer(b.ID()).Linked() && b.Peer(a.ID()).Linked() })
}

// TestNodeOnABorrowedHost: with a pubsub of its own, on a host that another node knows
// nothing special about: events, callbacks on the event bus, lookups, and after Close
// nothing is left, so that another node can use the host. A pubsub that was merely
// cancelled would still answer on /floodsub/1.0.0, and hang whoever asks.
func TestNodeOnABorrowedHost(t *testing.T) {
	l := newLocal(t)
	h := rawHost(t, libp2p.NoListenAddrs) // it only dials
	before := h.Mux().Protocols()
	other := l.start(cluster.Spec{Name: "other", Limits: manual})
	sub, err := h.EventBus().Subscribe(new(smokesignal.EvtPeerAdded))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for round := range 2 { // the second finds the host as the first has found it
		node := lentNode(t, h, smokesignal.Seeds(addr(other)), smokesignal.PeerLimits(1, 5))
		if err := node.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
		if ev := next(t, sub.Out()).(smokesignal.EvtPeerAdded); ev.Peer != other.ID() {
			t.Errorf("round %d: the event bus reports %v", round, ev.Peer)
		}
		hosttest.Eventually(t, "the other has it", func() bool { return other.Peer(node.ID()).Linked() })
		here, there := listen(t, node.Broadcast(), "x"), listen(t, other.Broadcast(), "x")
		direct := listen(t, other.Direct(), "x")
		emitNumbers(t, node.Broadcast(), "x", 100)
		emitNumbers(t, other.Broadcast(), "x", 100)
		emitNumbers(t, node.Peer(other.ID()), "x", 100)
		for who, in := range map[string]*inbox{"this": here, "the other": there, "the other, alone": direct} {
			wantNumbers(t, who, in.wait(100, soon), 100)
		}
		if info, err := node.Routing().FindPeer(within(t, soon), other.ID()); err != nil || len(info.Addrs) == 0 {
			t.Errorf("round %d: FindPeer: %v, %v", round, info, err)
		}
		found, err := node.Discovery().FindPeers(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if info := next(t, found); info.ID != other.ID() {
			t.Errorf("round %d: FindPeers: %v", round, info)
		}

		// Somebody else's connection to the same peer must not go with the node.
		own := h.Network().ConnsToPeer(other.ID())
		if round == 1 {
			h.ConnManager().Protect(other.ID(), "app")
		}
		if err := node.Close(); err != nil {
			t.Errorf("round %d: Close: %v", round, err)
		}
		if after := h.Mux().Protocols(); !slices.Equal(after, before) {
			t.Errorf("round %d: it serves %v after Close, %v before New", round, after, before)
		}
		hosttest.Eventually(t, "no stream of ours is left", func() bool { return len(streamsOf(h, ours)) == 0 })
		if h.ConnManager().IsProtected(other.ID(), "smokesignal") {
			t.Errorf("round %d: the peer is still protected in the node's name", round)
		}
		if connected := len(h.Network().ConnsToPeer(other.ID())) > 0; connected != (round == 1) || len(own) == 0 {
			t.Errorf("round %d: connected after Close: %v", round, connected)
		}
		hosttest.Eventually(t, "the other has noticed", func() bool { return !other.Peer(h.ID()).Linked() })
	}
	ctx := within(t, 5*time.Second)
	if err := other.Host().Connect(ctx, peer.AddrInfo{ID: h.ID()}); err != nil {
		t.Fatal("the host does not go on:", err)
	}
	s, err := other.Host().NewStream(ctx, h.ID(), pubsub.FloodSubID)
	if err == nil { // the opener may not know that yet; then it reads the refusal
		s.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = s.Read(make([]byte, 1))
	}
	if err == nil || ctx.Err() != nil {
		t.Errorf("a stream to the pubsub that is no more: %v (%v), want a refusal at once", err, ctx.Err())
	}
}

func ours(id protocol.ID) bool {
	return strings.HasPrefix(string(id), "/smokesignal/") || id == pubsub.FloodSubID
}

// streamsOf counts the streams on the connections of h by their protocol.
func streamsOf(h corehost.Host, which func(protocol.ID) bool) map[protocol.ID]int {
	count := map[protocol.ID]int{}
	for _, c := range h.Network().Conns() {
		for _, s := range c.GetStreams() {
			if which(s.Protocol()) {
				count[s.Protocol()]++
			}
		}
	}
	return count
}

// TestClosedNodeIsFreed: nothing on the application's host and pubsub keeps a closed
// node in memory, with the megabytes that it may have stored.
func TestClosedNodeIsFreed(t *testing.T) {
	for name, make := range map[string]pubsubMaker{"a pubsub of its own": nil, "floodsub": pubsub.NewFloodSub, "gossipsub": pubsub.NewGossipSub} {
		h := rawHost(t)
		var opts []smokesignal.Option
		if make != nil {
			opts = append(opts, smokesignal.WithPubSub(lentPubSub(t, h, make)))
		}
		forgotten := func() weak.Pointer[smokesignal.Node] {
			n, err := smokesignal.New(append(opts, smokesignal.WithHost(h))...)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			other, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			for _, n := range []*smokesignal.Node{n, other} {
				if err := n.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			introduce(t, n, other)
			for to, from := range map[*smokesignal.Node]*smokesignal.Node{n: other, other: n} {
				in := listen(t, to.Broadcast(), "x")
				emitNumbers(t, from.Broadcast(), "x", 10)
				emitNumbers(t, from.Peer(to.ID()), "x", 10)
				in.wait(10, soon)
			}
			return weak.Make(n)
		}()
		hosttest.Eventually(t, name+": the node is forgotten", func() bool {
			runtime.GC()
			return forgotten.Value() == nil
		})
	}
}

// TestTopicOnABorrowedPubSub: on a pubsub that is lent, a node takes part in a topic that
// it joins itself, and in one that the application has joined and goes on using.
func TestTopicOnABorrowedPubSub(t *testing.T) {
	t.Parallel()
	for name, maker := range pubsubs {
		t.Run(name, func(t *testing.T) {
			app, other := rawHost(t), rawHost(t)
			ps := lentPubSub(t, app, maker)
			joined, err := ps.Join("room")
			if err != nil {
				t.Fatal(err)
			}
			own, err := joined.Subscribe()
			if err != nil {
				t.Fatal(err)
			}
			defer own.Cancel()
			a := lentNode(t, app, smokesignal.WithPubSub(ps), smokesignal.WithTopic(joined))
			b := lentNode(t, other, smokesignal.WithPubSub(lentPubSub(t, other, maker)))
			if err := other.Connect(within(t, soon), *corehost.InfoFromHost(app)); err != nil {
				t.Fatal(err)
			}
			var topics []*smokesignal.Topic
			heard := [2]chan string{}
			for i, n := range []*smokesignal.Node{a, b} {
				topic, err := n.Topic("room")
				if err != nil {
					t.Fatal(err)
				}
				if again, err := n.Topic("room"); err != nil || again != topic {
					t.Errorf("a second Topic: %v, %v", again, err)
				}
				in := make(chan string, 100)
				heard[i] = in
				topic.On(func(_ context.Context, from peer.ID, data []byte) { in <- from.String() + " " + string(data) })
				topics = append(topics, topic)
			}
			for i, topic := range topics {
				if err := topic.Ready(within(t, soon)); err != nil {
					t.Fatalf("node %d: %v", i, err)
				}
			}
			// Gossipsub has no mesh at first and keeps no promise about the first message.
			hosttest.Eventually(t, "b hears a", func() bool { return reaches(t, topics[0], heard[1], a.ID().String()+" from a") })
			hosttest.Eventually(t, "a hears b", func() bool { return reaches(t, topics[1], heard[0], b.ID().String()+" from b") })
			for { // the application hears what the node does, and its own
				m, err := own.Next(within(t, soon))
				if err != nil {
					t.Fatal(err)
				}
				if string(m.Data) == "from b" && m.GetFrom() == b.ID() {
					break
				}
			}
			if err := errors.Join(a.Close(), b.Close()); err != nil {
				t.Error(err)
			}
			if err := joined.Publish(t.Context(), []byte("the application goes on")); err != nil {
				t.Error("the topic that was lent is closed:", err)
			}
		})
	}
}

// reaches publishes want and reports whether it arrives within a moment.
func reaches(t *testing.T, topic *smokesignal.Topic, heard chan string, want string) bool {
	t.Helper()
	_, text, _ := strings.Cut(want, " ")
	if err := topic.Publish(within(t, soon), []byte(text)); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-heard:
		if got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
		return true
	case <-time.After(200 * time.Millisecond):
		return false
	}
}

// TestPubSubsOfNodesGoTogether: a node with a pubsub of its own and one on an
// application's, linked over every transport: broadcasts, direct events and a raw topic,
// both ways.
func TestPubSubsOfNodesGoTogether(t *testing.T) {
	for router, maker := range pubsubs {
		for transport, listen := range transports {
			t.Run(router+"/"+transport, func(t *testing.T) {
				t.Parallel()
				l := newLocal(t)
				a := l.start(cluster.Spec{Name: "a", Limits: manual, Listen: []string{listen}})
				h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.DisableMetrics())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { h.Close() })
				b := lentNode(t, h, smokesignal.WithPubSub(lentPubSub(t, h, maker)))
				introduce(t, b, a)
				nodes := []*smokesignal.Node{a, b}
				var topics []*smokesignal.Topic
				var heard []*collected
				for i, n := range nodes {
					topic, err := n.Topic("room")
					if err != nil {
						t.Fatal(err)
					}
					in := collectFrom(t, n, nodes[1-i].ID())
					topics, heard = append(topics, topic), append(heard, in)
				}
				for i, n := range nodes {
					for _, p := range payloads {
						if err := n.Broadcast().Emit(within(t, soon), "x", p); err != nil {
							t.Fatal(err)
						}
						if err := n.Peer(nodes[1-i].ID()).Emit(within(t, soon), "x", p); err != nil {
							t.Fatal(err)
						}
					}
					heard[1-i].want("broadcast", payloads...)
					heard[1-i].want("direct", payloads...)
				}
				for i, topic := range topics {
					if err := topic.Ready(within(t, soon)); err != nil {
						t.Fatal(err)
					}
					topics[1-i].On(heard[1-i].from("topic", nodes[i].ID()))
					for _, p := range payloads {
						if err := topic.Publish(within(t, soon), p); err != nil {
							t.Fatal(err)
						}
					}
					heard[1-i].until("all on the topic", func(got map[string][][]byte) bool {
						// A pubsub at its defaults checks signatures side by side, so it keeps no order.
						return len(got["topic"]) == len(payloads) && containsAll(got["topic"], payloads)
					})
				}
			})
		}
	}
}
