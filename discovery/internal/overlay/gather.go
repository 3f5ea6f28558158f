package overlay

import (
	"slices"
	"time"
)

// This file keeps the number of links between Min and Max. It requests links when there are too
// few. When there are too many, it asks neighbors to link to each other and then to leave this
// node.

const (
	// If a node has not answered a request for a link after hedgeDelay, the request no longer
	// keeps this node from asking another one. A live node has answered by then, while a dial
	// to a dead node takes five seconds.
	hedgeDelay = time.Second
	// maxDials bounds the requests for links, and the checks whether a node is alive, that a
	// node has under way at a time.
	maxDials = 8
	// MaxDials bounds the requests for links, and the checks whether a node is alive, that a
	// node without links has under way while it has not yet tried all nodes in its book. In the
	// simulation in which 95 % of a thousand nodes die without a message, each dead node costs
	// a dial of five seconds, and with eight dials at a time some nodes had no links for two
	// minutes.
	MaxDials = 24
	// maxOverflow is the number of links that a node may have beyond Max, for other nodes that
	// would otherwise be cut off from the network.
	maxOverflow = 2
	// A node with more than Max links waits for one to two times handoverDelay before it asks a
	// neighbor to leave it, so that several such nodes do not act at the same moment.
	handoverDelay = 500 * time.Millisecond
	// A node with more than Max links asks a neighbor to link to another node and then to
	// leave. It waits for one to two times handoverInterval before it asks another neighbor. If
	// it still has more than Max links after handoverPatience, it asks neighbors with more than
	// Min links to leave at once. After four times handoverPatience, it ends a link itself.
	handoverInterval = 2 * time.Second
	handoverPatience = 5 * time.Second
	// When its number of links has changed, a node tells its neighbors the new number after at
	// most one to two times degreeDelay.
	degreeDelay = 100 * time.Millisecond
	// walkTTL is the largest number of hops of a random walk, as in the protocol HyParView. A
	// node that looks for links sends walksPerRound walks at once.
	walkTTL       = 6
	walksPerRound = 2
	// After maxFailedWalkRounds rounds of random walks without a new link, or maxRefusalsInRow
	// refused requests, a node with at most one link marks its requests for links as urgent:
	// then full nodes accept them as well.
	maxFailedWalkRounds = 2
	maxRefusalsInRow    = 4
	// After maxRefusals refused requests for links, a node asks only one node per refusalPause,
	// so that it does not flood a full network with requests. A node without links asks one per
	// isolatedRefusalPause.
	maxRefusals          = 8
	refusalPause         = 2 * time.Second
	isolatedRefusalPause = 250 * time.Millisecond
)

// requestLinks sends requests for links while this node has fewer than Min links. When no node
// in the book is left to ask, it sends random walks, which look for other nodes.
func (s *State) requestLinks(now time.Time) {
	missing := s.cfg.Min - s.occupied()
	if missing <= 0 || !s.hasRoom(0) {
		return // there are enough links
	}
	candidates, want := s.candidates(now, missing)
	for _, e := range candidates[:max(0, min(want, len(candidates)))] {
		l := s.sendRequest(now, e.Contact, Request{Urgent: s.needsUrgentLink()})
		// A node that did not answer before, but answers this request, may be on the other side
		// of a cut that has healed. So the link to it is made even if this node has enough
		// links by then.
		l.wanted = e.fails > 0
	}
	// When no more node in the book can be asked, random walks over the links look for other
	// nodes.
	if s.count(requested) == 0 && s.Degree() > 0 && !now.Before(s.nextWalks) {
		s.sendWalks(now)
	}
}

// needsUrgentLink reports whether this node marks its requests for links as urgent, so that
// full nodes accept them. It does so if it has at most one link and has long found no other,
// since a node with a single neighbor is cut off when that neighbor dies.
func (s *State) needsUrgentLink() bool {
	return s.occupied() < 2 && (s.failedWalkRounds >= maxFailedWalkRounds || s.refusalsInRow >= maxRefusalsInRow)
}

// candidates returns the nodes of the book that this node may ask for a link at the time now,
// the best first, and the number of them to ask now. missing is the number of links that this
// node lacks.
func (s *State) candidates(now time.Time, missing int) ([]*candidate, int) {
	pending, fresh := s.pendingDials(now)
	free := s.dialLimit() - pending
	// This node asks nobody if too many of its dials are under way, or if full nodes have
	// refused many of its requests.
	if free <= 0 || s.activeRefusals(now) >= maxRefusals {
		return nil, 0
	}
	// This node asks one node more than it lacks links, since some do not answer. It asks fewer
	// if requests are under way that are so new that an answer is still likely.
	want := min(missing+1-fresh, free)
	if s.isolated() {
		return s.book.dueIsolated(now, s.linkable(now)), want
	}
	return s.book.dueKnown(now, s.linkable(now)), want
}

// linkable returns a function that reports whether this node may ask a node of the book for a
// link at the time now. It may not if it has a link to that node or is checking whether that
// node is alive, or if one of the two ended their last link by decision less than thirty
// seconds ago. A node without links ignores that last rule.
func (s *State) linkable(now time.Time) func(*candidate) bool {
	ignoreCooldown := s.occupied() == 0
	return func(e *candidate) bool { return s.isIdle(e) && (ignoreCooldown || !s.coolingDown(now, e.ID)) }
}

// dialLimit returns the number of requests for links, and of checks whether a node is alive,
// that may be under way together.
func (s *State) dialLimit() int {
	if s.isolated() && s.book.hasUntried(s.isIdle) {
		return MaxDials
	}
	return maxDials
}

// pendingDials returns as all the number of requests for links, and of checks whether a node is
// alive, that are under way at the time now. fresh is the number of those requests that are so
// new that an answer is still likely.
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

// requestsDue returns the time at which requestLinks has to be called next, if no input comes
// before. The zero time means never.
func (s *State) requestsDue(now time.Time) (t time.Time) {
	if s.occupied() >= s.cfg.Min || !s.hasRoom(0) {
		return t
	}
	all, _ := s.pendingDials(now)
	if all >= s.dialLimit() {
		return t // the end of each dial is an input, after which requestLinks is called anyway
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
		// At this time, so many earlier refusals no longer count that this node may ask for
		// links again. The hundredth makes sure that rounding does not make the time a little
		// too early.
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

// activeRefusals returns how many of this node's requests for links were refused recently. The
// number falls by one per refusalPause.
func (s *State) activeRefusals(now time.Time) float64 {
	return max(0, s.refusals-now.Sub(s.lastRefusal).Seconds()/s.refusalPause().Seconds())
}

func (s *State) refusalPause() time.Duration {
	if s.isolated() { // without links, finding one is urgent
		return isolatedRefusalPause
	}
	return refusalPause
}

// sendWalks sends random walks over the links. They look for nodes that have room for a link,
// and find such nodes also outside this node's book.
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

// handleWalk handles the random walk m, which the neighbor from sent. It passes the walk on to
// another neighbor, or ends it by asking the node that began the walk for a link.
func (s *State) handleWalk(now time.Time, from *link, m Walk) {
	origin := m.Origin
	if origin.ID == s.cfg.Self || origin.ID == "" {
		return // this node's own walk has come back
	}
	s.book.learn(origin)
	next := s.randomNeighbor(from.ID, origin.ID)
	last := m.TTL <= 0 || next == nil
	// If the node that began the walk is among the lost nodes of the book, it gets no request
	// for a link: a walk that others passed on does not prove that it is alive.
	e := s.book.findKnown(origin.ID)
	free := e != nil && s.linkable(now)(e) && s.count(requested) < maxDials
	switch {
	// If this node has room and at least Min links, it ends only every second walk with a
	// request for a link, as in the Node.js library, so that the links are spread over the
	// network.
	case free && s.hasRoom(0) && (last || s.occupied() < s.cfg.Min || s.cfg.Rand.IntN(2) == 0):
		s.requestLink(now, origin, ordinary).wanted = true
	// A full node at the end of an urgent walk asks the node that began the walk for a link,
	// and so may have up to maxOverflow links more than Max.
	case free && last && m.Urgent && s.hasRoom(maxOverflow):
		s.requestLink(now, origin, ordinary).overflow = true
	case !last:
		m.TTL--
		s.send(next.Contact, m)
	}
}

// shedLinks reduces the number of links to Max, step by step, if this node has accepted more
// than Max links for nodes that would otherwise be cut off from the network. The package
// documentation describes the steps in the section on the number of links.
func (s *State) shedLinks(now time.Time) {
	if s.cfg.Max < 0 || s.Degree() <= s.cfg.Max {
		s.overSince, s.nextHandover, s.handoverAsked = time.Time{}, time.Time{}, nil
		return
	}
	if s.overSince.IsZero() {
		// The neighbors first have to learn that this node has more than Max links. The random
		// delay keeps several nodes with too many links from acting at the same moment.
		s.overSince, s.nextHandover = now, now.Add(s.jitter(handoverDelay))
	}
	if now.Before(s.nextHandover) {
		return // a neighbor that was asked to leave may not have done so yet
	}
	late := now.Sub(s.overSince)
	if late >= 4*handoverPatience {
		// This node has asked its neighbors to leave, but none did. Now it ends one link
		// itself, the one to the neighbor with the most links, which needs it least.
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.leaveLink(now, s.highestDegree(), ReasonFull)
		return
	}
	// A neighbor with more than Max links has to lose a link anyway, so it is asked to leave
	// this node. After handoverPatience, a neighbor with more than Min links is asked, too.
	least := s.cfg.Max
	if late >= handoverPatience {
		least = s.cfg.Min
	}
	// A neighbor with more than least links can leave without a new link in exchange.
	if to := s.pickNeighbor(func(l *link) bool { return l.degree > least }); to != nil {
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.send(to.Contact, Handover{})
		return
	}
	s.nextHandover = now.Add(s.jitter(handoverInterval))
	for range s.Degree() - s.cfg.Max {
		target, asked := s.pickHandover()
		if asked == nil {
			// All neighbors were asked to leave, so each of them may be asked again from now
			// on.
			s.handoverAsked = nil
			return
		}
		s.handoverAsked = append(s.handoverAsked, asked.ID)
		s.send(asked.Contact, Handover{To: target.Contact})
	}
}

// announceDegree makes this node send its number of links to all neighbors soon. The neighbors
// use this number when they decide which of their own links to end.
func (s *State) announceDegree(now time.Time) {
	soon := now.Add(s.jitter(degreeDelay))
	for _, l := range s.links {
		// A keepalive carries the number of links.
		if l.phase == linked && l.nextKeepalive.After(soon) {
			l.nextKeepalive = soon
		}
	}
}

// pickHandover returns two neighbors: this node will ask the neighbor asked to link to the
// neighbor target, and then to leave this node. As target it prefers, in this order, a neighbor
// that this node has dialed, one with few links, and one that was linked late. As asked it
// takes the neighbor with the most links that was not asked yet; asked is nil if there is none.
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

// handleHandover handles a message of the neighbor from, which has too many links and asks this
// node to leave it. If to is a node, this node links to that node first. If to is empty, this
// node leaves at once, unless it would then have fewer than Min links.
func (s *State) handleHandover(now time.Time, from *link, to Contact) {
	if to.ID == "" {
		// This node refuses to leave the neighbor if it would then have fewer than Min links.
		// The neighbor cannot know that, since other neighbors may be leaving this node at the
		// same moment.
		if s.Degree() > s.cfg.Min && s.occupied() > s.cfg.Min {
			s.leaveLink(now, from, ReasonFull)
		}
		return
	}
	if to.ID == s.cfg.Self || to.ID == from.ID {
		return // to is this node or the neighbor itself, and a link to either would replace nothing
	}
	s.book.learn(to)
	switch l := s.link(to.ID); {
	case l != nil && l.phase == linked:
		// This node already has a link to the node that the neighbor from named. So it can
		// leave from now and stay connected to it over that node, unless it would then have
		// fewer than Min links.
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
