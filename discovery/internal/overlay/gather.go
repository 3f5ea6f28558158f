package overlay

import (
	"slices"
	"time"
)

// This file keeps the number of links between Min and Max: it requests links when there
// are too few, and hands neighbors over when there are too many.

const (
	// A request that has no answer after hedgeDelay no longer keeps the node from asking
	// another one: a live node has answered by then, while the dial of a dead one takes
	// five seconds.
	hedgeDelay = time.Second
	// maxDials bounds the requests and checks that a node has under way.
	maxDials = 8
	// MaxDials bounds the requests and checks under way of a node without links that has not
	// yet tried all nodes in its book. In the simulation in which 95 % of a thousand nodes die without a
	// message, each dead node costs a dial of five seconds, and with eight dials at a time
	// some nodes had no links for two minutes.
	MaxDials = 24
	// maxOverflow is the number of links that a node may have beyond Max, for other nodes
	// that would be cut off otherwise.
	maxOverflow = 2
	// A node above Max waits for one to two times handoverDelay before it acts, so that
	// several neighbors above Max do not act at the same moment.
	handoverDelay = 500 * time.Millisecond
	// A neighbor that was asked to link to another node, and then to leave, has
	// handoverInterval to do so before a second one is asked. A node that is still above
	// Max after handoverPatience asks neighbors to leave at once, if they have more than
	// Min links. After four times that, it leaves a neighbor itself.
	handoverInterval = 2 * time.Second
	handoverPatience = 5 * time.Second
	// degreeDelay bounds the time until this node tells its neighbors that its number of
	// links has changed: one to two times this delay.
	degreeDelay = 100 * time.Millisecond
	// walkTTL is the number of hops of a random walk, as in HyParView. A node that looks
	// for links sends walksPerRound walks at once.
	walkTTL       = 6
	walksPerRound = 2
	// After maxFailedWalkRounds rounds of walks without a new link, or maxRefusalsInRow
	// refused requests, the node asks urgently: then full nodes accept it as well.
	maxFailedWalkRounds = 2
	maxRefusalsInRow    = 4
	// After maxRefusals refused requests, a node asks only one node per refusalPause, so
	// that it does not flood a full network with requests. Without links, it asks one per
	// isolatedRefusalPause.
	maxRefusals          = 8
	refusalPause         = 2 * time.Second
	isolatedRefusalPause = 250 * time.Millisecond
)

// requestLinks sends requests for links, and walks, while there are fewer than Min links.
func (s *State) requestLinks(now time.Time) {
	missing := s.cfg.Min - s.occupied()
	if missing <= 0 || !s.hasRoom(0) {
		return // there are enough links
	}
	candidates, want := s.candidates(now, missing)
	for _, e := range candidates[:max(0, min(want, len(candidates)))] {
		l := s.sendRequest(now, e.Contact, Request{Urgent: s.needsUrgentLink()})
		// A lost node that answers may be on the other side of a cut that has healed. So
		// the link to it is made even if there are enough links by then.
		l.wanted = e.fails > 0
	}
	// When there is no more node in the book to ask, walks look for other nodes.
	if s.count(requested) == 0 && s.Degree() > 0 && !now.Before(s.nextWalks) {
		s.sendWalks(now)
	}
}

// needsUrgentLink reports whether requests of this node are urgent, so that full nodes
// accept them. They are if it has long found no second link, since a node with a single
// neighbor is cut off when that neighbor dies.
func (s *State) needsUrgentLink() bool {
	return s.occupied() < 2 && (s.failedWalkRounds >= maxFailedWalkRounds || s.refusalsInRow >= maxRefusalsInRow)
}

// candidates returns the nodes that may be asked for a link, best first, and the number of
// them to ask now. missing is the number of links that this node lacks.
func (s *State) candidates(now time.Time, missing int) ([]*candidate, int) {
	pending, fresh := s.pendingDials(now)
	free := s.dialLimit() - pending
	// Too many dials are under way, or full nodes have refused many requests.
	if free <= 0 || s.activeRefusals(now) >= maxRefusals {
		return nil, 0
	}
	// One node more than missing is asked, since some do not answer. Fresh requests are
	// likely to be answered; older ones do not count.
	want := min(missing+1-fresh, free)
	if s.isolated() {
		return s.book.dueIsolated(now, s.linkable(now)), want
	}
	return s.book.dueKnown(now, s.linkable(now)), want
}

// linkable returns a function that reports whether a node may be asked for a link. It may
// not if there is a link to it or a check of it, or if the last link to it ended by
// decision less than thirty seconds ago. A node without links ignores that last rule.
func (s *State) linkable(now time.Time) func(*candidate) bool {
	ignoreCooldown := s.occupied() == 0
	return func(e *candidate) bool { return s.isIdle(e) && (ignoreCooldown || !s.coolingDown(now, e.ID)) }
}

// dialLimit returns the number of requests and checks that may be under way together.
func (s *State) dialLimit() int {
	if s.isolated() && s.book.hasUntried(s.isIdle) {
		return MaxDials
	}
	return maxDials
}

// pendingDials returns the number of requests and checks that are under way, and the number
// of fresh requests among them, which are so new that an answer is still likely.
func (s *State) pendingDials(now time.Time) (all, fresh int) {
	for _, l := range s.links {
		if l.phase == requested {
			all++
			if now.Sub(l.since) < hedgeDelay { // a live node answers within that time
				fresh++
			}
		}
	}
	return all + len(s.shuffles.checks), fresh
}

// requestsDue returns when requestLinks has to act next; zero means never.
func (s *State) requestsDue(now time.Time) (t time.Time) {
	if s.occupied() >= s.cfg.Min || !s.hasRoom(0) {
		return t
	}
	all, _ := s.pendingDials(now)
	if all >= s.dialLimit() {
		return t // the end of a dial is an input, after which requestLinks runs again
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
		// The time at which enough refusals are forgiven. The hundredth makes sure that
		// rounding does not make it a little too early.
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

// activeRefusals returns the number of recent refused requests. It falls by one per
// refusalPause.
func (s *State) activeRefusals(now time.Time) float64 {
	return max(0, s.refusals-now.Sub(s.lastRefusal).Seconds()/s.refusalPause().Seconds())
}

func (s *State) refusalPause() time.Duration {
	if s.isolated() { // without links, finding one is urgent
		return isolatedRefusalPause
	}
	return refusalPause
}

// sendWalks sends random walks, which look for nodes that have room and that need not be
// in this node's book.
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

// handleWalk passes a walk on, or ends it with a request for a link to its origin.
func (s *State) handleWalk(now time.Time, from *link, m Walk) {
	origin := m.Origin
	if origin.ID == s.cfg.Self || origin.ID == "" {
		return // this node's own walk has come back
	}
	s.book.learn(origin)
	next := s.randomNeighbor(from.ID, origin.ID)
	last := m.TTL <= 0 || next == nil
	// An origin that is among the lost nodes gets no request: a walk that others passed
	// on does not prove that it is alive.
	e := s.book.findKnown(origin.ID)
	free := e != nil && s.linkable(now)(e) && s.count(requested) < maxDials
	switch {
	// A node that has room and at least Min links ends only every second walk, as in the
	// Node.js library, so that the links are spread over the network.
	case free && s.hasRoom(0) && (last || s.occupied() < s.cfg.Min || s.cfg.Rand.IntN(2) == 0):
		s.requestLink(now, origin, ordinary).wanted = true
	// A full node at the end of an urgent walk makes one link more than Max, to the node that
	// has sent the walk.
	case free && last && m.Urgent && s.hasRoom(maxOverflow):
		s.requestLink(now, origin, ordinary).overflow = true
	case !last:
		m.TTL--
		s.send(next.Contact, m)
	}
}

// shedLinks reduces the number of links to Max, step by step, after this node has accepted
// more for nodes that would be cut off otherwise. The package documentation describes it
// in the section on the number of links.
func (s *State) shedLinks(now time.Time) {
	if s.cfg.Max < 0 || s.Degree() <= s.cfg.Max {
		s.overSince, s.nextHandover, s.handoverAsked = time.Time{}, time.Time{}, nil
		return
	}
	if s.overSince.IsZero() {
		// First the neighbors have to learn this node's number of links. The random delay
		// keeps several nodes above Max from acting at the same moment.
		s.overSince, s.nextHandover = now, now.Add(s.jitter(handoverDelay))
	}
	if now.Before(s.nextHandover) {
		return // a neighbor may still be following the last handover
	}
	late := now.Sub(s.overSince)
	if late >= 4*handoverPatience {
		// This node has asked its neighbors to leave, but none did. Now it ends one link
		// itself, the one to the neighbor with the most links, which needs it least.
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.leaveLink(now, s.highestDegree(), ReasonFull)
		return
	}
	// A neighbor that is above Max as well has to lose a link anyway. After a while, a
	// neighbor above Min is asked to leave, too.
	least := s.cfg.Max
	if late >= handoverPatience {
		least = s.cfg.Min
	}
	// Such a neighbor can leave without a new link in exchange.
	if to := s.pickNeighbor(func(l *link) bool { return l.degree > least }); to != nil {
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.send(to.Contact, Handover{})
		return
	}
	s.nextHandover = now.Add(s.jitter(handoverInterval))
	for range s.Degree() - s.cfg.Max {
		target, asked := s.pickHandover()
		if asked == nil {
			s.handoverAsked = nil // all neighbors were asked, so the next round begins anew
			return
		}
		s.handoverAsked = append(s.handoverAsked, asked.ID)
		s.send(asked.Contact, Handover{To: target.Contact})
	}
}

// announceDegree makes this node send its number of links to all neighbors soon. They need
// it to decide which of their own links to end.
func (s *State) announceDegree(now time.Time) {
	soon := now.Add(s.jitter(degreeDelay))
	for _, l := range s.links {
		// A keepalive carries the number of links.
		if l.phase == linked && l.nextKeepalive.After(soon) {
			l.nextKeepalive = soon
		}
	}
}

// pickHandover returns two neighbors for a handover: this node will ask the neighbor asked
// to link to the neighbor target, and then to leave. For target it prefers, in this order,
// a neighbor that this node has dialed, one with few links, and one that was linked late.
// For asked it takes the neighbor with the most links that was not asked yet; asked is nil
// if there is none.
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

// highestDegree returns the neighbor that has the most links.
func (s *State) highestDegree() (best *link) {
	for _, l := range s.links {
		if l.phase == linked && (best == nil || l.degree > best.degree) {
			best = l
		}
	}
	return best
}

// handleHandover handles the request of the neighbor from that this node leave it. If to
// is a node, this node links to it first. Otherwise it leaves at once.
func (s *State) handleHandover(now time.Time, from *link, to Contact) {
	if to.ID == "" {
		// This node refuses if it would have fewer than Min links. The neighbor cannot
		// know that, since other neighbors may be leaving this node at the same moment.
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
		// The link to the other node exists already, so this node can leave now and stay
		// connected to from, unless it would have fewer than Min links.
		if s.Degree() > s.cfg.Min {
			s.leaveLink(now, from, ReasonMoved)
		}
	case l != nil:
		l.replaces, l.overflow = from.ID, true // the handshake is under way already
	case s.hasRoom(maxOverflow):
		if e := s.book.findKnown(to.ID); e != nil && s.linkable(now)(e) {
			l := s.requestLink(now, to, ordinary)
			l.replaces, l.overflow = from.ID, true
		}
	}
}
