package integration_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// The tests of these files are named after the 23 faults of the original
// smokesignal; each comment says what went wrong there.

// Fault 1: peer.write delivered 0 of 10,000.
func TestPeerWriteDelivers(t *testing.T) {
	t.Parallel()
	n := many(10_000)
	_, a, b := pair(t)
	one, other := a.Peer(b.ID()).Pipe(), b.Peer(a.ID()).Pipe()
	defer one.Close()
	defer other.Close()
	for name, dir := range map[string]struct {
		from io.Writer
		to   io.Reader
	}{"a to b": {one, other}, "b to a": {other, one}} {
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range n {
				if _, err := fmt.Fprintf(dir.from, "line %d\n", i); err != nil {
					t.Errorf("%s: write %d: %v", name, i, err)
					return
				}
			}
		})
		lines := bufio.NewScanner(dir.to)
		for i := 0; i < n; i++ {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("line %d", i) {
				t.Fatalf("%s: line %d is %q (%v)", name, i, lines.Text(), lines.Err())
			}
		}
		wg.Wait()
	}
}

// Fault 2: peer.emit with arguments delivered nothing, without arguments it
// crashed the receiver.
func TestPeerEmitDelivers(t *testing.T) {
	t.Parallel()
	n := many(10_000)
	_, a, b := pair(t)
	got := listen(t, b.Direct(), "count")
	fromA := listen(t, b.Peer(a.ID()), "count")
	bare := listen(t, b.Direct(), "bare")
	emitNumbers(t, a.Peer(b.ID()), "count", n)
	wantNumbers(t, "b", got.wait(n, soon), n)
	wantNumbers(t, "b, listening to a alone", fromA.wait(n, soon), n)

	if err := a.Peer(b.ID()).Emit(t.Context(), "bare"); err != nil {
		t.Fatal(err)
	}
	ev := bare.wait(1, soon)[0]
	if ev.Ev.Len() != 0 || ev.From != a.ID() {
		t.Errorf("an event without arguments came with %d, from %s", ev.Ev.Len(), ev.From)
	}
}

// Fault 3: the receiver passed all arguments as one array.
func TestArgumentsArriveOneByOne(t *testing.T) {
	t.Parallel()
	type point struct{ X, Y int }
	_, a, b := pair(t)
	for name, way := range map[string]struct {
		to   smokesignal.Emitter
		from smokesignal.Source
	}{
		"direct":    {a.Peer(b.ID()), b.Direct()},
		"broadcast": {a.Broadcast(), b.Broadcast()},
	} {
		in := listen(t, way.from, "move")
		if err := way.to.Emit(t.Context(), "move", 7, "seven", point{3, 4}, []byte{0, 255}); err != nil {
			t.Fatal(name, err)
		}
		ev := in.wait(1, soon)[0].Ev
		var n int
		var s string
		var p point
		var raw []byte
		if err := ev.Decode(&n, &s, &p, &raw); err != nil || ev.Len() != 4 {
			t.Fatalf("%s: %d arguments, %v", name, ev.Len(), err)
		}
		if n != 7 || s != "seven" || p != (point{3, 4}) || !slices.Equal(raw, []byte{0, 255}) {
			t.Errorf("%s: got %v %q %v %v", name, n, s, p, raw)
		}
	}
}

// Fault 6: stop() threw as soon as there was a peer, and left its links alive.
func TestCloseWithPeersCloses(t *testing.T) {
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
		t.Errorf("closed and connected=%v with %d peers", a.Connected(), a.Peers().Len())
	}
	select {
	case <-a.Done():
	default:
		t.Error("Done is open after Close")
	}
	for _, n := range others {
		story := l.story(n)
		if want := []string{"connect", "peer added a", "add a", "disconnect", "peer removed a", "remove a", "close a"}; !slices.Equal(story, want) {
			t.Errorf("%s was told %q, want %q", l.name(n), story, want)
		}
	}
	l.check(checker.Config{})
}

// Fault 7: stop before start threw, start twice broke, stop and start left a
// dead node, and a process stayed up for 60 s after a broadcast.
func TestStartAndCloseInAnyOrder(t *testing.T) {
	t.Parallel()
	t.Run("close before start", func(t *testing.T) {
		n := newLocal(t).create(cluster.Spec{Name: "a"})
		if err := n.Close(); err != nil {
			t.Errorf("Close before Start: %v", err)
		}
		if err := n.Start(t.Context()); !errors.Is(err, smokesignal.ErrClosed) {
			t.Errorf("Start after Close returned %v, want ErrClosed", err)
		}
	})
	t.Run("start twice", func(t *testing.T) {
		l, a, b := pair(t)
		if err := a.Start(t.Context()); !errors.Is(err, smokesignal.ErrStarted) {
			t.Errorf("the second Start returned %v, want ErrStarted", err)
		}
		in := listen(t, b.Broadcast(), "x")
		emitNumbers(t, a.Broadcast(), "x", 3)
		wantNumbers(t, "b", in.wait(3, soon), 3)
		l.wantStory(a, "connect", "peer added b", "add b")
	})
	t.Run("close twice", func(t *testing.T) {
		l, a, _ := pair(t)
		first := l.close(a)
		if second := a.Close(); first != nil || second != nil {
			t.Errorf("Close returned %v, then %v", first, second)
		}
	})
	t.Run("a process ends at once", func(t *testing.T) {
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
	})
}

// Fault 8: when two nodes dialled each other at once both links died, 20 of 20.
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
					t.Errorf("round %d: %s adds %s: %v, %v", round, l.name(from), l.name(to), p, err)
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
