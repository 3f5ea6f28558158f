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
	seedPause     = time.Second
	lostSeedPause = 8 * time.Second
	lastSeedPause = 30 * time.Second
)

type seed struct {
	id   peer.ID
	self bool
	busy bool // an attempt is under way
	met  bool // it was reached and did not turn us down
	lost bool // the watchdog does not hear it any more
	gone bool // the link to it has ended, and it was not reached since
	try  int
	next time.Time
}

func (x *seed) wanted() bool { return !x.self && !x.busy && (!x.met || x.lost) }

// alone starts the way back: everything known and all seeds may be tried now.
func (s *State) alone(now time.Time) {
	s.seedTry, s.seedsAt = 0, now
	s.book.alone()
}

// trySeeds asks for the seeds that are due.
func (s *State) trySeeds(now time.Time) {
	if s.lonely() {
		if s.seedsAt.IsZero() && s.used() == 0 {
			s.alone(now)
		}
		if s.seedsAt.IsZero() || now.Before(s.seedsAt) {
			return
		}
		s.seedsAt = now.Add(s.vary(seedBackoff[min(s.seedTry, len(seedBackoff)-1)]))
		s.seedTry++
		for i, x := range s.seeds {
			if !x.self {
				x.next = s.seedsAt
				s.askSeed(i, x)
			}
		}
		return
	}
	for i, x := range s.seeds {
		if x.wanted() && !now.Before(x.next) {
			pause := lastSeedPause
			if x.lost {
				pause = lostSeedPause
			}
			x.next = now.Add(s.vary(min(seedPause<<min(x.try, 10), pause)))
			x.try++
			s.askSeed(i, x)
		}
	}
}

func (s *State) askSeed(i int, x *seed) {
	if !x.busy {
		x.busy = true
		s.emit(AskSeed{Seed: i})
	}
}

func (s *State) seedsDue() (t time.Time) {
	if s.lonely() {
		return s.seedsAt
	}
	for _, x := range s.seeds {
		if x.wanted() {
			t = earlier(t, x.next)
		}
	}
	return t
}

// seedFound links to a seed: when there is room, and in any case when it was lost,
// since it may be in another part of a split network.
func (s *State) seedFound(now time.Time, in SeedFound) {
	x := s.seeds[in.Seed]
	x.busy = false
	if in.Contact.ID == s.cfg.Self {
		x.self = true
		return
	}
	merge := x.lost || x.gone
	x.id, x.met, x.gone = in.Contact.ID, true, false
	s.book.heard(in.Contact, now)
	if s.link(x.id) != nil || s.cfg.Max == 0 {
		return
	}
	if merge || s.room(0) {
		l := s.ask(now, in.Contact, merge)
		l.keep, l.beyond = true, merge
	}
}

func (s *State) setSeedLost(now time.Time, i int, lost bool) {
	if x := s.seeds[i]; x.lost != lost {
		x.lost, x.try, x.next = lost, 0, now
		x.met = x.met || !lost
	}
}

// seedUnlinked looks for a seed that was a neighbour and has ceased to be one other
// than on purpose: a seed without seeds of its own depends on others to call it
// when it was restarted.
func (s *State) seedUnlinked(now time.Time, id peer.ID, why Reason) {
	if !why.fault() && why != ReasonClosed {
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.met, x.gone, x.try, x.next = false, true, 0, now.Add(seedPause)
		}
	}
}

func (s *State) seedRefused(id peer.ID, why Reason) {
	// Not ReasonUnreachable: that may be a dial to an identity the seed had before.
	if why != ReasonNetwork && why != ReasonProtocol && why != ReasonTimeout {
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.met = false
		}
	}
}

// SeedNext returns when the seed is tried again if nothing changes, or zero.
func (s *State) SeedNext(i int) time.Time {
	switch x := s.seeds[i]; {
	case x.self:
	case s.lonely():
		return s.seedsAt
	case !x.met || x.lost:
		return x.next
	}
	return time.Time{}
}
