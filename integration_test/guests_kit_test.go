package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
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

// collected holds the received data, by the place where it was received.
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

// until waits until ok holds for the received data.
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
		hosttest.Eventually(o.t, "the outsider sees the node on "+name, func() bool { return slices.Contains(o.ps.ListPeers(name), n.ID()) })
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

// from returns a handler that collects the events of one author.
func (c *collected) from(where string, author peer.ID) func(context.Context, peer.ID, []byte) {
	return func(_ context.Context, from peer.ID, data []byte) {
		if from == author {
			c.take(where, data)
		}
	}
}

// collectFrom collects the events that a node gets from one author: raw on its own topic, as
// broadcast and directly.
func collectFrom(t *testing.T, n *smokesignal.Node, author peer.ID) *collected {
	in := collect(t)
	n.Broadcast().OnRaw(in.from("raw", author))
	smokesignal.Name[[]byte]("x").On(n.Broadcast(), in.from("broadcast", author))
	smokesignal.Name[[]byte]("x").On(n.Direct(), in.from("direct", author))
	return in
}

// payloads are sent each way in each cell.
var payloads = [][]byte{[]byte("text, größer als ASCII"), {0, 1, 0xff, 0, 0xfe}, {}, bytes.Repeat([]byte("\x00\xff0123456"), 11_112), []byte("end")}
