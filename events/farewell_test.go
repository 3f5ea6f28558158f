package events

import (
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// farewellScript drives a farewell with one neighbor that lacks events.
type farewellScript struct {
	t        *testing.T
	farewell *farewell
	now      time.Time
	neighbor lackingNeighbor
}

func newFarewellScript(t *testing.T, lacked int) *farewellScript {
	return &farewellScript{t, newFarewell(), time.Unix(1000, 0), lackingNeighbor{id: "neighbor", lacked: lacked}}
}

// advance lets time pass.
func (s *farewellScript) advance(d time.Duration) { s.now = s.now.Add(d) }

// hear records an answer of the neighbor at this moment.
func (s *farewellScript) hear() { s.neighbor.heardAt = s.now }

// want checks the decision at this moment.
func (s *farewellScript) want(asked, gone bool) {
	s.t.Helper()
	ask, lost := s.farewell.decide(s.now, []lackingNeighbor{s.neighbor})
	one := []peer.ID{s.neighbor.id}
	if slices.Equal(ask, one) != asked || slices.Equal(lost, one) != gone || len(ask)+len(lost) > 1 {
		s.t.Fatalf("after %v: asked %v, gone %v; want %v, %v", s.now.Sub(time.Unix(1000, 0)), ask, lost, asked, gone)
	}
}

// A closing node waits one second for a neighbor that never answers.
func TestANeighborWithoutAnAnswerIsGoneAfterASecond(t *testing.T) {
	s := newFarewellScript(t, 0)
	s.want(true, false)
	s.advance(answerTimeout - time.Millisecond)
	s.want(false, false)
	s.advance(time.Millisecond)
	s.want(false, true)
}

// A neighbor that answers is asked again, for as long as it lacks events.
func TestANeighborThatAnswersIsWaitedForAndAskedAgain(t *testing.T) {
	s := newFarewellScript(t, 0)
	for range 100 {
		s.want(true, false)
		s.advance(askInterval / 2)
		s.hear()
		s.want(false, false)
		s.advance(askInterval / 2)
	}
}

// A neighbor that stops answering is no longer waited for.
func TestANeighborThatStopsAnsweringIsGone(t *testing.T) {
	s := newFarewellScript(t, 0)
	s.want(true, false)
	s.hear()
	s.advance(askInterval)
	s.want(true, false)
	s.advance(answerTimeout)
	s.want(false, true)
}

// On TCP, the question waits behind the events that the neighbor lacks.
func TestANeighborThatLacksMuchHasMoreTimeToAnswer(t *testing.T) {
	s := newFarewellScript(t, 2*slowestLink)
	s.want(true, false)
	s.advance(answerTimeout + 2*time.Second - time.Millisecond)
	s.want(false, false)
	s.neighbor.lacked = 0 // without a sign of life, as the window has given it up
	s.want(false, true)
}
