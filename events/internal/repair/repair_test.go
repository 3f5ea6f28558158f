package repair

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// script drives a core step by step; the sender is always "s", in its session 1.
type script struct {
	t    *testing.T
	core *Planner
	now  time.Time
	open []Ask // questions not yet answered
}

func newScript(t *testing.T, cfg Config, neighbors ...peer.ID) *script {
	s := &script{t: t, core: New(cfg), now: time.Unix(1000, 0)}
	for _, id := range neighbors {
		s.core.AddNeighbor(id)
	}
	return s
}

func life(n int) order.SessionKey { return order.SessionKey{Start: uint64(n)} }

var key = Subject{Sender: "s", Session: life(1)}

// need sets the missing range to [from, to), missing since now; an empty range means that
// no events are missing.
func (s *script) need(from, to uint64) { s.needs(from, to, s.now, false) }

func (s *script) needs(from, to uint64, since time.Time, hearsay bool) {
	if from >= to {
		s.core.ClearHole(key)
		return
	}
	s.core.SetHole("s", order.Hole{Session: life(1), From: from, To: to, Since: since, Hearsay: hearsay})
}

// claim receives a neighbor's claim that it has the events [begin, next) and stores those
// from floor on.
func (s *script) claim(id peer.ID, begin, next, floor uint64) {
	s.core.ReceiveClaim(id, "s", Claim{Session: life(1), Begin: begin, Next: next, Floor: floor})
}

// want moves the clock forward and compares the actions that are due, like "a 1-3, lost
// 5-7".
func (s *script) want(after time.Duration, want string) {
	s.t.Helper()
	s.now = s.now.Add(after)
	asks, given := s.core.Advance(s.now)
	s.open = append(s.open, asks...)
	var got []string
	for _, a := range asks {
		text := fmt.Sprintf("%s %d-%d", string(a.Peer), a.From, a.To)
		if a.Backfill {
			text = "fill " + text
		}
		got = append(got, text)
	}
	for _, a := range given {
		got = append(got, fmt.Sprintf("lost %d-%d", a.From, a.To))
	}
	slices.Sort(got)
	if text := strings.Join(got, ", "); text != want {
		s.t.Errorf("%v after the beginning: %q, want %q", s.now.Sub(time.Unix(1000, 0)), text, want)
	}
	if next := s.core.Next(); !next.IsZero() && !next.After(s.now) {
		s.t.Errorf("next is %v at %v", next, s.now)
	}
}

// answer ends the oldest question to a neighbor with an outcome.
func (s *script) answer(id peer.ID, got uint64, answer Outcome) {
	s.t.Helper()
	i := slices.IndexFunc(s.open, func(a Ask) bool { return a.Peer == id })
	if i < 0 {
		s.t.Fatalf("%s was not asked", string(id))
	}
	a := s.open[i]
	s.open = slices.Delete(s.open, i, i+1)
	s.core.FinishAsk(s.now, a, got, answer)
}

// After a grace period the neighbors that claim to have the missing events are asked one
// at a time, then the other neighbors.
func TestNeighborsThatClaimEventsAreAskedFirst(t *testing.T) {
	s := newScript(t, Config{}, "a", "b", "c", "s")
	s.claim("c", 1, 9, 1)  // has it
	s.claim("b", 1, 9, 7)  // had it
	s.claim("a", 1, 5, 1)  // knows nothing of it
	s.need(5, 9)           // and the sender itself says nothing
	s.want(149*1e6, "")    // in case it comes by itself
	s.want(1*1e6, "c 5-9") // one at a time
	s.want(time.Second, "")
	s.answer("c", 0, NotFound)
	s.want(0, "b 5-9")
	s.answer("b", 0, Failed)
	s.want(0, "s 5-9")
	s.answer("s", 0, NotFound)
	s.want(0, "a 5-9")
	s.answer("a", 9, Found)
	s.need(0, 0)
	s.want(time.Hour, "")
	if s.core.HoleCount() != 0 || !s.core.Next().IsZero() {
		t.Errorf("%d needs, next %v", s.core.HoleCount(), s.core.Next())
	}
}

// Events that arrive within the grace period are not asked for, and each arrival starts
// the period again.
func TestEventsThatArriveInTimeAreNotAskedFor(t *testing.T) {
	s := newScript(t, Config{}, "a")
	s.need(5, 9)
	s.now = s.now.Add(100 * time.Millisecond)
	s.need(7, 9) // something came in its turn
	s.want(100*time.Millisecond, "")
	s.need(0, 0)
	s.want(time.Hour, "")
}

// The rest of a partial answer is asked for at once, of the same neighbor as long as its
// answers contain missing events.
func TestNeighborIsAskedAgainWhileItGivesEvents(t *testing.T) {
	s := newScript(t, Config{}, "a", "b")
	s.claim("a", 1, 90, 1)
	s.need(5, 90)
	s.want(150*time.Millisecond, "a 5-90")
	s.need(50, 90)
	s.answer("a", 50, Found)
	s.want(0, "a 50-90")
	s.need(50, 80) // what came was from 80 on
	s.answer("a", 90, Found)
	s.want(0, "a 50-80")
	s.answer("a", 90, Found) // nothing of use
	s.want(150*time.Millisecond, "b 50-80")
}

// Events are reported as lost after two seconds, when every neighbor has answered that it
// does not have them.
func TestLostAfterEveryNeighborAnswersNotFound(t *testing.T) {
	s := newScript(t, Config{}, "a", "b")
	s.claim("a", 1, 9, 0)
	s.need(5, 9)
	s.want(150*time.Millisecond, "a 5-9")
	s.answer("a", 0, NotFound)
	s.want(0, "b 5-9")
	s.answer("b", 0, NotFound)
	s.want(0, "") // two seconds are not over
	s.want(500*time.Millisecond, "a 5-9")
	s.answer("a", 0, NotFound)
	s.want(1400*time.Millisecond, "b 5-9")
	s.answer("b", 0, NotFound)
	s.want(0, "lost 5-9")
	s.need(0, 0)
	if s.core.HoleCount() != 0 {
		t.Errorf("%d needs", s.core.HoleCount())
	}
}

// A neighbor that never received the missing part of the session cannot prove that it is
// lost, so the events are given up only after 30 seconds.
func TestNeighborWithoutTheSessionDoesNotProveLoss(t *testing.T) {
	for name, claim := range map[string]Claim{
		"never heard of it": {},
		"not so far":        {Session: life(1), Begin: 1, Next: 5, Floor: 1},
		"began later":       {Session: life(1), Begin: 9, Next: 20, Floor: 1},
		"another session":   {Session: life(2), Begin: 1, Next: 20, Floor: 1},
	} {
		s := newScript(t, Config{}, "a")
		if claim.Next > 0 {
			s.core.ReceiveClaim("a", "s", claim)
		}
		s.need(5, 9)
		start := s.now
		lost := time.Duration(0)
		for lost == 0 && s.now.Sub(start) < time.Minute {
			s.now = s.core.Next()
			asks, given := s.core.Advance(s.now)
			for _, a := range asks {
				s.core.FinishAsk(s.now, a, 0, NotFound)
			}
			if len(given) > 0 {
				lost = s.now.Sub(start)
			}
		}
		if lost < 30*time.Second || lost > 32*time.Second {
			t.Errorf("%s: given up after %v, want 30 s", name, lost)
		}
	}
}

// A neighbor that failed to answer is asked again before the events are reported as lost.
func TestFailedQuestionDoesNotProveLoss(t *testing.T) {
	s := newScript(t, Config{}, "a", "b")
	s.claim("a", 1, 9, 1)
	s.claim("b", 1, 9, 0)
	s.need(5, 9)
	s.now = s.now.Add(time.Hour)
	s.want(0, "a 5-9")
	s.answer("a", 0, Failed)
	s.want(0, "b 5-9")
	s.answer("b", 0, NotFound)
	s.want(0, "")
	s.want(500*time.Millisecond, "a 5-9")
}

// A neighbor that claims the events during or after a question is asked again before they
// are reported as lost.
func TestNewClaimIsAskedAgainBeforeGivingUp(t *testing.T) {
	for _, meanwhile := range []bool{false, true} {
		s := newScript(t, Config{}, "a", "b")
		s.claim("a", 1, 5, 1)
		s.claim("b", 1, 9, 0)
		s.need(5, 9)
		s.now = s.now.Add(3 * time.Second)
		s.want(0, "b 5-9")
		s.answer("b", 0, NotFound)
		s.want(0, "a 5-9")
		if meanwhile {
			s.claim("a", 1, 9, 1)
		}
		s.answer("a", 0, NotFound)
		if !meanwhile {
			s.claim("a", 1, 9, 1)
		}
		s.want(0, "a 5-9")
		s.claim("a", 1, 8, 1) // an old word that was overtaken
		s.answer("a", 0, NotFound)
		s.want(0, "lost 5-9")
	}
}

// A claim that begins lower replaces the earlier claim, since the neighbor does not have
// the events in between yet.
func TestClaimWithALowerBeginningReplacesTheEarlier(t *testing.T) {
	s := newScript(t, Config{}, "a")
	s.claim("a", 17, 42, 17)
	s.claim("a", 1, 5, 1)
	s.need(5, 17)
	s.now = s.now.Add(3 * time.Second)
	s.want(0, "a 5-17")
	s.answer("a", 0, NotFound)
	s.want(0, "")
}

// An answer about events that are no longer missing does not count for the events that are
// missing now.
func TestAnswerAboutOtherEventsDoesNotCount(t *testing.T) {
	s := newScript(t, Config{}, "a", "b")
	s.claim("a", 1, 20, 1)
	s.need(17, 22)
	s.now = s.now.Add(3 * time.Second)
	s.want(0, "a 17-22")
	s.needs(1, 7, s.now.Add(-3*time.Second), false)
	s.answer("a", 0, NotFound)
	s.want(0, "a 1-7")
}

// Events known only by hearsay are asked of the neighbor that claims them and of their
// sender, and of the other neighbors only when they are certain to exist.
func TestHearsayIsAskedOfItsSourceAndTheSender(t *testing.T) {
	s := newScript(t, Config{}, "a", "b", "s", "liar")
	s.claim("liar", 1, 1<<60, 1)
	s.needs(5, 1<<60, s.now, true)
	s.now = s.now.Add(3 * time.Second)
	s.want(0, "liar 5-1152921504606846976")
	s.answer("liar", 0, NotFound)
	s.want(0, "s 5-1152921504606846976")
	s.answer("s", 0, NotFound)
	s.want(0, "lost 5-1152921504606846976")
	s.needs(5, 7, s.now, false) // now it is certain
	s.want(3*time.Second, "liar 5-7")
	s.answer("liar", 0, NotFound)
	s.want(0, "s 5-7")
	s.answer("s", 0, NotFound)
	s.want(0, "a 5-7")
}

// A neighbor gets at most MaxPerPeer questions at a time, and neighbors that do not answer
// cannot use up the questions of another.
func TestQuestionsAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxAsks: 5, MaxPerPeer: 3}, "a", "b")
	for n := range 20 {
		s.core.SetHole(peer.ID(fmt.Sprint(n)), order.Hole{Session: life(1), From: 1, To: 2, Since: s.now})
	}
	s.now = s.now.Add(time.Second)
	asks, _ := s.core.Advance(s.now)
	of := map[peer.ID]int{}
	for _, a := range asks {
		of[a.Peer]++
	}
	if len(asks) != 6 || of["a"] != 3 || of["b"] != 3 {
		t.Errorf("%d questions, %v", len(asks), of)
	}
	if !s.core.Next().IsZero() {
		t.Errorf("next %v", s.core.Next())
	}
	s.core.FinishAsk(s.now, asks[0], 0, NotFound)
	if asks, _ = s.core.Advance(s.now); len(asks) != 1 {
		t.Errorf("%d questions after an answer", len(asks))
	}
}

// The questions that a neighbor has not answered still count after it has left and
// returned.
func TestQuestionCountSurvivesANewLink(t *testing.T) {
	s := newScript(t, Config{MaxPerPeer: 1}, "a")
	s.need(5, 9)
	s.want(time.Second, "a 5-9")
	s.core.RemoveNeighbor("a")
	s.core.AddNeighbor("a")
	s.core.SetHole("other", order.Hole{Session: life(1), From: 1, To: 2, Since: s.now})
	s.want(time.Second, "")
	s.answer("a", 0, Failed)
	s.want(time.Second, "a 1-2")
	s.answer("a", 0, NotFound)
	s.core.AddBackfill("a", key, 1, 5)
	s.core.ClearHole(Subject{Sender: "other", Session: life(1)})
	s.need(0, 0)
	s.want(time.Second, "fill a 1-5")
}

// The holes of a thousand senders become due together instead of each on its own.
func TestManyHolesShareTheirDeadlines(t *testing.T) {
	s := newScript(t, Config{}, "a")
	for n := range 1000 {
		s.core.ReceiveClaim("a", peer.ID(fmt.Sprint(n)), Claim{Session: life(1), Begin: 1, Next: 9, Floor: 1})
		s.core.SetHole(peer.ID(fmt.Sprint(n)), order.Hole{Session: life(1), From: 1, To: 9, Since: s.now.Add(time.Duration(n) * time.Microsecond), Hearsay: true})
	}
	advances := 0
	for end := s.now.Add(10 * time.Second); ; advances++ {
		next := s.core.Next()
		if next.IsZero() || next.After(end) {
			break
		}
		s.now = next
		asks, _ := s.core.Advance(s.now)
		for _, a := range asks {
			s.core.FinishAsk(s.now, a, 0, NotFound)
		}
	}
	if advances > 1000 {
		t.Errorf("%d times within ten seconds", advances)
	}
}

// A backfill asks on from the end of each answer, tries again after a failure, and ends
// with an empty answer, too many failures, or the link.
func TestBackfill(t *testing.T) {
	s := newScript(t, Config{}, "a", "b")
	s.core.AddBackfill("a", key, 1, 50)
	s.core.AddBackfill("b", key, 50, 50) // nothing
	s.core.AddBackfill("gone", key, 1, 50)
	s.want(0, "fill a 1-50")
	s.answer("a", 30, Found)
	s.want(0, "fill a 30-50")
	s.answer("a", 40, Failed)
	s.want(0, "")
	s.want(500*time.Millisecond, "fill a 40-50")
	s.answer("a", 50, Found)
	s.want(time.Hour, "")

	for _, last := range []Outcome{NotFound, Found} { // Got, but nothing further
		s.core.AddBackfill("a", key, 1, 50)
		s.want(0, "fill a 1-50")
		s.answer("a", 1, last)
		s.want(time.Hour, "")
	}
	s.core.AddBackfill("a", key, 1, 50)
	for range maxFailed {
		s.want(time.Second, "fill a 1-50")
		s.answer("a", 0, Failed)
	}
	s.want(time.Hour, "")
	s.core.AddBackfill("b", key, 1, 50)
	s.core.RemoveNeighbor("b")
	s.want(time.Hour, "")
	if len(s.core.backfills) != 0 || len(s.core.asksByPeer) != 0 || s.core.asks != 0 {
		t.Errorf("%d fills, %v asked, %d questions", len(s.core.backfills), s.core.asksByPeer, s.core.asks)
	}
}

// The claims remembered for each neighbor are bounded, peers without a link have none, and
// a later session replaces the earlier one.
func TestClaimsAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxClaims: 10}, "a")
	for n := range 1000 {
		s.core.ReceiveClaim("a", peer.ID(fmt.Sprint(n)), Claim{Session: life(1), Next: 5})
		s.core.ReceiveClaim("stranger", peer.ID(fmt.Sprint(n)), Claim{Session: life(1), Next: 5})
	}
	if n := len(s.core.neighbors["a"]); n != 10 {
		t.Errorf("%d claims", n)
	}
	s.core.ReceiveClaim("a", "0", Claim{Session: life(2), Next: 7})
	s.core.ReceiveClaim("a", "0", Claim{Session: life(1), Next: 9}) // of before
	if n := s.core.FurthestClaim(Subject{Sender: "0", Session: life(2)}); n != 7 {
		t.Errorf("claimed %d", n)
	}
	if n := s.core.FurthestClaim(Subject{Sender: "0", Session: life(1)}); n != 0 {
		t.Errorf("claimed %d of the earlier session", n)
	}
}
