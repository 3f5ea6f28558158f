package integration_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// tally accounts for the broadcasts of one sender at one node: each number has to
// be delivered or reported as missing, in order, and once.
type tally struct {
	t    testing.TB
	who  string
	from smokesignal.ID

	mu        sync.Mutex
	changed   chan struct{}
	next      uint64 // the number that comes next; 0: not known yet
	first     uint64
	delivered uint64
	gaps      []smokesignal.Gap
	reported  uint64
	wrong     bool
}

// numbered is the name of the events that emitNumbered sends.
const numbered = "numbered"

// newTally begins to account at a node for what a sender emits with emitNumbered,
// and nothing else. slow is called for each event, and may be nil.
func newTally(t testing.TB, who string, at *smokesignal.Node, from smokesignal.ID, slow func()) *tally {
	y := &tally{t: t, who: who, from: from, changed: make(chan struct{})}
	at.Broadcast().On(numbered, func(_ context.Context, ev *smokesignal.Event) {
		if ev.From != from {
			return
		}
		data, _ := ev.Bytes(0)
		y.account(binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data)+1, nil)
		if slow != nil {
			slow()
		}
	})
	at.Broadcast().OnGap(func(_ context.Context, g smokesignal.Gap) {
		if g.From == from {
			y.account(g.First, g.Last+1, &g)
		}
	})
	return y
}

// emitNumbered broadcasts the numbers from up to to, which have to be those that
// the library gives the events, too: the sender broadcasts nothing else.
func emitNumbered(ctx context.Context, n *smokesignal.Node, from, to uint64, size int) error {
	data := make([]byte, max(size, 8))
	for i := from; i < to; i++ {
		binary.BigEndian.PutUint64(data, i)
		if err := n.Broadcast().Emit(ctx, numbered, data); err != nil {
			return fmt.Errorf("emit number %d: %w", i, err)
		}
	}
	return nil
}

func (y *tally) account(from, to uint64, g *smokesignal.Gap) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.next == 0 {
		y.next, y.first = from, from
	}
	if from != y.next && !y.wrong {
		y.wrong = true
		y.t.Errorf("%s: %d to %d came where %d had to come (a gap: %v)", y.who, from, to-1, y.next, g)
	}
	y.next = to
	if g != nil {
		y.gaps = append(y.gaps, *g)
		y.reported += to - from
	} else {
		y.delivered += to - from
	}
	close(y.changed)
	y.changed = make(chan struct{})
}

// wait blocks until everything below next is accounted for, and returns how many
// were delivered and how many reported as missing.
func (y *tally) wait(next uint64, within time.Duration) (delivered, reported uint64) {
	y.t.Helper()
	timeout := time.After(within)
	for {
		y.mu.Lock()
		at, changed := y.next, y.changed
		delivered, reported = y.delivered, y.reported
		y.mu.Unlock()
		if at >= next {
			return delivered, reported
		}
		select {
		case <-changed:
		case <-timeout:
			y.t.Fatalf("%s: not within %v: accounted up to %d of %d, %d delivered, %d reported", y.who, within, at, next, delivered, reported)
		}
	}
}

// all waits until everything below next is accounted for, and fails unless all of
// it was delivered, from number 1 on.
func (y *tally) all(next uint64, within time.Duration) {
	y.t.Helper()
	delivered, reported := y.wait(next, within)
	y.mu.Lock()
	defer y.mu.Unlock()
	if reported != 0 || delivered != next-1 || y.first != 1 {
		y.t.Errorf("%s: %d of %d delivered from number %d on, missing: %v", y.who, delivered, next-1, y.first, y.gaps)
	}
}
