package overlay

import (
	"slices"
	"time"
)

// This file holds the swaps. In a swap, a node exchanges the link to one of its neighbors for a
// link to a random node. Without swaps, the links between the nodes of a network would depend
// on the order in which the nodes arrived.

const (
	// The pause between two swaps of a node's links doubles from minSwapPause to maxSwapPause,
	// and a random time of up to the same length is added. The links of a new network are mixed
	// within two minutes. Later each node swaps a link about once in a quarter of an hour.
	minSwapPause = 20 * time.Second
	maxSwapPause = 10 * time.Minute
	// minSwapAge is the least age of a link that a node gives up in a swap, which exchanges
	// that link for a link to a random node.
	minSwapAge = 15 * time.Second
)

type swapState struct {
	next  time.Time     // when this node begins its next swap
	pause time.Duration // the pause between the next swap of links and the one after it
}

// swapSoon makes this node exchange one of its links for a link to a random node within 40
// seconds of now, and makes the pause between such swaps as short as possible.
func (s *State) swapSoon(now time.Time) {
	s.swaps.pause = minSwapPause
	if soon := now.Add(s.jitter(minSwapPause)); s.swaps.next.IsZero() || soon.Before(s.swaps.next) {
		s.swaps.next = soon
	}
}

// targetDegree returns the number of links at which a node seeks no more of its own accord. It
// is the middle between Min and Max, so that room is left for other nodes that lack links.
func (s *State) targetDegree() int {
	// If Max is negative, there is no upper bound, and so no middle between Min and Max.
	if s.cfg.Max < 0 {
		return s.cfg.Min
	}
	return (s.cfg.Min + s.cfg.Max + 1) / 2
}

// startSwap asks a random known node for a link, if a swap is due at the time now. If this node
// has few links, it adds the new link; otherwise it leaves a neighbor in exchange. If the node
// asked is full, it sends one of its own neighbors to the neighbor that was left. So every node
// keeps its number of links.
func (s *State) startSwap(now time.Time) {
	sw := &s.swaps
	if s.Degree() == 0 || now.Before(sw.next) {
		return
	}
	sw.next = now.Add(s.jitter(sw.pause))
	sw.pause = min(sw.pause*2, maxSwapPause)
	// A node with Min zero requests no links. Below Min, requestLinks adds links, and above
	// Max, shedLinks removes some, so a swap of links would interfere.
	if s.cfg.Min == 0 || s.occupied() < s.cfg.Min || s.Degree() > s.cfg.Max && s.cfg.Max >= 0 {
		return
	}
	linkable := s.linkable(now)
	list := slices.DeleteFunc(slices.Clone(s.book.known), func(e *candidate) bool { return !linkable(e) || len(e.Record) == 0 || now.Before(e.retryAt) })
	if len(list) == 0 {
		return // this node knows no node that it could ask for a new link
	}
	to := list[s.cfg.Rand.IntN(len(list))]
	// This node has room for one more link, so it leaves no neighbor in exchange.
	if s.occupied() < s.targetDegree() {
		s.requestLink(now, to.Contact, ordinary).wanted = true
		return
	}
	leaving := s.pickSpareNeighbor(now, to.Contact)
	if leaving == nil || s.cfg.Max < 0 {
		// Every neighbor needs its link to this node, or, without a Max, links are never
		// exchanged.
		return
	}
	l := s.sendRequest(now, to.Contact, Request{Leaving: leaving.Contact})
	l.swap, l.overflow, l.leaving = true, true, leaving.Contact
}

// minSpareDegree returns the number of links that a neighbor must have so that this node may
// leave it in exchange for a new link. It is far enough above Min that other nodes may leave
// the same neighbor at the same moment.
func (s *State) minSpareDegree() int { return s.cfg.Min + (s.cfg.Max-s.cfg.Min)/2 + 1 }

// pickSpareNeighbor returns a random neighbor that this node may leave at the time now, because
// that neighbor has enough other links, or nil. It never returns one of the nodes in except.
func (s *State) pickSpareNeighbor(now time.Time, except ...Contact) *link {
	return s.pickNeighbor(func(l *link) bool {
		return !l.manual && len(l.Record) > 0 && l.degree >= s.minSpareDegree() && now.Sub(l.since) >= minSwapAge &&
			!slices.ContainsFunc(except, func(c Contact) bool { return c.ID == l.ID })
	})
}

// canExchange reports whether this node, which is full, can accept the request of the node from
// for a link in exchange for another link: from leaves its neighbor leaving, and this node
// sends one of its own neighbors to leaving.
func (s *State) canExchange(now time.Time, from, leaving Contact) bool {
	// The exchange of links mixes nodes that are far apart, so the node leaving must not be
	// this node or one of its neighbors.
	return len(leaving.Record) > 0 && leaving.ID != s.cfg.Self && s.link(leaving.ID) == nil && s.hasRoom(1) &&
		s.pickSpareNeighbor(now, from, leaving) != nil
}

// finishSwap ends another link in exchange for l, just before l is complete, so that neither
// node is above Max even for a moment. It runs at both nodes. The node that requested l leaves
// the neighbor that it named in its request. The other node, if it is full, leaves one of its
// own neighbors and sends it to the neighbor that the requester left. finishSwap reports
// whether there is room for l.
func (s *State) finishSwap(now time.Time, l *link) bool {
	l.swap = false
	full := s.occupied() > s.cfg.Max // this count includes l and all other links that were accepted
	// This node did not send the request.
	if !l.dialed {
		if !full {
			return true // another link has ended since the request for this one, so none has to end now
		}
		given := s.pickSpareNeighbor(now, l.Contact, l.leaving)
		if given != nil {
			s.leaveLinkWith(now, given, ReasonSwapped, []Contact{l.leaving})
		}
		return given != nil
	}
	old := s.link(l.leaving.ID)
	if old == nil && full {
		// The neighbor that this node wanted to leave is gone already.
		old = s.pickSpareNeighbor(now, l.Contact)
	}
	// This node leaves the neighbor old if another node will link to old in exchange, if old
	// has enough links, or if there is no other way to make room.
	if old != nil && old.phase == linked && (l.leavingReplaced || old.degree >= s.minSpareDegree() || full) {
		s.leaveLink(now, old, ReasonMoved)
	}
	return s.occupied() <= s.cfg.Max
}

// handleSwappedOut is called when a neighbor has left this node in an exchange of links.
// contacts holds one node that has lost a link in the same exchange, and this node requests a
// link to that node.
func (s *State) handleSwappedOut(now time.Time, contacts []Contact) {
	if len(contacts) != 1 || !s.hasRoom(0) {
		// The list contacts has not one node, so the message is malformed, or this node has no
		// room for a link.
		return
	}
	if e := s.book.findKnown(contacts[0].ID); e != nil && s.linkable(now)(e) {
		s.requestLink(now, e.Contact, ordinary).wanted = true
	}
}
