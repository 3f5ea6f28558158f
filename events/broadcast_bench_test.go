package events

import (
	"bytes"
	"context"
	"testing"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// BenchmarkBroadcastPair measures the time of one event from Emit to the handler of a
// neighbor at full speed, to compare with BenchmarkFloodsubPair.
func BenchmarkBroadcastPair(b *testing.B) {
	pair := line(b, 2, overTCP)
	arrived := make(chan struct{}, 1<<16)
	pair[1].On("bench", func(context.Context, *event.Event) { arrived <- struct{}{} })
	payload := bytes.Repeat([]byte("x"), 64)
	b.ReportAllocs()
	flood(b, arrived, func() error { return pair[0].Emit(context.Background(), "bench", payload) })
}

// BenchmarkFloodsubPair measures the same with floodsub alone.
func BenchmarkFloodsubPair(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var topics [2]*pubsub.Topic
	arrived := make(chan struct{}, 1<<16)
	from, to := newStationHost(b, overTCP), newStationHost(b, overTCP)
	hosttest.Connect(b, from, to)
	for i, h := range []corehost.Host{from, to} {
		ps, err := pubsub.NewFloodSub(ctx, h, PubSubOptions(testTopic)...)
		if err != nil {
			b.Fatal(err)
		}
		if topics[i], err = ps.Join(testTopic); err != nil {
			b.Fatal(err)
		}
		if _, err := topics[i].Subscribe(pubsub.WithMessageFilter(func(m *pubsub.Message) bool {
			if !m.Local && i == 1 {
				arrived <- struct{}{}
			}
			return false
		})); err != nil {
			b.Fatal(err)
		}
	}
	eventually(b, "it is seen", func() bool { return len(topics[0].ListPeers()) == 1 && len(topics[1].ListPeers()) == 1 })
	payload := bytes.Repeat([]byte("x"), 64)
	b.ReportAllocs()
	flood(b, arrived, func() error { return topics[0].Publish(ctx, payload) })
}

// flood sends without waiting, except that at most 4,096 messages are under way.
func flood(b *testing.B, arrived <-chan struct{}, send func() error) {
	sent, got := 0, 0
	for b.Loop() {
		if err := send(); err != nil {
			b.Fatal(err)
		}
		for sent++; sent-got > 4096; got++ {
			<-arrived
		}
	}
	for ; got < sent; got++ {
		<-arrived
	}
}
