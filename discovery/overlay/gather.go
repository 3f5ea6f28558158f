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
				s.book.failed(l.ID, now)
				s.leave(now, l, ReasonTimeout)
			} else if !l.onTopic && !now.Before(l.probeAt) {
				l.probeAt = now.Add(probeInterval)
				s.emit(Probe{Peer: l.ID})
			}
		case up:
			switch {
			case now.Sub(l.heard) >= silence:
				s.book.failed(l.ID, now)
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
}

// alone starts the way back: everything known and all seeds may be tried now.
func (s *State) alone(now time.Time) {
	s.seedTry, s.seedsAt = 0, now
}

// usable tells which known addresses may be asked: not linked, and not parted
// from a moment ago, unless there is nobody else.
func (s *State) usable(now time.Time) func(*known) bool {
	lone := s.used() == 0
	return func(k *known) bool {
		return s.link(k.ID) == nil && (lone || now.Sub(k.apartAt) >= apart)
	}
}

// lonely tells whether the node has no link and could have one. Without a minimum
// it asks nobody but its seeds, which were named to be asked.
func (s *State) lonely() bool { return s.cfg.Max != 0 && s.Degree() == 0 }

// gather looks for links while there are fewer than min.
func (s *State) gather(now time.Time) {
	if s.lonely() {
		if s.seedsAt.IsZero() && s.used() == 0 {
			s.alone(now)
		}
		if !s.seedsAt.IsZero() && !now.Before(s.seedsAt) {
			next := s.vary(seedBackoff[min(s.seedTry, len(seedBackoff)-1)])
			s.seedTry++
			s.seedsAt = now.Add(next)
			s.emit(AskSeeds{Next: next})
			for _, k := range s.book.entries {
				k.retryAt = now
			}
		}
	}
	missing := s.cfg.Min - s.used()
	if missing <= 0 || !s.room(0) {
		return
	}
	candidates := s.book.due(now, s.cfg.Rand, s.usable(now))
	want := missing + 1 - s.count(asking)
	for _, k := range candidates[:max(0, min(want, len(candidates)))] {
		s.ask(now, k.Contact, false)
	}
	if s.count(asking) == 0 && s.Degree() > 0 && !now.Before(s.walkAt) {
		s.sendWalks(now)
	}
}

// sendWalks looks for nodes with room beyond the known addresses.
func (s *State) sendWalks(now time.Time) {
	m := Walk{Origin: Contact{ID: s.cfg.Self, Record: s.record}, TTL: walkTTL, Urgent: s.walkVain >= vainRounds}
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
	var list []*link
	for _, l := range s.links {
		if l.phase == up && !slices.Contains(not, l.ID) {
			list = append(list, l)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[s.cfg.Rand.IntN(len(list))]
}

// allowWalk bounds the walks one neighbour may send through us.
func (l *link) allowWalk(now time.Time) bool {
	l.walkTimes = slices.DeleteFunc(l.walkTimes, func(t time.Time) bool { return now.Sub(t) >= time.Second })
	if len(l.walkTimes) >= walksPerSecond {
		return false
	}
	l.walkTimes = append(l.walkTimes, now)
	return true
}

// walk takes a walk one hop on, or ends it by asking its origin back. A node that
// has enough takes every second one, as in the original.
func (s *State) walk(now time.Time, from *link, m Walk) {
	origin := m.Origin
	if origin.ID == s.cfg.Self || origin.ID == "" {
		return
	}
	s.book.add(origin)
	next := s.neighbour(from.ID, origin.ID)
	last := m.TTL <= 0 || next == nil
	free := s.link(origin.ID) == nil && s.usable(now)(s.book.get(origin.ID))
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
	if best := s.richest(); best.degree > s.cfg.Max || now.Sub(s.overAt) >= handoverLimit {
		// Both have more than they want, so neither misses the link.
		s.handAt = now.Add(s.jitter(handoverPause))
		s.leave(now, best, ReasonFull)
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

// handoverPair returns the neighbour that has the most room, the newest of
// those, and another with many links that has not been asked yet.
func (s *State) handoverPair() (roomy, to *link) {
	for _, l := range s.links {
		if l.phase == up && (roomy == nil || l.degree < roomy.degree || l.degree == roomy.degree && !l.since.Before(roomy.since)) {
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

// takeOver handles a handover: link to that node, then leave from.
func (s *State) takeOver(now time.Time, from *link, to Contact) {
	if to.ID == s.cfg.Self || to.ID == "" || to.ID == from.ID {
		return
	}
	switch l := s.link(to.ID); {
	case l != nil && l.phase == up:
		// Linked already: the path from-to-us stands, if we can spare the link.
		if s.Degree() > s.cfg.Min {
			s.leave(now, from, ReasonMoved)
		}
	case l != nil:
		l.instead, l.beyond = from.ID, true
	case s.room(over) && s.usable(now)(s.book.add(to)):
		l := s.ask(now, to, false)
		l.instead, l.beyond = from.ID, true
	}
}
