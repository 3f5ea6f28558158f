package integration_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestMethods: the methods and properties of a node, its list and its peers.
// Start and stop have tests of their own: TestCloseWithPeersCloses, TestStartAndCloseInAnyOrder, TestCloseLeavesNothing.
func TestMethods(t *testing.T) {
	t.Parallel()
	t.Run("start: emitting before it is an error", func(t *testing.T) {
		a := newLocal(t).create(cluster.Spec{Name: "a"})
		if err := a.Broadcast().Emit(t.Context(), "x"); !errors.Is(err, smokesignal.ErrNotStarted) {
			t.Errorf("Emit returned %v, want ErrNotStarted", err)
		}
		if _, err := a.Connect(t.Context(), "127.0.0.1:1"); !errors.Is(err, smokesignal.ErrNotStarted) {
			t.Errorf("Connect returned %v, want ErrNotStarted", err)
		}
		if err := a.Ready(t.Context()); !errors.Is(err, smokesignal.ErrNotStarted) {
			t.Errorf("Ready returned %v, want ErrNotStarted", err)
		}
		if n := len(a.Addrs()); n != 0 || a.Connected() || a.ID() == "" {
			t.Errorf("%d addresses, connected=%v, id %q before Start", n, a.Connected(), a.ID())
		}
	})
	t.Run("start: its context bounds the call alone", func(t *testing.T) {
		l := newLocal(t)
		ctx, cancel := context.WithCancel(t.Context())
		a := l.create(cluster.Spec{Name: "a", Limits: manual})
		if err := a.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		l.link(l.start(cluster.Spec{Name: "b", Limits: manual}), a)
	})
	t.Run("run: it ends with its context", func(t *testing.T) {
		l := newLocal(t)
		a := l.create(cluster.Spec{Name: "a", Limits: manual})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		defer cancel()
		go func() { ran <- a.Run(ctx) }()
		for len(a.Addrs()) == 0 {
			time.Sleep(time.Millisecond) // Run does not say when it listens
		}
		b := l.start(cluster.Spec{Name: "b", Limits: joins, Seeds: []string{addr(a)}})
		l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
		cancel()
		select {
		case err := <-ran:
			if err != nil {
				t.Errorf("Run returned %v", err)
			}
		case <-time.After(soon):
			t.Fatal("Run does not end")
		}
		l.wait(soon, "b was told", func(s *checker.State) bool { return s.Proc("b").Counts[checker.PeerClose] == 1 })
		if b.Connected() {
			t.Error("b is still connected")
		}
	})
	t.Run("run: what cannot start is closed, what runs already is not", func(t *testing.T) {
		l := newLocal(t)
		running := l.start(cluster.Spec{Name: "a", Limits: manual})
		if err := running.Run(t.Context()); !errors.Is(err, smokesignal.ErrStarted) || len(running.Addrs()) == 0 {
			t.Errorf("Run returned %v, and the node that runs has addresses %v", err, running.Addrs())
		}
		taken := running.Addrs()[0]
		at, _ := peer.SplitAddr(taken)
		n, err := smokesignal.New(smokesignal.Listen(at.String()))
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if err := n.Run(t.Context()); err == nil {
			t.Errorf("Run listens at %s, which is taken", at)
		}
		if err := n.Start(t.Context()); !errors.Is(err, smokesignal.ErrClosed) {
			t.Errorf("Start after a Run in vain returned %v, want ErrClosed", err)
		}
	})
	t.Run("addPeer: it returns the peer, and both sides are told", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		p := l.link(a, b)
		if p == nil || p.ID() != b.ID() || !p.Linked() || !a.Peer(b.ID()).Linked() {
			t.Errorf("Connect returned %v", p)
		}
		l.wantStory(a, "connect", "peer added b", "add b")
		l.wantStory(b, "connect", "peer added a", "add a")
	})
	t.Run("addPeer: an existing peer again, no event", func(t *testing.T) {
		l, a, b := pair(t)
		for range 3 {
			for from, to := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
				if p, err := from.Connect(within(t, soon), addr(to)); err != nil || p.ID() != to.ID() {
					t.Errorf("Connect of a peer returned %v, %v", p, err)
				}
			}
		}
		l.never(300*time.Millisecond, "an event", func(s *checker.State) bool {
			return s.Proc("a").Counts[checker.PeerAdded]+s.Proc("b").Counts[checker.PeerAdded] > 2
		})
		l.wantStory(a, "connect", "peer added b", "add b")
		l.wantStory(b, "connect", "peer added a", "add a")
	})
	t.Run("addPeer: a full remote, no event on either side", func(t *testing.T) {
		l := newLocal(t)
		fullNode := l.start(cluster.Spec{Name: "full", Limits: &[2]int{0, 1}})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		l.link(fullNode, b)
		c := l.start(cluster.Spec{Name: "c", Limits: manual})
		l.link(c, l.start(cluster.Spec{Name: "d", Limits: manual})) // who is alone is taken in
		if _, err := c.Connect(within(t, soon), addr(fullNode)); !errors.Is(err, smokesignal.ErrFull) {
			t.Errorf("Connect of a full node returned %v, want ErrFull", err)
		}
		l.wantStory(fullNode, "connect", "peer added b", "add b")
		l.wantStory(c, "connect", "peer added d", "add d")
	})
	t.Run("addPeer: each failure is told apart", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		other := l.start(cluster.Spec{Name: "other", Limits: manual, Network: "other"})
		web := httptest.NewServer(http.NotFoundHandler()) // speaks, but not as we do
		defer web.Close()
		stranger := rawHost(t)
		nobody := l.create(cluster.Spec{Name: "nobody"}).ID()
		wrong := strings.TrimSuffix(addr(b), b.ID().String()) + nobody.String()
		for _, tt := range []struct {
			name, to string
			want     error
		}{
			{"nobody there", hostPort(freePort(t)), smokesignal.ErrUnreachable},
			{"no such name", "no-such-host.invalid:8495", smokesignal.ErrUnresolvable},
			{"another network", addr(other), smokesignal.ErrOtherNetwork},
			{"itself", addr(a), smokesignal.ErrSelf},
			{"libp2p without us", stranger.Addrs()[0].String(), smokesignal.ErrNotSmokesignal},
			{"a web server", web.Listener.Addr().String(), smokesignal.ErrNotSmokesignal},
		} {
			began := time.Now()
			p, err := a.Connect(within(t, soon), tt.to)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s: Connect(%s) returned %v, %v; want %v", tt.name, tt.to, p, err, tt.want)
			}
			if took := time.Since(began); took > 6*slow*time.Second {
				t.Errorf("%s: known after %v", tt.name, took)
			}
		}
		_, err := a.Connect(within(t, soon), wrong)
		if e, ok := errors.AsType[*smokesignal.WrongIDError](err); !ok || e.Expected != nobody || e.Actual != b.ID() {
			t.Errorf("a wrong id: Connect returned %v", err)
		}
		if _, err := a.Connect(within(t, soon), "what is this?"); err == nil {
			t.Error("nonsense was added")
		}
		l.wantStory(a)
		l.wantStory(b)
		l.wantStory(other)
	})
	t.Run("addPeer: it ends with its context", func(t *testing.T) {
		mute, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer mute.Close()
		a := newLocal(t).start(cluster.Spec{Name: "a", Limits: manual})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := a.Connect(ctx, mute.Addr().String()); err == nil || time.Since(began) > 3*time.Second {
			t.Errorf("Connect returned %v after %v", err, time.Since(began))
		}
	})
	t.Run("node.id: bound to the key", func(t *testing.T) {
		a := newLocal(t).create(cluster.Spec{Name: "a"})
		if !a.ID().MatchesPublicKey(a.Host().Peerstore().PubKey(a.ID())) {
			t.Error("the id is not that of the host's key")
		}
	})
	t.Run("node.connected and peers.list: as many as there are", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: &[2]int{0, 3}})
		if a.Connected() || a.Peers().Len() != 0 {
			t.Error("a lone node has peers")
		}
		var ids []peer.ID
		for _, name := range []string{"b", "c", "d"} {
			n := l.start(cluster.Spec{Name: name, Limits: manual})
			if a.Peers().Full() || a.Peer(n.ID()).Linked() || a.Peers().Get(n.ID()) != nil {
				t.Errorf("Full, or has %s, too early", name)
			}
			l.link(a, n)
			ids = append(ids, n.ID())
		}
		var got []peer.ID
		for p := range a.Peers().All() {
			got = append(got, p.ID())
		}
		if !slices.Equal(got, ids) || a.Peers().Len() != 3 || !a.Connected() || !a.Peers().Full() {
			t.Errorf("peers %v, want %v", got, ids)
		}
		for _, id := range ids {
			if p := a.Peers().Get(id); p == nil || p.ID() != id || !p.Linked() || !a.Peer(id).Linked() {
				t.Errorf("Get(%s) returned %v", id, p)
			}
		}
	})
	t.Run("peer.close: both sides are told, and neither comes back at once", func(t *testing.T) {
		l, a, b := pair(t)
		c := l.start(cluster.Spec{Name: "c", Limits: manual}) // so that nobody is alone
		l.link(a, c)
		l.link(b, c)
		l.fault(a, checker.FaultLink)
		if err := a.Peer(b.ID()).Disconnect(); err != nil {
			t.Error(err)
		}
		l.wait(soon, "told", func(s *checker.State) bool {
			return s.Proc("a").Counts[checker.PeerClose] == 1 && s.Proc("b").Counts[checker.PeerClose] == 1
		})
		l.never(2*time.Second, "back without being asked", func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerAdded] > 2 })
		l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed b", "remove b", "close b")
		l.wantStory(b, "connect", "peer added a", "add a", "peer added c", "add c", "peer removed a", "remove a", "close a")
		if a.Peer(b.ID()).Linked() || !a.Connected() {
			t.Error("a has b, or nobody")
		}
		l.link(a, b) // by hand it may come back at any time
	})
	t.Run("peer: a handle of somebody unknown", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		p := a.Peer(l.create(cluster.Spec{Name: "unknown"}).ID())
		if p == nil || p.Linked() || p.Addr() != nil || p.AddrPort().IsValid() || p.RTT() != 0 {
			t.Errorf("a handle on an unknown node: %+v", p)
		}
		if err := p.Emit(within(t, soon), "x"); err == nil {
			t.Error("an event to a node without an address was accepted")
		}
		if err := p.Disconnect(); err != nil {
			t.Errorf("closing it: %v", err)
		}
	})
	t.Run("peer.emit and on: in the order of the calls, both ways", func(t *testing.T) {
		_, a, b := pair(t)
		n := many(2000)
		atA, atB := listen(t, a.Peer(b.ID()), "x"), listen(t, b.Peer(a.ID()), "x")
		done := make(chan struct{})
		go func() { defer close(done); emitNumbers(t, a.Peer(b.ID()), "x", n) }()
		emitNumbers(t, b.Peer(a.ID()), "x", n)
		<-done
		wantNumbers(t, "a", atA.wait(n, soon), n)
		wantNumbers(t, "b", atB.wait(n, soon), n)
	})
	t.Run("broadcast.emit and on: a typed name", func(t *testing.T) {
		type reading struct {
			Room  string
			Value float64
		}
		kitchen := smokesignal.Name[reading]("kitchen/temperature")
		_, a, b := pair(t)
		got := make(chan reading, 1)
		kitchen.On(b.Broadcast(), func(_ context.Context, from smokesignal.ID, r reading) {
			if from != a.ID() {
				t.Errorf("from %s", from)
			}
			got <- r
		})
		if err := kitchen.Emit(t.Context(), a.Broadcast(), reading{"kitchen", 21.5}); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-got:
			if r != (reading{"kitchen", 21.5}) {
				t.Errorf("got %v", r)
			}
		case <-time.After(soon):
			t.Error("nothing came")
		}
	})
	t.Run("broadcast stream: one write is one chunk", func(t *testing.T) {
		l, a, b := pair(t)
		c := l.start(cluster.Spec{Name: "c", Limits: manual})
		l.link(b, c)
		from, atB, atC := a.Broadcast().Pipe(), b.Broadcast().Pipe(), c.Broadcast().Pipe()
		defer from.Close()
		for _, text := range []string{"one", "two two", "", "three"} {
			if n, err := io.WriteString(from, text); n != len(text) || err != nil {
				t.Fatalf("write %q: %d, %v", text, n, err)
			}
		}
		for name, s := range map[string]io.ReadCloser{"b": atB, "c": atC} {
			buf := make([]byte, 100)
			for _, want := range []string{"one", "two two", "three"} {
				n, err := s.Read(buf)
				if got := string(buf[:n]); got != want || err != nil {
					t.Errorf("%s read %q, %v; want %q", name, got, err, want)
				}
			}
			s.Close()
			if _, err := s.Read(buf); err != io.EOF {
				t.Errorf("%s: Read after Close returned %v, want EOF", name, err)
			}
		}
	})
	t.Run("off: a handler that was taken away is not called", func(t *testing.T) {
		_, a, b := pair(t)
		called := make(chan struct{}, 10)
		off := b.Direct().On("x", func(context.Context, *smokesignal.Event) { called <- struct{}{} })
		stays := listen(t, b.Direct(), "x")
		emitNumbers(t, a.Peer(b.ID()), "x", 1)
		stays.wait(1, soon)
		<-called
		off()
		off() // twice is fine
		emitNumbers(t, a.Peer(b.ID()), "x", 1)
		stays.wait(2, soon)
		if len(called) != 0 {
			t.Error("called after off")
		}
	})
	t.Run("flush: what was emitted has arrived", func(t *testing.T) {
		_, a, b := pair(t)
		in := listen(t, b.Broadcast(), "x")
		direct := listen(t, b.Direct(), "x")
		emitNumbers(t, a.Broadcast(), "x", 100)
		emitNumbers(t, a.Peer(b.ID()), "x", 100)
		if err := a.Flush(within(t, soon)); err != nil {
			t.Errorf("Flush: %v", err)
		}
		wantNumbers(t, "b", in.wait(100, soon), 100)
		wantNumbers(t, "b", direct.wait(100, soon), 100)
	})
	t.Run("close: what was emitted before it arrives", func(t *testing.T) {
		l, a, b := pair(t)
		in, direct := listen(t, b.Broadcast(), "x"), listen(t, b.Direct(), "x")
		emitNumbers(t, a.Broadcast(), "x", 500)
		emitNumbers(t, a.Peer(b.ID()), "x", 500)
		if err := l.close(a); err != nil {
			t.Errorf("Close: %v", err)
		}
		wantNumbers(t, "b, broadcasts,", in.wait(500, soon), 500)
		wantNumbers(t, "b, direct events,", direct.wait(500, soon), 500)
	})
}
