package guard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

// Topics that are joined here do not count, nor those that were left.
func TestPubSubTopicsOfAPeer(t *testing.T) {
	g := New(Config{Topic: "own"})
	sub := func(topic string, subscribe bool) *pb.RPC_SubOpts {
		return &pb.RPC_SubOpts{Subscribe: &subscribe, Topicid: &topic}
	}
	kept := func(p peer.ID, subs ...*pb.RPC_SubOpts) int {
		t.Helper()
		keep, err := g.FilterIncomingSubscriptions(p, subs)
		if err != nil {
			t.Error(err)
		}
		return len(keep)
	}
	for i := range 2 * maxTopics {
		want := 1
		if i >= maxTopics {
			want = 0
		}
		if n := kept("p", sub(fmt.Sprint(i), true)); n != want {
			t.Errorf("topic %d: kept %d, want %d", i, n, want)
		}
	}
	if kept("p", sub("0", true), sub("own", true), sub("own", false)) != 3 {
		t.Error("known topics are refused")
	}
	g.CanSubscribe("joined")
	if kept("p", sub("joined", true)) != 1 {
		t.Error("a topic joined here is refused")
	}
	if kept("p", sub("0", false)) != 1 || kept("p", sub("new", true)) != 1 || kept("p", sub("newer", true)) != 0 {
		t.Error("a topic that was left still counts")
	}
	if kept("p", sub("unknown", false)) != 0 {
		t.Error("an unknown topic was left")
	}
	if kept("q", sub(strings.Repeat("x", maxTopicName+1), true)) != 0 {
		t.Error("a long name")
	}
	g.OnClosedOutboundStream("p")
	if kept("p", sub("newer", true)) != 1 {
		t.Error("the topics of a peer that was away still count")
	}
	for i := range 2 * maxTopicPeers {
		kept(peer.ID(fmt.Sprint(i)), sub("x", true))
	}
	if n := len(g.topics); n > maxTopicPeers {
		t.Errorf("%d peers", n)
	}
}

// Messages are let in until too many bytes wait for their signature, and again
// when those are checked or gone.
func TestPubSubUncheckedMessagesAreBounded(t *testing.T) {
	g := New(Config{Topic: "topic"})
	var in []*pb.Message
	add := func() bool {
		m := &pb.Message{Topic: proto.String("topic"), Data: make([]byte, 1<<20)}
		rpc := &pubsub.RPC{RPC: pb.RPC{Publish: []*pb.Message{m}}}
		if err := g.inspect("p", rpc); err != nil {
			t.Fatal(err)
		}
		if len(rpc.Publish) == 1 {
			in = append(in, m)
		}
		return len(rpc.Publish) == 1
	}
	for add() {
	}
	if n := len(in); n != 63 {
		t.Errorf("%d MiB are let in", n)
	}
	g.ValidateMessage(&pubsub.Message{Message: in[0]})
	g.DuplicateMessage(&pubsub.Message{Message: in[0]}) // not counted twice
	if !add() || add() {
		t.Error("not as many let in as were checked")
	}
	g.RejectMessage(&pubsub.Message{Message: in[1]}, pubsub.RejectInvalidSignature)
	g.DuplicateMessage(&pubsub.Message{Message: in[2]})
	if first, second, third := add(), add(), add(); !first || !second || third {
		t.Error("not as many let in as were rejected")
	}
	g.sweep(time.Now().Add(2 * uncheckedFor))
	if g.bytes != 0 || len(g.unchecked) != 0 {
		t.Errorf("%d bytes of messages without a trace", g.bytes)
	}
	if g.counters.overload.Load() != 3 || g.counters.rejected.Load() != 1 {
		t.Error("wrong counts")
	}
}

func TestPubSubMessageID(t *testing.T) {
	ids := make(map[string]bool)
	for _, m := range []*pb.Message{
		{}, {From: []byte("ab"), Seqno: []byte("c")}, {From: []byte("a"), Seqno: []byte("bc")},
		{From: []byte("abc")}, {Seqno: []byte("abc")}, {From: make([]byte, 1000), Seqno: make([]byte, 1000)},
	} {
		id := messageID(m)
		if len(id) != 32 || ids[id] {
			t.Errorf("id %x of %v", id, m)
		}
		ids[id] = true
	}
}
