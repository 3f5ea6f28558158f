package integration_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestEventsAndOrder: which events come when, and in what order.
func TestEventsAndOrder(t *testing.T) {
	t.Parallel()
	t.Run("adding: connect, peer added, add, on both sides", func(t *testing.T) {
		l, a, b := pair(t)
		l.wantStory(a, "connect", "peer added b", "add b")
		l.wantStory(b, "connect", "peer added a", "add a")
		c := l.start(cluster.Spec{Name: "c", Limits: manual})
		l.link(c, a)
		l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c") // connect for the first alone
		l.check(checker.Config{})
	})
	t.Run("removing: disconnect, peer removed, remove, close, on both sides", func(t *testing.T) {
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
			"disconnect", "peer removed b", "remove b", "close b") // disconnect for the last alone
		l.wantStory(b, "connect", "peer added a", "add a", "disconnect", "peer removed a", "remove a", "close a")
		l.check(checker.Config{})
	})
	t.Run("connect: connected is true inside, a broadcast from it reaches that peer", func(t *testing.T) {
		for round := range 10 {
			l := newLocal(t)
			a := l.create(cluster.Spec{Name: "a", Limits: manual})
			b := l.create(cluster.Spec{Name: "b", Limits: manual})
			type said struct {
				connected bool
				err       error
			}
			inside := make(chan said, 2)
			ins := map[*smokesignal.Node]*inbox{}
			for _, n := range []*smokesignal.Node{a, b} {
				ins[n] = listen(t, n.Broadcast(), "HEYO")
				n.OnConnect(func(ctx context.Context) {
					connected := n.Connected()
					inside <- said{connected, n.Broadcast().Emit(ctx, "HEYO", 0)}
				})
				if err := n.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			l.link(a, b)
			for range 2 {
				if s := <-inside; !s.connected || s.err != nil {
					t.Errorf("round %d: inside connect, connected=%v, Emit returned %v", round, s.connected, s.err)
				}
			}
			for n, in := range ins {
				wantNumbers(t, l.name(n), in.wait(1, soon), 1)
			}
			a.Close()
			b.Close()
		}
	})
	t.Run("add: a peer's direct events come after the add handlers", func(t *testing.T) {
		for range 10 {
			l := newLocal(t)
			a, b := l.create(cluster.Spec{Name: "a", Limits: manual}), l.create(cluster.Spec{Name: "b", Limits: manual})
			var mu sync.Mutex
			var order []string
			note := func(s string) { mu.Lock(); defer mu.Unlock(); order = append(order, s) }
			got := make(chan struct{}, 1)
			b.Peers().OnAdd(func(_ context.Context, p *smokesignal.Peer) {
				p.On("x", func(context.Context, *smokesignal.Event) { note("event"); got <- struct{}{} })
				time.Sleep(20 * time.Millisecond) // a slow handler, which the event must not overtake
				note("added")
			})
			a.Peers().OnAdd(func(ctx context.Context, p *smokesignal.Peer) { p.Emit(ctx, "x") })
			for _, n := range []*smokesignal.Node{a, b} {
				if err := n.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			l.link(a, b)
			select {
			case <-got:
			case <-time.After(soon):
				t.Fatal("the event sent from the add handler is lost")
			}
			mu.Lock()
			if !slices.Equal(order, []string{"added", "event"}) {
				t.Errorf("order %v", order)
			}
			mu.Unlock()
			a.Close()
			b.Close()
		}
	})
	t.Run("disconnect: connected is false inside", func(t *testing.T) {
		l, a, b := pair(t)
		inside := make(chan bool, 1)
		a.OnDisconnect(func(context.Context) { inside <- a.Connected() })
		l.close(b)
		select {
		case connected := <-inside:
			if connected {
				t.Error("connected inside disconnect")
			}
		case <-time.After(soon):
			t.Error("no disconnect")
		}
	})
	t.Run("close: the reason counts what was not written", func(t *testing.T) {
		l, a, b := pair(t)
		reason := make(chan error, 1)
		a.Peer(b.ID()).OnClose(func(_ context.Context, err error) { reason <- err })
		l.close(b)
		select {
		case err := <-reason:
			if e, ok := errors.AsType[*smokesignal.CloseError](err); !ok || e.Peer != b.ID() || e.Unwritten != 0 || e.Err == nil {
				t.Errorf("the reason is %#v", err)
			}
		case <-time.After(soon):
			t.Error("no close")
		}
	})
	t.Run("callbacks: none runs inside the call that causes it", func(t *testing.T) {
		l := newLocal(t)
		a := l.create(cluster.Spec{Name: "a", Limits: manual})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		release := make(chan struct{})
		a.OnConnect(func(context.Context) { <-release })
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Connect(within(t, soon), addr(b)); err != nil {
			t.Errorf("Connect beside a callback that blocks: %v", err)
		}
		in := listen(t, b.Broadcast(), "x")
		b.Broadcast().On("x", func(context.Context, *smokesignal.Event) { <-release })
		emitNumbers(t, a.Broadcast(), "x", 50) // nor a handler inside Emit
		in.wait(1, soon)
		close(release)
		wantNumbers(t, "b", in.wait(50, soon), 50)
		l.wait(soon, "the callbacks go on", func(s *checker.State) bool { return len(s.Proc("a").Peers) == 1 })
	})
	t.Run("bus: the same events, in the same order, on the host's event bus", func(t *testing.T) {
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
		for len(got) < 4 {
			select {
			case ev := <-sub.Out():
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
			case <-time.After(soon):
				t.Fatalf("only %v came", got)
			}
		}
		if want := []string{"EvtConnected", "EvtPeerAdded", "EvtDisconnected", "EvtPeerRemoved"}; !slices.Equal(got, want) {
			t.Errorf("the bus told %v, want %v", got, want)
		}
	})
}

// TestRules: what holds of joining, rejoining and delivering.
func TestRules(t *testing.T) {
	t.Parallel()
	t.Run("peer request: a joiner gets peers beyond its seed", func(t *testing.T) {
		l := newLocal(t)
		seed := l.start(cluster.Spec{Name: "seed"})
		for i := range 3 {
			l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Seeds: []string{addr(seed)}})
		}
		l.wait(gatherWithin, "four complete", func(s *checker.State) bool { return s.Gathered(4) })
		l.check(checker.Config{Whole: true})
	})
	t.Run("rejoin: at once after the last peer is gone", func(t *testing.T) {
		l := newLocal(t)
		at := hostPort(freePort(t))
		seed := l.start(cluster.Spec{Name: "seed", Listen: []string{at}})
		a := l.start(cluster.Spec{Name: "a", Seeds: []string{at}})
		l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
		l.close(seed)
		l.wait(soon, "disconnect", func(s *checker.State) bool { return s.Proc("a").Counts[checker.Disconnect] == 1 })
		l.start(cluster.Spec{Name: "seed+1", Listen: []string{at}}) // with a new id
		took := l.wait(10*time.Second, "rejoined", func(s *checker.State) bool { return s.Gathered(2) })
		t.Logf("rejoined %v after the seed was back", took.Round(time.Millisecond))
		if st := a.Seeds()[0]; st.Err != nil || !st.Linked {
			t.Errorf("the seed's state is %+v", st)
		}
		l.check(checker.Config{Whole: true})
	})
	t.Run("rejoin: without seeds through known addresses", func(t *testing.T) {
		l := newLocal(t)
		hub := l.start(cluster.Spec{Name: "hub"})
		l.start(cluster.Spec{Name: "a", Seeds: []string{addr(hub)}})
		l.start(cluster.Spec{Name: "b", Seeds: []string{addr(hub)}})
		l.wait(soon, "three linked", func(s *checker.State) bool { return s.Gathered(3) })
		l.close(hub)
		l.wait(soon, "a and b have each other", func(s *checker.State) bool { return s.Gathered(2) })
	})
	t.Run("own broadcasts are not heard, nor own direct events", func(t *testing.T) {
		_, a, b := pair(t)
		own, all := listen(t, a.Broadcast(), "*"), listen(t, a.Direct(), "*")
		in := listen(t, b.Broadcast(), "x")
		emitNumbers(t, a.Broadcast(), "x", 10)
		in.wait(10, soon)
		back := listen(t, a.Broadcast(), "back")
		emitNumbers(t, b.Broadcast(), "back", 1) // behind whatever might have come back
		back.wait(1, soon)
		for _, h := range own.wait(1, soon) {
			if h.From == a.ID() {
				t.Errorf("a heard its own %q", h.Name)
			}
		}
		if n := all.count(); n != 0 {
			t.Errorf("a heard %d direct events", n)
		}
	})
	t.Run("exactly once and in order, in a network full of cycles", func(t *testing.T) {
		const n, each = 6, 60 / slow
		l := newLocal(t)
		var nodes []*smokesignal.Node
		for i := range n {
			node := l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual})
			for _, other := range nodes {
				l.link(node, other)
			}
			nodes = append(nodes, node)
		}
		var ins []*inbox
		for _, node := range nodes {
			ins = append(ins, listen(t, node.Broadcast(), "x"))
		}
		var wg sync.WaitGroup
		for _, node := range nodes {
			wg.Go(func() { emitNumbers(t, node.Broadcast(), "x", each) })
		}
		wg.Wait()
		for i, in := range ins {
			by := map[smokesignal.ID][]heard{}
			for _, h := range in.wait((n-1)*each, soon) {
				by[h.From] = append(by[h.From], h)
			}
			if len(by) != n-1 {
				t.Errorf("n%d heard %d senders", i, len(by))
			}
			for from, got := range by {
				wantNumbers(t, fmt.Sprintf("n%d from %s", i, l.names[from.String()]), got, each)
			}
		}
	})
	t.Run("order per sender holds when a link appears meanwhile", func(t *testing.T) {
		n := many(1000)
		l := newLocal(t)
		var line []*smokesignal.Node
		for i := range 4 {
			line = append(line, l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual}))
			if i > 0 {
				l.link(line[i-1], line[i])
			}
		}
		in := listen(t, line[3].Broadcast(), "x")
		sent := make(chan struct{})
		go func() { defer close(sent); emitNumbers(t, line[0].Broadcast(), "x", n) }()
		in.wait(n/10, soon)
		l.link(line[0], line[3]) // a short cut
		<-sent
		wantNumbers(t, "the far end", in.wait(n, soon), n)
	})
	t.Run("an event nobody listens to is passed on", func(t *testing.T) {
		l := newLocal(t)
		a, b, c := l.start(cluster.Spec{Name: "a", Limits: manual}), l.start(cluster.Spec{Name: "b", Limits: manual}), l.start(cluster.Spec{Name: "c", Limits: manual})
		l.link(a, b)
		l.link(b, c)
		in := listen(t, c.Broadcast(), "x") // b listens to nothing
		emitNumbers(t, a.Broadcast(), "x", 100)
		wantNumbers(t, "c", in.wait(100, soon), 100)
	})
	t.Run("without a first peer a broadcast is an error", func(t *testing.T) {
		a := newLocal(t).start(cluster.Spec{Name: "a"})
		if err := a.Broadcast().Emit(t.Context(), "x"); !errors.Is(err, smokesignal.ErrNoPeers) {
			t.Errorf("Emit returned %v, want ErrNoPeers", err)
		}
	})
	t.Run("arguments: all that JSON can say, and bytes", func(t *testing.T) {
		_, a, b := pair(t)
		in := listen(t, b.Direct(), "x")
		long := strings.Repeat("ключ 漢字 🔑 ", 16_000) // about 400 kB
		when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		raw := []byte("\x00\xff not JSON {")
		if err := a.Peer(b.ID()).Emit(t.Context(), "x", nil, true, -0.5, long, when, []string{"a", "b"}, map[string]int{"k": 1}, raw); err != nil {
			t.Fatal(err)
		}
		ev := in.wait(1, soon)[0].Ev
		var (
			null    *int
			yes     bool
			half    float64
			text    string
			date    time.Time
			list    []string
			dict    map[string]int
			rawBack []byte
		)
		if err := ev.Decode(&null, &yes, &half, &text, &date, &list, &dict, &rawBack); err != nil {
			t.Fatal(err)
		}
		if null != nil || !yes || half != -0.5 || text != long || !date.Equal(when) || !slices.Equal(list, []string{"a", "b"}) || dict["k"] != 1 || !slices.Equal(rawBack, raw) {
			t.Errorf("got %v %v %v %d bytes %v %v %v %q", null, yes, half, len(text), date, list, dict, rawBack)
		}
	})
	t.Run("too large is an error on both channels, the largest arrives", func(t *testing.T) {
		_, a, b := pair(t)
		direct, broadcast := listen(t, b.Direct(), "x"), listen(t, b.Broadcast(), "x")
		for _, to := range []smokesignal.Emitter{a.Peer(b.ID()), a.Broadcast()} {
			if err := to.Emit(t.Context(), "x", make([]byte, smokesignal.DefaultMaxEventSize+1)); !errors.Is(err, smokesignal.ErrTooLarge) {
				t.Errorf("%T: Emit of 512 KiB and a byte returned %v, want ErrTooLarge", to, err)
			}
			if err := to.Emit(t.Context(), "x", make([]byte, smokesignal.DefaultMaxEventSize-64)); err != nil {
				t.Errorf("%T: Emit of almost 512 KiB returned %v", to, err)
			}
		}
		for _, in := range []*inbox{direct, broadcast} {
			if b, ok := in.wait(1, soon)[0].Ev.Bytes(0); !ok || len(b) != smokesignal.DefaultMaxEventSize-64 {
				t.Errorf("%d bytes arrived", len(b))
			}
		}
	})
	t.Run("a name that is none is an error", func(t *testing.T) {
		_, a, b := pair(t)
		for _, name := range []string{"", "*", strings.Repeat("n", 129), "\xff"} {
			for _, to := range []smokesignal.Emitter{a.Peer(b.ID()), a.Broadcast()} {
				if err := to.Emit(t.Context(), name); !errors.Is(err, smokesignal.ErrBadName) {
					t.Errorf("%T: Emit %q returned %v, want ErrBadName", to, name, err)
				}
			}
		}
	})
	t.Run("a handler that panics ends nothing", func(t *testing.T) {
		_, a, b := pair(t)
		b.Direct().On("x", func(context.Context, *smokesignal.Event) { panic("a handler of the test") })
		b.Broadcast().On("x", func(context.Context, *smokesignal.Event) { panic("a handler of the test") })
		direct, broadcast := listen(t, b.Direct(), "x"), listen(t, b.Broadcast(), "x")
		emitNumbers(t, a.Peer(b.ID()), "x", 5)
		emitNumbers(t, a.Broadcast(), "x", 5)
		wantNumbers(t, "b", direct.wait(5, soon), 5)
		wantNumbers(t, "b", broadcast.wait(5, soon), 5)
	})
	t.Run("a slow direct handler slows its sender alone", func(t *testing.T) {
		l, a, b := pair(t)
		c := l.start(cluster.Spec{Name: "c", Limits: manual})
		l.link(b, c)
		release := make(chan struct{})
		b.Peer(a.ID()).On("x", func(context.Context, *smokesignal.Event) { <-release })
		defer close(release)
		fromC := listen(t, b.Peer(c.ID()), "x")
		emitNumbers(t, a.Peer(b.ID()), "x", 1)
		emitNumbers(t, c.Peer(b.ID()), "x", 200)
		wantNumbers(t, "b, from c,", fromC.wait(200, soon), 200)
	})
}

// TestAnsweringFromHandlers: two nodes that answer each other's events from
// their handlers at full speed do not lock up, on either channel.
func TestAnsweringFromHandlers(t *testing.T) {
	t.Parallel()
	for _, channel := range []string{checker.Direct, checker.Broadcast} {
		t.Run(channel, func(t *testing.T) {
			const chains = 600    // events under way at once: more than a queue holds
			total := many(20_000) // answers
			if channel == checker.Broadcast {
				total = many(2000) // each of them is signed
			}
			_, a, b := pair(t)
			var mu sync.Mutex
			var complain sync.Once
			answers, done := 0, make(chan struct{})
			for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
				var to smokesignal.Emitter = n.Broadcast()
				var from smokesignal.Source = n.Broadcast()
				if channel == checker.Direct {
					to, from = n.Peer(other.ID()), n.Direct()
				}
				from.On("ball", func(ctx context.Context, ev *smokesignal.Event) {
					mu.Lock()
					answers++
					if answers == total {
						close(done)
					}
					more := answers < total
					mu.Unlock()
					if more {
						if err := to.Emit(ctx, "ball", make([]byte, 1024)); err != nil {
							select {
							case <-done: // the test is over and its nodes are being closed
							default:
								complain.Do(func() { t.Errorf("answer: %v", err) })
							}
						}
					}
				})
			}
			began := time.Now()
			for range chains {
				for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
					var to smokesignal.Emitter = n.Broadcast()
					if channel == checker.Direct {
						to = n.Peer(other.ID())
					}
					if err := to.Emit(t.Context(), "ball", make([]byte, 1024)); err != nil {
						t.Fatal(err)
					}
				}
			}
			select {
			case <-done:
				t.Logf("%d answers in %v", total, time.Since(began).Round(time.Millisecond))
			case <-time.After(soon):
				mu.Lock()
				defer mu.Unlock()
				t.Errorf("stuck at %d of %d answers", answers, total)
			}
		})
	}
}

// TestAnsweringTwiceEndsInErrStalled: when each event is answered by two, no
// queue is long enough and both nodes end up writing while neither reads. Emit
// then gives up, and the link is as good as before.
func TestAnsweringTwiceEndsInErrStalled(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	var stop atomic.Bool
	stalled := make(chan error, 2)
	for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
		n.Direct().On("ball", func(ctx context.Context, _ *smokesignal.Event) {
			for range 2 {
				if stop.Load() {
					return
				}
				if err := n.Peer(other.ID()).Emit(ctx, "ball", make([]byte, 4096)); err != nil {
					stop.Store(true)
					stalled <- err
					return
				}
			}
		})
	}
	if err := a.Peer(b.ID()).Emit(t.Context(), "ball", make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	select {
	case err := <-stalled:
		t.Logf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
		if !errors.Is(err, smokesignal.ErrStalled) {
			t.Errorf("Emit returned %v, want ErrStalled", err)
		}
	case <-time.After(soon):
		t.Fatal("nobody gives up: locked up, or memory without end")
	}
	for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
		in := listen(t, other.Direct(), "still there?")
		if err := n.Peer(other.ID()).Emit(within(t, soon), "still there?"); err != nil {
			t.Error(err)
		}
		in.wait(1, soon)
		if !n.Peer(other.ID()).Linked() {
			t.Error("the link was lost")
		}
	}
}
