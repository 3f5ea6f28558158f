package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// checkLinkTimers applies what is due at now on the links.
func (s *State) checkLinkTimers(now time.Time) {
	for _, l := range slices.Clone(s.links) {
		switch l.phase {
		case requested:
			if now.Sub(l.since) >= requestTimeout {
				s.handleUnreachable(now, l.ID, ReasonTimeout)
			}
		case accepted:
			if now.Sub(l.since) >= acceptTimeout {
				s.leaveLink(now, l, ReasonTimeout)
			} else if !l.onTopic && !now.Before(l.nextProbe) {
				l.nextProbe = now.Add(probeInterval)
				s.emit(Probe{Peer: l.ID})
			}
		case linked:
			switch {
			case now.Sub(l.heard) >= silenceTimeout:
				s.leaveLink(now, l, ReasonSilent)
			case !l.offTopicSince.IsZero() && now.Sub(l.offTopicSince) >= offTopicTimeout:
				s.leaveLink(now, l, ReasonOffTopic)
			case !now.Before(l.nextKeepalive):
				l.nextKeepalive = now.Add(keepaliveInterval)
				m := Keepalive{Degree: s.count(linked), Stamp: now.Sub(s.started)}
				if l.peerStamp > 0 {
					m.Echo, m.Hold = l.peerStamp, now.Sub(l.peerStampAt)
				}
				s.send(l.Contact, m)
			}
		}
	}
}

// forgiveSilence is called when our own timer was so late that we must have been away:
// the others get time to be heard before we judge them.
func (s *State) forgiveSilence(now time.Time) {
	for _, l := range s.links {
		if limit := now.Add(wakeGrace - silenceTimeout); l.heard.Before(limit) {
			l.heard = limit
		}
		l.nextKeepalive = now
		if l.phase != linked {
			l.since = now
		}
		if !l.offTopicSince.IsZero() {
			l.offTopicSince = now
		}
	}
	if !s.nextSeedRound.IsZero() {
		s.startRejoin(now)
	}
	for i := range s.shuffles.checks {
		s.shuffles.checks[i].at = now
	}
	for _, list := range [][]*entry{s.book.known, s.book.lost} {
		for _, e := range list {
			e.retryAt = now
		}
	}
	for _, x := range s.seeds {
		x.tries, x.next = 0, now
	}
	if limit := now.Add(beaconInterval + wakeGrace - beaconLife); s.beacon.heard.Before(limit) {
		s.beacon.heard = limit
	}
}

// usable tells which addresses may be asked: not linked, and not parted from a
// moment ago, unless there is nobody else.
func (s *State) usable(now time.Time) func(*entry) bool {
	lone := s.occupied() == 0
	return func(e *entry) bool { return s.isIdle(e) && (lone || !s.coolingDown(now, e.ID)) }
}

// isolated tells whether the node has no link and could have one. Without a minimum
// it asks nobody but its seeds, which were named to be asked.
func (s *State) isolated() bool { return s.cfg.Max != 0 && s.healthy() == 0 }

// requestLinks looks for links while there are fewer than min.
func (s *State) requestLinks(now time.Time) {
	missing := s.cfg.Min - s.occupied()
	if missing <= 0 || !s.hasRoom(0) {
		return
	}
	candidates, want := s.candidates(now, missing)
	for _, e := range candidates[:max(0, min(want, len(candidates)))] {
		l := s.sendRequest(now, e.Contact, Request{Urgent: s.needsUrgently()})
		l.wanted = e.fails > 0 // it was lost: not to be let go again for having enough
	}
	if s.count(requested) == 0 && s.Degree() > 0 && !now.Before(s.nextWalks) {
		s.sendWalks(now)
	}
}

// needsUrgently tells whether the node has looked for a second link in vain for so long that
// somebody has to make room: nobody should depend on one neighbour.
func (s *State) needsUrgently() bool {
	return s.occupied() < 2 && (s.vainRounds >= maxVainRounds || s.refusalsInRow >= maxVainRequests)
}

// candidates returns whom to ask, and how many of them now.
func (s *State) candidates(now time.Time, missing int) ([]*entry, int) {
	pending, fresh := s.pendingDials(now)
	free := s.dialLimit() - pending
	switch {
	case free <= 0, s.activeRefusals(now) >= maxRefusals:
		return nil, 0
	}
	want := min(missing+1-fresh, free)
	if s.isolated() {
		return s.book.dueIsolated(now, s.usable(now)), want
	}
	return s.book.dueKnown(now, s.usable(now)), want
}

// dialLimit returns how many requests and checks may be under way.
func (s *State) dialLimit() int {
	if s.isolated() && s.book.hasUntried(s.isIdle) {
		return MaxDials
	}
	return maxDials
}

// pendingDials returns how many requests and checks are under way, and how many of the
// requests so new that an answer is likely to come.
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

// requestsDue returns when gather has something to do.
func (s *State) requestsDue(now time.Time) (t time.Time) {
	if s.occupied() >= s.cfg.Min || !s.hasRoom(0) {
		return t
	}
	all, _ := s.pendingDials(now)
	if all >= s.dialLimit() {
		return t
	}
	for _, l := range s.links {
		if l.phase == requested && now.Sub(l.since) < hedgeDelay {
			t = earlier(t, l.since.Add(hedgeDelay))
		}
	}
	usable := s.usable(now)
	over := s.activeRefusals(now) - maxRefusals
	switch {
	case over >= 0:
		t = earlier(t, now.Add(time.Duration((over+0.01)*float64(s.refusalPause()))))
	case s.isolated():
		for _, list := range [][]*entry{s.book.known, s.book.lost} {
			for _, e := range list {
				if at := e.isolatedRetryAt(); at.After(now) && usable(e) {
					t = earlier(t, at)
				}
			}
		}
	default:
		for _, e := range s.book.known {
			if e.retryAt.After(now) && usable(e) {
				t = earlier(t, e.retryAt)
			}
		}
	}
	if s.count(requested) == 0 && s.Degree() > 0 {
		t = earlier(t, s.nextWalks)
	}
	return t
}

// sendWalks looks for nodes with room beyond the known addresses.
func (s *State) sendWalks(now time.Time) {
	m := Walk{Origin: s.ownContact(), TTL: walkTTL, Urgent: s.vainRounds >= maxVainRounds}
	for range walksPerRound {
		if to := s.randomNeighbor(); to != nil {
			s.send(to.Contact, m)
		}
	}
	s.nextWalks = now.Add(s.spread(min(time.Second<<min(s.vainRounds, 3), 8*time.Second)))
	s.vainRounds++
}

// randomNeighbor returns a random linked node other than those named, or nil.
func (s *State) randomNeighbor(not ...peer.ID) *link {
	return s.pickNeighbor(func(l *link) bool { return !slices.Contains(not, l.ID) })
}

// allowWalk bounds the walks one neighbour may have us pass on.
func (l *link) allowWalk(now time.Time, cost float64) bool {
	l.passed = max(0, l.passed-now.Sub(l.passedAt).Seconds()*walkRate)
	l.passedAt = now
	if l.passed+cost > walkBurst {
		return false
	}
	l.passed += cost
	return true
}

// handleWalk takes a walk one hop on, or ends it by asking its origin back. A node that
// has enough takes every second one, as in the original.
func (s *State) handleWalk(now time.Time, from *link, m Walk) {
	origin := m.Origin
	if origin.ID == s.cfg.Self || origin.ID == "" {
		return
	}
	s.book.learn(origin)
	next := s.randomNeighbor(from.ID, origin.ID)
	last := m.TTL <= 0 || next == nil
	e := s.book.findKnown(origin.ID) // a lost one has to be heard of first
	free := e != nil && s.usable(now)(e) && s.count(requested) < maxDials
	switch {
	case free && s.hasRoom(0) && (last || s.occupied() < s.cfg.Min || s.cfg.Rand.IntN(2) == 0):
		s.requestLink(now, origin, false).wanted = true
	case free && last && m.Urgent && s.hasRoom(maxOverflow):
		s.requestLink(now, origin, false).overflow = true
	case !last:
		m.TTL--
		s.send(next.Contact, m)
	}
}

// shedLinks brings the number of links back to max after lone nodes were taken
// in; see the package doc.
func (s *State) shedLinks(now time.Time) {
	if s.cfg.Max < 0 || s.Degree() <= s.cfg.Max {
		s.overSince, s.nextHandover, s.handoverAsked = time.Time{}, time.Time{}, nil
		return
	}
	if s.overSince.IsZero() {
		// Give the others a moment to hear of it, and not all at the same time.
		s.overSince, s.nextHandover = now, now.Add(s.jitter(handoverDelay))
	}
	if now.Before(s.nextHandover) {
		return
	}
	late := now.Sub(s.overSince)
	if late >= 4*handoverPatience {
		// Nobody follows, nobody can be spared.
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.leaveLink(now, s.highestDegree(), ReasonFull)
		return
	}
	least := s.cfg.Max
	if late >= handoverPatience {
		least = s.cfg.Min // nobody has followed a handover
	}
	if to := s.pickNeighbor(func(l *link) bool { return l.degree > least }); to != nil {
		s.nextHandover = now.Add(s.jitter(handoverDelay))
		s.send(to.Contact, Handover{})
		return
	}
	s.nextHandover = now.Add(s.jitter(handoverInterval))
	for range s.Degree() - s.cfg.Max {
		roomy, to := s.pickHandover()
		if to == nil {
			s.handoverAsked = nil
			return
		}
		s.handoverAsked = append(s.handoverAsked, to.ID)
		s.send(to.Contact, Handover{To: roomy.Contact})
	}
}

// announceDegree lets the neighbours know soon, since they judge by it whom they
// can spare.
func (s *State) announceDegree(now time.Time) {
	soon := now.Add(s.jitter(degreeDelay))
	for _, l := range s.links {
		if l.phase == linked && l.nextKeepalive.After(soon) {
			l.nextKeepalive = soon
		}
	}
}

// pickHandover returns two neighbours to be linked to each other: to shall ask
// roomy, which has the most room, the newest of those, and then leave us. Of two
// that are known to be reachable one is asked; who has many links and was not
// asked yet goes first.
func (s *State) pickHandover() (roomy, to *link) {
	for _, l := range s.links {
		switch {
		case l.phase != linked:
		case roomy == nil, l.dialed && !roomy.dialed,
			l.dialed == roomy.dialed && (l.degree < roomy.degree || l.degree == roomy.degree && !l.since.Before(roomy.since)):
			roomy = l
		}
	}
	for _, l := range s.links {
		if l.phase != linked || l == roomy || slices.Contains(s.handoverAsked, l.ID) {
			continue
		}
		if to == nil || l.degree > to.degree {
			to = l
		}
	}
	return roomy, to
}

// highestDegree returns the neighbour with the most links.
func (s *State) highestDegree() (best *link) {
	for _, l := range s.links {
		if l.phase == linked && (best == nil || l.degree > best.degree) {
			best = l
		}
	}
	return best
}

// handleHandover handles a handover: link to that node, then leave from; or leave it
// at once, if this node can spare the link. The one that has too many asks to be
// left, since only the other knows how many others are leaving it at this moment.
func (s *State) handleHandover(now time.Time, from *link, to Contact) {
	if to.ID == "" {
		if s.Degree() > s.cfg.Min && s.occupied() > s.cfg.Min {
			s.leaveLink(now, from, ReasonFull)
		}
		return
	}
	if to.ID == s.cfg.Self || to.ID == from.ID {
		return
	}
	s.book.learn(to)
	switch l := s.link(to.ID); {
	case l != nil && l.phase == linked:
		// Linked already: the path from-to-us stands, if we can spare the link.
		if s.Degree() > s.cfg.Min {
			s.leaveLink(now, from, ReasonMoved)
		}
	case l != nil:
		l.replaces, l.overflow = from.ID, true
	case s.hasRoom(maxOverflow):
		if e := s.book.findKnown(to.ID); e != nil && s.usable(now)(e) {
			l := s.requestLink(now, to, false)
			l.replaces, l.overflow = from.ID, true
		}
	}
}
