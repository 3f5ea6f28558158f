package main

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// runID tells one flood from another.
type runID [8]byte

func newRunID() (id runID) {
	rand.Read(id[:])
	return id
}

// An event of a flood is the run's id, the number of the event, and padding.
const minSize = 16

// fill makes event number n of a run out of b, which is minSize long at least.
func fill(b []byte, run runID, n uint64) {
	copy(b, run[:])
	binary.BigEndian.PutUint64(b[8:], n)
}

func read(b []byte) (run runID, n uint64, ok bool) {
	if len(b) < minSize {
		return run, 0, false
	}
	return runID(b), binary.BigEndian.Uint64(b[8:]), true
}

// maxEvents bounds the memory of a receiver: one bit each.
const maxEvents = 100_000_000

// tally counts the events of one run at one receiver.
type tally struct {
	run      runID
	expected uint64
	seen     []uint64 // bits

	received   uint64 // different events
	twice      uint64
	disordered uint64 // came after a later one
	next       uint64 // one more than the highest number seen
	first      time.Time
	last       time.Time
}

func newTally(run runID, expected uint64) *tally {
	return &tally{run: run, expected: expected, seen: make([]uint64, (expected+63)/64)}
}

// take counts event number n, which arrived at now.
func (t *tally) take(n uint64, now time.Time) {
	if n >= t.expected {
		return
	}
	t.last = now
	word, bit := &t.seen[n/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		t.twice++
		return
	}
	*word |= bit
	if t.received++; t.received == 1 {
		t.first = now
	}
	if n < t.next {
		t.disordered++
	} else {
		t.next = n + 1
	}
}

func (t *tally) report() report {
	r := report{Run: t.run, Received: t.received, Twice: t.twice, Disordered: t.disordered}
	if t.received > 0 {
		r.Took = t.last.Sub(t.first)
	}
	return r
}

// report is what a receiver tells the sender.
type report struct {
	Run        runID         `json:"run"`
	Received   uint64        `json:"received"`
	Twice      uint64        `json:"twice"`
	Disordered uint64        `json:"disordered"`
	Took       time.Duration `json:"took"` // nanoseconds from the first event to the last
}
