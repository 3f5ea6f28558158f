package events_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events"
)

// join returns a host and its broadcast on a topic.
func join(ctx context.Context, topic string) (corehost.Host, *events.Broadcast) {
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		log.Fatal(err)
	}
	ps, err := pubsub.NewFloodSub(ctx, h, events.PubSubOptions(topic)...)
	if err != nil {
		log.Fatal(err)
	}
	b, err := events.New(ps, h, events.Config{Topic: topic})
	if err != nil {
		log.Fatal(err)
	}
	return h, b
}

// emit emits an event as soon as b knows of another host on the topic. Two hosts that have just
// connected do not learn of each other at the same time.
func emit(ctx context.Context, b *events.Broadcast, name string, args ...any) {
	for errors.Is(b.Emit(ctx, name, args...), events.ErrNoPeers) {
		time.Sleep(10 * time.Millisecond)
	}
}

// Two hosts on a topic: the second one answers the first one.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hostA, here := join(ctx, "greetings")
	defer hostA.Close()
	defer here.Close(ctx)
	hostB, there := join(ctx, "greetings")
	defer hostB.Close()
	defer there.Close(ctx)

	there.On("greet", func(ctx context.Context, ev *events.Event) {
		var who string
		if err := ev.Decode(&who); err != nil {
			return // an event of another program
		}
		emit(ctx, there, "thanks", who, 42) // any number of arguments
	})
	done := make(chan struct{})
	here.On("thanks", func(_ context.Context, ev *events.Event) {
		var who string
		var n int
		err := ev.Decode(&who, &n)
		fmt.Println(who, n, err)
		close(done)
	})

	if err := hostA.Connect(ctx, peer.AddrInfo{ID: hostB.ID(), Addrs: hostB.Addrs()}); err != nil {
		log.Fatal(err)
	}
	emit(ctx, here, "greet", "Ada")
	<-done
	// Output: Ada 42 <nil>
}
