package checker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A Log collects records, and lets a test wait until their State meets a condition.
// It may be used by several goroutines. The zero value is not usable, see NewLog.
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

// Add appends a record. A record without a time gets the current time.
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

// Inspect calls f with the State that follows from the records so far. f must not keep it.
func (l *Log) Inspect(f func(*State)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.state)
}

// Wait blocks until done returns true. It calls done again after every new record.
// If ctx ends first, it returns the cause of ctx.
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

// Never blocks for d. It returns an error as soon as happened returns true. Use it for
// states that must not occur: no record can announce that they will not.
func (l *Log) Never(d time.Duration, happened func(*State) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if l.Wait(ctx, happened) == nil {
		return fmt.Errorf("the condition was met within %v", d)
	}
	return nil
}

// Records returns all records so far, sorted by time. The records of one process keep
// their order even if the clock stepped back.
func (l *Log) Records() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sorted()
}

// Settle waits until the State is settled (and, if whole is true, the network is whole), or ctx
// ends, and returns all records of that moment. A link that is being added or removed when the
// test ends breaks no rule. ask is a function that makes every node report its peer list.
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

// Check applies the rules that hold in every test, and those of cfg, to all records once the
// state has settled. If it finds violations, it waits for more records and tries again until
// ctx ends, since a missing record may still arrive. ask is a function that makes every node
// report its peer list.
func (l *Log) Check(ctx context.Context, cfg Config, ask func()) []Violation {
	for {
		found := Check(l.Settle(ctx, cfg.Whole, ask), cfg)
		if len(found) == 0 || ctx.Err() != nil {
			return found
		}
		select {
		case <-time.After(100 * time.Millisecond): // a real violation is found again
		case <-ctx.Done():
		}
	}
}

// sorted returns the records in the order of Records. The caller holds l.mu.
func (l *Log) sorted() []Record {
	var all []Record
	for _, rs := range l.records {
		// The clock may have been set back between two records of one process. They keep
		// their order: the later record gets the time of the earlier one.
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

// RecordsOf returns the records of one process with the given kinds, all of them if no
// kind is given.
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
