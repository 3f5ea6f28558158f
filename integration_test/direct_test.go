package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"sync"
	"testing"
)

// TestPeerPipeCarriesEveryLine shows that 10,000 lines written to a peer's Pipe arrive
// in order, both ways.
func TestPeerPipeCarriesEveryLine(t *testing.T) {
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

// TestDirectEventsArrive shows that 10,000 direct events arrive in order, at all
// handlers of their name, also without arguments.
func TestDirectEventsArrive(t *testing.T) {
	t.Parallel()
	n := many(10_000)
	_, a, b := pair(t)
	got := listen(t, b.Direct(), "count")
	fromA := listen(t, b.Peer(a.ID()), "count")
	bare := listen(t, b.Direct(), "bare")
	emitNumbers(t, a.Peer(b.ID()), "count", n)
	wantNumbers(t, "b", got.wait(n, soon), n)
	wantNumbers(t, "b, from a,", fromA.wait(n, soon), n)

	if err := a.Peer(b.ID()).Emit(t.Context(), "bare"); err != nil {
		t.Fatal(err)
	}
	ev := bare.wait(1, soon)[0]
	if ev.Ev.Len() != 0 || ev.From != a.ID() {
		t.Errorf("an event without arguments arrived with %d arguments, from %s", ev.Ev.Len(), ev.From)
	}
}

// TestDirectEventsKeepTheirOrderBothWays shows that two nodes that send each other
// direct events at once get them in order.
func TestDirectEventsKeepTheirOrderBothWays(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	n := many(2000)
	atA, atB := listen(t, a.Peer(b.ID()), "x"), listen(t, b.Peer(a.ID()), "x")
	done := make(chan struct{})
	go func() { defer close(done); emitNumbers(t, a.Peer(b.ID()), "x", n) }()
	emitNumbers(t, b.Peer(a.ID()), "x", n)
	<-done
	wantNumbers(t, "a", atA.wait(n, soon), n)
	wantNumbers(t, "b", atB.wait(n, soon), n)
}
