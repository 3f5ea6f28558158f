package events

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// farewell decides which neighbors a closing node still waits for: those that make
// progress or answer. It asks each neighbor that lacks events for a sign of life, again
// and again, and a neighbor that leaves a question unanswered is gone. farewell performs
// no I/O and reads no clock.
type farewell struct {
	askedAt map[peer.ID]time.Time // when a neighbor was last asked for a sign of life
}

// lackingNeighbor is a neighbor that has not confirmed all events.
type lackingNeighbor struct {
	id      peer.ID
	heardAt time.Time // when it last sent anything; zero: never
	lacked  int       // bytes of the events that it lacks
}

const (
	// answerTimeout is how long a neighbor may take to answer a question.
	answerTimeout = time.Second
	// slowestLink is the rate, in bytes per second, at which a neighbor that lacks
	// events may receive them. On TCP the question arrives behind those events, so
	// the neighbor has more time to answer, by the time that they take at this rate.
	slowestLink = 128 << 10
	// askInterval is the pause before a neighbor that has answered is asked again.
	askInterval = 500 * time.Millisecond
	// farewellInterval is how often farewell is asked for its decision.
	farewellInterval = 100 * time.Millisecond
)

func newFarewell() *farewell { return &farewell{askedAt: make(map[peer.ID]time.Time)} }

// decide returns the neighbors that have to be asked for a sign of life now, and those
// that are gone. lacking are the neighbors that lack events at this moment.
func (f *farewell) decide(now time.Time, lacking []lackingNeighbor) (ask, gone []peer.ID) {
	for _, n := range lacking {
		askedAt, asked := f.askedAt[n.id]
		answered := asked && !n.heardAt.Before(askedAt)
		patience := answerTimeout + time.Duration(n.lacked)*time.Second/slowestLink
		switch {
		case !asked, answered && now.Sub(askedAt) >= askInterval:
			// A neighbor that has answered may still die while we wait for it.
			f.askedAt[n.id] = now
			ask = append(ask, n.id)
		case !answered && now.Sub(askedAt) >= patience:
			gone = append(gone, n.id)
		}
	}
	return ask, gone
}
