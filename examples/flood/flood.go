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

// The events of a run (one measurement), in the order in which they are broadcast.
var (
	askReceivers = smokesignal.Name[runID]("flood/hail")     // from the sender: asks who takes part
	takesPart    = smokesignal.Name[runID]("flood/here")     // from a receiver: it takes part
	announceRun  = smokesignal.Name[announce]("flood/begin") // from the sender: the number and size of the events to count, which follow
	floodEvent   = smokesignal.Name[[]byte]("flood/event")   // from the sender: one of the events that the receivers count
	askReports   = smokesignal.Name[runID]("flood/end")      // from the sender: all events are sent, and receivers are to report
	sendReport   = smokesignal.Name[report]("flood/report")  // from a receiver: its counts
)

type announce struct {
	Run   runID  `json:"run"`
	Count uint64 `json:"count"`
	Size  int    `json:"size"`
}

const (
	// askInterval is the time after which the sender asks again for receivers or for reports.
	askInterval = 500 * time.Millisecond
	// silence is the time without events after which a receiver that misses events reports
	// them as lost.
	silence = 2 * time.Second
	// patience is how long the sender waits for the next receiver at the beginning of a run
	// (one measurement), and for the next report of a receiver at its end.
	patience = 30 * time.Second
)

// receiver counts the events that a sender broadcasts.
type receiver struct {
	node *smokesignal.Node
	// onReport is called with each report of this receiver that differs from the one before.
	// from is the sender of the events, and a is what it announced of its run.
	onReport func(from smokesignal.ID, a announce, r report)

	mu    sync.Mutex
	from  smokesignal.ID
	run   announce
	tally *tally
	last  report // the last report passed to onReport
}

// newReceiver makes node count the events of senders, and calls told as onReport. The node must
// not be started yet.
func newReceiver(node *smokesignal.Node, told func(smokesignal.ID, announce, report)) *receiver {
	r := &receiver{node: node, onReport: told}
	askReceivers.On(node.Broadcast(), func(ctx context.Context, _ smokesignal.ID, run runID) {
		_ = takesPart.Emit(ctx, node.Broadcast(), run) // if the answer is lost, the sender asks again
	})
	announceRun.On(node.Broadcast(), r.handleAnnounce)
	floodEvent.On(node.Broadcast(), r.handleEvent)
	askReports.On(node.Broadcast(), r.handleEnd)
	return r
}

func (r *receiver) handleAnnounce(_ context.Context, from smokesignal.ID, a announce) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Count <= maxEvents && (r.tally == nil || r.run.Run != a.Run) {
		r.from, r.run, r.tally = from, a, newTally(a.Run, a.Count)
	}
}

func (r *receiver) handleEvent(_ context.Context, from smokesignal.ID, b []byte) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if run, n, ok := read(b); ok && r.tally != nil && from == r.from && run == r.run.Run && len(b) == r.run.Size {
		r.tally.count(n, now)
	}
}

// handleEnd reports the counts of this receiver to the sender if all events have arrived, or if
// none has arrived for the time silence. Otherwise it does nothing, and the sender asks again.
func (r *receiver) handleEnd(ctx context.Context, from smokesignal.ID, run runID) {
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
		r.onReport(from, a, rep)
	}
	_ = sendReport.Emit(ctx, r.node.Broadcast(), rep)
}

// progress returns how many events of the current run (one measurement) have arrived, and how
// many there are.
func (r *receiver) progress() (n, of uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tally == nil {
		return 0, 0
	}
	return r.tally.received, r.run.Count
}

// outcome is the result of a run.
type outcome struct {
	announce
	took    time.Duration              // the duration of all Emit calls together
	reports map[smokesignal.ID]*report // by receiver; nil for a receiver that did not report
}

// sender broadcasts the events of a run (one measurement) and collects the reports of the
// receivers.
type sender struct {
	node *smokesignal.Node

	mu      sync.Mutex
	run     announce
	reports map[smokesignal.ID]*report
	changed chan struct{} // has an element after reports changed
	sent    atomic.Uint64
}

// newSender makes node a sender of count events of size bytes. The node must not be started
// yet.
func newSender(node *smokesignal.Node, count uint64, size int) *sender {
	s := &sender{
		node:    node,
		run:     announce{newRunID(), count, size},
		reports: make(map[smokesignal.ID]*report),
		changed: make(chan struct{}, 1),
	}
	takesPart.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, run runID) {
		if run == s.run.Run {
			s.recordReceiver(from, nil)
		}
	})
	sendReport.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, r report) {
		if r.Run == s.run.Run {
			s.recordReceiver(from, &r)
		}
	})
	return s
}

func (s *sender) recordReceiver(from smokesignal.ID, r *report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, known := s.reports[from]; known && (old != nil || r == nil) {
		return
	}
	s.reports[from] = r
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// flood waits until the given number of receivers takes part, sends the events and collects
// the reports.
func (s *sender) flood(ctx context.Context, receivers int) (*outcome, error) {
	run := s.run.Run
	all := s.node.Broadcast()
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.node.Ready(ready); err != nil {
		return nil, err
	}
	err := s.askUntil(ctx, func() bool { return len(s.reports) >= receivers }, func(ctx context.Context) error {
		return askReceivers.Emit(ctx, all, run)
	})
	if err != nil {
		return nil, fmt.Errorf("%d of %d receivers take part: %w", s.receiverCount(), receivers, err)
	}
	if err := announceRun.Emit(ctx, all, s.run); err != nil {
		return nil, fmt.Errorf("announce the flood: %w", err)
	}
	start := time.Now()
	b := make([]byte, s.run.Size)
	for n := range s.run.Count {
		fill(b, run, n)
		if err := floodEvent.Emit(ctx, all, b); err != nil {
			return nil, fmt.Errorf("broadcast event %d of %d: %w", n+1, s.run.Count, err)
		}
		s.sent.Add(1)
	}
	o := &outcome{announce: s.run, took: time.Since(start)}
	// The error is ignored: a receiver that did not report has a nil report in the outcome.
	_ = s.askUntil(ctx, s.complete, func(ctx context.Context) error { return askReports.Emit(ctx, all, run) })
	s.mu.Lock()
	defer s.mu.Unlock()
	o.reports = maps.Clone(s.reports)
	return o, context.Cause(ctx)
}

func (s *sender) receiverCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reports)
}

// complete reports whether every receiver has reported. The caller holds mu.
func (s *sender) complete() bool {
	for _, r := range s.reports {
		if r == nil {
			return false
		}
	}
	return true
}

// progress returns how many events of the run have been sent, and how many there are.
func (s *sender) progress() (n, of uint64) { return s.sent.Load(), s.run.Count }

// askUntil calls question again and again until done returns true. It fails if no receiver
// and no report arrives for the time patience. It holds mu while it calls done.
func (s *sender) askUntil(ctx context.Context, done func() bool, question func(context.Context) error) error {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	again := time.NewTicker(askInterval)
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
		case <-s.changed:
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
