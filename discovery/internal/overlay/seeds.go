package overlay

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file decides when to try to reach each seed. A node without links tries all seeds at
// once. A node with links tries a seed only to connect two parts of a network: if the seed was
// never reached, or if the watchdog no longer hears it. Its pauses between attempts grow
// longer.

// seedBackoff holds the pauses between the rounds in which a node without links tries all
// its seeds. Each pause is varied by 20 %, and the last one repeats.
var seedBackoff = []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// A node with links pauses between its attempts to reach one seed. The pause begins with
// firstSeedPause and doubles, up to maxLostSeedPause for a seed that the watchdog no longer
// hears, and up to maxSeedPause for a seed that was never reached.
const (
	firstSeedPause   = time.Second
	maxLostSeedPause = 8 * time.Second
	maxSeedPause     = 30 * time.Second
)

type seedState struct {
	id   peer.ID // the node that was last found at the seed's address
	self bool    // the seed's address leads to this node
	// asked says that this node has asked the driver which node is at the seed's address, and
	// waits for the answer.
	asked    bool
	reached  bool // a node was found at the seed's address, and has not refused this node for good
	lost     bool // the watchdog no longer hears the seed
	unlinked bool // the link to the seed has ended, and the seed was not reached since
	tries    int  // attempts since next was last reset
	next     time.Time
}

// isWanted reports whether a node with links should try to reach the seed, once the pause since
// its last attempt is over.
func (x *seedState) isWanted() bool { return !x.self && !x.asked && (!x.reached || x.lost) }

// startRejoin lets a node that has lost its last link try all seeds and all addresses in its
// book now. The pauses between further rounds of attempts begin with the shortest.
func (s *State) startRejoin(now time.Time) {
	s.seedRound, s.nextSeedRound = 0, now
	s.book.retryAll()
}

// askSeeds asks the driver which node is at a seed's address, for each seed whose next attempt
// is due at the time now.
func (s *State) askSeeds(now time.Time) {
	if s.isolated() {
		s.askAllSeeds(now)
		return
	}
	for i, x := range s.seeds {
		if x.isWanted() && !now.Before(x.next) {
			limit := maxSeedPause
			// A seed that was heard before is probably in another part of a split network. So
			// it gets more attempts to reach it than a seed that was never reached.
			if x.lost {
				limit = maxLostSeedPause
			}
			x.next = now.Add(s.spread(min(firstSeedPause<<min(x.tries, 10), limit)))
			x.tries++
			s.askSeed(i, x)
		}
	}
}

// askAllSeeds is for a node without links. If its next round of attempts is due at the time
// now, it asks the driver which node is at the address of each seed.
func (s *State) askAllSeeds(now time.Time) {
	// No round of attempts to reach the seeds was ever planned: this is the first step of the
	// node, or its first neighbor has just become suspect.
	if s.nextSeedRound.IsZero() && s.occupied() == 0 {
		s.startRejoin(now)
	}
	// The time of the next round is still zero if the first handshake of this node is under
	// way. The seeds are tried only if that handshake fails.
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

// askSeed asks the driver which node is at the address of seed i, unless the last such question
// has no answer yet. x is what this node knows of seed i.
func (s *State) askSeed(i int, x *seedState) {
	// This node asks the driver about a seed only if the driver has answered the last question
	// about that seed.
	if !x.asked {
		x.asked = true
		s.emit(AskSeed{Seed: i})
	}
}

// seedsDue returns the time at which askSeeds has to be called next. The zero time means never.
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

// handleSeedFound requests a link to the node at a seed's address if there is room. If the
// watchdog did not hear the seed, or the link to it has ended, the request is urgent, since
// the seed may be in another part of a split network.
func (s *State) handleSeedFound(now time.Time, in SeedFound) {
	x := s.seeds[in.Seed]
	x.asked = false
	if in.Contact.ID == s.cfg.Self {
		x.self = true // the address of this seed leads to this node
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

// setSeedLost notes that the watchdog no longer hears seed i, if lost is true, or that it hears
// the seed again. In both cases the pauses between attempts to reach the seed begin anew.
func (s *State) setSeedLost(now time.Time, i int, lost bool) {
	if x := s.seeds[i]; x.lost != lost {
		x.lost, x.tries, x.next = lost, 0, now
		// A seed that the watchdog hears again was reached over the links of the overlay.
		x.reached = x.reached || !lost
	}
}

// noteSeedUnlinked makes this node try to reach a seed again soon after the link to that seed,
// the peer id, has ended by a fault, or because the seed was closed. If the seed is restarted
// and has no seeds of its own, it knows nobody, so other nodes have to contact it.
func (s *State) noteSeedUnlinked(now time.Time, id peer.ID, why Reason) {
	if !why.isFault() && why != ReasonClosed {
		// A decision ended the link, and no fault, so the seed is still in this part of the
		// network.
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.reached, x.unlinked, x.tries, x.next = false, true, 0, now.Add(firstSeedPause)
		}
	}
}

// noteSeedRefused makes this node try a seed again after the node id, found at the seed's
// address, turned out to be the wrong one: it has another network or protocol, or it did not
// answer.
func (s *State) noteSeedRefused(id peer.ID, why Reason) {
	// ReasonUnreachable does not count: id may be an id that the seed had before a restart, and
	// the seed may be reachable under its present id.
	if why != ReasonNetwork && why != ReasonProtocol && why != ReasonTimeout {
		return
	}
	for _, x := range s.seeds {
		if x.id == id {
			x.reached = false
		}
	}
}

// SeedNext returns the time of the next attempt to reach seed i if nothing changes before. The
// zero time means that no attempt is planned.
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
