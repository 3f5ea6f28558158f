package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/guard"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// lendStation is a station whose pubsub has the options of an application.
func lendStation(t *testing.T, cfg Config, options ...pubsub.Option) *station {
	t.Helper()
	return newStationOn(t, overTCP, cfg, options...)
}

// New fails on a pubsub that cannot carry broadcasts.
func TestLentPubSubIsChecked(t *testing.T) {
	t.Parallel()
	refuseAll := func(context.Context, peer.ID, *pubsub.Message) bool { return false }
	for _, c := range []struct {
		what    string
		options []pubsub.Option
		want    error
	}{
		{"defaults", nil, nil},
		{"lax, but signing", []pubsub.Option{pubsub.WithMessageSignaturePolicy(pubsub.LaxSign)}, nil},
		{"not signing", []pubsub.Option{pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign)}, ErrUnsigned},
		{"refusing", []pubsub.Option{pubsub.WithDefaultValidator(refuseAll)}, ErrNotPublished},
		{"without authors", []pubsub.Option{pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor()}, ErrUnsigned},
	} {
		h := newStationHost(t, overTCP)
		ps, err := pubsub.NewFloodSub(t.Context(), h, c.options...)
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(ps, h, Config{Topic: testTopic})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		if err == nil {
			b.Close(t.Context())
		}
		// Whatever the result, the topic is free again.
		if _, err := ps.Join(testTopic); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// The message with which a lent pubsub is checked does not leave the process.
func TestCheckMessageStaysInTheProcess(t *testing.T) {
	a, b := lendStation(t, Config{}), lendStation(t, Config{})
	link(t, a, b)
	if err := a.checkPubSub(); err != nil {
		t.Fatal(err)
	}
	a.emit("after")
	b.wait(a, "after")
	if n := b.Stats()["foreign"] + a.Stats()["foreign"]; n > 0 {
		t.Errorf("%d messages reached somebody", n)
	}

	// A Broadcast of one host on the pubsub of another.
	if _, err := New(a.ps, b.host, Config{Topic: "another"}); !errors.Is(err, ErrOtherHost) {
		t.Errorf("%v, want ErrOtherHost", err)
	}
}

// A message without a signature, or with a forged one, delivers no event, even on a pubsub
// that accepts unsigned messages.
func TestUnsignedIsDropped(t *testing.T) {
	s := lendStation(t, Config{}, pubsub.WithMessageSignaturePolicy(pubsub.LaxSign))
	r := newRawPeer(t, s)
	session := newSession(protocol.Session{1}, time.Time{})
	unsigned := func(m *pb.Message) *pb.Message { m.Signature, m.Key = nil, nil; return m }
	r.publish(unsigned(r.message(batchOf(t, session, 1, "forged"))))
	forged := r.message(batchOf(t, session, 1, "forged"))
	forged.Signature[0] ^= 1
	r.publish(forged)
	r.batch(session, 1, "signed")
	from := &station{host: r.host}
	s.wait(from, "signed")
	if got := s.Stats(); got["unsigned"] != 1 || got["delivered"] != 1 {
		t.Errorf("%+v, want one message without a signature and one event", got)
	}
}

// A topic that the application has joined is used and not closed.
func TestJoinedTopicStays(t *testing.T) {
	a := lendStation(t, Config{})
	b := lendStation(t, Config{})
	a.Close(context.Background())
	topic, err := a.ps.Join(testTopic)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := topic.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	a.begin(Config{Joined: topic})
	link(t, a, b)
	b.emit("one")
	a.wait(b, "one")
	if err := a.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := a.ps.Join(testTopic); err == nil {
		t.Error("the topic was closed")
	}
	// Its owner's subscription goes on.
	if err := topic.Publish(t.Context(), []byte("own")); err != nil {
		t.Error(err)
	}
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		m, err := sub.Next(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) == "own" {
			break
		}
	}
}

// When the owner of the pubsub ends it or closes the topic, Emit returns an error instead
// of trying forever.
func TestEmitFailsOnAnEndedPubSub(t *testing.T) {
	for what, end := range map[string]func(a *station, topic *pubsub.Topic){
		"the pubsub": func(a *station, _ *pubsub.Topic) { a.stop() },
		"the topic": func(a *station, topic *pubsub.Topic) {
			a.sub.Messages.Cancel()
			a.sub.Members.Cancel()
			if err := topic.Close(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		a, b := lendStation(t, Config{}), lendStation(t, Config{})
		a.Close(context.Background())
		topic, err := a.ps.Join(testTopic)
		if err != nil {
			t.Fatal(err)
		}
		a.begin(Config{Joined: topic})
		link(t, a, b)
		a.emit("one")
		b.wait(a, "one")
		end(a, topic)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		for err = nil; err == nil; {
			err = a.Emit(ctx, "x", make([]byte, 1<<10))
		}
		cancel()
		if !errors.Is(err, ErrPubSubEnded) {
			t.Errorf("%s was ended, and Emit returned %v", what, err)
		}
		if err := a.Close(context.Background()); err != nil {
			t.Errorf("%s was ended: Close: %v", what, err)
		}
	}
}

// Our options for a pubsub do not restrict other users of it: more than 64 topics work,
// joined before and after their peers, and messages have the usual ids.
func TestSharedOptions(t *testing.T) {
	const n = 64 + 10 // a pubsub of our own remembers 64 topics of a peer
	type side struct {
		*station
		topics map[string]*pubsub.Topic
		subs   map[string]*pubsub.Subscription
	}
	newSide := func(options ...pubsub.Option) *side {
		return &side{lendStation(t, Config{}, options...), map[string]*pubsub.Topic{}, map[string]*pubsub.Subscription{}}
	}
	join := func(s *side, name string) {
		topic, err := s.ps.Join(name)
		if err != nil {
			t.Fatal(err)
		}
		if s.subs[name], err = topic.Subscribe(); err != nil {
			t.Fatal(err)
		}
		s.topics[name] = topic
	}
	shared := guard.New(guard.Config{Shared: true})
	a, b := newSide(shared.Options()...), newSide()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprint("application/", i))
		join(b, names[i])
		if i%2 == 0 {
			join(a, names[i])
		}
	}
	link(t, a.station, b.station)
	for i, name := range names {
		if i%2 == 1 {
			join(a, name) // its announcement came long ago
		}
	}
	for _, name := range names {
		eventually(t, "both are on "+name, func() bool {
			return slices.Contains(a.ps.ListPeers(name), b.id()) && slices.Contains(b.ps.ListPeers(name), a.id())
		})
		for from, to := range map[*side]*side{a: b, b: a} {
			if err := from.topics[name].Publish(t.Context(), []byte(name)); err != nil {
				t.Fatal(err)
			}
			for {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				m, err := to.subs[name].Next(ctx)
				cancel()
				if err != nil {
					t.Fatalf("%s: %v; %+v", name, err, shared.Stats())
				}
				if m.ReceivedFrom == to.id() {
					continue // its own
				}
				if string(m.Data) != name || m.ID != pubsub.DefaultMsgIdFn(m.Message) {
					t.Errorf("%s: %q with the id %q", name, m.Data, m.ID)
				}
				break
			}
		}
	}
	a.emit("one")
	b.emit("two")
	b.wait(a.station, "one")
	a.wait(b.station, "two")
	if messages, bytes := shared.Unchecked(); messages > 0 || bytes != 0 {
		t.Errorf("%d messages of %d bytes count as unchecked", messages, bytes)
	}
	if st := shared.Stats(); st["refused"]+st["rejected"]+st["overload"] > 0 {
		t.Errorf("messages were refused: %v", st)
	}

	// A topic for publishing only is joined in name alone.
	r := newRawPeer(t, a.station)
	out, err := a.ps.Join("outward", pubsub.FanoutOnly())
	if err != nil {
		t.Fatal(err)
	}
	sub, err := out.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	m := r.message([]byte("x"))
	m.Topic = proto.String("outward")
	sign(t, m, r.key())
	r.publish(m)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := sub.Next(ctx); err != nil {
		t.Error(err)
	}

	// What is not allowed to be so large is refused here as well.
	m = r.message([]byte("x"))
	m.Topic, m.Seqno = proto.String(names[0]), make([]byte, protocol.MaxSeqno+1)
	sign(t, m, r.key())
	r.publish(m)
	eventually(t, "a message out of bounds is refused", func() bool { return shared.Stats()["refused"] == 1 })
}
