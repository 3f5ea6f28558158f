package overlay

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file decides when each seed is tried. A node without links tries all of them at
// once; see startRejoin. For a node with links, a seed is a way to join two networks, so
// one that was never reached, or is lost, is tried at leisure.

// seedBackoff has the pauses between the rounds of attempts of a node without links,
// each ± 20 %. The last one repeats.
var seedBackoff = []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// The pause between the attempts of a node with links at one seed doubles from
// firstSeedPause to one of the others.
const (
	firstSeedPause   = time.Second
	maxLostSeedPause = 8 * time.Second
	maxSeedPause     = 30 * time.Second
)

type seedState struct {
	id       peer.ID // of the node that was found there last
	self     bool    // the seed's address leads to this node
	asked    bool    // an attempt is under way
	reached  bool    // it was reached and did not turn this node down
	lost     bool    // the watchdog does not hear it any more
	unlinked bool    // the link to it has ended, and it was not reached since
	tries    int
	next     time.Time
}

func (x *seedState) isWanted() bool { return !x.self && !x.asked && (!x.reached || x.lost) }

// startRejoin begins the way back of a node without links: it may try all known
// addresses and all seeds now.
func (s *State) startRejoin(now time.Time) {
	s.seedRound, s.nextSeedRound = 0, now
	s.book.retryAll()
}

// askSeeds asks for the seeds that are due.
func (s *State) askSeeds(now time.Time) {
	if s.isolated() {
		s.askAllSeeds(now)
		return
	}
	for i, x := range s.seeds {
		if x.isWanted() && !now.Before(x.next) {
			limit := maxSeedPause
			// A seed that was there before is likely to be in another part of a split
			// network, and worth more attempts.
			if x.lost {
				limit = maxLostSeedPause
			}
			x.next = now.Add(s.spread(min(firstSeedPause<<min(x.tries, 10), limit)))
			x.tries++
			s.askSeed(i, x)
		}
	}
}

// askAllSeeds makes the next round of attempts of a node without links, if it is due.
func (s *State) askAllSeeds(now time.Time) {
	// The node has never had a link, or its last neighbor is a suspect.
	if s.nextSeedRound.IsZero() && s.occupied() == 0 {
		s.startRejoin(now)
	}
	// The time is zero while a handshake is under way: its outcome decides.
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
}

func (s *State) askSeed(i int, x *seedState) {
	// The driver is promised one question at a time for each seed.
	if !x.asked {
		x.asked = true
		s.emit(AskSeed{Seed: i})
	}
}

// seedsDue returns when askSeeds has something to do; zero means never.
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

// handleSeedFound links to a seed if there is room. If the seed was lost, it links in
// any case, since the seed may be in another part of a split network.
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
		return // linked already, or no links are wanted
	}
	if merge || s.hasRoom(0) {
		l := s.requestLink(now, in.Contact, requestUrgency(merge))
		l.wanted, l.overflow = true, merge
	}
}

// setSeedLost notes that the watchdog has lost a seed, or hears it again.
func (s *State) setSeedLost(now time.Time, i int, lost bool) {
	if x := s.seeds[i]; x.lost != lost {
		x.lost, x.tries, x.next = lost, 0, now
		x.reached = x.reached || !lost // a seed that is heard again has been reached
	}
}

// noteSeedUnlinked looks for a seed whose link has ended by a fault, or because it was
// closed. A seed without seeds of its own depends on others to call it after a restart.
func (s *State) noteSeedUnlinked(now time.Time, id peer.ID, why Reason) {
	if !why.isFault() && why != ReasonClosed {
		return // the overlay moved the link elsewhere: the seed is still in the network
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.reached, x.unlinked, x.tries, x.next = false, true, 0, now.Add(firstSeedPause)
		}
	}
}

// noteSeedRefused looks for a seed again that turned out not to be usable.
func (s *State) noteSeedRefused(id peer.ID, why Reason) {
	// ReasonUnreachable is missing: that may be a dial to an identity that the seed had
	// before.
	if why != ReasonNetwork && why != ReasonProtocol && why != ReasonTimeout {
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.reached = false
		}
	}
}

// SeedNext returns when the seed is tried again if nothing changes. Zero means that it is
// not.
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
