package gate

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// A message that is too large for pubsub on the other side does not get there, and
// nothing else happens. Without a gate it ends the stream, and after the fourth both
// are deaf.
func TestGateSurvivesTooLargeMessages(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		a, b := newGated(t, listen), newGated(t, listen)
		connect(t, a, b)
		link(a, b)
		waitLinked(t, a, b)
		large := strings.Repeat(".", 2<<20)
		for round := range 6 {
			a.publish("%d%s", round, large)
			a.publish("a %d", round)
			b.publish("b %d", round)
			a.waitFor("b %d", round)
			b.waitFor("a %d", round)
		}
		if n := b.gate.Stats().Oversize; n != 6 {
			t.Errorf("%d messages were found to be too large, want 6", n)
		}
		if n := a.gate.Stats().Reopened + b.gate.Stats().Reopened; n != 0 {
			t.Errorf("%d streams were replaced", n)
		}
	})
}

// A handmade is a peer of n that speaks floodsub by hand.
type handmade struct {
	corehost.Host
	t   *testing.T
	to  *gated
	got chan string // the messages of n
	// topics are those that n announces.
	topics chan string
}

// newHandmade returns a peer that n has admitted. It reads what n sends once
// reading is closed.
func newHandmade(t *testing.T, n *gated, reading <-chan struct{}) *handmade {
	t.Helper()
	f := &handmade{Host: newUnadmittedHost(t, n), t: t, to: n, got: make(chan string, 1<<16), topics: make(chan string, 1<<10)}
	f.SetStreamHandler(pubsub.FloodSubID, func(s network.Stream) {
		<-reading
		frames := frame.NewReader(bufio.NewReader(s), 1<<20)
		for {
			b, err := frames.Next()
			if err != nil {
				return
			}
			var rpc pb.RPC
			if err := proto.Unmarshal(b, &rpc); err != nil {
				t.Error(err)
				return
			}
			for _, sub := range rpc.Subscriptions {
				f.topics <- sub.GetTopicid()
			}
			for _, m := range rpc.Publish {
				f.got <- string(m.Data)
			}
		}
	})
	n.gate.admit(f.ID())
	return f
}

// newUnsigned is newGated with messages that a guest can make.
func newUnsigned(t *testing.T, listen string) *gated {
	t.Helper()
	n := newBare(t, listen)
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	var err error
	n.ps, err = pubsub.NewFloodSub(ctx, n.gate.Host(), pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithPeerOutboundQueueSize(1<<16),
		pubsub.WithMessageIdFn(func(m *pb.Message) string { return string(m.Data) }))
	if err != nil {
		t.Fatal(err)
	}
	n.join("topic")
	return n
}

// open opens a stream that carries these bytes.
func (f *handmade) open(b []byte) network.Stream {
	f.t.Helper()
	s, err := f.NewStream(f.t.Context(), f.to.host.ID(), pubsub.FloodSubID)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := s.Write(b); err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *handmade) rpc(rpc *pb.RPC) []byte {
	f.t.Helper()
	b, err := proto.Marshal(rpc)
	if err != nil {
		f.t.Fatal(err)
	}
	return frame.Append(nil, b)
}

func (f *handmade) hello() []byte {
	return f.rpc(&pb.RPC{Subscriptions: []*pb.RPC_SubOpts{{Subscribe: proto.Bool(true), Topicid: proto.String("topic")}}})
}

func (f *handmade) message(data string) []byte {
	return f.rpc(&pb.RPC{Publish: []*pb.Message{{Data: []byte(data), Topic: proto.String("topic")}}})
}

// seen waits until n sees the peer on the topic, or does not.
func (f *handmade) seen(want bool) {
	f.t.Helper()
	hosttest.Eventually(f.t, fmt.Sprintf("the peer is on the topic: %v", want), func() bool {
		return (len(f.to.topic.ListPeers()) == 1) == want
	})
}

// A peer that ends its stream after each RPC announces its topics once. It
// stays on them, is heard, and hears. Pubsub itself forgets it at once.
func TestGateAcceptsAStreamForEachRPC(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		n := newUnsigned(t, listen)
		reading := make(chan struct{})
		close(reading)
		f := newHandmade(t, n, reading)
		left := make(chan struct{})
		events, err := n.topic.EventHandler()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(left)
			for {
				if ev, err := events.NextPeerEvent(t.Context()); err != nil || ev.Type == pubsub.PeerLeave {
					return
				}
			}
		}()
		f.open(f.hello()).Close()
		f.seen(true)
		for i := range 8 {
			f.open(f.message(fmt.Sprint("to ", i))).Close()
			n.waitFor("to %d", i)
			n.publish("from %d", i)
			if got, want := <-f.got, fmt.Sprint("from ", i); got != want {
				t.Fatalf("the peer got %q, want %q", got, want)
			}
		}
		select {
		case <-left:
			t.Error("it was forgotten in between")
		default:
		}
		// A stream that ends within an RPC has broken, and so has the peer's
		// part of the conversation.
		f.open(f.message("torn")[:5]).Close()
		f.seen(false)
		f.open(append(f.hello(), f.message("new")...))
		f.seen(true)
		n.waitFor("new")
		// Between two streams it can be evicted as at any other time.
		n.gate.evict(f.ID())
		f.seen(false)
		hosttest.Eventually(t, "nothing is left", func() bool {
			n.gate.mu.Lock()
			defer n.gate.mu.Unlock()
			return len(n.gate.peers) == 0 && n.streams(network.DirInbound) == 0
		})
	})
}

// A peer between two streams is gone when its connection is.
func TestGateNoticesAPeerGoneBetweenStreams(t *testing.T) {
	t.Parallel()
	n := newUnsigned(t, hosttest.TCP)
	reading := make(chan struct{})
	close(reading)
	f := newHandmade(t, n, reading)
	f.open(f.hello()).Close()
	f.seen(true)
	f.open(f.message("1")).Close()
	n.waitFor("1")
	f.Close()
	f.seen(false)
	n.gate.evict(f.ID())
	hosttest.Eventually(t, "nothing is left", func() bool {
		n.gate.mu.Lock()
		defer n.gate.mu.Unlock()
		return len(n.gate.peers) == 0
	})
}

// Every message that is published while a peer does not read is delivered
// later, in order, or counted.
func TestGateCountsForAFrozenPeer(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		n := newUnsigned(t, listen)
		n.gate.cfg.StallTimeout = 200 * time.Millisecond
		reading := make(chan struct{})
		f := newHandmade(t, n, reading)
		f.open(f.hello())
		f.seen(true)
		published := 0
		publish := func(size int) {
			n.publish("%08d%s", published, strings.Repeat(".", size))
			published++
		}
		hosttest.Eventually(t, "messages are dropped", func() bool {
			publish(64 << 10)
			return n.gate.Stats().Dropped > 10
		})
		close(reading)
		var got atomic.Int64
		go func() {
			for last := ""; ; got.Add(1) {
				select {
				case m := <-f.got:
					if m[:8] <= last {
						t.Errorf("%s after %s", m[:8], last)
					}
					last = m[:8]
				case <-t.Context().Done():
					return
				}
			}
		}()
		for range 100 {
			publish(1)
		}
		hosttest.Eventually(t, "every message is delivered or counted", func() bool {
			return got.Load()+int64(n.gate.Stats().Dropped) == int64(published)
		})
		if stats := n.gate.Stats(); stats.Stalls == 0 || stats.Reopened != 0 {
			t.Errorf("%+v", stats)
		}
	})
}

// A peer that forgets announcements with the link hears one again when the link comes
// back, on the stream that is still open; see docs/wire.md, A link.
func TestGateAnnouncesAgainOnAnOpenStream(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		n := newGated(t, listen)
		reading := make(chan struct{})
		close(reading)
		f := newHandmade(t, n, reading)
		announced := func() {
			t.Helper()
			select {
			case topic := <-f.topics:
				if topic != "topic" {
					t.Errorf("%q is announced", topic)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("nothing is announced")
			}
		}
		announced()
		f.seen(false)
		f.open(f.hello())
		f.seen(true)
		n.gate.Announce(f.ID())
		announced()
		n.publish("afterwards")
		if got := <-f.got; got != "afterwards" {
			t.Errorf("got %q", got)
		}
		if again := n.gate.Stats().Reopened; again != 0 {
			t.Errorf("%d streams were replaced", again)
		}
		n.gate.Announce("nobody") // has no stream, and is ignored
	})
}
