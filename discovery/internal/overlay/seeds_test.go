package overlay

import (
	"testing"
	"time"
)

// asks returns when the seed was asked for.
func asks(log []event) (times []time.Time) {
	for _, e := range log {
		if _, ok := e.Output.(AskSeed); ok {
			times = append(times, e.at)
		}
	}
	return times
}

// silentSeed answers no attempt.
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
	c.in(SeedFailed{})
	c.s.cfg.Min = 1
	c.react = silentSeed
	return c
}

// TestSeedNeverMet is tried after 1, 2, 4 ... 30 seconds while there are links, and
// no more once it was met.
func TestSeedNeverMet(t *testing.T) {
	c := newSeeded(t, 5)
	first := c.now // newSeeded has just made the first attempt
	c.pauses(append([]time.Time{first}, asks(c.pass(3*time.Minute, "a"))...), 0, 1, 2, 4, 8, 16, 30, 30)
	c.in(SeedFound{Contact: node("s")}, "request s")
	c.from("s", Reject{Reason: ReasonFull}, "refused s (its peer list is full)")
	if got := asks(c.pass(3*time.Minute, "a")); len(got) != 0 {
		t.Errorf("asked %d times after it was met", len(got))
	}
}

// TestLostSeed is tried at once and after 1, 2, 4, 8, 8 seconds, and when it is found
// a link is asked for urgently, though there is no room. Heard again, it is left
// alone.
func TestLostSeed(t *testing.T) {
	c := newSeeded(t, 1)
	c.in(SeedFound{Contact: node("s")}) // full
	log := append(c.feed(SeedLost{}), c.pass(time.Minute, "a")...)
	c.pauses(asks(log), 0, 1, 2, 4, 8, 8, 8)
	c.in(SeedHeard{})
	if got := asks(c.pass(time.Minute, "a")); len(got) != 0 {
		t.Errorf("asked %d times after it was heard", len(got))
	}
	c.in(SeedLost{}, "ask seed")
	c.in(SeedFound{Contact: node("s")}, "request s urgently")
	c.from("s", Accept{Session: Session{2}}, "pending s")
}

// TestSeedThatLeftIsLookedFor: a seed that was a neighbour and went away is tried
// after a second, and linked to again in any case. One that parted on purpose is not.
func TestSeedThatLeftIsLookedFor(t *testing.T) {
	for why, sought := range map[Reason]bool{ReasonGone: true, ReasonClosed: true, ReasonMoved: false} {
		c := newSeeded(t, 2)
		c.in(SeedFound{Contact: node("s")}, "request s")
		c.from("s", Accept{Session: Session{2}}, "pending s")
		c.in(OnTopic{Peer: "s", Present: true}, "ready s")
		c.from("s", Ready{}, "linked s")
		c.feed(Received{From: node("s"), Message: Leave{Reason: why}})
		c.link("b", 1) // full again
		log := c.pass(firstSeedPause, "a", "b")
		if (len(asks(log)) > 0) != sought {
			t.Errorf("%v: asked %d times", why, len(asks(log)))
		}
		if sought {
			c.in(SeedFound{Contact: node("s")}, "request s urgently")
		}
	}
}

// TestSeedNext says when a seed is tried again.
func TestSeedNext(t *testing.T) {
	c := newScript(t, 1, 5)
	c.in(Tick{}, "ask seed")
	c.in(SeedFailed{})
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
	c.pass(30*time.Second, "a")
	next("never met", 0, 36*time.Second)
	c.in(SeedFound{Contact: node("s")}, "request s")
	next("met", 0, 0)
	c.in(SeedLost{}, "ask seed")
	next("lost", 800*time.Millisecond, 1200*time.Millisecond)
	c.in(SeedSelf{})
	next("itself", 0, 0)
}

// TestWokeResets: after a sleep the seeds and lost addresses are tried at once, and
// neighbours get six seconds to be heard.
func TestWokeResets(t *testing.T) {
	c := newSeeded(t, 5)
	c.lose("x", false)
	react := unreachable("x")
	c.react = func(o Output) Input {
		if in := silentSeed(o); in != nil {
			return in
		}
		return react(o)
	}
	c.pass(5*time.Minute, "a")
	c.pass(12 * time.Second) // a is silent, but not for long enough
	log := append(c.feed(Woke{}), c.pass(wakeGrace-time.Millisecond)...)
	if times := asks(log); len(times) == 0 || times[0].Sub(log[0].at) != 0 {
		t.Error("the seed was not asked at once")
	}
	if times, _ := sends[Shuffle](only("x", log)); len(times) == 0 {
		t.Error("the lost address was not tried")
	}
	if c.s.Degree() != 1 {
		t.Error("the neighbour got no time to be heard")
	}
	c.in(Tick{})
	c.now = c.now.Add(time.Millisecond)
	c.feed(Tick{})
	if c.s.Degree() != 0 {
		t.Error("the neighbour got more than six seconds")
	}
}
