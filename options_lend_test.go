package smokesignal_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

// lender is an application that has a host.
type lender struct {
	t    *testing.T
	host corehost.Host
}

func newLender(t *testing.T, opts ...libp2p.Option) lender {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.NoListenAddrs, libp2p.DisableMetrics())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return lender{t, h}
}

// floodsub returns a pubsub on the host that ends with the test.
func (l lender) floodsub(opts ...pubsub.Option) *pubsub.PubSub {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	ps, err := pubsub.NewFloodSub(ctx, l.host, opts...)
	if err != nil {
		l.t.Fatal(err)
	}
	return ps
}

func (l lender) join(ps *pubsub.PubSub, name string) *pubsub.Topic {
	l.t.Helper()
	topic, err := ps.Join(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return topic
}

// TestErrorOfABadLentOptionNamesIt: an error in the options that lend a host, a pubsub or a
// topic is a sentence at New, which names the option and says what to do. Nothing stays on the
// host.
func TestErrorOfABadLentOptionNamesIt(t *testing.T) {
	const relay = "/ip4/192.0.2.1/udp/8495/quic-v1/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
	const own = "smokesignal/default"
	with := smokesignal.WithHost
	type options = []smokesignal.Option
	for _, c := range []struct {
		want string
		lend func(l lender) options
	}{
		{"WithHost(nil): give a libp2p host", func(lender) options { return options{with(nil)} }},
		{"WithPubSub(nil): give a PubSub", func(l lender) options { return options{with(l.host), smokesignal.WithPubSub(nil)} }},
		{"WithPubSub: give the host of the PubSub, too, by WithHost", func(l lender) options { return options{smokesignal.WithPubSub(l.floodsub())} }},
		{"WithTopic(nil): give a Topic", func(l lender) options {
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub()), smokesignal.WithTopic(nil)}
		}},
		{"WithTopic: give the PubSub of the Topic, too, by WithPubSub", func(l lender) options {
			ps := l.floodsub()
			return options{with(l.host), smokesignal.WithTopic(l.join(ps, "news"))}
		}},
		{"Listen: the host given by WithHost is the application's; configure it there", func(l lender) options { return options{with(l.host), smokesignal.Listen(":0")} }},
		{"Subnet: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.Subnet("127.0.0.0/8")} }},
		{"Advertise: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.Advertise("192.0.2.1:8495")} }},
		{"IdentityFile: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.IdentityFile("key")} }},
		{"HolePunching: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.HolePunching()} }},
		{"Relays: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.Relays(relay)} }},
		{"RelayService: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.RelayService()} }},
		{"PortMapping: the host given by WithHost", func(l lender) options { return options{with(l.host), smokesignal.PortMapping()} }},

		{"WithHost: the host serves pubsub already (/floodsub/1.0.0), and a second would take its streams; give that one by WithPubSub", func(l lender) options {
			l.floodsub()
			return options{with(l.host)}
		}},
		{"WithHost: the host serves pubsub already (/meshsub/", func(l lender) options {
			pubsub.NewGossipSub(l.t.Context(), l.host)
			l.host.RemoveStreamHandler(pubsub.FloodSubID)
			return options{with(l.host)}
		}},
		{"WithHost: the private key of the host is not in its peerstore", func(l lender) options {
			l.host.Peerstore().RemovePeer(l.host.ID())
			return options{with(l.host)}
		}},
		{"WithHost: the host's key is of type RSA, which is not a part of its id", func(l lender) options {
			key, _, err := crypto.GenerateRSAKeyPair(2048, rand.Reader)
			if err != nil {
				l.t.Fatal(err)
			}
			return options{with(newLender(l.t, libp2p.Identity(key)).host)}
		}},
		{"WithPubSub: events: the pubsub is on another host, ", func(l lender) options {
			return options{with(l.host), smokesignal.WithPubSub(newLender(l.t).floodsub())}
		}},
		{"WithPubSub: events: the pubsub does not sign messages; make it with pubsub.WithMessageSignaturePolicy(pubsub.StrictSign)", func(l lender) options {
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub(pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign)))}
		}},
		{"WithPubSub: events: the pubsub does not sign messages", func(l lender) options {
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub(pubsub.WithMessageSignaturePolicy(pubsub.LaxNoSign), pubsub.WithNoAuthor()))}
		}},
		{"WithPubSub: events: the pubsub signs as another author than its host, ", func(l lender) options {
			key, _, _ := crypto.GenerateEd25519Key(nil)
			id, _ := peer.IDFromPrivateKey(key)
			l.host.Peerstore().AddPrivKey(id, key)
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub(pubsub.WithMessageAuthor(id)))}
		}},
		{`WithPubSub: events: join topic "smokesignal/default": context canceled: the PubSub has been ended; its context has to outlive the node`, func(l lender) options {
			ctx, cancel := context.WithCancel(context.Background())
			ps, err := pubsub.NewFloodSub(ctx, l.host)
			if err != nil {
				l.t.Fatal(err)
			}
			cancel()
			return options{with(l.host), smokesignal.WithPubSub(ps)}
		}},
		{"the PubSub's validators have to let the topic pass", func(l lender) options {
			refuse := func(context.Context, peer.ID, *pubsub.Message) bool { return false }
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub(pubsub.WithDefaultValidator(refuse)))}
		}},
		{"if there is a subscription filter, let it pass", func(l lender) options {
			only := pubsub.NewAllowlistSubscriptionFilter("news")
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub(pubsub.WithSubscriptionFilter(only)))}
		}},
		{"if the application has joined it, give it by WithTopic", func(l lender) options {
			ps := l.floodsub()
			l.join(ps, own)
			return options{with(l.host), smokesignal.WithPubSub(ps)}
		}},
		{`WithTopic: the topic "news" is not joined on the PubSub given by WithPubSub`, func(l lender) options {
			other := newLender(l.t)
			return options{with(l.host), smokesignal.WithPubSub(l.floodsub()), smokesignal.WithTopic(other.join(other.floodsub(), "news"))}
		}},
		{`WithTopic: the topic "` + own + `" is not joined on the PubSub given by WithPubSub`, func(l lender) options {
			ps := l.floodsub()
			topic := l.join(ps, own)
			topic.Close()
			return options{with(l.host), smokesignal.WithPubSub(ps), smokesignal.WithTopic(topic)}
		}},
	} {
		l := newLender(t)
		opts := c.lend(l)
		before := l.host.Mux().Protocols()
		node, err := smokesignal.New(opts...)
		if err == nil {
			node.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "smokesignal: ") {
			t.Errorf("%v,\nwant %q", err, c.want)
		}
		if after := l.host.Mux().Protocols(); !slices.Equal(before, after) {
			t.Errorf("%s: it left %v, before there were %v", c.want, after, before)
		}
	}
}

// TestFailedNewLeavesTheTopic: when New fails late, the topic of a pubsub that goes on
// is left, and New works once the reason is gone.
func TestFailedNewLeavesTheTopic(t *testing.T) {
	l := newLender(t)
	ps := l.floodsub()
	lent := []smokesignal.Option{smokesignal.WithHost(l.host), smokesignal.WithPubSub(ps)}
	noDirectory := smokesignal.PeerBook(t.TempDir())
	if node, err := smokesignal.New(append(lent, noDirectory)...); err == nil {
		node.Close()
		t.Fatal("a directory as a peer book")
	}
	if topics := ps.GetTopics(); len(topics) > 0 {
		t.Errorf("it is still on %v", topics)
	}
	for range 2 { // New, Close, New
		node, err := smokesignal.New(lent...)
		if err != nil {
			t.Fatal(err)
		}
		node.Close()
	}
}

// TestOneNodeOnAHost: a second node is refused by New, whatever became of the first
// as long as it is not closed.
func TestOneNodeOnAHost(t *testing.T) {
	l := newLender(t)
	const taken = "WithHost: there is a node on the host already, and they would take each other's streams; use that one, close it first, or give each a host"
	refused := func(when string, h corehost.Host) {
		t.Helper()
		node, err := smokesignal.New(smokesignal.WithHost(h))
		if err == nil {
			node.Close()
		}
		if err == nil || !strings.Contains(err.Error(), taken) {
			t.Errorf("%s: %v, want %q", when, err, taken)
		}
	}
	first, err := smokesignal.New(smokesignal.WithHost(l.host))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	refused("before the first is started", l.host)
	refused("behind a wrapper", struct{ corehost.Host }{l.host})
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("after the first was started", l.host)
	first.Close()
	second, err := smokesignal.New(smokesignal.WithHost(l.host))
	if err != nil {
		t.Fatal("after the first was closed:", err)
	}
	defer second.Close()
	refused("beside the second", l.host)
	if err := second.Start(t.Context()); err != nil {
		t.Error(err)
	}

	own, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	refused("the host of a node", own.Host())

	// One of another version of this module is known by its protocols.
	other := newLender(t)
	other.host.SetStreamHandler("/smokesignal/overlay/2.0.0", func(s network.Stream) { s.Reset() })
	refused("a node that is not of this package", other.host)
}

// TestPubSubMadeAfterNew: the application's pubsub handles the node's streams when it
// comes second, which Start says.
func TestPubSubMadeAfterNew(t *testing.T) {
	l := newLender(t)
	node, err := smokesignal.New(smokesignal.WithHost(l.host))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if _, err := pubsub.NewGossipSub(t.Context(), l.host); err != nil {
		t.Fatal(err)
	}
	if err := node.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "make that first and give it by WithPubSub") {
		t.Errorf("Start returned %v", err)
	}
}

// TestNodeUsesTheLentHost: the node is its host, id and addresses included, and a host
// that does not listen is fine.
func TestNodeUsesTheLentHost(t *testing.T) {
	l := newLender(t)
	node, err := smokesignal.New(smokesignal.WithHost(l.host))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if node.Host() != l.host || node.ID() != l.host.ID() {
		t.Errorf("the node is %v on %v, want %v on %v", node.ID(), node.Host(), l.host.ID(), l.host)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if addrs := node.Addrs(); len(addrs) > 0 {
		t.Errorf("it is at %v, and nobody listens", addrs)
	}
	if err := l.host.Network().Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); len(node.Addrs()) == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond) // libp2p looks at its addresses now and then
	}
	if addrs := node.Addrs(); len(addrs) != 1 || !strings.HasSuffix(addrs[0].String(), "/p2p/"+node.ID().String()) {
		t.Errorf("it is at %v, want one address with its id", addrs)
	}
	if err := node.Close(); err != nil {
		t.Error(err)
	}
	if len(l.host.Network().ListenAddresses()) == 0 {
		t.Error("the host does not listen any more")
	}
}

// TestEventsWaitForStart: on a lent host broadcasts come from New on, and wait for the
// handlers that are registered until Start.
func TestEventsWaitForStart(t *testing.T) {
	t.Parallel()
	other, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := newLender(t)
	ps := l.floodsub()
	topic := l.join(ps, "smokesignal/default")
	arrives, err := topic.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	node, err := smokesignal.New(smokesignal.WithHost(l.host), smokesignal.WithPubSub(ps), smokesignal.WithTopic(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := l.host.Connect(ctx, peer.AddrInfo{ID: other.ID(), Addrs: other.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
	for errors.Is(other.Broadcast().Emit(ctx, "number", 1), smokesignal.ErrNoPeers) {
		time.Sleep(time.Millisecond) // until it has seen the other on the topic; it has no event for that
	}
	if _, err := arrives.Next(ctx); err != nil {
		t.Fatal(err)
	}
	// The first events of a sender whose first sequence number is unknown wait for five seconds.
	// No event shows that they are not handled then.
	time.Sleep(6 * time.Second)
	if n := node.Stats().Broadcast["delivered"]; n > 0 {
		t.Errorf("%d events were given to no handler", n)
	}
	got := make(chan int, 2)
	smokesignal.Name[int]("number").On(node.Broadcast(), func(_ context.Context, _ smokesignal.ID, n int) { got <- n })
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.Broadcast().Emit(ctx, "number", 2); err != nil {
		t.Fatal(err)
	}
	for want := range 2 {
		select {
		case n := <-got:
			if n != want+1 {
				t.Fatalf("%d came, want %d", n, want+1)
			}
		case <-ctx.Done():
			t.Fatalf("number %d did not come", want+1)
		}
	}
	if err := node.Ready(ctx); err != nil { // without a seed it links to the nodes that the application has connected
		t.Error(err)
	}
}

// TestConnectionsMadeAreClosed: what Connect has connected to is left at Close, unless
// the application had a connection already.
func TestConnectionsMadeAreClosed(t *testing.T) {
	l := newLender(t)
	node, err := smokesignal.New(smokesignal.WithHost(l.host))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, known := range []bool{true, false} {
		far := newLender(t).host
		if err := far.Network().Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
			t.Fatal(err)
		}
		if known {
			if err := l.host.Connect(t.Context(), peer.AddrInfo{ID: far.ID(), Addrs: far.Addrs()}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := node.Dial(t.Context(), far.Addrs()[0].String()); err != nil {
			t.Fatal(err)
		}
		if n := len(l.host.Network().Peers()); n != i+1 {
			t.Fatalf("%d peers", n)
		}
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(l.host.Network().Peers()); n != 1 {
		t.Errorf("%d connections are left, want the application's", n)
	}
}

// TestAddLimits: with them a host that allows no stream of what it does not know
// allows those of a node, and those of nobody else.
func TestAddLimits(t *testing.T) {
	none := rcmgr.BaseLimit{}
	strict := func() rcmgr.ScalingLimitConfig {
		limits := rcmgr.DefaultLimits
		limits.ProtocolBaseLimit, limits.ProtocolLimitIncrease = none, rcmgr.BaseLimitIncrease{}
		limits.ServiceBaseLimit, limits.ServiceLimitIncrease = none, rcmgr.BaseLimitIncrease{}
		libp2p.SetDefaultServiceLimits(&limits)
		return limits
	}
	for _, c := range []struct {
		what  string
		limit func(*rcmgr.ScalingLimitConfig)
		want  bool
	}{
		{"without", func(*rcmgr.ScalingLimitConfig) {}, false},
		{"with", smokesignal.AddLimits, true},
	} {
		limits := strict()
		c.limit(&limits)
		manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()), rcmgr.WithMetricsDisabled())
		if err != nil {
			t.Fatal(err)
		}
		l := newLender(t, libp2p.ResourceManager(manager))
		node, err := smokesignal.New(smokesignal.WithHost(l.host))
		if err != nil {
			t.Fatal(err)
		}
		other, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []*smokesignal.Node{node, other} {
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err = node.Connect(ctx, other.Addrs()[0].String())
		cancel()
		if linked := err == nil; linked != c.want {
			t.Errorf("%s: linked %v (%v), want %v", c.what, linked, err, c.want)
		}
		node.Close()
		other.Close()
	}
}
