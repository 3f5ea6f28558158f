package events

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// farewell decides for which neighbors a closing node still waits: for those that make
// progress or answer. It has each neighbor that lacks events asked for a sign of life
// again and again. A neighbor that does not answer in time counts as gone. farewell
// performs no I/O and reads no clock.
type farewell struct {
	askedAt map[peer.ID]time.Time // when each neighbor was last asked for a sign of life
}

// lackingNeighbor is a neighbor that has not confirmed all events that this node has emitted.
type lackingNeighbor struct {
	id      peer.ID
	heardAt time.Time // when this node last heard from the neighbor; zero: never
	lacked  int       // how many bytes of events the neighbor lacks
}

const (
	// answerTimeout is how long a neighbor may take to give a sign of life.
	answerTimeout = time.Second
	// slowestLink is the lowest rate, in bytes per second, at which a neighbor is
	// expected to receive the events that it lacks. On TCP the request for a sign of life
	// arrives behind those events, so the neighbor gets as much more time as they take at
	// this rate.
	slowestLink = 128 << 10
	// askInterval is the pause before a neighbor that has answered is asked again.
	askInterval = 500 * time.Millisecond
	// farewellInterval is the pause between two calls of decide.
	farewellInterval = 100 * time.Millisecond
)

func newFarewell() *farewell { return &farewell{askedAt: make(map[peer.ID]time.Time)} }

// decide returns the neighbors to ask for a sign of life now, and those that are gone.
// lacking are the neighbors that lack events at this moment.
func (f *farewell) decide(now time.Time, lacking []lackingNeighbor) (ask, gone []peer.ID) {
	for _, n := range lacking {
		askedAt, asked := f.askedAt[n.id]
		answered := asked && !n.heardAt.Before(askedAt)
		patience := answerTimeout + time.Duration(n.lacked)*time.Second/slowestLink
		switch {
		case !asked, answered && now.Sub(askedAt) >= askInterval:
			// The neighbor was never asked, or it was alive when it answered some time
			// ago. It may have died since, so it is asked (again).
			f.askedAt[n.id] = now
			ask = append(ask, n.id)
		case !answered && now.Sub(askedAt) >= patience:
			gone = append(gone, n.id)
		}
	}
	return ask, gone
}
