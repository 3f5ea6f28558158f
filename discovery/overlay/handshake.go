package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file is the life of one link: asked for, agreed, standing, ended.

// received handles a message of a peer.
func (s *State) received(now time.Time, from Contact, m Message) {
	if from.ID == s.cfg.Self {
		return
	}
	l := s.link(from.ID)
	if l != nil {
		l.heard = now
		if len(from.Addrs) > 0 {
			l.Addrs = from.Addrs
		}
	}
	switch m := m.(type) {
	case Request:
		from.Record = m.Record
		s.judge(now, from, l, m)
	case Accept:
		s.contacts(m.Contacts)
		if l == nil || l.phase != asking {
			if l == nil {
				s.send(from, Leave{Reason: ReasonTimeout})
			}
			return
		}
		l.Record, l.session, l.degree = m.Record, m.Session, m.Degree
		l.rtt = now.Sub(l.since)
		enough := s.used() > s.cfg.Min && !l.keep && len(l.tokens) == 0
		if !l.beyond && (enough || !s.room(0)) || !s.room(over) {
			s.forget(l)
			s.book.add(l.Contact)
			s.send(l.Contact, Leave{Reason: ReasonEnough})
			return
		}
		s.agree(now, l)
	case Reject:
		s.contacts(m.Contacts)
		if l != nil && l.phase == asking {
			s.refused(now, l, m.Reason, m.Network)
		}
	case Ready:
		if l == nil || l.phase == asking {
			s.send(from, Leave{Reason: ReasonUnknown})
			return
		}
		l.degree = m.Degree
		if l.ready == nil {
			l.ready = &m
			s.complete(now, l)
		}
	case Keepalive:
		switch {
		case l == nil:
			s.send(from, Leave{Reason: ReasonUnknown})
		case l.phase == up:
			l.degree, l.stamp, l.stampAt = m.Degree, m.Stamp, now
			if rtt := now.Sub(s.epoch) - m.Echo - m.Hold; m.Echo > 0 && rtt > 0 {
				l.rtt = rtt
			}
		}
	case Leave:
		s.contacts(m.Contacts)
		if l != nil {
			s.left(now, l, m.Reason)
		}
	case Walk:
		if l != nil && l.phase == up && l.allowWalk(now) {
			s.walk(now, l, m)
		}
	case Handover:
		if l != nil && l.phase == up {
			s.takeOver(now, l, m.To)
		}
	}
}

// judge answers the wish of a peer to be linked.
func (s *State) judge(now time.Time, from Contact, l *link, m Request) {
	if m.Network != s.cfg.Network {
		s.send(from, Reject{Reason: ReasonNetwork, Network: s.cfg.Network})
		return
	}
	if l != nil && l.phase != asking {
		if l.session == m.Session && l.phase == accepted {
			s.send(from, s.accept(from.ID)) // our first answer was lost, or requests crossed
			return
		}
		// It does not know our link any more: what we have is half of one.
		s.end(now, l, ReasonRestarted)
		l = nil
	}
	lone := m.Degree == 0 || m.Urgent
	switch k := s.book.get(from.ID); {
	case l != nil && s.room(over): // requests crossed: both want it
	case k != nil && now.Sub(k.apartAt) < apart && !lone && !m.Manual && s.used() > 0:
		s.send(from, Reject{Reason: ReasonRecent, Contacts: s.some(redirects, from.ID)})
		return
	case s.room(0):
	case lone && s.room(over):
	default:
		s.send(from, Reject{Reason: ReasonFull, Contacts: s.some(redirects, from.ID)})
		return
	}
	if l == nil {
		l = &link{Contact: from}
		s.links = append(s.links, l)
	} else {
		l.Record, l.Addrs = from.Record, from.Addrs
	}
	l.session, l.degree = m.Session, m.Degree
	s.agree(now, l)
	s.send(from, s.accept(from.ID))
}

func (s *State) accept(to peer.ID) Accept {
	return Accept{Session: s.cfg.Session, Record: s.record, Degree: s.count(up), Contacts: s.some(redirects, to)}
}

// agree moves a link on to where both let each other onto the topic.
func (s *State) agree(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.probeAt = now.Add(probeInterval)
	s.book.add(l.Contact).fails = 0
	s.emit(Pending{Peer: l.ID})
}

func (s *State) onTopic(now time.Time, id peer.ID, present bool) {
	l := s.link(id)
	if l == nil || l.phase == asking || l.onTopic == present {
		return
	}
	l.onTopic = present
	switch {
	case !present && l.phase == up:
		l.deafSince = now
	case present:
		l.deafSince = time.Time{}
		if !l.readySent {
			l.readySent = true
			s.send(l.Contact, Ready{Degree: s.count(up)})
		}
		s.complete(now, l)
	}
}

// complete makes the link stand once both sides said that they are ready.
func (s *State) complete(now time.Time, l *link) {
	if l.phase != accepted || !l.readySent || l.ready == nil || !l.onTopic {
		return
	}
	l.phase, l.since, l.heard = up, now, now
	// The first keepalive follows soon, as it measures the round trip; the others
	// are spread over the interval.
	l.keepAt = now.Add(s.jitter(keepaliveInterval / 4))
	s.walkVain = 0
	s.seedTry, s.seedsAt = 0, time.Time{}
	s.emit(Linked{Peer: l.ID, Greeting: l.ready.Greeting})
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID})
	}
	l.tokens = nil
	s.degreeChanged(now)
	if old := s.link(l.instead); old != nil && old.phase == up {
		s.leave(now, old, ReasonMoved)
	}
	l.instead = ""
}

// forget takes the link out of the list.
func (s *State) forget(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// end drops a link because of a fault: it may be set up again at once.
func (s *State) end(now time.Time, l *link, why Reason) {
	s.forget(l)
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why})
	}
	if l.phase == asking {
		return
	}
	k := s.book.add(l.Contact)
	if k.retryAt.Before(now) {
		k.retryAt = now.Add(s.jitter(firstRetry))
	}
	s.emit(Unlinked{Peer: l.ID, Reason: why, Was: l.phase == up})
	for _, x := range slices.Clone(s.links) {
		if x.instead == l.ID { // what x was to take the place of is gone already
			x.instead, x.beyond = "", false
			if x.phase == accepted && !s.room(1) {
				s.leave(now, x, ReasonEnough)
			}
		}
	}
	if l.phase == up {
		s.degreeChanged(now)
		if s.Degree() == 0 {
			s.alone(now)
		}
	}
}

// leave ends a link on purpose and tells the peer.
func (s *State) leave(now time.Time, l *link, why Reason) {
	m := Leave{Reason: why}
	if why == ReasonMoved || why == ReasonFull {
		m.Contacts = s.some(redirects, l.ID)
	}
	s.send(l.Contact, m)
	if l.phase == up && !why.fault() {
		s.book.add(l.Contact).apartAt = now
	}
	s.end(now, l, why)
}

// left handles the peer's wish to end the link.
func (s *State) left(now time.Time, l *link, why Reason) {
	if l.phase == asking {
		s.refused(now, l, why, "")
		return
	}
	k := s.book.add(l.Contact)
	switch {
	case why == ReasonClosed:
		k.retryAt = now.Add(lastRetry / 4) // it may be restarted
	case l.phase == up && !why.fault():
		k.apartAt = now
	}
	s.end(now, l, why)
}

// fault tells whether a link that ended so may be set up again at once.
func (r Reason) fault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed
}

// refused ends a request of ours that was answered with no.
func (s *State) refused(now time.Time, l *link, why Reason, network string) {
	s.forget(l)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID)
	} else if k := s.book.get(l.ID); k != nil {
		pause := 4 * firstRetry
		if why == ReasonRecent {
			pause = apart / 3
		}
		k.retryAt = now.Add(s.jitter(pause))
	}
	s.emit(Refused{Peer: l.ID, Reason: why, Network: network})
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
}

func (s *State) unreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	s.book.failed(id, now)
	switch {
	case l == nil:
	case l.phase == asking:
		s.forget(l)
		if why == ReasonProtocol {
			s.book.remove(id)
		}
		s.emit(Refused{Peer: id, Reason: why})
		for _, token := range l.tokens {
			s.emit(Added{Token: token, Peer: id, Reason: why})
		}
	default:
		s.end(now, l, why)
	}
}
