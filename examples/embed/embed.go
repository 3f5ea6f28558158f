package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"

	"github.com/go-smokesignal/smokesignal"
)

// An app is an application that existed before smokesignal was added to it: a host, and a
// pubsub topic on which it publishes prices.
type app struct {
	host     host.Host
	pubsub   *pubsub.PubSub
	prices   *pubsub.Topic
	incoming *pubsub.Subscription
}

func newApp(ctx context.Context) (a app, err error) {
	if a.host, err = libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0")); err != nil {
		return a, err
	}
	if a.pubsub, err = pubsub.NewGossipSub(ctx, a.host, smokesignal.PubSubOptions()...); err != nil { // works without these options, too
		return a, err
	}
	if a.prices, err = a.pubsub.Join("prices"); err != nil {
		return a, err
	}
	a.incoming, err = a.prices.Subscribe()
	return a, err
}

// addSmokesignal starts a node that uses the application's own host and pubsub, and joins
// through the seeds.
func (a app) addSmokesignal(ctx context.Context, seeds ...string) (*smokesignal.Node, error) {
	node, err := smokesignal.New(smokesignal.WithHost(a.host), smokesignal.WithPubSub(a.pubsub), smokesignal.Seeds(seeds...))
	if err != nil {
		return nil, err
	}
	return node, node.Start(ctx)
}

var order = smokesignal.Call[int, string]("order") // a call to one node, which answers
var sold = smokesignal.Name[int]("sold")           // a broadcast to all nodes

// run lets Alice publish prices on the application's own topic, and lets Bob buy with a call
// of smokesignal.
func run(ctx context.Context, out io.Writer) error {
	alice, err1 := newApp(ctx)
	bob, err2 := newApp(ctx)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	defer alice.host.Close()
	defer bob.host.Close()
	tell := func(price int) error {
		err := alice.prices.Publish(ctx, fmt.Append(nil, price), pubsub.WithReadiness(pubsub.MinTopicSize(1)))
		if err != nil {
			return err
		}
		msg, err := bob.incoming.Next(ctx)
		if err == nil {
			fmt.Fprintf(out, "the application's topic: the price is %s\n", msg.Data)
		}
		return err
	}

	seller, err := alice.addSmokesignal(ctx)
	if err != nil {
		return err
	}
	order.Handle(seller.Direct(), func(ctx context.Context, _ smokesignal.ID, price int) (string, error) {
		return "it is yours", sold.Emit(ctx, seller.Broadcast(), price)
	})
	buyer, err := bob.addSmokesignal(ctx, seller.Addrs()[0].String())
	if err != nil {
		return err
	}
	done := make(chan int, 1)
	sold.On(buyer.Broadcast(), func(_ context.Context, _ smokesignal.ID, price int) { done <- price })
	if err := errors.Join(buyer.Ready(ctx), tell(42)); err != nil {
		return err
	}
	answer, err := order.Do(ctx, buyer.Peer(seller.ID()), 42)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "a call of smokesignal: %s\na broadcast of smokesignal: sold at %d\n", answer, <-done)

	if err := errors.Join(buyer.Close(), seller.Close()); err != nil { // closes the nodes; the hosts stay open
		return err
	}
	fmt.Fprintln(out, "smokesignal is closed, the application goes on")
	return tell(43)
}
