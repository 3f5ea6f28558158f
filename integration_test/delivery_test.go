package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestTypedBroadcastArrives shows that a broadcast of a Name arrives as a value of its
// type.
func TestTypedBroadcastArrives(t *testing.T) {
	t.Parallel()
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
	if r := next(t, got); r != (reading{"kitchen", 21.5}) {
		t.Errorf("got %v", r)
	}
}

// TestBroadcastPipeKeepsWrites shows that each Write to a Broadcast's Pipe is one Read
// at every other node.
func TestBroadcastPipeKeepsWrites(t *testing.T) {
	t.Parallel()
	_, nodes := line(t, 3)
	from, at1, at2 := nodes[0].Broadcast().Pipe(), nodes[1].Broadcast().Pipe(), nodes[2].Broadcast().Pipe()
	defer from.Close()
	for _, text := range []string{"one", "two two", "", "three"} {
		if n, err := io.WriteString(from, text); n != len(text) || err != nil {
			t.Fatalf("write %q: %d, %v", text, n, err)
		}
	}
	for name, s := range map[string]io.ReadCloser{"n1": at1, "n2": at2} {
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
}

// TestNodeDoesNotGetItsOwnEvents shows that a node gets neither its own broadcasts nor
// its own direct events.
func TestNodeDoesNotGetItsOwnEvents(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	own, all := listen(t, a.Broadcast(), "*"), listen(t, a.Direct(), "*")
	in := listen(t, b.Broadcast(), "x")
	emitNumbers(t, a.Broadcast(), "x", 10)
	in.wait(10, soon)
	back := listen(t, a.Broadcast(), "back")
	emitNumbers(t, b.Broadcast(), "back", 1) // arrives after any of its own broadcasts that came back
	back.wait(1, soon)
	for _, h := range own.wait(1, soon) {
		if h.From == a.ID() {
			t.Errorf("a got its own %q", h.Name)
		}
	}
	if n := all.count(); n != 0 {
		t.Errorf("a got %d direct events", n)
	}
}

// TestBroadcastsPassCyclesOnce shows that six nodes, each linked to each, get all
// broadcasts once and in order.
func TestBroadcastsPassCyclesOnce(t *testing.T) {
	t.Parallel()
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
			t.Errorf("n%d got broadcasts of %d senders", i, len(by))
		}
		for from, got := range by {
			wantNumbers(t, fmt.Sprintf("n%d from %s", i, l.names[from.String()]), got, each)
		}
	}
}

// TestNewLinkKeepsTheOrder shows that broadcasts stay in order when a link appears that
// is shorter than the old way.
func TestNewLinkKeepsTheOrder(t *testing.T) {
	t.Parallel()
	n := many(1000)
	l, nodes := line(t, 4)
	in := listen(t, nodes[3].Broadcast(), "x")
	sent := make(chan struct{})
	go func() { defer close(sent); emitNumbers(t, nodes[0].Broadcast(), "x", n) }()
	in.wait(n/10, soon)
	l.link(nodes[0], nodes[3]) // a shorter way
	<-sent
	wantNumbers(t, "the far end", in.wait(n, soon), n)
}

// TestNodeWithoutHandlerPassesEventsOn shows that broadcasts pass a node that has no
// handler for them.
func TestNodeWithoutHandlerPassesEventsOn(t *testing.T) {
	t.Parallel()
	_, nodes := line(t, 3)
	in := listen(t, nodes[2].Broadcast(), "x") // the node between them has no handler
	emitNumbers(t, nodes[0].Broadcast(), "x", 100)
	wantNumbers(t, "n2", in.wait(100, soon), 100)
}

// TestBroadcastNeedsAFirstPeer shows that Emit returns ErrNoPeers before a node has its
// first peer.
func TestBroadcastNeedsAFirstPeer(t *testing.T) {
	t.Parallel()
	a := newLocal(t).start(cluster.Spec{Name: "a"})
	if err := a.Broadcast().Emit(t.Context(), "x"); !errors.Is(err, smokesignal.ErrNoPeers) {
		t.Errorf("Emit returned %v, want ErrNoPeers", err)
	}
}
