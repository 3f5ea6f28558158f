package events

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/guard"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

const (
	overTCP  = "/ip4/127.0.0.1/tcp/0"
	overQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"

	testTopic = "smokesignal/test"
)

// station is a host with a pubsub and a Broadcast. Its neighbors are the stations it is
// connected to.
type station struct {
	*Broadcast
	t     testing.TB
	host  corehost.Host
	ps    *pubsub.PubSub
	guard *guard.Inspector
	stop  context.CancelFunc

	mu   sync.Mutex
	got  map[peer.ID][]string
	news chan struct{} // closed when got changed
}

func newStationHost(t testing.TB, listen ...string) corehost.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen...), libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// newStation returns a started station that records the arguments of the events named "x".
func newStation(t testing.TB, listen string, cfg Config) *station {
	t.Helper()
	g := guard.New(guard.Config{Topic: testTopic})
	s := newStationOn(t, listen, cfg, g.Options()...)
	s.guard = g
	return s
}

// newStationOn is newStation with a pubsub of these options.
func newStationOn(t testing.TB, listen string, cfg Config, options ...pubsub.Option) *station {
	t.Helper()
	s := &station{t: t, host: newStationHost(t, listen), got: make(map[peer.ID][]string), news: make(chan struct{})}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	t.Cleanup(s.stop)
	var err error
	s.ps, err = pubsub.NewFloodSub(ctx, s.host, options...)
	if err != nil {
		t.Fatal(err)
	}
	s.begin(cfg)
	return s
}

// begin makes the station's Broadcast, also again after a close.
func (s *station) begin(cfg Config) {
	s.t.Helper()
	cfg.Topic = testTopic
	b, err := New(s.ps, s.host, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Broadcast = b
	b.On("x", func(_ context.Context, ev *event.Event) {
		data, _ := ev.Bytes(0)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.got[ev.From] = append(s.got[ev.From], string(data))
		close(s.news)
		s.news = make(chan struct{})
	})
	b.start()
	s.t.Cleanup(func() { b.Close(context.Background()) })
}

func (s *station) id() peer.ID { return s.host.ID() }

func (s *station) received(from *station) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got[from.id()])
}

// emit broadcasts raw bytes.
func (s *station) emit(format string, args ...any) {
	s.t.Helper()
	if err := s.Emit(context.Background(), "x", fmt.Appendf(nil, format, args...)); err != nil {
		s.t.Fatal(err)
	}
}

// wait waits until exactly these events of the sender have been handled.
func (s *station) wait(from *station, want ...string) {
	s.t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		s.mu.Lock()
		got, news := s.got[from.id()], s.news
		s.mu.Unlock()
		if len(got) >= len(want) {
			if !slices.Equal(got, want) {
				s.t.Fatalf("got %s, want %s", clip(got), clip(want))
			}
			return
		}
		select {
		case <-news:
		case <-timeout:
			s.t.Fatalf("got %d events, want %d; %+v", len(got), len(want), s.Stats())
		}
	}
}

func clip(list []string) string {
	if len(list) > 20 {
		return fmt.Sprintf("%d: %q ...", len(list), list[:20])
	}
	return fmt.Sprintf("%q", list)
}

func texts(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprint(i))
	}
	return list
}

// eventually polls a condition that no event announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// link connects two stations and, when both see each other on the topic, gives each the
// marks of the other.
func link(t testing.TB, a, b *station) {
	t.Helper()
	hosttest.Connect(t, a.host, b.host)
	linked(t, a, b)
}

func linked(t testing.TB, a, b *station) {
	t.Helper()
	eventually(t, "both see each other", func() bool {
		// Other than the topic's events this says that there is a queue, which
		// takes a gate otherwise.
		return slices.Contains(a.ps.ListPeers(testTopic), b.id()) && slices.Contains(b.ps.ListPeers(testTopic), a.id()) &&
			(a.links || slices.Contains(a.neighbors(), b.id())) && (b.links || slices.Contains(b.neighbors(), a.id()))
	})
	marks := a.greeting()
	if err := a.link(b.id(), b.greeting()); err != nil {
		t.Fatal(err)
	}
	if err := b.link(a.id(), marks); err != nil {
		t.Fatal(err)
	}
}

// neighbors returns the peers that b has a link with.
func (b *Broadcast) neighbors() (list []peer.ID) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	for p := range b.driver.links {
		list = append(list, p)
	}
	return list
}

// appendBatch appends a Batch of encoded events.
func appendBatch(dst []byte, session order.SessionKey, first uint64, events ...[]byte) []byte {
	dst = appendBatchHeader(dst, session, first)
	for _, ev := range events {
		dst = frame.AppendMessage(dst, numBatchEvent, ev)
	}
	return dst
}

// markOf returns the mark of a node that has everything below next.
func markOf(sender peer.ID, session order.SessionKey, next uint64) engine.Mark {
	return engine.Mark{Progress: order.Progress{Sender: sender, Session: session, Begin: next, Next: next, Above: next}, Through: next}
}

// line returns n stations, each linked to the next.
func line(t testing.TB, n int, listen string) []*station {
	t.Helper()
	var list []*station
	for i := range n {
		list = append(list, newStation(t, listen, Config{}))
		if i > 0 {
			link(t, list[i-1], list[i])
		}
	}
	return list
}

func over(t *testing.T, f func(t *testing.T, listen string)) {
	t.Run("tcp", func(t *testing.T) { f(t, overTCP) })
	t.Run("quic", func(t *testing.T) { f(t, overQUIC) })
}
