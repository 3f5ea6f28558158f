package integration_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestAnyNodeByID: the first Emit to a node that is not a neighbor finds it through
// the network, and so does a Call, or a TryEmit; many at once do not disturb each
// other.
func TestAnyNodeByID(t *testing.T) {
	t.Parallel()
	_, nodes := line(t, 5)
	var all sync.WaitGroup
	unconnected := 0
	for _, to := range nodes {
		got := listen(t, to.Direct(), "hello")
		smokesignal.Call[int, int]("double").Handle(to.Direct(), func(_ context.Context, _ peer.ID, n int) (int, error) { return 2 * n, nil })
		from := 0
		for _, n := range nodes {
			if n == to {
				continue
			}
			from++
			if n.Host().Network().Connectedness(to.ID()) != network.Connected {
				unconnected++
			}
			for i := range 3 {
				all.Go(func() {
					if err := n.Peer(to.ID()).Emit(within(t, soon), "hello", i); err != nil {
						t.Error(err)
					}
				})
			}
			all.Go(func() {
				if answer, err := smokesignal.Call[int, int]("double").Do(within(t, soon), n.Peer(to.ID()), 21); err != nil || answer != 42 {
					t.Errorf("the call returned %d, %v", answer, err)
				}
			})
		}
		all.Go(func() { got.wait(3*from, soon) })
	}
	all.Wait()
	// The overlay may link any of them meanwhile, as it looks after itself.
	if t.Logf("%d pairs were not connected", unconnected); unconnected < 4 {
		t.Errorf("only %d pairs were not connected, so little was tried", unconnected)
	}
	for _, to := range nodes[1:] {
		if err := nodes[0].Peer(to.ID()).TryEmit("hello", 3); err != nil {
			t.Error(err)
		}
	}
	if err := nodes[0].Flush(within(t, soon)); err != nil {
		t.Errorf("TryEmit: %v", err)
	}
}

// TestNodeThatMovedIsFound: an address that is out of date is not the end.
func TestNodeThatMovedIsFound(t *testing.T) {
	t.Parallel()
	l, nodes := line(t, 4)
	file := smokesignal.IdentityFile(t.TempDir() + "/id")
	before := l.start(cluster.Spec{Name: "before", Limits: manual}, file)
	l.link(nodes[3], before)
	at := addr(before)
	nodes[0].Host().Peerstore().AddAddrs(before.ID(), before.Host().Addrs(), time.Hour) // as after a visit
	if err := l.close(before); err != nil {
		t.Fatal(err)
	}
	patience := within(t, soon)
	for _, n := range nodes { // until the last packet of the old process has come
		for n.Host().Network().Connectedness(before.ID()) == network.Connected {
			select {
			case <-time.After(time.Millisecond):
			case <-patience.Done():
				t.Fatal("a connection to a closed node stays")
			}
		}
	}
	after := l.start(cluster.Spec{Name: "after", Limits: joins, Seeds: []string{addr(nodes[3])}}, file)
	if after.ID() != before.ID() || addr(after) == at {
		t.Fatal("it is the same address, or another node")
	}
	if err := after.Ready(within(t, soon)); err != nil {
		t.Fatal(err)
	}
	got := listen(t, after.Direct(), "hello")
	if err := nodes[0].Peer(after.ID()).Emit(within(t, soon), "hello", 1); err != nil {
		t.Fatal(err)
	}
	got.wait(1, soon)
}

// TestUnknownPeer: the error says what was tried, on what, and what to do, and is
// of its own kind; it comes by itself, without a deadline.
func TestUnknownPeer(t *testing.T) {
	t.Parallel()
	l, nodes := line(t, 2)
	id := unknownID(t)
	err := nodes[0].Peer(id).Emit(within(t, soon), "hello")
	if !errors.Is(err, smokesignal.ErrUnknownPeer) || !errors.Is(err, smokesignal.ErrNotConnected) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Emit returned %v", err)
	}
	want := fmt.Sprintf(`events: emit "hello" to %s: not connected: unknown peer: asked over 1 link, and nobody in network "default" knows where it is; is it running, and connected to the network?`, id)
	if err == nil || err.Error() != want {
		t.Errorf("Emit says\n%v, want\n%s", err, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := nodes[0].Peer(id).Emit(ctx, "hello"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Emit with little time returned %v", err)
	}
	lonely := l.start(cluster.Spec{Name: "lonely", Limits: manual})
	if err := lonely.Peer(id).Emit(t.Context(), "hello"); !errors.Is(err, smokesignal.ErrUnknownPeer) || !strings.Contains(err.Error(), "no peers to ask") {
		t.Errorf("Emit of a node without peers returned %v", err)
	}
	if err := lonely.Peer(lonely.ID()).Emit(t.Context(), "hello"); !errors.Is(err, smokesignal.ErrSelf) {
		t.Errorf("Emit to itself returned %v", err)
	}
}

// TestRouting: other libp2p code finds any node by its id.
func TestRouting(t *testing.T) {
	t.Parallel()
	l, nodes := line(t, 4)
	first, last := nodes[0], nodes[len(nodes)-1]
	info, err := first.Routing().FindPeer(within(t, soon), last.ID())
	if err != nil || info.ID != last.ID() || len(info.Addrs) == 0 {
		t.Fatalf("FindPeer returned %v, %v", info, err)
	}
	for _, a := range info.Addrs {
		if !ma.Contains(last.Host().Addrs(), a) {
			t.Errorf("FindPeer returned %v, want of %v", a, last.Host().Addrs())
		}
	}
	id := unknownID(t)
	_, err = first.Routing().FindPeer(within(t, soon), id)
	if !errors.Is(err, routing.ErrNotFound) || !errors.Is(err, smokesignal.ErrUnknownPeer) || !strings.HasPrefix(err.Error(), "smokesignal: find peer "+id.String()+": unknown peer: ") {
		t.Errorf("FindPeer of nobody returned %v", err)
	}
	n := l.create(cluster.Spec{Name: "later"})
	if _, err := n.Routing().FindPeer(t.Context(), last.ID()); !errors.Is(err, smokesignal.ErrNotStarted) {
		t.Errorf("before Start: FindPeer returned %v", err)
	}
	if err := l.close(first); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Routing().FindPeer(t.Context(), last.ID()); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("after Close: FindPeer returned %v", err)
	}
}

// TestCloseEndsALookup: a search under way does not hold up Close.
func TestCloseEndsALookup(t *testing.T) {
	t.Parallel()
	l, nodes := line(t, 2)
	id := unknownID(t)
	result := make(chan error, 1)
	go func() {
		_, err := nodes[0].Routing().FindPeer(context.WithoutCancel(t.Context()), id)
		result <- err
	}()
	began := time.Now()
	if err := l.close(nodes[0]); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		if !errors.Is(err, smokesignal.ErrClosed) {
			t.Errorf("FindPeer returned %v", err)
		}
	case <-time.After(soon):
		t.Error("FindPeer waits for ever")
	}
	if d := time.Since(began); d > 3*time.Second*slow {
		t.Errorf("closing took %v", d)
	}
}
