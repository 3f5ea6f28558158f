package overlay

import (
	"slices"
	"time"
)

// This file reorders: links to random nodes take the place of those that chance,
// or a cut, has made.

const (
	// The pause between swaps doubles from swapFirst to swapLast, plus as much
	// again by chance: a network that has just gathered, or come together, mixes
	// within two minutes and then changes a link every quarter of an hour or so.
	minSwapPause = 20 * time.Second
	maxSwapPause = 10 * time.Minute
	// minSwapAge is how long a link stands before it may be swapped.
	minSwapAge = 15 * time.Second
)

type swapState struct {
	next  time.Time
	pause time.Duration
}

// swapSoon begins to swap often again.
func (s *State) swapSoon(now time.Time) {
	s.swaps.pause = minSwapPause
	if soon := now.Add(s.jitter(minSwapPause)); s.swaps.next.IsZero() || soon.Before(s.swaps.next) {
		s.swaps.next = soon
	}
}

// targetDegree is how many links a node without need goes for: the middle between min and
// max, so that there are places left for those in need.
func (s *State) targetDegree() int {
	if s.cfg.Max < 0 {
		return s.cfg.Min
	}
	return (s.cfg.Min + s.cfg.Max + 1) / 2
}

// startSwap links to a random known node in place of a neighbour, or beside them when
// there are few. The asked node gives one of its own neighbours to the one that is
// left if it has no room, so every node keeps its number of links.
func (s *State) startSwap(now time.Time) {
	sw := &s.swaps
	if s.Degree() == 0 || now.Before(sw.next) {
		return
	}
	sw.next = now.Add(s.jitter(sw.pause))
	sw.pause = min(sw.pause*2, maxSwapPause)
	if s.cfg.Min == 0 || s.occupied() < s.cfg.Min || s.Degree() > s.cfg.Max && s.cfg.Max >= 0 {
		return // no links but those of others are wanted, or gather or handover are at work
	}
	usable := s.usable(now)
	list := slices.DeleteFunc(slices.Clone(s.book.known), func(e *entry) bool { return !usable(e) || len(e.Record) == 0 || now.Before(e.retryAt) })
	if len(list) == 0 {
		return
	}
	to := list[s.cfg.Rand.IntN(len(list))]
	if s.occupied() < s.targetDegree() {
		s.requestLink(now, to.Contact, false).wanted = true
		return
	}
	leave := s.pickSpareNeighbor(now, to.Contact)
	if leave == nil || s.cfg.Max < 0 {
		return
	}
	l := s.sendRequest(now, to.Contact, Request{Leaving: leave.Contact})
	l.swap, l.overflow, l.leaving = true, true, leave.Contact
}

// minSpareDegree is how many links a neighbour has at least that may be left: so many
// that a second neighbour may do so at the same moment.
func (s *State) minSpareDegree() int { return s.cfg.Min + (s.cfg.Max-s.cfg.Min)/2 + 1 }

// pickSpareNeighbor returns a random neighbour that can do without this node, or nil.
func (s *State) pickSpareNeighbor(now time.Time, not ...Contact) *link {
	return s.pickNeighbor(func(l *link) bool {
		return !l.manual && len(l.Record) > 0 && l.degree >= s.minSpareDegree() && now.Sub(l.since) >= minSwapAge &&
			!slices.ContainsFunc(not, func(c Contact) bool { return c.ID == l.ID })
	})
}

// canExchange tells whether a full node can take an asker that leaves somebody.
func (s *State) canExchange(now time.Time, from, leaving Contact) bool {
	return len(leaving.Record) > 0 && leaving.ID != s.cfg.Self && s.link(leaving.ID) == nil && s.hasRoom(1) && s.pickSpareNeighbor(now, from, leaving) != nil
}

// finishSwap makes room for the link l, which is about to stand, so that nobody is
// above max even for a moment: the asker leaves whom it named, the asked one, if it
// is full, a neighbour, which is sent there. It reports whether there is room.
func (s *State) finishSwap(now time.Time, l *link) bool {
	l.swap = false
	full := s.occupied() > s.cfg.Max // l itself counts, and what else is about to stand
	if !l.dialed {
		if !full {
			return true
		}
		d := s.pickSpareNeighbor(now, l.Contact, l.leaving)
		if d != nil {
			s.leaveLinkWith(now, d, ReasonSwapped, []Contact{l.leaving})
		}
		return d != nil
	}
	old := s.link(l.leaving.ID)
	if old == nil && full {
		old = s.pickSpareNeighbor(now, l.Contact) // who was named has gone, others came
	}
	if old != nil && old.phase == linked && (l.leavingReplaced || old.degree >= s.minSpareDegree() || full) {
		s.leaveLink(now, old, ReasonMoved)
	}
	return s.occupied() <= s.cfg.Max
}

// handleSwappedOut asks for the link that another's swap has left room for.
func (s *State) handleSwappedOut(now time.Time, contacts []Contact) {
	if len(contacts) != 1 || !s.hasRoom(0) {
		return
	}
	if e := s.book.findKnown(contacts[0].ID); e != nil && s.usable(now)(e) {
		s.requestLink(now, e.Contact, false).wanted = true
	}
}
