package checker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A Log gathers records from any number of goroutines and lets a test wait for
// what they add up to. The zero value is not usable, see NewLog.
type Log struct {
	mu      sync.Mutex
	records map[string][]Record // by process, each in its own order
	state   *State
	changed chan struct{} // closed and replaced with every record
}

// NewLog returns an empty log.
func NewLog() *Log {
	return &Log{records: map[string][]Record{}, state: NewState(), changed: make(chan struct{})}
}

// Add appends a record. A record without a time gets the present.
func (l *Log) Add(r Record) {
	if r.At == 0 {
		r.At = time.Now().UnixNano()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[r.Proc] = Merge(l.records[r.Proc], r)
	l.state.Apply(r)
	close(l.changed)
	l.changed = make(chan struct{})
}

// Inspect calls f with the present state. f must not keep what it is given.
func (l *Log) Inspect(f func(*State)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.state)
}

// Wait blocks until done holds, which it asks whenever records have come. It
// returns the cause of ctx when that ends first.
func (l *Log) Wait(ctx context.Context, done func(*State) bool) error {
	for {
		l.mu.Lock()
		ok, changed := done(l.state), l.changed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Never blocks for d and returns an error as soon as happened holds within
// that time: for what must not happen, which no event can announce.
func (l *Log) Never(d time.Duration, happened func(*State) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if l.Wait(ctx, happened) == nil {
		return fmt.Errorf("it happened within %v", d)
	}
	return nil
}

// Records returns all records so far: those of one process in its own order,
// between processes by time.
func (l *Log) Records() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sorted()
}

// Settle returns all records at a moment at which the state is settled, or when ctx
// ends, if there is none before: a link that is being made or given up at the end of a
// test breaks no promise. ask has every node's list read.
func (l *Log) Settle(ctx context.Context, whole bool, ask func()) []Record {
	for {
		ask()
		l.mu.Lock()
		if l.state.Settled(whole) || ctx.Err() != nil {
			defer l.mu.Unlock()
			return l.sorted()
		}
		l.mu.Unlock()
		l.Wait(ctx, func(s *State) bool { return s.Settled(whole) })
	}
}

// Check applies the rules to all records, once what is happening has come to its end:
// what is missing then, or half done, may still come until ctx ends. ask has every node's
// list read.
func (l *Log) Check(ctx context.Context, cfg Config, ask func()) []Violation {
	for {
		found := Check(l.Settle(ctx, cfg.Whole, ask), cfg)
		if len(found) == 0 || ctx.Err() != nil {
			return found
		}
		select {
		case <-time.After(100 * time.Millisecond): // for more records; what was broken stays
		case <-ctx.Done():
		}
	}
}

// sorted is called with the lock held.
func (l *Log) sorted() []Record {
	var all []Record
	for _, rs := range l.records {
		// The wall clock may step back; the order of one process stands.
		last := int64(0)
		for _, r := range rs {
			r.At = max(r.At, last)
			last = r.At
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b Record) int {
		switch {
		case a.At != b.At:
			return int(min(max(a.At-b.At, -1), 1))
		case a.Proc < b.Proc:
			return -1
		case a.Proc > b.Proc:
			return 1
		}
		return 0
	})
	return all
}

// RecordsOf returns the records of one process of the given kinds, of every kind if
// none is given.
func (l *Log) RecordsOf(proc string, kinds ...Kind) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var rs []Record
	for _, r := range l.records[proc] {
		if len(kinds) == 0 || slices.Contains(kinds, r.Kind) {
			rs = append(rs, r)
		}
	}
	return rs
}
