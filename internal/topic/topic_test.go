package topic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// onTopic is a Topic on its own host, with the messages it has received.
type onTopic struct {
	*Topic
	t    *testing.T
	host corehost.Host
	ps   *pubsub.PubSub

	mu   sync.Mutex
	got  map[peer.ID][][]byte
	news chan struct{} // closed when got changed
}

func newOnTopic(t *testing.T, name string, options ...pubsub.Option) *onTopic {
	t.Helper()
	return newOnTopicOf(t, hosttest.New(t, libp2p.ListenAddrStrings(hosttest.TCP), libp2p.ResourceManager(&network.NullResourceManager{})), name, options...)
}

func newOnTopicOf(t *testing.T, h corehost.Host, name string, options ...pubsub.Option) *onTopic {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	o := &onTopic{t: t, host: h, got: make(map[peer.ID][][]byte), news: make(chan struct{})}
	if options == nil {
		options = events.PubSubOptions(name) // others reorder
	}
	var err error
	if o.ps, err = pubsub.NewFloodSub(ctx, h, options...); err != nil {
		t.Fatal(err)
	}
	o.begin(Config{Name: name})
	return o
}

// begin joins the topic, also again after a close.
func (o *onTopic) begin(cfg Config) {
	o.t.Helper()
	var err error
	if o.Topic, err = New(o.ps, o.host, cfg); err != nil {
		o.t.Fatal(err)
	}
	topic := o.Topic
	o.t.Cleanup(func() { topic.Shutdown(context.Background()) })
	o.On(func(_ context.Context, from peer.ID, data []byte) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.got[from] = append(o.got[from], data)
		close(o.news)
		o.news = make(chan struct{})
	})
}

// wait waits until exactly these messages have arrived from the peer.
func (o *onTopic) wait(from peer.ID, want ...[]byte) {
	o.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		o.mu.Lock()
		got, news := o.got[from], o.news
		o.mu.Unlock()
		if len(got) >= len(want) {
			if !slices.EqualFunc(got, want, bytes.Equal) {
				o.t.Fatalf("%d messages came, not the %d sent", len(got), len(want))
			}
			return
		}
		select {
		case <-news:
		case <-timeout:
			o.t.Fatalf("%d of %d messages came; %+v", len(got), len(want), o.Stats())
		}
	}
}

func (o *onTopic) publish(data []byte) {
	o.t.Helper()
	if err := o.Publish(o.t.Context(), data); err != nil {
		o.t.Fatal(err)
	}
}

func (o *onTopic) ready() {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 20*time.Second)
	defer cancel()
	if err := o.Ready(ctx); err != nil {
		o.t.Fatal(err)
	}
}

func topicPair(t *testing.T) (a, b *onTopic) {
	t.Helper()
	a, b = newOnTopic(t, "room"), newOnTopic(t, "room")
	hosttest.Connect(t, a.host, b.host)
	a.ready()
	b.ready()
	return a, b
}

// Any bytes arrive unchanged, in order and with their author, and a member does not
// receive its own messages.
func TestTopicCarriesBytesUnchanged(t *testing.T) {
	a, b := topicPair(t)
	messages := [][]byte{[]byte("text"), {}, nil, {0}, {0xff, 0, 0xfe}, bytes.Repeat([]byte{0, 0xff}, 50_000), []byte("end")}
	for _, m := range messages {
		a.publish(m)
		b.publish(m)
	}
	a.wait(b.host.ID(), messages...)
	b.wait(a.host.ID(), messages...)
	if st := a.Stats(); st["published"] != 7 || st["received"] != 7 || len(a.got) != 1 {
		t.Errorf("%+v, from %d authors", st, len(a.got))
	}
}

// A publisher may change its bytes as soon as Publish has returned.
func TestPublisherMayReuseItsBytes(t *testing.T) {
	a, b := topicPair(t)
	data, want := make([]byte, 8), [][]byte{}
	for i := range 200 {
		copy(data, fmt.Sprintf("%08d", i))
		a.publish(data)
		want = append(want, bytes.Clone(data))
	}
	b.wait(a.host.ID(), want...)
}

// A message of the largest size arrives, whatever the key and the topic's name; one byte
// more is refused, since it would not fit into the largest RPC.
func TestTopicMaxSize(t *testing.T) {
	keys := map[string]func() (crypto.PrivKey, crypto.PubKey, error){
		"ed25519":   func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateKeyPair(crypto.Ed25519, 0) },
		"rsa":       func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateKeyPair(crypto.RSA, 2048) },
		"ecdsa":     func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateKeyPair(crypto.ECDSA, 0) },
		"secp256k1": func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateKeyPair(crypto.Secp256k1, 0) },
	}
	for name, generate := range keys {
		for _, topic := range []string{"x", strings.Repeat("long", 256)} {
			t.Run(fmt.Sprint(name, len(topic)), func(t *testing.T) {
				key, _, err := generate()
				if err != nil {
					t.Fatal(err)
				}
				h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings(hosttest.TCP), libp2p.DisableRelay())
				if err != nil {
					t.Fatal(err)
				}
				defer h.Close()
				a, b := newOnTopicOf(t, h, topic), newOnTopic(t, topic)
				var largest int
				b.host.RemoveStreamHandler(pubsub.FloodSubID) // and a spy in its place
				spy := newSpy(t, b.host)
				// The pubsub of b announces the topic. A second stream that did so would be a
				// duplicate, of which a's pubsub resets one.
				hosttest.Connect(t, a.host, b.host)
				a.ready()
				a.publish(make([]byte, a.MaxSize()))
				largest = <-spy.sizes
				slack := 0
				if name == "ecdsa" || name == "secp256k1" {
					slack = 12
				}
				if largest > pubsub.DefaultMaxMessageSize || largest < pubsub.DefaultMaxMessageSize-slack {
					t.Errorf("the largest message makes an RPC of %d bytes, of at most %d", largest, pubsub.DefaultMaxMessageSize)
				}
				err = a.Publish(t.Context(), make([]byte, a.MaxSize()+1))
				if !errors.Is(err, event.ErrTooLarge) || !strings.Contains(err.Error(), fmt.Sprint(a.MaxSize()+1)) {
					t.Errorf("one byte more: %v", err)
				}
			})
		}
	}
	a, b := topicPair(t)
	a.publish(make([]byte, a.MaxSize()))
	a.publish([]byte("after"))
	b.wait(a.host.ID(), make([]byte, a.MaxSize()), []byte("after"))
}

// spy accepts the stream of a pubsub and records the sizes of RPCs above 1000 bytes.
type spy struct {
	t     *testing.T
	host  corehost.Host
	sizes chan int
}

func newSpy(t *testing.T, h corehost.Host) *spy {
	s := &spy{t, h, make(chan int, 16)}
	h.SetStreamHandler(pubsub.FloodSubID, func(stream network.Stream) {
		r := frame.NewReader(stream, 4<<20)
		for {
			b, err := r.Next()
			if err != nil {
				return
			}
			if len(b) > 3000 {
				s.sizes <- len(b)
			}
		}
	})
	return s
}

// A connection alone does not make a peer a member: Publish and Ready return an error that
// says what to do.
func TestTopicWithoutMembersIsNotReady(t *testing.T) {
	a, other := newOnTopic(t, "room"), newOnTopic(t, "another room")
	hosttest.Connect(t, a.host, other.host)
	if err := a.Publish(t.Context(), []byte("x")); !errors.Is(err, errs.ErrNoPeers) || a.Stats()["published"] != 0 {
		t.Errorf("published to nobody: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := a.Ready(ctx)
	if !errors.Is(err, errs.ErrNoPeers) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `nobody is on topic "room"`) {
		t.Errorf("nobody came: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := a.Publish(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("published with a context that has ended: %v", err)
	}
	b := newOnTopic(t, "room")
	hosttest.Connect(t, b.host, a.host)
	a.ready()
	if m := a.Members(); len(m) != 1 || m[0] != b.host.ID() {
		t.Errorf("members %v", m)
	}
}

// OnJoin and OnLeave are called for each member that joins or leaves, and OnJoin also for
// present members.
func TestTopicMembersComeAndGo(t *testing.T) {
	a, b := newOnTopic(t, "room"), newOnTopic(t, "room")
	type change struct {
		p    peer.ID
		join bool
	}
	changes := make(chan change, 16)
	join := func(_ context.Context, p peer.ID) { changes <- change{p, true} }
	defer a.OnJoin(func(context.Context, peer.ID) { panic("on purpose") })()
	offJoin := a.OnJoin(join)
	a.OnLeave(func(_ context.Context, p peer.ID) { changes <- change{p, false} })
	want := func(p peer.ID, join bool) {
		t.Helper()
		select {
		case c := <-changes:
			if c != (change{p, join}) {
				t.Errorf("told %v, want %v to come: %v", c, p, join)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing is told of %v", p)
		}
	}
	hosttest.Connect(t, a.host, b.host)
	want(b.host.ID(), true)
	// Whoever was told of may be sent to.
	a.publish([]byte("welcome"))
	b.wait(a.host.ID(), []byte("welcome"))
	b.Close()
	want(b.host.ID(), false)
	b.begin(Config{Name: "room"})
	want(b.host.ID(), true)
	offJoin()
	a.OnJoin(join) // hears of who is there already
	want(b.host.ID(), true)
	b.host.Close()
	want(b.host.ID(), false)
	if m := a.Members(); len(m) != 0 {
		t.Errorf("members %v", m)
	}
	if n := a.Stats()["panics"]; n != 2 {
		t.Errorf("%d panics, want 2", n)
	}
}

// A message without a signature is not delivered, even if the pubsub accepts it.
func TestTopicDropsUnsignedMessages(t *testing.T) {
	a := newOnTopic(t, "room", pubsub.WithMessageSignaturePolicy(pubsub.LaxSign))
	b := newOnTopic(t, "room", pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor())
	c := newOnTopic(t, "room")
	for _, o := range []*onTopic{b, c} {
		hosttest.Connect(t, o.host, a.host)
		o.ready()
	}
	b.publish([]byte("whose?"))
	hosttest.Eventually(t, "it is counted", func() bool { return a.Stats()["unsigned"] == 1 })
	c.publish([]byte("mine"))
	a.wait(c.host.ID(), []byte("mine"))
	if len(a.got) != 1 {
		t.Errorf("messages of %d authors came", len(a.got))
	}
}

// A loop over All yields the messages in order and ends with a break, its context, or the
// topic.
func TestTopicLoopEndsWithBreakContextAndClose(t *testing.T) {
	a, b := topicPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	loop := a.All(ctx)
	for i := range 5 {
		b.publish([]byte{byte(i)})
	}
	n := 0
	for from, data := range loop {
		if from != b.host.ID() || !bytes.Equal(data, []byte{byte(n)}) {
			t.Fatalf("%v from %v, want %d", data, from, n)
		}
		if n++; n == 3 {
			break
		}
	}
	for range a.All(ctx) {
		cancel()
	}
	later := b.All(t.Context())
	go b.Close()
	for range later {
	}
}

// Close leaves the topic, so that others see the member leave and nothing is received or
// sent any more, and the topic can be joined again. A handler may close the topic and wait
// for the other handlers.
func TestTopicClose(t *testing.T) {
	a, b := topicPair(t)
	ended := make(chan error, 1)
	a.On(func(ctx context.Context, _ peer.ID, _ []byte) {
		err := a.Shutdown(ctx)
		if ctx.Err() == nil {
			err = errors.New("the context has not ended")
		}
		ended <- err
	})
	b.publish([]byte("close"))
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := a.Publish(t.Context(), nil); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("publish: %v", err)
	}
	if err := a.Ready(t.Context()); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("ready: %v", err)
	}
	<-a.Done()
	hosttest.Eventually(t, "the other side is alone", func() bool { return len(b.Members()) == 0 })
	a.begin(Config{Name: "room"})
	b.ready()
	a.ready()
	b.publish([]byte("again"))
	a.wait(b.host.ID(), []byte("close"), []byte("again"))
}

// A topic that the application has joined stays joined and works as before.
func TestTopicLentByTheApplication(t *testing.T) {
	a, b := newOnTopic(t, "other"), newOnTopic(t, "room")
	lent, err := a.ps.Join("room")
	if err != nil {
		t.Fatal(err)
	}
	own, err := lent.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(a.ps, a.host, Config{Name: "room"}); err == nil {
		t.Error("joined a topic that was taken")
	}
	a.begin(Config{Joined: lent})
	if a.Name() != "room" {
		t.Errorf("the topic is called %q", a.Name())
	}
	hosttest.Connect(t, a.host, b.host)
	a.ready()
	b.ready()
	b.publish([]byte("1"))
	a.wait(b.host.ID(), []byte("1"))
	a.publish([]byte("2"))
	b.wait(a.host.ID(), []byte("2"))
	a.Close()
	b.publish([]byte("3"))
	for _, want := range []string{"1", "2", "3"} {
		m, err := own.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != want {
			t.Fatalf("the application got %q, want %q", m.Data, want)
		}
	}
}

// A topic with an invalid name, or one that is already joined, is refused.
func TestTopicRefusesInvalidNames(t *testing.T) {
	a := newOnTopic(t, "room")
	for _, name := range []string{"", strings.Repeat("x", 1025), "room"} {
		if topic, err := New(a.ps, a.host, Config{Name: name}); err == nil {
			topic.Close()
			t.Errorf("a topic of %d bytes was joined", len(name))
		}
	}
}
