package overlay

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file decides which seed is tried when. Alone, a node tries all of them; see
// alone. With links a seed is a way to bring two networks together: one that was
// never reached, or is lost, is tried at leisure.

// seedBackoff is the pauses between attempts to join while alone, ± 20 %
// (promise 5).
var seedBackoff = []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// The pause between attempts at a seed while there are links doubles from
// seedPause to the last.
const (
	firstSeedPause   = time.Second
	maxLostSeedPause = 8 * time.Second
	maxSeedPause     = 30 * time.Second
)

type seedState struct {
	id       peer.ID
	self     bool
	asked    bool // an attempt is under way
	reached  bool // it was reached and did not turn us down
	lost     bool // the watchdog does not hear it any more
	unlinked bool // the link to it has ended, and it was not reached since
	tries    int
	next     time.Time
}

func (x *seedState) isWanted() bool { return !x.self && !x.asked && (!x.reached || x.lost) }

// startRejoin starts the way back: everything known and all seeds may be tried now.
func (s *State) startRejoin(now time.Time) {
	s.seedRound, s.nextSeedRound = 0, now
	s.book.retryAll()
}

// askSeeds asks for the seeds that are due.
func (s *State) askSeeds(now time.Time) {
	if s.isolated() {
		if s.nextSeedRound.IsZero() && s.occupied() == 0 {
			s.startRejoin(now)
		}
		if s.nextSeedRound.IsZero() || now.Before(s.nextSeedRound) {
			return
		}
		s.nextSeedRound = now.Add(s.spread(seedBackoff[min(s.seedRound, len(seedBackoff)-1)]))
		s.seedRound++
		for i, x := range s.seeds {
			if !x.self {
				x.next = s.nextSeedRound
				s.askSeed(i, x)
			}
		}
		return
	}
	for i, x := range s.seeds {
		if x.isWanted() && !now.Before(x.next) {
			pause := maxSeedPause
			if x.lost {
				pause = maxLostSeedPause
			}
			x.next = now.Add(s.spread(min(firstSeedPause<<min(x.tries, 10), pause)))
			x.tries++
			s.askSeed(i, x)
		}
	}
}

func (s *State) askSeed(i int, x *seedState) {
	if !x.asked {
		x.asked = true
		s.emit(AskSeed{Seed: i})
	}
}

func (s *State) seedsDue() (t time.Time) {
	if s.isolated() {
		return s.nextSeedRound
	}
	for _, x := range s.seeds {
		if x.isWanted() {
			t = earlier(t, x.next)
		}
	}
	return t
}

// handleSeedFound links to a seed: when there is room, and in any case when it was lost,
// since it may be in another part of a split network.
func (s *State) handleSeedFound(now time.Time, in SeedFound) {
	x := s.seeds[in.Seed]
	x.asked = false
	if in.Contact.ID == s.cfg.Self {
		x.self = true
		return
	}
	merge := x.lost || x.unlinked
	x.id, x.reached, x.unlinked = in.Contact.ID, true, false
	s.book.markAlive(in.Contact, now)
	if s.link(x.id) != nil || s.cfg.Max == 0 {
		return
	}
	if merge || s.hasRoom(0) {
		l := s.requestLink(now, in.Contact, merge)
		l.wanted, l.overflow = true, merge
	}
}

func (s *State) setSeedLost(now time.Time, i int, lost bool) {
	if x := s.seeds[i]; x.lost != lost {
		x.lost, x.tries, x.next = lost, 0, now
		x.reached = x.reached || !lost
	}
}

// noteSeedUnlinked looks for a seed that was a neighbour and has ceased to be one other
// than on purpose: a seed without seeds of its own depends on others to call it
// when it was restarted.
func (s *State) noteSeedUnlinked(now time.Time, id peer.ID, why Reason) {
	if !why.isFault() && why != ReasonClosed {
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.reached, x.unlinked, x.tries, x.next = false, true, 0, now.Add(firstSeedPause)
		}
	}
}

func (s *State) noteSeedRefused(id peer.ID, why Reason) {
	// Not ReasonUnreachable: that may be a dial to an identity the seed had before.
	if why != ReasonNetwork && why != ReasonProtocol && why != ReasonTimeout {
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.reached = false
		}
	}
}

// SeedNext returns when the seed is tried again if nothing changes, or zero.
func (s *State) SeedNext(i int) time.Time {
	switch x := s.seeds[i]; {
	case x.self:
	case s.isolated():
		return s.nextSeedRound
	case !x.reached || x.lost:
		return x.next
	}
	return time.Time{}
}
