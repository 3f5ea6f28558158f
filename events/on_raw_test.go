package events

import (
	"context"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// Plain pubsub messages on the topic of a Broadcast go to the OnRaw handlers, and the
// events on it still arrive.
func TestOnRawDeliversPlainPubSubMessages(t *testing.T) {
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	r.publish(r.message([]byte("nobody listens")))
	eventually(t, "it is counted", func() bool { return s.Stats()["foreign"] == 1 })
	got := make(chan string, 16)
	off := s.OnRaw(func(ctx context.Context, from peer.ID, data []byte) {
		if from != r.host.ID() || !dispatch.InHandler(ctx) {
			t.Errorf("from %v, in a handler: %v", from, dispatch.InHandler(ctx))
		}
		got <- string(data)
	})
	session := rawSession(1)
	r.publish(r.message([]byte("text\x00\xff")))
	r.batch(session, 1, "1")
	r.publish(r.message(nil))
	r.batch(session, 2, "2")
	s.wait(r.asStation(), "1", "2")
	for _, want := range []string{"text\x00\xff", ""} {
		if m := <-got; m != want {
			t.Errorf("got %q, want %q", m, want)
		}
	}
	off()
	r.publish(r.message([]byte("nobody listens")))
	eventually(t, "it is counted", func() bool { return s.Stats()["foreign"] == 2 })
	if st := s.Stats(); st["raw"] != 2 || st["raw_dropped"] != 0 {
		t.Errorf("%+v", st)
	}
	// What the application itself puts there is not heard by its own handlers.
	s.OnRaw(func(_ context.Context, _ peer.ID, data []byte) { got <- string(data) })
	if err := s.Broadcast.sub.Topic.Publish(t.Context(), []byte("own")); err != nil {
		t.Fatal(err)
	}
	r.publish(r.message([]byte("last")))
	if m := <-got; m != "last" {
		t.Errorf("got %q, want the last", m)
	}
}

// A guest on the topic counts as a receiver; without Guest only linked peers count.
func TestGuestsCountAsReceivers(t *testing.T) {
	for _, counts := range []bool{false, true} {
		seen := make(chan struct{})
		onTopic := func(_ peer.ID, present bool) {
			if present {
				close(seen)
			}
		}
		s := newStation(t, overTCP, Config{Node: &wiring.Broadcasts{OnTopic: onTopic, Guest: func(peer.ID) bool { return counts }}})
		if err := s.Emit(t.Context(), "x"); !errors.Is(err, ErrNoPeers) {
			t.Errorf("alone: %v", err)
		}
		r := newRawPeer(t, s)
		hosttest.Announce(t, r.host, s.host, testTopic)
		<-seen
		if err := s.Emit(t.Context(), "x"); (err == nil) != counts {
			t.Errorf("guests count: %v, and Emit returned %v", counts, err)
		}
	}
}
