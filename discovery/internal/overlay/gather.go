package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// timers applies what is due at now on the links.
func (s *State) timers(now time.Time) {
	for _, l := range slices.Clone(s.links) {
		switch l.phase {
		case asking:
			if now.Sub(l.since) >= askTimeout {
				s.unreachable(now, l.ID, ReasonTimeout)
			}
		case accepted:
			if now.Sub(l.since) >= acceptTimeout {
				s.leave(now, l, ReasonTimeout)
			} else if !l.onTopic && !now.Before(l.probeAt) {
				l.probeAt = now.Add(probeInterval)
				s.emit(Probe{Peer: l.ID})
			}
		case up:
			switch {
			case now.Sub(l.heard) >= silence:
				s.leave(now, l, ReasonSilent)
			case !l.deafSince.IsZero() && now.Sub(l.deafSince) >= deafTimeout:
				s.leave(now, l, ReasonDeaf)
			case !now.Before(l.keepAt):
				l.keepAt = now.Add(keepaliveInterval)
				m := Keepalive{Degree: s.count(up), Stamp: now.Sub(s.epoch)}
				if l.stamp > 0 {
					m.Echo, m.Hold = l.stamp, now.Sub(l.stampAt)
				}
				s.send(l.Contact, m)
			}
		}
	}
}

// awake is called when our own timer was so late that we must have been away:
// the others get time to be heard before we judge them.
func (s *State) awake(now time.Time) {
	for _, l := range s.links {
		if limit := now.Add(grace - silence); l.heard.Before(limit) {
			l.heard = limit
		}
		l.keepAt = now
		if l.phase != up {
			l.since = now
		}
		if !l.deafSince.IsZero() {
			l.deafSince = now
		}
	}
	if !s.seedsAt.IsZero() {
		s.alone(now)
	}
	for i := range s.shuffling.checks {
		s.shuffling.checks[i].at = now
	}
	for _, list := range [][]*entry{s.book.known, s.book.lost} {
		for _, e := range list {
			e.retryAt = now
		}
	}
	for _, x := range s.seeds {
		x.try, x.next = 0, now
	}
	if limit := now.Add(beaconInterval + grace - beaconLife); s.beacon.heard.Before(limit) {
		s.beacon.heard = limit
	}
}

// usable tells which addresses may be asked: not linked, and not parted from a
// moment ago, unless there is nobody else.
func (s *State) usable(now time.Time) func(*entry) bool {
	lone := s.used() == 0
	return func(e *entry) bool { return s.unlinked(e) && (lone || !s.apart(now, e.ID)) }
}

// lonely tells whether the node has no link and could have one. Without a minimum
// it asks nobody but its seeds, which were named to be asked.
func (s *State) lonely() bool { return s.cfg.Max != 0 && s.healthy() == 0 }

// gather looks for links while there are fewer than min.
func (s *State) gather(now time.Time) {
	missing := s.cfg.Min - s.used()
	if missing <= 0 || !s.room(0) {
		return
	}
	candidates, want := s.candidates(now, missing)
	for _, e := range candidates[:max(0, min(want, len(candidates)))] {
		l := s.request(now, e.Contact, Request{Urgent: s.needy()})
		l.keep = e.fails > 0 // it was lost: not to be let go again for having enough
	}
	if s.count(asking) == 0 && s.Degree() > 0 && !now.Before(s.walkAt) {
		s.sendWalks(now)
	}
}

// needy tells whether the node has looked for a second link in vain for so long that
// somebody has to make room: nobody should depend on one neighbour.
func (s *State) needy() bool {
	return s.used() < 2 && (s.walkVain >= vainRounds || s.refusedInRow >= vainRequests)
}

// candidates returns whom to ask, and how many of them now.
func (s *State) candidates(now time.Time, missing int) ([]*entry, int) {
	pending, fresh := s.asked(now)
	free := s.mostDials() - pending
	switch {
	case free <= 0, s.forgiven(now) >= maxRefusals:
		return nil, 0
	}
	want := min(missing+1-fresh, free)
	if s.lonely() {
		return s.book.dueLone(now, s.usable(now)), want
	}
	return s.book.due(now, s.usable(now)), want
}

// mostDials returns how many requests and checks may be under way.
func (s *State) mostDials() int {
	if s.lonely() && s.book.untried(s.unlinked) {
		return MaxDials
	}
	return maxDials
}

// asked returns how many requests and checks are under way, and how many of the
// requests so new that an answer is likely to come.
func (s *State) asked(now time.Time) (all, fresh int) {
	for _, l := range s.links {
		if l.phase == asking {
			all++
			if now.Sub(l.since) < hedge {
				fresh++
			}
		}
	}
	return all + len(s.shuffling.checks), fresh
}

// gatherDue returns when gather has something to do.
func (s *State) gatherDue(now time.Time) (t time.Time) {
	if s.used() >= s.cfg.Min || !s.room(0) {
		return t
	}
	all, _ := s.asked(now)
	if all >= s.mostDials() {
		return t
	}
	for _, l := range s.links {
		if l.phase == asking && now.Sub(l.since) < hedge {
			t = earlier(t, l.since.Add(hedge))
		}
	}
	usable := s.usable(now)
	over := s.forgiven(now) - maxRefusals
	switch {
	case over >= 0:
		t = earlier(t, now.Add(time.Duration((over+0.01)*float64(s.refusalPause()))))
	case s.lonely():
		for _, list := range [][]*entry{s.book.known, s.book.lost} {
			for _, e := range list {
				if at := e.lone(); at.After(now) && usable(e) {
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
	if s.count(asking) == 0 && s.Degree() > 0 {
		t = earlier(t, s.walkAt)
	}
	return t
}

// sendWalks looks for nodes with room beyond the known addresses.
func (s *State) sendWalks(now time.Time) {
	m := Walk{Origin: s.contact(), TTL: walkTTL, Urgent: s.walkVain >= vainRounds}
	for range walks {
		if to := s.neighbour(); to != nil {
			s.send(to.Contact, m)
		}
	}
	s.walkAt = now.Add(s.vary(min(time.Second<<min(s.walkVain, 3), 8*time.Second)))
	s.walkVain++
}

// neighbour returns a random linked node other than those named, or nil.
func (s *State) neighbour(not ...peer.ID) *link {
	return s.pick(func(l *link) bool { return !slices.Contains(not, l.ID) })
}

// allow bounds the walks one neighbour may have us pass on.
func (l *link) allow(now time.Time, cost float64) bool {
	l.passed = max(0, l.passed-now.Sub(l.passedAt).Seconds()*walkRate)
	l.passedAt = now
	if l.passed+cost > walkBurst {
		return false
	}
	l.passed += cost
	return true
}

// walk takes a walk one hop on, or ends it by asking its origin back. A node that
// has enough takes every second one, as in the original.
func (s *State) walk(now time.Time, from *link, m Walk) {
	origin := m.Origin
	if origin.ID == s.cfg.Self || origin.ID == "" {
		return
	}
	s.book.learn(origin)
	next := s.neighbour(from.ID, origin.ID)
	last := m.TTL <= 0 || next == nil
	e := s.book.knows(origin.ID) // a lost one has to be heard of first
	free := e != nil && s.usable(now)(e) && s.count(asking) < maxDials
	switch {
	case free && s.room(0) && (last || s.used() < s.cfg.Min || s.cfg.Rand.IntN(2) == 0):
		s.ask(now, origin, false).keep = true
	case free && last && m.Urgent && s.room(over):
		s.ask(now, origin, false).beyond = true
	case !last:
		m.TTL--
		s.send(next.Contact, m)
	}
}

// handover brings the number of links back to max after lone nodes were taken
// in; see the package doc.
func (s *State) handover(now time.Time) {
	if s.cfg.Max < 0 || s.Degree() <= s.cfg.Max {
		s.overAt, s.handAt, s.handed = time.Time{}, time.Time{}, nil
		return
	}
	if s.overAt.IsZero() {
		// Give the others a moment to hear of it, and not all at the same time.
		s.overAt, s.handAt = now, now.Add(s.jitter(handoverPause))
	}
	if now.Before(s.handAt) {
		return
	}
	late := now.Sub(s.overAt)
	if late >= 4*handoverLimit {
		// Nobody follows, nobody can be spared.
		s.handAt = now.Add(s.jitter(handoverPause))
		s.leave(now, s.richest(), ReasonFull)
		return
	}
	least := s.cfg.Max
	if late >= handoverLimit {
		least = s.cfg.Min // nobody has followed a handover
	}
	if to := s.pick(func(l *link) bool { return l.degree > least }); to != nil {
		s.handAt = now.Add(s.jitter(handoverPause))
		s.send(to.Contact, Handover{})
		return
	}
	s.handAt = now.Add(s.jitter(handoverEvery))
	for range s.Degree() - s.cfg.Max {
		roomy, to := s.handoverPair()
		if to == nil {
			s.handed = nil
			return
		}
		s.handed = append(s.handed, to.ID)
		s.send(to.Contact, Handover{To: roomy.Contact})
	}
}

// degreeChanged lets the neighbours know soon, since they judge by it whom they
// can spare.
func (s *State) degreeChanged(now time.Time) {
	soon := now.Add(s.jitter(degreePause))
	for _, l := range s.links {
		if l.phase == up && l.keepAt.After(soon) {
			l.keepAt = soon
		}
	}
}

// handoverPair returns two neighbours to be linked to each other: to shall ask
// roomy, which has the most room, the newest of those, and then leave us. Of two
// that are known to be reachable one is asked; who has many links and was not
// asked yet goes first.
func (s *State) handoverPair() (roomy, to *link) {
	for _, l := range s.links {
		switch {
		case l.phase != up:
		case roomy == nil, l.dialed && !roomy.dialed,
			l.dialed == roomy.dialed && (l.degree < roomy.degree || l.degree == roomy.degree && !l.since.Before(roomy.since)):
			roomy = l
		}
	}
	for _, l := range s.links {
		if l.phase != up || l == roomy || slices.Contains(s.handed, l.ID) {
			continue
		}
		if to == nil || l.degree > to.degree {
			to = l
		}
	}
	return roomy, to
}

// richest returns the neighbour with the most links.
func (s *State) richest() (best *link) {
	for _, l := range s.links {
		if l.phase == up && (best == nil || l.degree > best.degree) {
			best = l
		}
	}
	return best
}

// takeOver handles a handover: link to that node, then leave from; or leave it
// at once, if this node can spare the link. The one that has too many asks to be
// left, since only the other knows how many others are leaving it at this moment.
func (s *State) takeOver(now time.Time, from *link, to Contact) {
	if to.ID == "" {
		if s.Degree() > s.cfg.Min && s.used() > s.cfg.Min {
			s.leave(now, from, ReasonFull)
		}
		return
	}
	if to.ID == s.cfg.Self || to.ID == from.ID {
		return
	}
	s.book.learn(to)
	switch l := s.link(to.ID); {
	case l != nil && l.phase == up:
		// Linked already: the path from-to-us stands, if we can spare the link.
		if s.Degree() > s.cfg.Min {
			s.leave(now, from, ReasonMoved)
		}
	case l != nil:
		l.instead, l.beyond = from.ID, true
	case s.room(over):
		if e := s.book.knows(to.ID); e != nil && s.usable(now)(e) {
			l := s.ask(now, to, false)
			l.instead, l.beyond = from.ID, true
		}
	}
}
