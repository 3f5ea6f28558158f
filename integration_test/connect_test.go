package integration_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestConnectLinksBothSides shows that Connect returns the peer, and that both nodes
// run their callbacks.
func TestConnectLinksBothSides(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	p := l.link(a, b)
	if p == nil || p.ID() != b.ID() || !p.Linked() || !a.Peer(b.ID()).Linked() {
		t.Errorf("Connect returned %v", p)
	}
	l.wantStory(a, "connect", "peer added b", "add b")
	l.wantStory(b, "connect", "peer added a", "add a")
}

// TestConnectToANeighborChangesNothing shows that Connect returns a peer that is linked
// already, and that no callback runs.
func TestConnectToANeighborChangesNothing(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a, b := v.pair()
		for range 3 {
			for from, to := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
				if p, err := from.Connect(within(t, soon), addr(to)); err != nil || p.ID() != to.ID() {
					t.Errorf("Connect to a neighbor returned %v, %v", p, err)
				}
			}
		}
		v.never(time.Minute, "a callback", func(s *checker.State) bool {
			return s.Proc("a").Counts[checker.PeerAdded]+s.Proc("b").Counts[checker.PeerAdded] > 2
		})
		v.wantStory(a, "connect", "peer added b", "add b")
		v.wantStory(b, "connect", "peer added a", "add a")
	})
}

// TestSimultaneousDialsMakeOneLink shows that two nodes that connect to each other at
// the same time have one link, which works.
func TestSimultaneousDialsMakeOneLink(t *testing.T) {
	t.Parallel()
	for round := range many(20) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		var wg sync.WaitGroup
		ready := make(chan struct{})
		for from, to := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
			wg.Go(func() {
				<-ready
				if p, err := from.Connect(within(t, soon), addr(to)); err != nil || p.ID() != to.ID() {
					t.Errorf("round %d: %s connects to %s: %v, %v", round, l.name(from), l.name(to), p, err)
				}
			})
		}
		close(ready)
		wg.Wait()
		l.wait(soon, "both have each other", func(s *checker.State) bool { return len(s.Proc("a").Peers) == 1 && len(s.Proc("b").Peers) == 1 })
		in := listen(t, b.Direct(), "over the link")
		emitNumbers(t, a.Peer(b.ID()), "over the link", 10)
		wantNumbers(t, "b", in.wait(10, soon), 10)
		l.wantStory(a, "connect", "peer added b", "add b")
		l.wantStory(b, "connect", "peer added a", "add a")
		l.check(checker.Config{})
		l.close(a)
		l.close(b)
	}
}

// TestConnectToOneselfIsAnError shows that a node refuses its own address with ErrSelf,
// as seed and at Connect, and that no callback runs.
func TestConnectToOneselfIsAnError(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	at := hosttest.FreeAddress(t)
	a := l.start(cluster.Spec{Name: "a", Listen: []string{at}, Seeds: []string{at}})
	l.wait(soon, "the seed error", func(s *checker.State) bool { return s.Proc("a").Counts[checker.SeedError] > 0 })
	if rs := l.log.RecordsOf("a", checker.SeedError); rs[0].Code != "ErrSelf" {
		t.Errorf("the error of the own address as seed is %v, want ErrSelf", rs[0])
	}
	for _, alone := range []bool{true, false} {
		if !alone {
			l.link(a, l.start(cluster.Spec{Name: "b", Limits: manual}))
		}
		for _, to := range []string{at, addr(a)} {
			if p, err := a.Connect(within(t, soon), to); !errors.Is(err, smokesignal.ErrSelf) {
				t.Errorf("Connect(%s) returned %v, %v; want ErrSelf", to, p, err)
			}
		}
	}
	l.wantStory(a, "connect", "peer added b", "add b")
	l.check(checker.Config{})
}

// TestConnectToAFullNodeIsAnError shows that Connect returns ErrFull if the other node
// has its maximum of peers, and that no callback runs.
func TestConnectToAFullNodeIsAnError(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	remote := l.start(cluster.Spec{Name: "full", Limits: &[2]int{0, 1}})
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	l.link(remote, b)
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(c, l.start(cluster.Spec{Name: "d", Limits: manual})) // a full node would accept a node that is alone
	if _, err := c.Connect(within(t, soon), addr(remote)); !errors.Is(err, smokesignal.ErrFull) {
		t.Errorf("Connect to a full node returned %v, want ErrFull", err)
	}
	l.wantStory(remote, "connect", "peer added b", "add b")
	l.wantStory(c, "connect", "peer added d", "add d")
}

// TestConnectOfAFullNodeIsAnError shows that Connect returns ErrFull if the node itself
// has its maximum of peers, and that no callback runs.
func TestConnectOfAFullNodeIsAnError(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a := v.startOn(0, cluster.Spec{Name: "a", Limits: &[2]int{0, 1}})
		b := v.startOn(1, cluster.Spec{Name: "b", Limits: manual})
		remote := v.startOn(2, cluster.Spec{Name: "remote", Limits: manual})
		v.link(a, b)
		if !a.Peers().Full() {
			t.Error("Full is false with as many peers as allowed")
		}
		for range 3 {
			if p, err := a.Connect(within(t, soon), addr(remote)); !errors.Is(err, smokesignal.ErrFull) {
				t.Errorf("Connect of a full node returned %v, %v; want ErrFull", p, err)
			}
		}
		v.never(time.Minute, "a callback of the other node", func(s *checker.State) bool {
			p := s.Proc("remote")
			return p.Counts[checker.Connect]+p.Counts[checker.PeerAdded] > 0
		})
		v.wantStory(a, "connect", "peer added b", "add b")
		v.check(checker.Config{})
	})
}

// TestConnectErrors shows that each kind of failure of Connect has an error of its own,
// and that no callback runs.
func TestConnectErrors(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	other := l.start(cluster.Spec{Name: "other", Limits: manual, Network: "other"})
	web := httptest.NewServer(http.NotFoundHandler()) // it answers, but not with our protocol
	defer web.Close()
	outsider := rawHost(t)
	absent := unknownID(t)
	wrong := strings.TrimSuffix(addr(b), b.ID().String()) + absent.String()
	for _, tt := range []struct {
		name, to string
		want     error
	}{
		{"a port that is not in use", hosttest.FreeAddress(t), smokesignal.ErrUnreachable},
		{"no such name", "no-such-host.invalid:8495", smokesignal.ErrUnresolvable},
		{"another network", addr(other), smokesignal.ErrOtherNetwork},
		{"itself", addr(a), smokesignal.ErrSelf},
		{"a libp2p host without smokesignal", outsider.Addrs()[0].String(), smokesignal.ErrNotSmokesignal},
		{"a web server", web.Listener.Addr().String(), smokesignal.ErrNotSmokesignal},
	} {
		began := time.Now()
		p, err := a.Connect(within(t, soon), tt.to)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: Connect(%s) returned %v, %v; want %v", tt.name, tt.to, p, err, tt.want)
		}
		if took := time.Since(began); took > 6*slow*time.Second {
			t.Errorf("%s: the error came after %v", tt.name, took)
		}
	}
	_, err := a.Connect(within(t, soon), wrong)
	if e, ok := errors.AsType[*smokesignal.WrongIDError](err); !ok || e.Expected != absent || e.Actual != b.ID() {
		t.Errorf("a wrong id: Connect returned %v", err)
	}
	if _, err := a.Connect(within(t, soon), "what is this?"); err == nil {
		t.Error("Connect to something that is not an address returned nil")
	}
	l.wantStory(a)
	l.wantStory(b)
	l.wantStory(other)
}

// TestConnectEndsWithItsContext shows that Connect to a server that says nothing
// returns when its context ends.
func TestConnectEndsWithItsContext(t *testing.T) {
	t.Parallel()
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
}
