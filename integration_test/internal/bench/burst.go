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
	// maxSending is how long the sending of a burst may take. After that, the round sends no
	// more of its events; Round.Sent is the number of events that it has sent.
	maxSending = 5 * time.Second
	// losslessSilence is the time without a new event after which a round ends, if the way of
	// sending promises to lose no event. smokesignal itself waits as long for a missing event
	// before it reports the event as lost.
	losslessSilence = 12 * time.Second
	// lossySilence is the time without a new event after which a round ends, if the way of
	// sending may lose events.
	lossySilence = 500 * time.Millisecond
	// pace is the interval between events whose latency is measured one by one.
	pace = 5 * time.Millisecond
)

// A pattern is the way in which the events of a round are sent.
type pattern int

const (
	inBurst pattern = iota // as fast as they are accepted
	paced                  // one event per interval pace; the latency of each is measured
)

// A flow is one sender and its receivers.
type flow struct {
	// send sends the event with the number no of the given round. Rounds call it from one
	// goroutine at a time.
	send func(ctx context.Context, round, no uint32) error
	to   []*receiver
	// lossy is true if this way of sending may lose events.
	lossy bool
	round uint32
}

// A receiver counts the events that arrive at one node.
type receiver struct {
	tally atomic.Pointer[tally]
}

// A tally counts the events of one round at one receiver. One goroutine at a
// time calls receiver.count; the atomic fields may be read meanwhile.
type tally struct {
	round      uint32
	seen       []uint64 // a bit for each event, set when it arrived; only count uses it
	last       uint32   // the largest number of an event that arrived; only count uses it
	got        atomic.Int64
	inversions atomic.Int64
	at         []atomic.Int64 // when each event arrived, in nanoseconds after began; nil in a burst
	began      time.Time
	want       *atomic.Int64 // the number of events that every receiver should get
	full       func()        // called when got reaches want
}

// count counts the event with the number no of the given round. It ignores events of another
// round than the present one, and duplicates.
func (r *receiver) count(round, no uint32) {
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

// countBytes counts an event whose bytes begin with the number of its round and its own number.
func (r *receiver) countBytes(b []byte) {
	if len(b) >= minSize {
		r.count(binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]))
	}
}

// minSize is the size in bytes of the smallest event: the number of its round and its own
// number.
const minSize = 8

// fill writes the number of the round and the number no of the event into b, which must have at
// least minSize bytes.
func fill(b []byte, round, no uint32) {
	binary.BigEndian.PutUint32(b, round)
	binary.BigEndian.PutUint32(b[4:], no)
}

// burst runs a round of count events that are sent as fast as they are accepted, and returns
// its figures.
func (f *flow) burst(ctx context.Context, count int) (Round, error) {
	r, _, err := f.run(ctx, count, inBurst)
	return r, err
}

// sendPaced runs a round of count events, one at each interval of pace, and returns its figures
// with the latencies.
func (f *flow) sendPaced(ctx context.Context, count int) (Round, error) {
	r, took, err := f.run(ctx, count, paced)
	if err != nil {
		return r, err
	}
	r.P50, r.P99 = quantiles(took)
	return r, nil
}

// run runs one round of count events, which are sent by the pattern p. took has the latencies
// of the events that arrived, if p is paced.
func (f *flow) run(ctx context.Context, count int, p pattern) (r Round, took []time.Duration, err error) {
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
		if p == paced {
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
	if p == paced {
		tick = time.NewTicker(pace)
		defer tick.Stop()
	}
	for no := range count {
		if p == paced {
			<-tick.C
			sent = append(sent, time.Since(began))
		}
		if err := f.send(ctx, f.round, uint32(no)); err != nil {
			return r, nil, fmt.Errorf("send event %d of %d: %w", no+1, count, err)
		}
		r.Sent++
		if p == inBurst && no%64 == 0 && time.Since(first) > maxSending {
			break // the sender is slow, so the round continues with fewer events
		}
	}
	if want.Store(int64(r.Sent)); r.Sent < count {
		// The burst ended early, so there are fewer events than count. A receiver that has all
		// of them already gets no further event, so it would not notice by itself that it is
		// complete.
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

// await waits until every receiver has all events, which done reports, or until no new event
// has arrived for so long that the rest counts as lost. It returns the time at which the last
// event arrived.
func (f *flow) await(ctx context.Context, tallies []*tally, done <-chan time.Time) (time.Time, error) {
	silence := losslessSilence
	if f.lossy {
		silence = lossySilence
	}
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	last, sum := time.Now(), int64(-1)
	for {
		select {
		case at := <-done:
			return at, nil
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-poll.C:
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

// quantiles returns the median and the 99th percentile of the durations in took.
func quantiles(took []time.Duration) (p50, p99 time.Duration) {
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// requests calls ask count times, one after the other, and measures how long each call takes.
func requests(ctx context.Context, count int, ask func(context.Context) error) (r Round, err error) {
	took := make([]time.Duration, count)
	use := start()
	first := time.Now()
	for i := range took {
		asked := time.Now()
		if err := ask(ctx); err != nil {
			return r, fmt.Errorf("request %d of %d: %w", i+1, count, err)
		}
		took[i] = time.Since(asked)
	}
	r.Elapsed = time.Since(first)
	use.stop(&r)
	r.Sent, r.Arrived = count, count
	r.P50, r.P99 = quantiles(took)
	return r, nil
}
