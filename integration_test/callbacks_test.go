package integration_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestCallbacksOfANewLink shows that a new link runs OnConnect, OnPeerAdded and
// Peers().OnAdd on both sides, in this order, and OnConnect for the first peer only.
func TestCallbacksOfANewLink(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	l.wantStory(a, "connect", "peer added b", "add b")
	l.wantStory(b, "connect", "peer added a", "add a")
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(c, a)
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c") // connect only for the first
	l.check(checker.Config{})
}

// TestCallbacksOfALinkThatEnds shows that the end of a link runs OnDisconnect,
// OnPeerRemoved, Peers().OnRemove and Peer.OnClose on both sides, in this order, and
// OnDisconnect for the last peer only.
func TestCallbacksOfALinkThatEnds(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(a, c)
	closed := func(n int) func(*checker.State) bool {
		return func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerClose] == n }
	}
	l.close(c)
	l.wait(soon, "c is gone", closed(1))
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed c", "remove c", "close c")
	l.close(b)
	l.wait(soon, "b is gone", closed(2))
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed c", "remove c", "close c",
		"disconnect", "peer removed b", "remove b", "close b") // disconnect only for the last
	l.wantStory(b, "connect", "peer added a", "add a", "disconnect", "peer removed a", "remove a", "close a")
	l.check(checker.Config{})
}

// TestBroadcastInsideOnConnectArrives shows that inside OnConnect a node is connected
// and its broadcast reaches the new peer.
func TestBroadcastInsideOnConnectArrives(t *testing.T) {
	t.Parallel()
	for round := range 10 {
		l := newLocal(t)
		a := l.create(cluster.Spec{Name: "a", Limits: manual})
		b := l.create(cluster.Spec{Name: "b", Limits: manual})
		type state struct {
			connected bool
			err       error
		}
		inside := make(chan state, 2)
		ins := map[*smokesignal.Node]*inbox{}
		for _, n := range []*smokesignal.Node{a, b} {
			ins[n] = listen(t, n.Broadcast(), "HEYO")
			n.OnConnect(func(ctx context.Context) {
				connected := n.Connected()
				inside <- state{connected, n.Broadcast().Emit(ctx, "HEYO", 0)}
			})
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		l.link(a, b)
		for range 2 {
			if s := next(t, inside); !s.connected || s.err != nil {
				t.Errorf("round %d: inside OnConnect, Connected is %v, Emit returned %v", round, s.connected, s.err)
			}
		}
		for n, in := range ins {
			wantNumbers(t, l.name(n), in.wait(1, soon), 1)
		}
		a.Close()
		b.Close()
	}
}

// TestDirectEventsComeAfterOnAdd shows that the direct events of a new peer are handled
// after OnAdd has returned, even if OnAdd is slow.
func TestDirectEventsComeAfterOnAdd(t *testing.T) {
	t.Parallel()
	for range 10 {
		l := newLocal(t)
		a, b := l.create(cluster.Spec{Name: "a", Limits: manual}), l.create(cluster.Spec{Name: "b", Limits: manual})
		var mu sync.Mutex
		var order []string
		note := func(s string) { mu.Lock(); defer mu.Unlock(); order = append(order, s) }
		got := make(chan struct{}, 1)
		b.Peers().OnAdd(func(_ context.Context, p *smokesignal.Peer) {
			p.On("x", func(context.Context, *smokesignal.Event) { note("event"); got <- struct{}{} })
			time.Sleep(20 * time.Millisecond) // a slow callback: the event must wait for it
			note("added")
		})
		a.Peers().OnAdd(func(ctx context.Context, p *smokesignal.Peer) { p.Emit(ctx, "x") })
		for _, n := range []*smokesignal.Node{a, b} {
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		l.link(a, b)
		next(t, got)
		mu.Lock()
		if !slices.Equal(order, []string{"added", "event"}) {
			t.Errorf("order %v", order)
		}
		mu.Unlock()
		a.Close()
		b.Close()
	}
}

// TestConnectedIsFalseInsideOnDisconnect shows that a node is not connected any more
// when OnDisconnect runs.
func TestConnectedIsFalseInsideOnDisconnect(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	inside := make(chan bool, 1)
	a.OnDisconnect(func(context.Context) { inside <- a.Connected() })
	l.close(b)
	if next(t, inside) {
		t.Error("Connected is true inside OnDisconnect")
	}
}

// TestCloseErrorCountsUnwrittenEvents shows that OnClose gets the peer, the cause, and
// the number of events that were not written.
func TestCloseErrorCountsUnwrittenEvents(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	reason := make(chan error, 1)
	a.Peer(b.ID()).OnClose(func(_ context.Context, err error) { reason <- err })
	l.close(b)
	err := next(t, reason)
	if e, ok := errors.AsType[*smokesignal.CloseError](err); !ok || e.Peer != b.ID() || e.Unwritten != 0 || e.Err == nil {
		t.Errorf("the reason is %#v", err)
	}
}

// TestBlockedCallbackBlocksNoCall shows that Connect returns while OnConnect blocks,
// and Emit while a handler blocks.
func TestBlockedCallbackBlocksNoCall(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.create(cluster.Spec{Name: "a", Limits: manual})
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	release := make(chan struct{})
	a.OnConnect(func(context.Context) { <-release })
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Connect(within(t, soon), addr(b)); err != nil {
		t.Errorf("Connect while OnConnect blocks: %v", err)
	}
	in := listen(t, b.Broadcast(), "x")
	b.Broadcast().On("x", func(context.Context, *smokesignal.Event) { <-release })
	emitNumbers(t, a.Broadcast(), "x", 50) // Emit does not wait for the handler
	in.wait(1, soon)
	close(release)
	wantNumbers(t, "b", in.wait(50, soon), 50)
	l.wait(soon, "the other callbacks ran", func(s *checker.State) bool { return len(s.Proc("a").Peers) == 1 })
}

// TestBusCarriesTheCallbacks shows that the host's event bus gets the same changes in
// the same order as the callbacks.
func TestBusCarriesTheCallbacks(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.create(cluster.Spec{Name: "a", Limits: manual})
	sub, err := a.Host().EventBus().Subscribe([]any{
		new(smokesignal.EvtConnected), new(smokesignal.EvtDisconnected), new(smokesignal.EvtPeerAdded), new(smokesignal.EvtPeerRemoved),
	}, eventbus.BufSize(16))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	l.link(a, b)
	l.close(b)
	var got []string
	for range 4 {
		ev := next(t, sub.Out())
		got = append(got, strings.TrimPrefix(fmt.Sprintf("%T", ev), "smokesignal."))
		switch ev := ev.(type) {
		case smokesignal.EvtPeerAdded:
			if ev.Peer != b.ID() {
				t.Errorf("%+v", ev)
			}
		case smokesignal.EvtPeerRemoved:
			if ev.Peer != b.ID() || ev.Reason == nil {
				t.Errorf("%+v", ev)
			}
		}
	}
	if want := []string{"EvtConnected", "EvtPeerAdded", "EvtDisconnected", "EvtPeerRemoved"}; !slices.Equal(got, want) {
		t.Errorf("the bus carried %v, want %v", got, want)
	}
}
