package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// sending bounds a burst: who is slow sends fewer events than asked for, and
	// the round says how many.
	sending = 5 * time.Second
	// patience is how long nothing new may come before a round is over, for an
	// entrant that promises to lose nothing. It is as long as smokesignal waits
	// for an event that is missing.
	patience = 12 * time.Second
	// haste is the same for one that loses events as a matter of course.
	haste = 500 * time.Millisecond
	// pace is the pause between lone events.
	pace = 5 * time.Millisecond
)

// A flow is one sender and those who receive from it.
type flow struct {
	// send passes an event on. The flow's rounds call it from one goroutine.
	send func(ctx context.Context, round, no uint32) error
	to   []*receiver
	// lossy is whether events are lost as a matter of course.
	lossy bool
	round uint32
}

// A receiver counts what arrives at one node.
type receiver struct {
	tally atomic.Pointer[tally]
}

// A tally is what one receiver got in one round. take is called by one
// goroutine at a time, and the rest may be read meanwhile.
type tally struct {
	round      uint32
	seen       []uint64 // a bit per event, used by take alone
	last       uint32   // the same
	got        atomic.Int64
	inversions atomic.Int64
	at         []atomic.Int64 // when each came, in nanoseconds after began; nil unless asked for
	began      time.Time
	want       *atomic.Int64 // of all receivers
	full       func()
}

// take notes that an event came. Those of another round are none of this one's
// business, and those that come again do not count.
func (r *receiver) take(round, no uint32) {
	t := r.tally.Load()
	if t == nil || t.round != round || int(no/64) >= len(t.seen) {
		return
	}
	bit := uint64(1) << (no % 64)
	if t.seen[no/64]&bit != 0 {
		return
	}
	t.seen[no/64] |= bit
	if t.at != nil {
		t.at[no].Store(int64(time.Since(t.began)))
	}
	if no < t.last {
		t.inversions.Add(1)
	} else {
		t.last = no
	}
	if t.got.Add(1) == t.want.Load() {
		t.full()
	}
}

// takeBytes is take for an event which begins with its round and number.
func (r *receiver) takeBytes(b []byte) {
	if len(b) >= minSize {
		r.take(binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]))
	}
}

// minSize is what the numbers of an event take.
const minSize = 8

// fill writes the numbers of an event into b, which is minSize long at least.
func fill(b []byte, round, no uint32) {
	binary.BigEndian.PutUint32(b, round)
	binary.BigEndian.PutUint32(b[4:], no)
}

// burst sends count events as fast as they are accepted.
func (f *flow) burst(ctx context.Context, count int) (Round, error) {
	r, _, err := f.run(ctx, count, false)
	return r, err
}

// lone sends an event every pace and measures how long each takes.
func (f *flow) lone(ctx context.Context, count int) (Round, error) {
	r, took, err := f.run(ctx, count, true)
	if err != nil {
		return r, err
	}
	r.P50, r.P99 = quantiles(took)
	return r, nil
}

// run is one round. took is how long the events that arrived have taken, if they
// were lone.
func (f *flow) run(ctx context.Context, count int, lone bool) (r Round, took []time.Duration, err error) {
	f.round++
	var want, missing atomic.Int64
	want.Store(int64(count))
	missing.Store(int64(len(f.to)))
	done := make(chan time.Time, 1)
	began := time.Now()
	tallies := make([]*tally, len(f.to))
	for i, to := range f.to {
		var once atomic.Bool
		t := &tally{round: f.round, seen: make([]uint64, count/64+1), want: &want, began: began}
		t.full = func() {
			if once.CompareAndSwap(false, true) && missing.Add(-1) == 0 {
				done <- time.Now()
			}
		}
		if lone {
			t.at = make([]atomic.Int64, count)
		}
		tallies[i] = t
		to.tally.Store(t)
		defer to.tally.Store(nil)
	}

	use := start()
	first := time.Now()
	sent := make([]time.Duration, 0, count)
	var tick *time.Ticker
	if lone {
		tick = time.NewTicker(pace)
		defer tick.Stop()
	}
	for no := range count {
		if lone {
			<-tick.C
			sent = append(sent, time.Since(began))
		}
		if err := f.send(ctx, f.round, uint32(no)); err != nil {
			return r, nil, fmt.Errorf("send event %d of %d: %w", no+1, count, err)
		}
		r.Sent++
		if !lone && no%64 == 0 && time.Since(first) > sending {
			break
		}
	}
	if want.Store(int64(r.Sent)); r.Sent < count {
		for _, t := range tallies {
			if t.got.Load() == int64(r.Sent) {
				t.full()
			}
		}
	}
	last, err := f.await(ctx, tallies, done)
	if err != nil {
		return r, nil, err
	}
	use.stop(&r)

	r.Elapsed = last.Sub(first)
	r.Arrived = r.Sent
	for _, t := range tallies {
		r.Arrived = min(r.Arrived, int(t.got.Load()))
		r.Inversions += int(t.inversions.Load())
		for no := range t.at {
			if at := time.Duration(t.at[no].Load()); at > 0 {
				took = append(took, at-sent[no])
			}
		}
	}
	if r.Arrived == 0 {
		return r, nil, errNothing
	}
	return r, took, nil
}

// await returns when the last event came: the last of all, or the last before
// nothing came for long.
func (f *flow) await(ctx context.Context, tallies []*tally, done <-chan time.Time) (time.Time, error) {
	silence := patience
	if f.lossy {
		silence = haste
	}
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	last, sum := time.Now(), int64(-1)
	for {
		select {
		case at := <-done:
			return at, nil
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-look.C:
		}
		now := int64(0)
		for _, t := range tallies {
			now += t.got.Load()
		}
		if now != sum {
			last, sum = time.Now(), now
		} else if time.Since(last) > silence {
			return last, nil
		}
	}
}

// quantiles returns the median and the 99th of a hundred.
func quantiles(took []time.Duration) (p50, p99 time.Duration) {
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// questions asks count times, each when the last was answered.
func questions(ctx context.Context, count int, ask func(context.Context) error) (r Round, err error) {
	took := make([]time.Duration, count)
	use := start()
	first := time.Now()
	for i := range took {
		asked := time.Now()
		if err := ask(ctx); err != nil {
			return r, fmt.Errorf("question %d of %d: %w", i+1, count, err)
		}
		took[i] = time.Since(asked)
	}
	r.Elapsed = time.Since(first)
	use.stop(&r)
	r.Sent, r.Arrived = count, count
	r.P50, r.P99 = quantiles(took)
	return r, nil
}
