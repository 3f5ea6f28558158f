package overlay

import (
	"slices"
	"time"
)

// This file reorders the network: links to random nodes replace those that the order of
// arrival, or a cut, has made.

const (
	// The pause between swaps doubles from minSwapPause to maxSwapPause, plus as much
	// again by chance. A network that has just gathered, or come together, mixes within
	// two minutes, and then each node swaps about once in a quarter of an hour.
	minSwapPause = 20 * time.Second
	maxSwapPause = 10 * time.Minute
	// minSwapAge is how old a link must be to be given up in a swap.
	minSwapAge = 15 * time.Second
)

type swapState struct {
	next  time.Time
	pause time.Duration
}

// swapSoon resets the pause between swaps.
func (s *State) swapSoon(now time.Time) {
	s.swaps.pause = minSwapPause
	if soon := now.Add(s.jitter(minSwapPause)); s.swaps.next.IsZero() || soon.Before(s.swaps.next) {
		s.swaps.next = soon
	}
}

// targetDegree is how many links a node seeks without need: the middle between Min and
// Max, so that places are left for nodes in need.
func (s *State) targetDegree() int {
	if s.cfg.Max < 0 {
		return s.cfg.Min
	}
	return (s.cfg.Min + s.cfg.Max + 1) / 2
}

// startSwap asks a random known node for a link: in place of a neighbor, or, if this
// node has few links, beside them. If the node asked has no room, it gives one of its
// own neighbors to the one that is left. So every node keeps its number of links.
func (s *State) startSwap(now time.Time) {
	sw := &s.swaps
	if s.Degree() == 0 || now.Before(sw.next) {
		return
	}
	sw.next = now.Add(s.jitter(sw.pause))
	sw.pause = min(sw.pause*2, maxSwapPause)
	// A node with Min zero links only when others ask it. Below Min or above Max,
	// requestLinks and shedLinks are at work.
	if s.cfg.Min == 0 || s.occupied() < s.cfg.Min || s.Degree() > s.cfg.Max && s.cfg.Max >= 0 {
		return
	}
	linkable := s.linkable(now)
	list := slices.DeleteFunc(slices.Clone(s.book.known), func(e *candidate) bool { return !linkable(e) || len(e.Record) == 0 || now.Before(e.retryAt) })
	if len(list) == 0 {
		return
	}
	to := list[s.cfg.Rand.IntN(len(list))]
	if s.occupied() < s.targetDegree() {
		s.requestLink(now, to.Contact, ordinary).wanted = true
		return
	}
	leaving := s.pickSpareNeighbor(now, to.Contact)
	if leaving == nil || s.cfg.Max < 0 {
		return // every neighbor needs this node, or nobody is ever full
	}
	l := s.sendRequest(now, to.Contact, Request{Leaving: leaving.Contact})
	l.swap, l.overflow, l.leaving = true, true, leaving.Contact
}

// minSpareDegree is the least number of links of a neighbor that may be left: enough for
// a second neighbor to leave it at the same moment.
func (s *State) minSpareDegree() int { return s.cfg.Min + (s.cfg.Max-s.cfg.Min)/2 + 1 }

// pickSpareNeighbor returns a random neighbor that can do without this node, or nil. It
// leaves out those in except.
func (s *State) pickSpareNeighbor(now time.Time, except ...Contact) *link {
	return s.pickNeighbor(func(l *link) bool {
		return !l.manual && len(l.Record) > 0 && l.degree >= s.minSpareDegree() && now.Sub(l.since) >= minSwapAge &&
			!slices.ContainsFunc(except, func(c Contact) bool { return c.ID == l.ID })
	})
}

// canExchange reports whether this node, which is full, can accept a requester by giving
// a neighbor to the node that the requester leaves.
func (s *State) canExchange(now time.Time, from, leaving Contact) bool {
	// The node that is left must be new to this node, or the exchange would double a link.
	return len(leaving.Record) > 0 && leaving.ID != s.cfg.Self && s.link(leaving.ID) == nil && s.hasRoom(1) &&
		s.pickSpareNeighbor(now, from, leaving) != nil
}

// finishSwap makes room for the link l, which is about to stand, so that neither end is
// above Max even for a moment. The requester leaves the neighbor that it named. The node
// asked, if it is full, leaves one of its own, and sends it to the one that was named.
// finishSwap reports whether there is room.
func (s *State) finishSwap(now time.Time, l *link) bool {
	l.swap = false
	full := s.occupied() > s.cfg.Max // l itself counts, and so do other accepted links
	if !l.dialed {
		if !full {
			return true // a place has become free since the request
		}
		given := s.pickSpareNeighbor(now, l.Contact, l.leaving)
		if given != nil {
			s.leaveLinkWith(now, given, ReasonSwapped, []Contact{l.leaving})
		}
		return given != nil
	}
	old := s.link(l.leaving.ID)
	if old == nil && full {
		old = s.pickSpareNeighbor(now, l.Contact) // the one named has gone, and others came
	}
	// The neighbor may be left if it gets another in exchange, if it can spare the link,
	// or if there is no other way to make room.
	if old != nil && old.phase == linked && (l.leavingReplaced || old.degree >= s.minSpareDegree() || full) {
		s.leaveLink(now, old, ReasonMoved)
	}
	return s.occupied() <= s.cfg.Max
}

// handleSwappedOut asks for the link that the swap of another node has left room for.
func (s *State) handleSwappedOut(now time.Time, contacts []Contact) {
	if len(contacts) != 1 || !s.hasRoom(0) {
		return
	}
	if e := s.book.findKnown(contacts[0].ID); e != nil && s.linkable(now)(e) {
		s.requestLink(now, e.Contact, ordinary).wanted = true
	}
}
