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
	} else {
		from = s.known(from)
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
		if len(m.Record) > 0 {
			l.Record, l.Seq = m.Record, from.Seq
		}
		l.session, l.degree = m.Session, m.Degree
		l.rtt, l.exchanged = now.Sub(l.since), m.Exchange
		if l.swap && s.link(l.leaving.ID) == nil {
			l.swap, l.beyond = false, false // who was to be left has gone by itself
		}
		enough := s.used() > s.cfg.Min && !l.keep && len(l.tokens) == 0
		if !l.beyond && (enough || !s.room(0)) || !s.room(over) {
			s.forget(l)
			s.added(l, ReasonFull, "") // with tokens it is for want of room
			s.book.heard(l.Contact, now)
			s.send(l.Contact, Leave{Reason: ReasonEnough})
			return
		}
		s.agree(now, l)
	case Reject:
		s.contacts(m.Contacts)
		if l != nil && l.phase == asking {
			s.refused(now, l, m.Reason, m.Network)
			if m.Reason == ReasonFull && !l.urgent && !l.manual {
				s.met(now, l.Contact, m.Tag)
			}
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
			if m.Reason == ReasonSwapped {
				s.swapped(now, m.Contacts)
			}
		}
	case Walk:
		if l != nil && l.phase == up && l.allow(now, 1) {
			s.walk(now, l, m)
		}
	case Handover:
		if l != nil && l.phase == up {
			s.takeOver(now, l, m.To)
		}
	case Shuffle:
		s.shuffled(now, from, l, m)
	case ShuffleReply:
		s.shuffleReplied(now, from, l, m)
	case Beacon:
		if l != nil && l.phase == up {
			s.hearBeacon(now, l, m.Owner)
		}
	case Lookup:
		s.lookedUp(now, l, m)
	case Found:
		s.found(now, l, m)
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
			s.send(from, s.accept(l)) // our first answer was lost, or requests crossed
			return
		}
		// It does not know our link any more: what we have is half of one.
		s.end(now, l, ReasonRestarted)
		l = nil
	}
	lone := m.Degree == 0 || m.Urgent || s.foreign(m.Tag) && !m.Manual
	exchange := false
	switch {
	case s.apart(now, from.ID) && m.Degree > 0 && !m.Manual && s.used() > 0:
		s.reject(from, ReasonRecent)
		return
	case s.room(0):
	case lone && s.room(over):
	case s.exchangeable(now, from, m.Leaving):
		exchange = true
	default:
		s.reject(from, ReasonFull)
		return
	}
	if l == nil {
		l = &link{Contact: from}
		s.links = append(s.links, l)
	} else {
		l.Record, l.Seq, l.Addrs = from.Record, from.Seq, from.Addrs
	}
	l.session, l.degree, l.manual = m.Session, m.Degree, l.manual || m.Manual
	if exchange {
		l.swap, l.leaving, l.beyond = true, m.Leaving, true
	}
	s.agree(now, l)
	s.send(from, s.accept(l))
}

func (s *State) accept(l *link) Accept {
	return Accept{
		Session: s.cfg.Session, Record: s.record, Degree: s.count(up), Exchange: l.leaving.ID != "", Contacts: s.some(redirects, l.ID),
	}
}

// reject refuses a link. The asker is worth knowing all the same: it is the one that
// the next asker is best sent to.
func (s *State) reject(to Contact, why Reason) {
	s.book.heard(to, s.now)
	s.send(to, Reject{Reason: why, Tag: s.told(), Contacts: s.some(redirects, to.ID)})
}

// known completes c, of whom only the ID may be known, with what the book has.
func (s *State) known(c Contact) Contact {
	if e := s.book.get(c.ID); e != nil && len(c.Record) == 0 {
		c.Record, c.Seq = e.Record, e.Seq
		if len(c.Addrs) == 0 {
			c.Addrs = e.Addrs
		}
	}
	return c
}

// agree moves a link on to where both let each other onto the topic.
func (s *State) agree(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.probeAt = now.Add(probeInterval)
	s.book.heard(l.Contact, now)
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
	if l.swap && !s.exchange(now, l) {
		s.leave(now, l, ReasonEnough)
		return
	}
	l.phase, l.since, l.heard = up, now, now
	// The first keepalive follows soon, as it measures the round trip; the others
	// are spread over the interval.
	l.keepAt = now.Add(s.jitter(keepaliveInterval / 4))
	s.walkVain, s.refusals, s.refusedInRow = 0, 0, 0
	s.book.linked(l.Contact, now)
	s.emit(Linked{Peer: l.ID, Addrs: l.Addrs, Greeting: l.ready.Greeting})
	s.added(l, ReasonNone, "")
	s.degreeChanged(now)
	s.tellBeacon(now, l)
	if old := s.link(l.instead); old != nil && old.phase == up {
		s.leave(now, old, ReasonMoved)
	}
	l.instead = ""
	if s.swapping.next.IsZero() {
		s.mingle(now)
	}
}

// forget takes the link out of the list.
func (s *State) forget(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// end drops a link because of a fault: it may be set up again at once.
func (s *State) end(now time.Time, l *link, why Reason) {
	s.forget(l)
	s.added(l, why, "")
	if l.phase == asking {
		return
	}
	if why.fault() && why != ReasonRestarted && why != ReasonDeaf && why != ReasonUnknown {
		s.book.failed(l.ID, now, s.vary)
	} else if e := s.book.get(l.ID); e != nil && e.retryAt.Before(now) {
		e.retryAt = now.Add(s.jitter(time.Second))
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
		s.seedUnlinked(now, l.ID, why)
		if s.Degree() == 0 {
			s.alone(now)
		}
	}
}

// leave ends a link on purpose and tells the peer.
func (s *State) leave(now time.Time, l *link, why Reason) {
	var contacts []Contact
	if why == ReasonMoved || why == ReasonFull {
		contacts = s.some(redirects, l.ID)
	}
	s.leaveTo(now, l, why, contacts)
}

// leaveTo ends a link on purpose and names others to the peer.
func (s *State) leaveTo(now time.Time, l *link, why Reason, contacts []Contact) {
	s.send(l.Contact, Leave{Reason: why, Contacts: contacts})
	if l.phase == up && !why.fault() {
		s.part(now, l.ID)
	}
	s.end(now, l, why)
}

// left handles the peer's wish to end the link.
func (s *State) left(now time.Time, l *link, why Reason) {
	if l.phase == asking {
		s.refused(now, l, why, "")
		return
	}
	switch {
	case why == ReasonClosed:
		// It may be restarted.
		s.end(now, l, why)
		s.book.failed(l.ID, now, s.vary)
		return
	case l.phase == up && !why.fault():
		s.part(now, l.ID)
	}
	s.end(now, l, why)
}

// part notes that the pair parted without a fault.
func (s *State) part(now time.Time, id peer.ID) {
	s.parted = slices.DeleteFunc(s.parted, func(p parting) bool { return p.id == id || now.Sub(p.at) >= apart })
	s.parted = append(s.parted, parting{id, now})
}

// apart tells whether the pair parted a moment ago.
func (s *State) apart(now time.Time, id peer.ID) bool {
	return slices.ContainsFunc(s.parted, func(p parting) bool { return p.id == id && now.Sub(p.at) < apart })
}

// fault tells whether a link that ended so may be set up again at once.
func (r Reason) fault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed &&
		r != ReasonSwapped
}

// refused ends a request of ours that was answered with no.
func (s *State) refused(now time.Time, l *link, why Reason, network string) {
	s.forget(l)
	s.seedRefused(l.ID, why)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID)
	} else {
		s.book.heard(l.Contact, now)
		if e := s.book.get(l.ID); e != nil {
			pause := refusedPause
			if why == ReasonRecent {
				pause = apart / 3
			}
			e.retryAt = now.Add(s.jitter(pause))
		}
		s.refusals = s.forgiven(now) + 1
		s.refusedAt = now
		s.refusedInRow++
	}
	s.emit(Refused{Peer: l.ID, Reason: why, Network: network})
	s.added(l, why, network)
}

// added answers the Adds that wait for the link.
func (s *State) added(l *link, why Reason, network string) {
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
	l.tokens = nil
}

// forgiven returns the refusals that still count.
func (s *State) forgiven(now time.Time) float64 {
	return max(0, s.refusals-now.Sub(s.refusedAt).Seconds()/s.refusalPause().Seconds())
}

func (s *State) refusalPause() time.Duration {
	if s.lonely() {
		return refusalPauseLone
	}
	return refusalPause
}

func (s *State) unreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	if checked := s.checkFailed(now, id); !checked && (l == nil || l.phase == asking) {
		s.book.failed(id, now, s.vary)
	}
	switch {
	case l == nil:
	case l.phase == asking:
		s.forget(l)
		s.seedRefused(id, why)
		if why == ReasonProtocol {
			s.book.remove(id)
		}
		s.emit(Refused{Peer: id, Reason: why})
		s.added(l, why, "")
	default:
		s.end(now, l, why)
	}
}
