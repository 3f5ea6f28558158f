package smokesignal_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// TestMethodsFailBeforeStartAndAfterClose: what needs a node that runs says so at once, before Start and
// after Close.
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

// TestStatsCountPanics: of callbacks, which nothing but the log would tell of.
func TestStatsCountPanics(t *testing.T) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	told := make(chan struct{})
	node.OnSeedError(func(context.Context, *smokesignal.SeedError) { panic("a callback of the test") })
	node.OnSeedError(func(context.Context, *smokesignal.SeedError) { // runs after the other
		select {
		case <-told:
		default:
			close(told)
		}
	})
	if s := node.Stats(); s.Panics != 0 || s.PubSub["panics"] != 0 {
		t.Errorf("before Start: %d panics", s.Panics)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-told
	if n := node.Stats().Panics; n == 0 {
		t.Error("a callback panicked, and it was not counted")
	}
}

// TestNodeWithoutPeersOwnsItsTag: of its own, as long as it runs.
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
