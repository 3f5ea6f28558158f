package overlay

import (
	"slices"
	"time"
)

// This file keeps the number of links between Min and Max: it requests links when there
// are too few, and hands neighbors over when there are too many.

const (
	// hedgeDelay is how long a request holds back the next one. A node that lives has
	// answered by then; a dead one takes the five seconds of a dial.
	hedgeDelay = time.Second
	// maxDials bounds the requests and checks under way.
	maxDials = 8
	// MaxDials is the same bound for a node without links that has not tried all the
	// nodes it knows. In the simulation in which 95 % of a thousand nodes die in
	// silence, each dead node costs a dial of five seconds, and eight dials at a time
	// left nodes isolated for two minutes.
	MaxDials = 24
	// maxOverflow is how many links beyond Max are accepted from nodes in need.
	maxOverflow = 2
	// A node that is above Max waits handoverDelay to twice that before it sheds a
	// link, so that its neighbors do not all do so at once.
	handoverDelay = 500 * time.Millisecond
	// handoverInterval is how long a neighbor has to follow a handover before another
	// one is asked. After handoverPatience any neighbor that can spare the link may
	// leave. After four times that, this node leaves one itself.
	handoverInterval = 2 * time.Second
	handoverPatience = 5 * time.Second
	// degreeDelay is how soon neighbors are told of a new number of links.
	degreeDelay = 100 * time.Millisecond
	// walkTTL is the length of the active random walk of HyParView. walksPerRound is
	// how many walks are sent at once.
	walkTTL       = 6
	walksPerRound = 2
	// After so many rounds of walks that found nothing, or requests that full nodes
	// refused, somebody has to make room.
	maxFailedWalkRounds   = 2
	maxRefusalsInRow = 4
	// After maxRefusals by full nodes the next one is asked after refusalPause, so that
	// a full network is not flooded with requests. A node without links waits only
	// isolatedRefusalPause.
	maxRefusals          = 8
	refusalPause         = 2 * time.Second
	isolatedRefusalPause = 250 * time.Millisecond
)

// requestLinks asks for links while there are fewer than Min.
func (s *State) requestLinks(now time.Time) {
	missing := s.cfg.Min - s.occupied()
	if missing <= 0 || !s.hasRoom(0) {
		return
	}
	candidates, want := s.candidates(now, missing)
	for _, e := range candidates[:max(0, min(want, len(candidates)))] {
		l := s.sendRequest(now, e.Contact, Request{Urgent: s.needsUrgentLink()})
		// A lost node that answers proves that a cut has healed: keep that link even if
		// there are enough others meanwhile.
		l.wanted = e.fails > 0
	}
	// Walks reach beyond the known addresses, so they are for when those are used up.
	if s.count(requested) == 0 && s.Degree() > 0 && !now.Before(s.nextWalks) {
		s.sendWalks(now)
	}
}

// needsUrgentLink reports whether the node has looked for a second link in vain for so
// long that somebody has to make room: no node should depend on a single neighbor.
func (s *State) needsUrgentLink() bool {
	return s.occupied() < 2 && (s.failedWalkRounds >= maxFailedWalkRounds || s.refusalsInRow >= maxRefusalsInRow)
}

// candidates returns the nodes that may be asked for a link, and how many of them to ask
// now.
func (s *State) candidates(now time.Time, missing int) ([]*candidate, int) {
	pending, fresh := s.pendingDials(now)
	free := s.dialLimit() - pending
	if free <= 0 || s.activeRefusals(now) >= maxRefusals {
		return nil, 0
	}
	// One more than missing, as some do not answer. Requests that are older than
	// hedgeDelay are not counted on any more.
	want := min(missing+1-fresh, free)
	if s.isolated() {
		return s.book.dueIsolated(now, s.linkable(now)), want
	}
	return s.book.dueKnown(now, s.linkable(now)), want
}

// linkable returns a function that reports whether a node may be asked for a link: it
// is not linked and not cooling down. A node without links ignores the cooldown.
func (s *State) linkable(now time.Time) func(*candidate) bool {
	ignoreCooldown := s.occupied() == 0
	return func(e *candidate) bool { return s.isIdle(e) && (ignoreCooldown || !s.coolingDown(now, e.ID)) }
}

// dialLimit returns how many requests and checks may be under way.
func (s *State) dialLimit() int {
	if s.isolated() && s.book.hasUntried(s.isIdle) {
		return MaxDials
	}
	return maxDials
}

// pendingDials returns how many requests and checks are under way, and how many of the
// requests are so new that an answer is likely to come.
func (s *State) pendingDials(now time.Time) (all, fresh int) {
	for _, l := range s.links {
		if l.phase == requested {
			all++
			if now.Sub(l.since) < hedgeDelay {
				fresh++
			}
		}
	}
	return all + len(s.shuffles.checks), fresh
}

// requestsDue returns when requestLinks has something to do; zero means never.
func (s *State) requestsDue(now time.Time) (t time.Time) {
	if s.occupied() >= s.cfg.Min || !s.hasRoom(0) {
		return t
	}
	all, _ := s.pendingDials(now)
	if all >= s.dialLimit() {
		return t // the answer to a dial is an input of its own
	}
	for _, l := range s.links {
		if l.phase == requested && now.Sub(l.since) < hedgeDelay {
			t = earlier(t, l.since.Add(hedgeDelay))
		}
	}
	linkable := s.linkable(now)
	excess := s.activeRefusals(now) - maxRefusals
	switch {
	case excess >= 0:
		// The hundredth keeps a rounding error from making this tick a little early.
		t = earlier(t, now.Add(time.Duration((excess+0.01)*float64(s.refusalPause()))))
	case s.isolated():
		for _, list := range [][]*candidate{s.book.known, s.book.lost} {
			for _, e := range list {
				if at := e.isolatedRetryAt(); at.After(now) && linkable(e) {
					t = earlier(t, at)
				}
			}
		}
	default:
		for _, e := range s.book.known {
			if e.retryAt.After(now) && linkable(e) {
				t = earlier(t, e.retryAt)
			}
		}
	}
	if s.count(requested) == 0 && s.Degree() > 0 {
		t = earlier(t, s.nextWalks)
	}
	return t
}

// activeRefusals returns the number of refusals less those that are forgiven: one per
// refusalPause.
func (s *State) activeRefusals(now time.Time) float64 {
	return max(0, s.refusals-now.Sub(s.lastRefusal).Seconds()/s.refusalPause().Seconds())
}

func (s *State) refusalPause() time.Duration {
	if s.isolated() {
		return isolatedRefusalPause
	}
	return refusalPause
}

// sendWalks looks for nodes with room beyond the known addresses.
func (s *State) sendWalks(now time.Time) {
	m := Walk{Origin: s.ownContact(), TTL: walkTTL, Urgent: s.failedWalkRounds >= maxFailedWalkRounds}
	for range walksPerRound {
		if to := s.randomNeighbor(); to != nil {
			s.send(to.Contact, m)
		}
	}
	s.nextWalks = now.Add(s.spread(min(time.Second<<min(s.failedWalkRounds, 3), 8*time.Second)))
	s.failedWalkRounds++
}

// handleWalk passes a walk on, or ends it by asking its origin for a link.
func (s *State) handleWalk(now time.Time, from *link, m Walk) {
	origin := m.Origin
	if origin.ID == s.cfg.Self || origin.ID == "" {
		return // it has come back to where it began
	}
	s.book.learn(origin)
	next := s.randomNeighbor(from.ID, origin.ID)
	last := m.TTL <= 0 || next == nil
	// An origin that was lost before is hearsay until it is heard by itself.
	e := s.book.findKnown(origin.ID)
	free := e != nil && s.linkable(now)(e) && s.count(requested) < maxDials
	switch {
	// A node with Min links takes every second walk only, as in the Node.js library, so
	// that the links spread over the network.
	case free && s.hasRoom(0) && (last || s.occupied() < s.cfg.Min || s.cfg.Rand.IntN(2) == 0):
		s.requestLink(now, origin, ordinary).wanted = true
	case free && last && m.Urgent && s.hasRoom(maxOverflow):
		s.requestLink(now, origin, ordinary).overflow = true
	case !last:
		m.TTL--
		s.send(next.Contact, m)
	}
}

// shedLinks brings the number of links back to Max after nodes in need were accepted
// beyond it. The package documentation describes the handover.
func (s *State) shedLinks(now time.Time) {
	if s.cfg.Max < 0 || s.Degree() <= s.cfg.Max {
		s.overSince, s.nextHandover, s.handoverAsked = time.Time{}, time.Time{}, nil
		return
	}
	if s.overSince.IsZero() {
		// The neighbors have to hear of it first, and should not all act at once.
		s.overSince, s.nextHandover = now, now.Add(s.jitter(handoverDelay))
	}
	if now.Before(s.nextHandover) {
		return
	}
	late := now.Sub(s.overSince)
	if late >= 4*handoverPatience {
		// Nobody followed a handover. The neighbor with the most links is hurt least.
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.leaveLink(now, s.highestDegree(), ReasonFull)
		return
	}
	// A neighbor above Max wants to lose a link itself. After a while, one above Min
	// has to do.
	least := s.cfg.Max
	if late >= handoverPatience {
		least = s.cfg.Min
	}
	if to := s.pickNeighbor(func(l *link) bool { return l.degree > least }); to != nil {
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.send(to.Contact, Handover{})
		return
	}
	s.nextHandover = now.Add(s.jitter(handoverInterval))
	for range s.Degree() - s.cfg.Max {
		target, asked := s.pickHandover()
		if asked == nil {
			s.handoverAsked = nil // everybody was asked: begin again in the next round
			return
		}
		s.handoverAsked = append(s.handoverAsked, asked.ID)
		s.send(asked.Contact, Handover{To: target.Contact})
	}
}

// announceDegree lets the neighbors know the number of links soon, as they decide by it
// which link they can spare.
func (s *State) announceDegree(now time.Time) {
	soon := now.Add(s.jitter(degreeDelay))
	for _, l := range s.links {
		if l.phase == linked && l.nextKeepalive.After(soon) {
			l.nextKeepalive = soon
		}
	}
}

// pickHandover returns two neighbors to be linked to each other: asked shall link to
// target and then leave this node. The target is a neighbor that can be dialed; of
// those, the one with the fewest links, and then the newest. The one asked has the most
// links of those that were not asked yet.
func (s *State) pickHandover() (target, asked *link) {
	for _, l := range s.links {
		switch {
		case l.phase != linked:
		case target == nil, l.dialed && !target.dialed,
			l.dialed == target.dialed && (l.degree < target.degree || l.degree == target.degree && !l.since.Before(target.since)):
			target = l
		}
	}
	for _, l := range s.links {
		if l.phase != linked || l == target || slices.Contains(s.handoverAsked, l.ID) {
			continue
		}
		if asked == nil || l.degree > asked.degree {
			asked = l
		}
	}
	return target, asked
}

// highestDegree returns the neighbor with the most links.
func (s *State) highestDegree() (best *link) {
	for _, l := range s.links {
		if l.phase == linked && (best == nil || l.degree > best.degree) {
			best = l
		}
	}
	return best
}

// handleHandover handles the wish of the neighbor from to be left. With a contact, this
// node links to that first. Without one, it leaves at once, but only if it can spare the
// link: from cannot know how many others are leaving this node at this moment.
func (s *State) handleHandover(now time.Time, from *link, to Contact) {
	if to.ID == "" {
		if s.Degree() > s.cfg.Min && s.occupied() > s.cfg.Min {
			s.leaveLink(now, from, ReasonFull)
		}
		return
	}
	if to.ID == s.cfg.Self || to.ID == from.ID {
		return // a link to this node or to the neighbor itself replaces nothing
	}
	s.book.learn(to)
	switch l := s.link(to.ID); {
	case l != nil && l.phase == linked:
		// The link exists already, so the path from the neighbor over it to this node
		// stands: leave now, if this node can spare the link.
		if s.Degree() > s.cfg.Min {
			s.leaveLink(now, from, ReasonMoved)
		}
	case l != nil:
		l.replaces, l.overflow = from.ID, true // the request under way serves as well
	case s.hasRoom(maxOverflow):
		if e := s.book.findKnown(to.ID); e != nil && s.linkable(now)(e) {
			l := s.requestLink(now, to, ordinary)
			l.replaces, l.overflow = from.ID, true
		}
	}
}
