package main

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// The events of a flood, in the order in which they are broadcast.
var (
	hail   = smokesignal.Name[runID]("flood/hail")     // sender: who takes part?
	here   = smokesignal.Name[runID]("flood/here")     // receiver: I do
	begin  = smokesignal.Name[announce]("flood/begin") // sender: so many events will come
	drop   = smokesignal.Name[[]byte]("flood/event")   // one of them
	end    = smokesignal.Name[runID]("flood/end")      // sender: that was all; what did you get?
	answer = smokesignal.Name[report]("flood/report")  // receiver: this
)

type announce struct {
	Run   runID  `json:"run"`
	Count uint64 `json:"count"`
	Size  int    `json:"size"`
}

const (
	// repeat is how often a question is asked again.
	repeat = 500 * time.Millisecond
	// silence is how long a receiver which misses events waits for more before
	// it reports.
	silence = 2 * time.Second
	// patience is how long the sender waits for anything new: for receivers at
	// first, for reports in the end.
	patience = 30 * time.Second
)

// receiver counts the floods of others.
type receiver struct {
	node *smokesignal.Node
	// told is called with each new report.
	told func(from smokesignal.ID, a announce, r report)

	mu    sync.Mutex
	from  smokesignal.ID
	run   announce
	tally *tally
	last  report // as told
}

// receive makes node take part in floods. It must not be started yet.
func receive(node *smokesignal.Node, told func(smokesignal.ID, announce, report)) *receiver {
	r := &receiver{node: node, told: told}
	hail.On(node.Broadcast(), func(ctx context.Context, _ smokesignal.ID, run runID) {
		_ = here.Emit(ctx, node.Broadcast(), run) // if it is lost, the sender asks again
	})
	begin.On(node.Broadcast(), r.begin)
	drop.On(node.Broadcast(), r.drop)
	end.On(node.Broadcast(), r.end)
	return r
}

func (r *receiver) begin(_ context.Context, from smokesignal.ID, a announce) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Count <= maxEvents && (r.tally == nil || r.run.Run != a.Run) {
		r.from, r.run, r.tally = from, a, newTally(a.Run, a.Count)
	}
}

func (r *receiver) drop(_ context.Context, from smokesignal.ID, b []byte) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if run, n, ok := read(b); ok && r.tally != nil && from == r.from && run == r.run.Run && len(b) == r.run.Size {
		r.tally.take(n, now)
	}
}

// end reports what has come, if that is all or no more seems to come. Otherwise
// the sender will ask again.
func (r *receiver) end(ctx context.Context, from smokesignal.ID, run runID) {
	r.mu.Lock()
	if r.tally == nil || from != r.from || run != r.run.Run {
		r.mu.Unlock()
		return
	}
	if r.tally.received < r.run.Count {
		if r.tally.last.IsZero() {
			r.tally.last = time.Now()
		}
		if time.Since(r.tally.last) < silence {
			r.mu.Unlock()
			return
		}
	}
	a, rep := r.run, r.tally.report()
	news := rep != r.last
	r.last = rep
	r.mu.Unlock()
	if news {
		r.told(from, a, rep)
	}
	_ = answer.Emit(ctx, r.node.Broadcast(), rep)
}

// progress returns how many events of the present run have come.
func (r *receiver) progress() (n, of uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tally == nil {
		return 0, 0
	}
	return r.tally.received, r.run.Count
}

// outcome is what became of a flood.
type outcome struct {
	announce
	took    time.Duration              // of all Emit calls together
	reports map[smokesignal.ID]*report // nil for those who did not report
}

// sender floods the others.
type sender struct {
	node *smokesignal.Node

	mu      sync.Mutex
	run     announce
	reports map[smokesignal.ID]*report
	news    chan struct{} // has one element after reports changed
	sent    atomic.Uint64
}

// send makes node a sender. It must not be started yet.
func send(node *smokesignal.Node, count uint64, size int) *sender {
	s := &sender{
		node:    node,
		run:     announce{newRunID(), count, size},
		reports: make(map[smokesignal.ID]*report),
		news:    make(chan struct{}, 1),
	}
	here.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, run runID) {
		if run == s.run.Run {
			s.note(from, nil)
		}
	})
	answer.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, r report) {
		if r.Run == s.run.Run {
			s.note(from, &r)
		}
	})
	return s
}

func (s *sender) note(from smokesignal.ID, r *report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, known := s.reports[from]; known && (old != nil || r == nil) {
		return
	}
	s.reports[from] = r
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// flood waits for so many receivers, sends the events and collects the reports.
func (s *sender) flood(ctx context.Context, receivers int) (*outcome, error) {
	run := s.run.Run
	all := s.node.Broadcast()
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.node.Ready(ready); err != nil {
		return nil, err
	}
	err := s.ask(ctx, func() bool { return len(s.reports) >= receivers }, func(ctx context.Context) error {
		return hail.Emit(ctx, all, run)
	})
	if err != nil {
		return nil, fmt.Errorf("%d of %d receivers take part: %w", s.known(), receivers, err)
	}
	if err := begin.Emit(ctx, all, s.run); err != nil {
		return nil, fmt.Errorf("announce the flood: %w", err)
	}
	start := time.Now()
	b := make([]byte, s.run.Size)
	for n := range s.run.Count {
		fill(b, run, n)
		if err := drop.Emit(ctx, all, b); err != nil {
			return nil, fmt.Errorf("broadcast event %d of %d: %w", n+1, s.run.Count, err)
		}
		s.sent.Add(1)
	}
	o := &outcome{announce: s.run, took: time.Since(start)}
	// Those who do not report are left without one.
	_ = s.ask(ctx, s.complete, func(ctx context.Context) error { return end.Emit(ctx, all, run) })
	s.mu.Lock()
	defer s.mu.Unlock()
	o.reports = maps.Clone(s.reports)
	return o, context.Cause(ctx)
}

func (s *sender) known() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reports)
}

// complete is called with the lock held.
func (s *sender) complete() bool {
	for _, r := range s.reports {
		if r == nil {
			return false
		}
	}
	return true
}

// progress returns how many events have been sent.
func (s *sender) progress() (n, of uint64) { return s.sent.Load(), s.run.Count }

// ask calls question again and again until done, which is called with the lock
// held, or until nothing new has come for long.
func (s *sender) ask(ctx context.Context, done func() bool, question func(context.Context) error) error {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	again := time.NewTicker(repeat)
	defer again.Stop()
	err := question(ctx)
	for {
		s.mu.Lock()
		ok := done()
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-s.news:
			enough.Reset(patience)
		case <-again.C:
			err = question(ctx)
		case <-enough.C:
			if err == nil {
				err = fmt.Errorf("nothing new within %v", patience)
			}
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
