package integration_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
)

// The tests of this file look for goroutines left behind, so they run alone:
// no t.Parallel here. Each runs its scenario once to warm up what libraries
// start once in a process, then counts.

// leavesNothing runs the scenario, which closes all its nodes itself, and fails
// if a goroutine stays.
func leavesNothing(t *testing.T, cycles int, scenario func(t *testing.T)) {
	t.Helper()
	scenario(t)
	noneLeft := leaks.Watch(t)
	began := time.Now()
	for range cycles {
		if scenario(t); t.Failed() {
			return
		}
	}
	t.Logf("%d cycles, %v each", cycles, (time.Since(began) / time.Duration(max(cycles, 1))).Round(time.Millisecond))
	noneLeft()
}

// closed closes the nodes and fails unless nothing of theirs is left: no
// connection, so no stream, no protocol handler of ours, no listener.
func closed(t *testing.T, nodes ...*smokesignal.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for _, p := range n.Host().Mux().Protocols() {
			if strings.HasPrefix(string(p), "/smokesignal/") || strings.Contains(string(p), "floodsub") || strings.Contains(string(p), "meshsub") {
				t.Errorf("the handler of %s is left", p)
			}
		}
		if conns := n.Host().Network().Conns(); len(conns) > 0 {
			t.Errorf("%d connections are left", len(conns))
		}
		if at := n.Host().Network().ListenAddresses(); len(at) > 0 {
			t.Errorf("it listens on %v", at)
		}
		if got := n.Peers().Len(); got != 0 || n.Connected() {
			t.Errorf("%d peers are left, connected=%v", got, n.Connected())
		}
	}
}

// idleNode returns a node that is not started. Later options override its own.
func idleNode(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
	t.Helper()
	n, err := smokesignal.New(append([]smokesignal.Option{smokesignal.Listen("127.0.0.1:0"), smokesignal.PeerLimits(1, 10)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func startedNode(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
	t.Helper()
	n := idleNode(t, opts...)
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// linkedNodes returns two nodes that are neighbors.
func linkedNodes(t *testing.T) (a, b *smokesignal.Node) {
	t.Helper()
	a = startedNode(t)
	b = startedNode(t, smokesignal.Seeds(addr(a)))
	for _, n := range []*smokesignal.Node{a, b} {
		if err := n.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// closedWithin closes the node and fails if that takes longer than most.
func closedWithin(t *testing.T, most time.Duration, n *smokesignal.Node) {
	t.Helper()
	began := time.Now()
	closed(t, n)
	if took := time.Since(began); took > most {
		t.Errorf("Close took %v, at most %v is allowed", took.Round(time.Millisecond), most)
	}
}

// A node that was started and closed leaves no goroutine.
func TestStartAndCloseLeaveNothing(t *testing.T) {
	cycles := 20
	if chosen() == full {
		cycles = 1000
	}
	leavesNothing(t, cycles, func(t *testing.T) {
		a, b := linkedNodes(t)
		if err := a.Broadcast().Emit(t.Context(), "x", 1); err != nil {
			t.Error(err)
		}
		if err := a.Peer(b.ID()).Emit(t.Context(), "x", 1); err != nil {
			t.Error(err)
		}
		closed(t, a, b)
	})
}

// A node that is closed without having been started leaves nothing.
func TestCloseBeforeStartLeavesNothing(t *testing.T) {
	leavesNothing(t, 5, func(t *testing.T) { closed(t, idleNode(t)) })
}

// A failed Start leaves nothing.
func TestAStartThatFailedLeavesNothing(t *testing.T) {
	busy := startedNode(t)
	defer busy.Close()
	at := busy.Addrs()[0].String()
	leavesNothing(t, 5, func(t *testing.T) {
		n := idleNode(t, smokesignal.Listen(strings.Split(at, "/p2p/")[0]))
		if err := n.Start(t.Context()); err == nil {
			t.Error("two nodes on one port")
		}
		closed(t, n)
	})
}

// A failed New leaves nothing.
func TestANewThatFailedLeavesNothing(t *testing.T) {
	leavesNothing(t, 5, func(t *testing.T) {
		for _, opt := range []smokesignal.Option{smokesignal.MaxEventSize(-1), smokesignal.Listen("here"), smokesignal.Subnet("203.0.113.0/24"), smokesignal.IdentityFile(t.TempDir())} {
			if n, err := smokesignal.New(opt); err == nil {
				n.Close()
				t.Error("New of something impossible returned a node")
			}
		}
	})
}

// Close called by several goroutines at once leaves nothing.
func TestCloseFromSeveralGoroutinesLeavesNothing(t *testing.T) {
	leavesNothing(t, 5, func(t *testing.T) {
		a, b := linkedNodes(t)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		closed(t, a, b)
	})
}

// Close during the search for seeds leaves nothing.
func TestCloseDuringTheSearchForSeedsLeavesNothing(t *testing.T) {
	at := hosttest.FreeAddress(t)
	leavesNothing(t, 5, func(t *testing.T) {
		closed(t, startedNode(t, smokesignal.Seeds(at, "no-such-host.invalid:1")))
	})
}

// Close unblocks Ready and the reads of pipes.
func TestCloseEndsReadyAndReads(t *testing.T) {
	leavesNothing(t, 5, func(t *testing.T) {
		a := startedNode(t)
		var waiters sync.WaitGroup
		waiters.Go(func() {
			if err := a.Ready(context.Background()); !errors.Is(err, smokesignal.ErrClosed) {
				t.Errorf("Ready returned %v, want ErrClosed", err)
			}
		})
		s := a.Broadcast().Pipe()
		waiters.Go(func() {
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Error("Read returned no error")
			}
		})
		closed(t, a)
		ended := make(chan struct{})
		go func() { waiters.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(soon):
			t.Error("Ready or Read still waits after Close")
		}
		s.Close()
		<-ended
	})
}

// closesItself runs a node b that calls Shutdown with the context of a handler, which
// register adds to b. trigger makes the node a call the handler.
func closesItself(t *testing.T, register func(b *smokesignal.Node, f func(context.Context)), trigger func(a, b *smokesignal.Node)) {
	t.Helper()
	leavesNothing(t, 1, func(t *testing.T) {
		a, b := idleNode(t), idleNode(t)
		var took atomic.Int64
		register(b, func(ctx context.Context) {
			began := time.Now()
			if err := b.Shutdown(ctx); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			took.Store(int64(time.Since(began)))
		})
		for _, n := range []*smokesignal.Node{a, b} {
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		trigger(a, b)
		select {
		case <-b.Done():
		case <-time.After(soon):
			t.Fatal("Shutdown in a handler does not end")
		}
		closed(t, a, b) // waits for the handler
		if d := time.Duration(took.Load()); d > 3*slow*time.Second {
			t.Errorf("Shutdown took %v: it waited for its own handler", d)
		}
	})
}

// connectToCloser connects a to b, which closes itself at that moment: Connect may fail.
func connectToCloser(t *testing.T, a, b *smokesignal.Node) {
	t.Helper()
	_, err := a.Connect(within(t, soon), addr(b))
	t.Logf("Connect returned %v", err)
}

// mustConnect links a to b.
func mustConnect(t *testing.T, a, b *smokesignal.Node) {
	t.Helper()
	if _, err := a.Connect(within(t, soon), addr(b)); err != nil {
		t.Fatal(err)
	}
}

// A node may close itself in OnConnect.
func TestANodeMayCloseItselfInOnConnect(t *testing.T) {
	closesItself(t, func(b *smokesignal.Node, f func(context.Context)) { b.OnConnect(f) },
		func(a, b *smokesignal.Node) { connectToCloser(t, a, b) })
}

// A node may close itself in OnAdd.
func TestANodeMayCloseItselfInOnAdd(t *testing.T) {
	closesItself(t, func(b *smokesignal.Node, f func(context.Context)) {
		b.Peers().OnAdd(func(ctx context.Context, _ *smokesignal.Peer) { f(ctx) })
	}, func(a, b *smokesignal.Node) { connectToCloser(t, a, b) })
}

// A node may close itself in a handler of direct events.
func TestANodeMayCloseItselfInADirectHandler(t *testing.T) {
	closesItself(t, func(b *smokesignal.Node, f func(context.Context)) {
		b.Direct().On("x", func(ctx context.Context, _ *smokesignal.Event) { f(ctx) })
	}, func(a, b *smokesignal.Node) {
		mustConnect(t, a, b)
		if err := a.Peer(b.ID()).Emit(within(t, soon), "x"); err != nil {
			t.Fatal(err)
		}
	})
}

// A node may close itself in a handler of broadcasts.
func TestANodeMayCloseItselfInABroadcastHandler(t *testing.T) {
	closesItself(t, func(b *smokesignal.Node, f func(context.Context)) {
		b.Broadcast().On("x", func(ctx context.Context, _ *smokesignal.Event) { f(ctx) })
	}, func(a, b *smokesignal.Node) {
		mustConnect(t, a, b)
		if err := a.Broadcast().Emit(within(t, soon), "x"); err != nil {
			t.Fatal(err)
		}
	})
}

// Close unblocks the emits of 64 goroutines.
func TestCloseEndsTheEmitsOf64Goroutines(t *testing.T) {
	leavesNothing(t, 3, func(t *testing.T) {
		a, b := linkedNodes(t)
		var heard atomic.Int64
		for _, src := range []smokesignal.Source{b.Direct(), b.Broadcast()} {
			src.On("*", func(context.Context, *smokesignal.Event) { heard.Add(1) })
		}
		var wg sync.WaitGroup
		var complain sync.Once // all 64 see the same
		for i := range 64 {
			var to smokesignal.Emitter = a.Broadcast()
			if i%2 == 0 {
				to = a.Peer(b.ID())
			}
			wg.Go(func() {
				for {
					if err := to.Emit(context.Background(), "x", make([]byte, 256)); err != nil {
						if !errors.Is(err, smokesignal.ErrClosed) {
							complain.Do(func() { t.Errorf("%T: Emit during Close returned %v, want ErrClosed", to, err) })
						}
						return
					}
				}
			})
		}
		for heard.Load() < 200 {
			time.Sleep(time.Millisecond) // both nodes are busy with 64 emitters: no event to wait for
		}
		closedWithin(t, 11*slow*time.Second, a)
		wg.Wait() // every Emit has returned
		closed(t, b)
	})
}

// Close of a node with a frozen peer leaves nothing.
func TestCloseWithAFrozenPeerLeavesNothing(t *testing.T) {
	c := cluster.New(t)
	p := c.Start(cluster.Spec{Name: "frozen", Listen: []string{cluster.TCP}, Limits: manual})
	at := p.Addr()
	leavesNothing(t, 1, func(t *testing.T) {
		const timeout = time.Second
		a := startedNode(t, smokesignal.CloseTimeout(timeout))
		peer, err := a.Connect(within(t, soon), at)
		if err != nil {
			t.Fatal(err)
		}
		c.Wait(soon, "linked", func(s *checker.State) bool { return len(s.Proc("frozen").Peers) == 1 })
		p.Stop()
		for range 20 {
			// The later ones fail, as the queue for a peer that reads nothing is full.
			peer.Emit(within(t, 100*time.Millisecond), "x", make([]byte, 64<<10))
		}
		if err := a.Broadcast().Emit(within(t, soon), "x", make([]byte, 64<<10)); err != nil {
			t.Error(err)
		}
		// One wait for the events that were sent, a second for the farewell; no handler runs.
		closedWithin(t, timeout+2*slow*time.Second, a)
		p.Continue()
		c.Wait(soon, "the peer has noticed", func(s *checker.State) bool { return len(s.Proc("frozen").Peers) == 0 })
	})
}

// A process that was killed sends no word over QUIC. Close waited five seconds for it if it
// had not confirmed a broadcast.
func TestCloseDoesNotWaitForAKilledProcess(t *testing.T) {
	c := cluster.New(t)
	p := c.Start(cluster.Spec{Name: "killed", Listen: []string{cluster.QUIC}, Limits: manual})
	a := startedNode(t, smokesignal.Listen(cluster.QUIC))
	if _, err := a.Connect(within(t, soon), p.Addr()); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if err := a.Broadcast().Emit(within(t, soon), "x"); err != nil {
		t.Error(err)
	}
	closedWithin(t, 2*slow*time.Second+time.Second, a)
}

// When the last node closes, only attempts to reach closed nodes are left, and no Close may
// wait for them.
func TestCloseDoesNotWaitForPeersThatClosedBefore(t *testing.T) {
	leavesNothing(t, 1, func(t *testing.T) {
		nodes := []*smokesignal.Node{startedNode(t, smokesignal.PeerLimits(3, 5))}
		for range 5 {
			nodes = append(nodes, startedNode(t, smokesignal.PeerLimits(3, 5), smokesignal.Seeds(addr(nodes[0]))))
		}
		for i, n := range nodes {
			awaitPeers(t, i, n, 3)
		}
		for _, n := range nodes {
			closedWithin(t, 2*slow*time.Second, n)
		}
	})
}

// awaitPeers waits until node i has that many peers.
func awaitPeers(t *testing.T, i int, n *smokesignal.Node, peers int) {
	t.Helper()
	for deadline := time.Now().Add(soon); n.Peers().Len() < peers; {
		if time.Now().After(deadline) {
			t.Fatalf("node %d has %d peers, want %d", i, n.Peers().Len(), peers)
		}
		time.Sleep(5 * time.Millisecond) // the count has no event of its own to wait for
	}
}

// Close waits for a blocked handler only until its timeout.
func TestCloseDoesNotWaitForAHandlerThatDoesNotReturn(t *testing.T) {
	leavesNothing(t, 1, func(t *testing.T) {
		a := startedNode(t, smokesignal.CloseTimeout(300*time.Millisecond))
		b := startedNode(t, smokesignal.Seeds(addr(a)))
		if err := b.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
		entered, release := make(chan struct{}), make(chan struct{})
		a.Direct().On("x", func(ctx context.Context, _ *smokesignal.Event) {
			close(entered)
			<-ctx.Done() // its context ends
			<-release
		})
		if err := b.Peer(a.ID()).Emit(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		<-entered
		began := time.Now()
		a.Close()
		if took := time.Since(began); took > 5*slow*time.Second {
			t.Errorf("Close waited %v for a handler, %v are allowed", took, 300*time.Millisecond)
		}
		close(release)
		closed(t, b)
	})
}

// A program that closes its node ends, in whatever state its peers are.
func TestAProgramThatClosesItsNodeEnds(t *testing.T) {
	t.Parallel()
	needs(t, long)
	c := cluster.New(t)
	seed := c.Start(cluster.Spec{Name: "seed", Listen: []string{cluster.TCP}})
	var procs []*cluster.Proc
	for i := range 3 {
		procs = append(procs, c.Start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Listen: []string{cluster.TCP}, Seeds: []string{seed.Addr()}}))
	}
	c.Wait(soon, "gathered", func(s *checker.State) bool { return s.Gathered(4) })
	seed.Stop()
	for _, p := range procs {
		began := time.Now()
		p.Close()
		if took := time.Since(began); took > 12*slow*time.Second {
			t.Errorf("%s took %v to end", p.Name, took)
		}
	}
}
