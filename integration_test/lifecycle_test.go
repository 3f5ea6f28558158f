package integration_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestMethodsBeforeStartAreErrors shows that Emit, Connect and Ready return
// ErrNotStarted on a node that was not started.
func TestMethodsBeforeStartAreErrors(t *testing.T) {
	t.Parallel()
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
}

// TestStartContextBoundsOnlyStart shows that a node goes on when the context of Start
// ends.
func TestStartContextBoundsOnlyStart(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	ctx, cancel := context.WithCancel(t.Context())
	a := l.create(cluster.Spec{Name: "a", Limits: manual})
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	l.link(l.start(cluster.Spec{Name: "b", Limits: manual}), a)
}

// TestSecondStartIsAnError shows that a second Start returns ErrStarted and changes
// nothing.
func TestSecondStartIsAnError(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	if err := a.Start(t.Context()); !errors.Is(err, smokesignal.ErrStarted) {
		t.Errorf("the second Start returned %v, want ErrStarted", err)
	}
	in := listen(t, b.Broadcast(), "x")
	emitNumbers(t, a.Broadcast(), "x", 3)
	wantNumbers(t, "b", in.wait(3, soon), 3)
	l.wantStory(a, "connect", "peer added b", "add b")
}

// TestCloseBeforeStart shows that a node can be closed before it starts, and not be
// started after that.
func TestCloseBeforeStart(t *testing.T) {
	t.Parallel()
	n := newLocal(t).create(cluster.Spec{Name: "a"})
	if err := n.Close(); err != nil {
		t.Errorf("Close before Start: %v", err)
	}
	if err := n.Start(t.Context()); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("Start after Close returned %v, want ErrClosed", err)
	}
}

// TestSecondCloseIsNotAnError shows that Close may be called twice.
func TestSecondCloseIsNotAnError(t *testing.T) {
	t.Parallel()
	l, a, _ := pair(t)
	first := l.close(a)
	if second := a.Close(); first != nil || second != nil {
		t.Errorf("Close returned %v, then %v", first, second)
	}
}

// TestCloseEndsAllLinks shows that Close of a node with three peers ends all its links,
// on both sides.
func TestCloseEndsAllLinks(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	var others []*smokesignal.Node
	for _, name := range []string{"b", "c", "d"} {
		n := l.start(cluster.Spec{Name: name, Limits: manual})
		l.link(a, n)
		others = append(others, n)
	}
	if err := l.close(a); err != nil {
		t.Errorf("Close: %v", err)
	}
	l.wait(soon, "a is gone at all others", func(s *checker.State) bool {
		return len(s.Proc("b").Peers)+len(s.Proc("c").Peers)+len(s.Proc("d").Peers) == 0
	})
	if err := a.Broadcast().Emit(t.Context(), "x"); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("a broadcast after Close returned %v, want ErrClosed", err)
	}
	if a.Connected() || a.Peers().Len() != 0 {
		t.Errorf("after Close, Connected is %v and there are %d peers", a.Connected(), a.Peers().Len())
	}
	select {
	case <-a.Done():
	default:
		t.Error("Done is not closed after Close")
	}
	for _, n := range others {
		l.wantStory(n, "connect", "peer added a", "add a", "disconnect", "peer removed a", "remove a", "close a")
	}
	l.check(checker.Config{})
}

// TestProcessEndsSoonAfterClose shows that a process with a peer and a broadcast behind
// it ends within five seconds.
func TestProcessEndsSoonAfterClose(t *testing.T) {
	t.Parallel()
	c := cluster.New(t)
	seed := c.Start(cluster.Spec{Name: "seed", Listen: []string{cluster.TCP}})
	n := c.Start(cluster.Spec{Name: "n", Listen: []string{cluster.TCP}, Seeds: []string{seed.Addr()}})
	c.Wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	n.Answer(n.Broadcast("x", 10, 10), soon)
	began := time.Now()
	if answer := n.Close(); answer.Err != "" {
		t.Errorf("Close: %s", answer.Err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the process ended %v after Close began", took)
	}
	c.Wait(soon, "the seed lost its peer", func(s *checker.State) bool { return len(s.Proc("seed").Peers) == 0 })
	c.Check(checker.Config{})
}

// TestCloseSendsAcceptedEvents shows that all events that were emitted before Close
// arrive.
func TestCloseSendsAcceptedEvents(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	in, direct := listen(t, b.Broadcast(), "x"), listen(t, b.Direct(), "x")
	emitNumbers(t, a.Broadcast(), "x", 500)
	emitNumbers(t, a.Peer(b.ID()), "x", 500)
	if err := l.close(a); err != nil {
		t.Errorf("Close: %v", err)
	}
	wantNumbers(t, "b, broadcasts,", in.wait(500, soon), 500)
	wantNumbers(t, "b, direct events,", direct.wait(500, soon), 500)
}

// TestFlushSendsAcceptedEvents shows that all events that were emitted before Flush
// arrive.
func TestFlushSendsAcceptedEvents(t *testing.T) {
	t.Parallel()
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
}

// TestRunEndsWithItsContext shows that Run starts the node, and closes it when its
// context ends.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.create(cluster.Spec{Name: "a", Limits: manual})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	defer cancel()
	go func() { ran <- a.Run(ctx) }()
	hosttest.Eventually(t, "the node listens", func() bool { return len(a.Addrs()) > 0 })
	b := l.start(cluster.Spec{Name: "b", Limits: joins, Seeds: []string{addr(a)}})
	l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	cancel()
	if err := next(t, ran); err != nil {
		t.Errorf("Run returned %v", err)
	}
	l.wait(soon, "b lost its peer", closedBy("b"))
	if b.Connected() {
		t.Error("b is still connected")
	}
}

// TestRunThatCannotStart shows that Run closes a node that cannot start, and does not
// close a node that runs already.
func TestRunThatCannotStart(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	running := l.start(cluster.Spec{Name: "a", Limits: manual})
	if err := running.Run(t.Context()); !errors.Is(err, smokesignal.ErrStarted) || len(running.Addrs()) == 0 {
		t.Errorf("Run of a running node returned %v, and the node has addresses %v", err, running.Addrs())
	}
	at, _ := peer.SplitAddr(running.Addrs()[0])
	n, err := smokesignal.New(smokesignal.Listen(at.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Run(t.Context()); err == nil {
		t.Errorf("Run listens at %s, which another node uses", at)
	}
	if err := n.Start(t.Context()); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("Start after a failed Run returned %v, want ErrClosed", err)
	}
}
