package main

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// runID identifies one run of the sender.
type runID [8]byte

func newRunID() (id runID) {
	rand.Read(id[:])
	return id
}

// minSize is the number of bytes in the smallest event: 8 for the id of the run (one
// measurement) and 8 for the number of the event. Larger events are padded.
const minSize = 16

// fill writes the id of the run (one measurement) and the event number n into b, which must
// have at least minSize bytes.
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

// maxEvents is the largest number of events in a run (one measurement). A receiver keeps one
// bit for each of them.
const maxEvents = 100_000_000

// tally counts the events of one run (one measurement) at one receiver.
type tally struct {
	run      runID
	expected uint64
	seen     []uint64 // a bit for each event number, set when the event arrived

	received   uint64 // number of different events that arrived
	duplicates uint64 // number of events that arrived again
	disordered uint64 // number of events that arrived after an event with a higher number
	next       uint64 // one more than the highest event number that arrived
	first      time.Time
	last       time.Time
}

func newTally(run runID, expected uint64) *tally {
	return &tally{run: run, expected: expected, seen: make([]uint64, (expected+63)/64)}
}

// count counts event number n, which arrived at now.
func (t *tally) count(n uint64, now time.Time) {
	if n >= t.expected {
		return
	}
	t.last = now
	word, bit := &t.seen[n/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		t.duplicates++
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
	r := report{Run: t.run, Received: t.received, Twice: t.duplicates, Disordered: t.disordered}
	if t.received > 0 {
		r.Took = t.last.Sub(t.first)
	}
	return r
}

// report is a receiver's answer to the sender: its counts at the end of a run (one
// measurement).
type report struct {
	Run        runID         `json:"run"`
	Received   uint64        `json:"received"`
	Twice      uint64        `json:"twice"`
	Disordered uint64        `json:"disordered"`
	Took       time.Duration `json:"took"` // nanoseconds from the first event to the last
}
