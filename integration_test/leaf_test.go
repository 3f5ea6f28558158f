package integration_test

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	coreevent "github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// leafHost is a host on the topic of a node, which lists some protocols of ours.
func leafHost(t *testing.T, node *smokesignal.Node, greeted chan<- peer.ID, protocols ...protocol.ID) corehost.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	for _, id := range protocols {
		h.SetStreamHandler(id, func(s network.Stream) {
			if id == protocol.Repair {
				greeted <- h.ID()
			}
		})
	}
	ps, err := pubsub.NewFloodSub(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	topic, err := ps.Join("smokesignal/default")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topic.Subscribe(); err != nil {
		t.Fatal(err)
	}
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: node.ID(), Addrs: node.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
	return h
}

// A node greets the leaves on its topic, 16 at a time; a leaf that comes later is greeted when
// another leaves. A peer that lists the overlay is not a leaf, nor is a peer that does not list
// repair.
func TestLeavesHavePlaces(t *testing.T) {
	t.Parallel()
	node := newNode(t, smokesignal.Listen("127.0.0.1:0"))
	startNode(t, node)
	greeted := make(chan peer.ID, 100)
	leafHost(t, node, greeted)
	leafHost(t, node, greeted, protocol.Repair, protocol.Overlay)
	leaves := map[peer.ID]corehost.Host{}
	for range 17 {
		h := leafHost(t, node, greeted, protocol.Repair)
		leaves[h.ID()] = h
	}
	next := func() peer.ID {
		t.Helper()
		select {
		case p := <-greeted:
			if leaves[p] == nil {
				t.Fatal("somebody else is greeted")
			}
			return p
		case <-time.After(30 * time.Second):
			t.Fatal("nobody is greeted")
		}
		return ""
	}
	var last peer.ID
	for range 16 {
		last = next()
	}
	select {
	case <-greeted:
		t.Fatal("more than 16 are greeted")
	case <-time.After(500 * time.Millisecond): // no event shows that it does not come
	}
	leaves[last].Close()
	delete(leaves, last)
	next()
}

// leafHomes are the kinds of nodes that have leaves.
var leafHomes = map[string]func(t *testing.T) []smokesignal.Option{
	"a host of its own": func(*testing.T) []smokesignal.Option { return []smokesignal.Option{smokesignal.Listen("127.0.0.1:0")} },
	"a lent pubsub": func(t *testing.T) []smokesignal.Option {
		h := rawHost(t)
		return []smokesignal.Option{smokesignal.WithHost(h), smokesignal.WithPubSub(lentPubSub(t, h, pubsub.NewGossipSub))}
	},
}

// A leaf of which the node has heard only what it spoke before it spoke repair is asked
// once more when it comes to the topic.
func TestLeafIsIdentifiedAgainWhenItJoinsTheTopic(t *testing.T) {
	t.Parallel()
	for name, lend := range leafHomes {
		t.Run(name, func(t *testing.T) {
			node := newNode(t, lend(t)...)
			startNode(t, node)
			h := rawHost(t)
			greeted := make(chan struct{}, 1)
			h.SetStreamHandler(protocol.Repair, func(network.Stream) { greeted <- struct{}{} })
			ps := lentPubSub(t, h, pubsub.NewFloodSub)
			var asked atomic.Int32
			h.SetStreamHandler(identify.ID, func(s network.Stream) {
				protocols := []string{identify.ID, string(pubsub.FloodSubID)}
				if asked.Add(1) > 1 {
					protocols = append(protocols, string(protocol.Repair))
				}
				b, err := proto.Marshal(&pb.Identify{Protocols: protocols})
				if err != nil {
					t.Error(err)
				}
				s.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
				s.Close()
			})
			topic, err := ps.Join("smokesignal/default")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := topic.Subscribe(); err != nil {
				t.Fatal(err)
			}
			if err := h.Connect(t.Context(), peer.AddrInfo{ID: node.ID(), Addrs: node.Host().Addrs()}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-greeted:
			case <-time.After(30 * time.Second):
				t.Fatalf("it is not greeted; it was asked %d times", asked.Load())
			}
		})
	}
}

// A leaf may say only after it has come to the topic that it speaks repair, and stop
// speaking it: one that leaves and joins again over the same connection does both.
func TestLeafThatSpeaksLater(t *testing.T) {
	t.Parallel()
	for name, lend := range leafHomes {
		t.Run(name, func(t *testing.T) {
			node := newNode(t, lend(t)...)
			startNode(t, node)
			identified, err := node.Host().EventBus().Subscribe(new(coreevent.EvtPeerIdentificationCompleted))
			if err != nil {
				t.Fatal(err)
			}
			defer identified.Close()
			greeted := make(chan peer.ID, 100)
			h := leafHost(t, node, greeted)
			// The answer to the query that libp2p sent on connecting would count as newer than
			// the next one, if it came later.
			<-identified.Out()
			protected := func() bool { return node.Host().ConnManager().IsProtected(h.ID(), "smokesignal leaf") }
			for round := range 3 {
				h.SetStreamHandler(protocol.Repair, func(s network.Stream) { greeted <- s.Conn().RemotePeer() })
				select {
				case <-greeted:
				case <-time.After(30 * time.Second):
					spoken, err := node.Host().Peerstore().GetProtocols(h.ID())
					t.Fatalf("round %d: it is not greeted; protected: %v; it speaks %v, %v", round, protected(), spoken, err)
				}
				if !protected() {
					t.Error("its connection is not protected")
				}
				h.RemoveStreamHandler(protocol.Repair)
				hosttest.Eventually(t, "it is no leaf any more", func() bool { return !protected() })
				for len(greeted) > 0 {
					<-greeted
				}
			}
			h.SetStreamHandler(protocol.Repair, func(s network.Stream) { greeted <- s.Conn().RemotePeer() })
			hosttest.Eventually(t, "it is a leaf", protected)
			if err := node.Close(); err != nil {
				t.Error(err)
			}
			if protected() {
				t.Error("its connection is protected after Close")
			}
		})
	}
}
