package main

import (
	"testing"
	"time"
)

// A tally counts received, lost and doubled events of a run.
func TestTally(t *testing.T) {
	run := newRunID()
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	for _, tc := range []struct {
		name string
		got  []uint64
		want report
	}{
		{"all in order", []uint64{0, 1, 2, 3}, report{run, 4, 0, 0, 3 * time.Millisecond}},
		{"one is lost", []uint64{0, 1, 3}, report{run, 3, 0, 0, 2 * time.Millisecond}},
		{"one comes twice", []uint64{0, 1, 1, 2, 3}, report{run, 4, 1, 0, 4 * time.Millisecond}},
		{"one comes late", []uint64{0, 2, 3, 1}, report{run, 4, 0, 1, 3 * time.Millisecond}},
		{"an impossible number", []uint64{0, 1, 99}, report{run, 2, 0, 0, time.Millisecond}},
		{"none", nil, report{Run: run}},
	} {
		tally := newTally(run, 4)
		for i, n := range tc.got {
			tally.count(n, at(i))
		}
		if got := tally.report(); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// Reading an event returns its run and its number; other bytes are refused.
func TestEventRoundTrip(t *testing.T) {
	run := newRunID()
	b := make([]byte, minSize)
	fill(b, run, 1<<40)
	if gotRun, n, ok := read(b); !ok || gotRun != run || n != 1<<40 {
		t.Errorf("got %v, %d, %v", gotRun, n, ok)
	}
	if _, _, ok := read(b[:minSize-1]); ok {
		t.Error("a short event was read")
	}
}
