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

// TestCloseLeavesNothing: no goroutine, protocol handler or stream is left,
// however and whenever a node is closed.
func TestCloseLeavesNothing(t *testing.T) {
	node := func(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
		t.Helper()
		n, err := smokesignal.New(append([]smokesignal.Option{smokesignal.Listen("127.0.0.1:0"), smokesignal.PeerLimits(1, 10)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	started := func(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
		t.Helper()
		n := node(t, opts...)
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	two := func(t *testing.T) (a, b *smokesignal.Node) {
		t.Helper()
		a = started(t)
		b = started(t, smokesignal.Seeds(addr(a)))
		for _, n := range []*smokesignal.Node{a, b} {
			if err := n.Ready(within(t, soon)); err != nil {
				t.Fatal(err)
			}
		}
		return a, b
	}

	t.Run("start and close", func(t *testing.T) {
		cycles := 20
		if chosen() == full {
			cycles = 1000
		}
		leavesNothing(t, cycles, func(t *testing.T) {
			a, b := two(t)
			if err := a.Broadcast().Emit(t.Context(), "x", 1); err != nil {
				t.Error(err)
			}
			if err := a.Peer(b.ID()).Emit(t.Context(), "x", 1); err != nil {
				t.Error(err)
			}
			closed(t, a, b)
		})
	})
	t.Run("before start", func(t *testing.T) {
		leavesNothing(t, 5, func(t *testing.T) { closed(t, node(t)) })
	})
	t.Run("a start that failed", func(t *testing.T) {
		busy := started(t)
		defer busy.Close()
		at := busy.Addrs()[0].String()
		leavesNothing(t, 5, func(t *testing.T) {
			n := node(t, smokesignal.Listen(strings.Split(at, "/p2p/")[0]))
			if err := n.Start(t.Context()); err == nil {
				t.Error("two nodes on one port")
			}
			closed(t, n)
		})
	})
	t.Run("a New that failed", func(t *testing.T) {
		leavesNothing(t, 5, func(t *testing.T) {
			for _, opt := range []smokesignal.Option{smokesignal.MaxEventSize(-1), smokesignal.Listen("here"), smokesignal.Subnet("203.0.113.0/24"), smokesignal.IdentityFile(t.TempDir())} {
				if n, err := smokesignal.New(opt); err == nil {
					n.Close()
					t.Error("New of something impossible returned a node")
				}
			}
		})
	})
	t.Run("twice, from several goroutines", func(t *testing.T) {
		leavesNothing(t, 5, func(t *testing.T) {
			a, b := two(t)
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
	})
	t.Run("while it looks for its seed", func(t *testing.T) {
		at := hostPort(freePort(t))
		leavesNothing(t, 5, func(t *testing.T) { closed(t, started(t, smokesignal.Seeds(at, "no-such-host.invalid:1"))) })
	})
	t.Run("while somebody waits", func(t *testing.T) {
		leavesNothing(t, 5, func(t *testing.T) {
			a := started(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := a.Ready(context.Background()); !errors.Is(err, smokesignal.ErrClosed) {
					t.Errorf("Ready returned %v, want ErrClosed", err)
				}
			})
			s := a.Broadcast().Pipe()
			wg.Go(func() {
				if _, err := s.Read(make([]byte, 1)); err == nil {
					t.Error("Read returned no error")
				}
			})
			closed(t, a)
			waits := make(chan struct{})
			go func() { wg.Wait(); close(waits) }()
			select {
			case <-waits:
			case <-time.After(soon):
				t.Error("Close leaves somebody waiting")
			}
			s.Close()
			<-waits
		})
	})
	t.Run("from a handler", func(t *testing.T) {
		for where, register := range map[string]func(n *smokesignal.Node, f func(context.Context)){
			"connect": func(n *smokesignal.Node, f func(context.Context)) { n.OnConnect(f) },
			"add": func(n *smokesignal.Node, f func(context.Context)) {
				n.Peers().OnAdd(func(ctx context.Context, _ *smokesignal.Peer) { f(ctx) })
			},
			"direct": func(n *smokesignal.Node, f func(context.Context)) {
				n.Direct().On("x", func(ctx context.Context, _ *smokesignal.Event) { f(ctx) })
			},
			"broadcast": func(n *smokesignal.Node, f func(context.Context)) {
				n.Broadcast().On("x", func(ctx context.Context, _ *smokesignal.Event) { f(ctx) })
			},
		} {
			t.Run(where, func(t *testing.T) {
				leavesNothing(t, 1, func(t *testing.T) {
					a, b := node(t), node(t)
					var took atomic.Int64
					register(b, func(ctx context.Context) {
						began := time.Now()
						if err := b.Shutdown(ctx); err != nil {
							t.Errorf("Shutdown in %s: %v", where, err)
						}
						took.Store(int64(time.Since(began)))
					})
					for _, n := range []*smokesignal.Node{a, b} {
						if err := n.Start(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					// Each of these fails if b is quick.
					ctx := within(t, 300*time.Millisecond)
					a.Connect(ctx, addr(b))
					a.Peer(b.ID()).Emit(ctx, "x")
					a.Broadcast().Emit(ctx, "x")
					select {
					case <-b.Done():
					case <-time.After(soon):
						t.Fatalf("Shutdown in %s does not end", where)
					}
					closed(t, a, b) // waits for the handler
					if d := time.Duration(took.Load()); d > 3*slow*time.Second {
						t.Errorf("Shutdown in %s took %v: it waited for itself", where, d)
					}
				})
			})
		}
	})
	t.Run("while 64 goroutines emit", func(t *testing.T) {
		leavesNothing(t, 3, func(t *testing.T) {
			a, b := two(t)
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
			began := time.Now()
			closed(t, a)
			if took := time.Since(began); took > 11*slow*time.Second {
				t.Errorf("Close took %v", took)
			}
			wg.Wait() // every Emit has returned
			closed(t, b)
		})
	})
	t.Run("with a frozen peer", func(t *testing.T) {
		c := cluster.New(t)
		p := c.Start(cluster.Spec{Name: "frozen", Listen: []string{cluster.TCP}, Limits: manual})
		id := p.Addr()
		leavesNothing(t, 1, func(t *testing.T) {
			const timeout = time.Second
			a := started(t, smokesignal.CloseTimeout(timeout))
			peer, err := a.Connect(within(t, soon), id)
			if err != nil {
				t.Fatal(err)
			}
			c.Wait(soon, "linked", func(s *checker.State) bool { return len(s.Proc("frozen").Peers) == 1 })
			p.Stop()
			for range 20 {
				peer.Emit(within(t, 100*time.Millisecond), "x", make([]byte, 64<<10))
			}
			a.Broadcast().Emit(within(t, time.Second), "x", make([]byte, 64<<10))
			began := time.Now()
			closed(t, a)
			took := time.Since(began)
			t.Logf("Close beside a frozen peer took %v", took.Round(time.Millisecond))
			// One wait for what was sent, a second for the farewell; no handler runs.
			if took > timeout+2*slow*time.Second {
				t.Errorf("Close took %v, with a CloseTimeout of %v", took, timeout)
			}
			p.Continue()
			c.Wait(soon, "the peer has noticed", func(s *checker.State) bool { return len(s.Proc("frozen").Peers) == 0 })
		})
	})
	t.Run("after its peers, who went before it", func(t *testing.T) {
		// What is left then are attempts to reach the dead, which no Close waits for.
		leavesNothing(t, 1, func(t *testing.T) {
			nodes := []*smokesignal.Node{started(t, smokesignal.PeerLimits(3, 5))}
			for range 5 {
				nodes = append(nodes, started(t, smokesignal.PeerLimits(3, 5), smokesignal.Seeds(addr(nodes[0]))))
			}
			for _, n := range nodes {
				for deadline := time.Now().Add(soon); n.Peers().Len() < 3 && time.Now().Before(deadline); {
					time.Sleep(5 * time.Millisecond) // nobody watches the log here
				}
			}
			for i, n := range nodes {
				began := time.Now()
				closed(t, n)
				if took := time.Since(began); took > 2*slow*time.Second {
					t.Errorf("Close of node %d took %v", i, took)
				}
			}
		})
	})
	t.Run("with a handler that does not return", func(t *testing.T) {
		leavesNothing(t, 1, func(t *testing.T) {
			a := started(t, smokesignal.CloseTimeout(300*time.Millisecond))
			b := started(t, smokesignal.Seeds(addr(a)))
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
	})
}

// TestEndsWithItsProcess is the same from outside: a node program that is told
// to close ends, in whatever state its peers are.
func TestEndsWithItsProcess(t *testing.T) {
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
