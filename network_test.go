package smokesignal_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// TestMethodsFailBeforeStartAndAfterClose: methods that need a running node return an error at
// once before Start and after Close.
func TestMethodsFailBeforeStartAndAfterClose(t *testing.T) {
	const seed = "127.0.0.1:1"
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(seed))
	if err != nil {
		t.Fatal(err)
	}
	p := node.Peer(node.ID())
	if list := node.Seeds(); !slices.Equal(list, []smokesignal.Seed{{Seed: seed}}) {
		t.Errorf("before Start: seeds %+v", list)
	}
	if rtt, err := p.RTT(), p.Disconnect(); rtt != 0 || err != smokesignal.ErrNotStarted {
		t.Errorf("before Start: RTT %v, Close returned %v", rtt, err)
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if list := node.Seeds(); list != nil {
		t.Errorf("after Close: seeds %+v", list)
	}
	if rtt, err := p.RTT(), p.Disconnect(); rtt != 0 || err != smokesignal.ErrClosed {
		t.Errorf("after Close: RTT %v, Close returned %v", rtt, err)
	}
}

// TestStatsCountPanics: Stats counts the panics of callbacks, which otherwise only the log shows.
func TestStatsCountPanics(t *testing.T) {
	t.Parallel()
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	called := make(chan struct{})
	node.OnSeedError(func(context.Context, *smokesignal.SeedError) { panic("a callback of the test") })
	node.OnSeedError(func(context.Context, *smokesignal.SeedError) { // runs after the other
		select {
		case <-called:
		default:
			close(called)
		}
	})
	if s := node.Stats(); s.Panics != 0 || s.PubSub["panics"] != 0 {
		t.Errorf("before Start: %d panics", s.Panics)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-called
	if n := node.Stats().Panics; n == 0 {
		t.Error("a callback panicked, and it was not counted")
	}
}

// TestNodeWithoutPeersOwnsItsTag: a running node without peers is a network of one.
func TestNodeWithoutPeersOwnsItsTag(t *testing.T) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if p := node.Network(); p != (smokesignal.NetworkView{}) {
		t.Errorf("before Start: %+v", p)
	}
	began := time.Now()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := node.Network()
	if p.Since.Before(began) || p.Since.After(time.Now()) {
		t.Errorf("alone since %v, started at %v", p.Since, began)
	}
	if want := (smokesignal.NetworkView{Tag: node.ID(), Since: p.Since}); p != want {
		t.Errorf("alone: %+v, want %+v", p, want)
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if p := node.Network(); p != (smokesignal.NetworkView{}) {
		t.Errorf("after Close: %+v", p)
	}
}
