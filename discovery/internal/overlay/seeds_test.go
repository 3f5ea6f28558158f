package overlay

import (
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// seedAttempts returns the times of the attempts at the seed.
func seedAttempts(log []event) (times []time.Time) {
	for _, e := range log {
		if _, ok := e.Output.(AskSeed); ok {
			times = append(times, e.at)
		}
	}
	return times
}

// silentSeed makes every attempt at the seed fail.
func silentSeed(o Output) Input {
	if _, ok := o.(AskSeed); ok {
		return SeedFailed{}
	}
	return nil
}

// newSeeded is a script of a node with one link, and one seed that does not answer.
func newSeeded(t *testing.T, maxPeers int) *script {
	c := newScript(t, 0, maxPeers)
	c.link("a", 1)
	c.step(SeedFailed{})
	c.s.cfg.Min = 1
	c.react = silentSeed
	return c
}

// A seed that was never reached is tried after 1, 2, 4 ... 30 seconds while there are
// links, and not any more once it was reached.
func TestSeedNeverReachedIsTriedAgain(t *testing.T) {
	c := newSeeded(t, 5)
	first := c.now // newSeeded has just made the first attempt
	c.wantPauses(append([]time.Time{first}, seedAttempts(c.advance(3*time.Minute, "a"))...), 0, 1, 2, 4, 8, 16, 30, 30)
	c.step(SeedFound{Contact: node("s")}, "request s")
	c.receive("s", Reject{Reason: ReasonFull}, "refused s (its peer list is full)")
	if got := seedAttempts(c.advance(3*time.Minute, "a")); len(got) != 0 {
		t.Errorf("asked %d times after it was reached", len(got))
	}
}

// A lost seed is tried at once and after 1, 2, 4, 8, 8 seconds. When it is found, the
// request is urgent, although there is no room. When it is heard again, the attempts end.
func TestLostSeedIsTriedAgain(t *testing.T) {
	c := newSeeded(t, 1)
	c.step(SeedFound{Contact: node("s")}) // full
	log := append(c.feed(SeedLost{}), c.advance(time.Minute, "a")...)
	c.wantPauses(seedAttempts(log), 0, 1, 2, 4, 8, 8, 8)
	c.step(SeedHeard{})
	if got := seedAttempts(c.advance(time.Minute, "a")); len(got) != 0 {
		t.Errorf("asked %d times after it was heard", len(got))
	}
	c.step(SeedLost{}, "ask seed")
	c.step(SeedFound{Contact: node("s")}, "request s urgently")
	c.receive("s", Accept{Session: protocol.Session{2}}, "pending s")
}

// A seed whose link ended by a fault is tried after a second, and linked again even
// without room. A seed whose link was moved is not.
func TestSeedThatWentAwayIsTriedAgain(t *testing.T) {
	for why, sought := range map[Reason]bool{ReasonGone: true, ReasonClosed: true, ReasonMoved: false} {
		c := newSeeded(t, 2)
		c.step(SeedFound{Contact: node("s")}, "request s")
		c.receive("s", Accept{Session: protocol.Session{2}}, "pending s")
		c.step(OnTopic{Peer: "s", Present: true}, "ready s")
		c.receive("s", Ready{}, "linked s")
		c.feed(Received{From: node("s"), Message: Leave{Reason: why}})
		c.link("b", 1) // full again
		log := c.advance(firstSeedPause, "a", "b")
		if (len(seedAttempts(log)) > 0) != sought {
			t.Errorf("%v: asked %d times", why, len(seedAttempts(log)))
		}
		if sought {
			c.step(SeedFound{Contact: node("s")}, "request s urgently")
		}
	}
}

// SeedNext returns when a seed is tried again.
func TestSeedNextIsTheNextAttempt(t *testing.T) {
	c := newScript(t, 1, 5)
	c.step(Tick{}, "ask seed")
	c.step(SeedFailed{})
	next := func(what string, low, high time.Duration) {
		t.Helper()
		got := c.s.SeedNext(0)
		if pause := got.Sub(c.now); got.IsZero() != (high == 0) || high > 0 && (pause < low || pause > high) {
			t.Errorf("%s: in %v, want %v to %v", what, pause, low, high)
		}
	}
	next("alone", 800*time.Millisecond, 1200*time.Millisecond)
	c.link("a", 1)
	c.react = silentSeed
	c.advance(30*time.Second, "a")
	next("never reached", 0, 36*time.Second)
	c.step(SeedFound{Contact: node("s")}, "request s")
	next("reached", 0, 0)
	c.step(SeedLost{}, "ask seed")
	next("lost", 800*time.Millisecond, 1200*time.Millisecond)
	c.step(SeedSelf{})
	next("itself", 0, 0)
}

// After a sleep the seeds and lost addresses are tried at once, and neighbors get six
// seconds to be heard.
func TestWokeForgivesSilence(t *testing.T) {
	c := newSeeded(t, 5)
	c.addLost("x", false)
	react := unreachable("x")
	c.react = func(o Output) Input {
		if in := silentSeed(o); in != nil {
			return in
		}
		return react(o)
	}
	c.advance(5*time.Minute, "a")
	c.advance(12 * time.Second) // a is silent, but not for long enough
	log := append(c.feed(Woke{}), c.advance(wakeGrace-time.Millisecond)...)
	if times := seedAttempts(log); len(times) == 0 || times[0].Sub(log[0].at) != 0 {
		t.Error("the seed was not asked at once")
	}
	if times, _ := sends[Shuffle](sentTo("x", log)); len(times) == 0 {
		t.Error("the lost address was not tried")
	}
	if c.s.Degree() != 1 {
		t.Error("the neighbor got no time to be heard")
	}
	c.step(Tick{})
	c.now = c.now.Add(time.Millisecond)
	c.feed(Tick{})
	if c.s.Degree() != 0 {
		t.Error("the neighbor got more than six seconds")
	}
}

// A node without links asks its seeds at once and after 1, 2, 4, 8, 8 seconds, ± 20 %.
// The loss of the last link begins anew.
func TestIsolatedNodeAsksItsSeeds(t *testing.T) {
	c := newScript(t, 1, 5)
	c.step(Tick{}, "ask seed")
	for _, want := range []time.Duration{1, 2, 4, 8, 8, 8} {
		pause := c.s.Next(c.now).Sub(c.now)
		if low, high := want*time.Second*4/5, want*time.Second*6/5; pause < low || pause > high {
			t.Errorf("pause %v, want %v to %v", pause, low, high)
		}
		c.step(SeedFailed{})
		c.tick(pause, "ask seed")
	}
	c.step(SeedFailed{})
	c.link("a", 1)
	if got := c.s.Next(c.now); got.Sub(c.now) > keepaliveInterval {
		t.Errorf("next timer after linking: %v", got.Sub(c.now))
	}
	c.step(Disconnected{Peer: "a"}, "unlinked a (the connection was lost)", "ask seed", "request a")
	c.step(SeedFailed{})
	c.step(Unreachable{Peer: "a", Reason: ReasonUnreachable}, "refused a (it could not be reached)")
	c.tick(1200*time.Millisecond, "ask seed", "request a")
}
