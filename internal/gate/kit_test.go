package gate

import (
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/identify"
	"github.com/go-smokesignal/smokesignal/internal/peers"

	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// gated is a host with a floodsub behind a gate, on one topic.
type gated struct {
	t    *testing.T
	host corehost.Host
	gate *Gate
	ps   *pubsub.PubSub

	topic *pubsub.Topic
	sub   *pubsub.Subscription
	stop  context.CancelFunc

	protocols *identify.Tracker
	records   *peers.Registry // nil: only admit and evict decide who is admitted

	mu   sync.Mutex
	got  map[string]int   // messages by content
	from map[peer.ID]bool // the peers that forwarded them
	news chan struct{}    // closed when got changed
}

func newGated(t *testing.T, listen ...string) *gated {
	t.Helper()
	n := newBare(t, listen...)
	n.begin()
	return n
}

// begin makes the pubsub and joins the topic.
func (n *gated) begin() {
	n.t.Helper()
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	var err error
	n.ps, err = pubsub.NewFloodSub(ctx, n.gate.Host(), pubsub.WithPeerOutboundQueueSize(1<<16), pubsub.WithValidateQueueSize(1<<16), pubsub.WithValidateWorkers(1))
	if err != nil {
		n.t.Fatal(err)
	}
	n.join("topic")
}

// newBare is newGated without a pubsub.
func newBare(t *testing.T, listen ...string) *gated {
	t.Helper()
	return newBareWith(t, Config{}, listen...)
}

func newBareWith(t *testing.T, cfg Config, listen ...string) *gated {
	t.Helper()
	return gate(t, hosttest.New(t, libp2p.ListenAddrStrings(listen...), libp2p.ResourceManager(&network.NullResourceManager{})), cfg)
}

// gate puts a gate on h.
func gate(t *testing.T, h corehost.Host, cfg Config) *gated {
	t.Helper()
	protocols, err := identify.Track(h, nil, nodeProtocol, pubsub.FloodSubID)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Recheck = protocols.Recheck
	n := &gated{
		t: t, host: h, protocols: protocols, gate: New(h, cfg),
		got: make(map[string]int), from: make(map[peer.ID]bool), news: make(chan struct{}), stop: func() {},
	}
	t.Cleanup(n.close)
	return n
}

func (n *gated) join(topic string) {
	var err error
	if n.topic, err = n.ps.Join(topic); err != nil {
		n.t.Fatal(err)
	}
	n.sub, err = n.topic.Subscribe(pubsub.WithMessageFilter(func(m *pubsub.Message) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.got[string(m.Data)]++
		n.from[m.ReceivedFrom] = true
		close(n.news)
		n.news = make(chan struct{})
		return false
	}))
	if err != nil {
		n.t.Fatal(err)
	}
}

// admitByRecords makes the gate follow the records of peers, as in a node.
func (n *gated) admitByRecords(maxGuests int, identified chan<- peer.ID) {
	n.t.Helper()
	n.records = peers.New(peers.Config{Host: n.host, MaxGuests: maxGuests, Log: n.gate.log})
	err := n.records.Follow(peers.Followers{
		Gate: func(c *peers.Transition) {
			n.gate.SetAdmission(c.Peer, Admission{Linked: c.Is.Served(), Guest: c.Is.Place, Plain: c.Is.Role != peers.Node})
		},
		Identified: func(p peer.ID, _ peers.Standing) {
			select {
			case identified <- p:
			default: // nobody asks
			}
		},
	}, pubsub.FloodSubID)
	if err != nil {
		n.t.Fatal(err)
	}
}

// admit has p admitted as a peer with a link, whatever else admits it.
func (g *Gate) admit(p peer.ID) { g.setLinked(p, true) }

// evict undoes admit.
func (g *Gate) evict(p peer.ID) { g.setLinked(p, false) }

func (g *Gate) setLinked(p peer.ID, linked bool) {
	g.mu.Lock()
	var a Admission
	if r := g.peers[p]; r != nil {
		a = r.Admission
	}
	g.mu.Unlock()
	a.Linked = linked
	g.SetAdmission(p, a)
}

func (n *gated) close() {
	if n.records != nil {
		n.records.Close()
	}
	n.gate.Close()
	n.stop()
	n.protocols.Close()
	n.host.Close()
}

func (n *gated) publish(format string, args ...any) {
	n.t.Helper()
	if err := n.topic.Publish(n.t.Context(), fmt.Appendf(nil, format, args...)); err != nil {
		n.t.Fatal(err)
	}
}

// waitFor waits until n has got a message.
func (n *gated) waitFor(format string, args ...any) {
	n.t.Helper()
	msg := fmt.Sprintf(format, args...)
	timeout := time.After(20 * time.Second)
	for {
		n.mu.Lock()
		count, news := n.got[msg], n.news
		n.mu.Unlock()
		switch {
		case count == 1:
			return
		case count > 1:
			n.t.Fatalf("%q came %d times", msg, count)
		}
		select {
		case <-news:
		case <-timeout:
			n.t.Fatalf("%q did not come", msg)
		}
	}
}

func (n *gated) has(msg string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.got[msg] > 0
}

// sees reports whether the others, and nobody else, are on n's topic.
func (n *gated) sees(others ...*gated) bool {
	peers := n.topic.ListPeers()
	if len(peers) != len(others) {
		return false
	}
	seen := make(map[peer.ID]bool)
	for _, p := range peers {
		seen[p] = true
	}
	for _, o := range others {
		if !seen[o.host.ID()] {
			return false
		}
	}
	return true
}

func connect(t *testing.T, a, b *gated) {
	t.Helper()
	if err := a.host.Connect(t.Context(), peer.AddrInfo{ID: b.host.ID(), Addrs: b.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

func link(a, b *gated) {
	a.gate.admit(b.host.ID())
	b.gate.admit(a.host.ID())
}

func cut(a, b *gated) {
	a.gate.evict(b.host.ID())
	b.gate.evict(a.host.ID())
}

func waitLinked(t *testing.T, a, b *gated) {
	t.Helper()
	hosttest.Eventually(t, "the two see each other", func() bool { return a.sees(b) && b.sees(a) })
}

// talk publishes on both sides until something arrives on both.
func talk(t *testing.T, a, b *gated, msg string) {
	t.Helper()
	hosttest.Eventually(t, fmt.Sprintf("the two hear each other (a sees %v, b sees %v)", a.topic.ListPeers(), b.topic.ListPeers()), func() bool {
		a.topic.Publish(t.Context(), []byte("a"+msg))
		b.topic.Publish(t.Context(), []byte("b"+msg))
		return a.has("b"+msg) && b.has("a"+msg)
	})
}
