package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file is the life of one link: asked for, agreed, standing, ended.

// handleMessage handles a message of a peer.
func (s *State) handleMessage(now time.Time, from Contact, m Message) {
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
		from = s.withKnownAddrs(from)
	}
	switch m := m.(type) {
	case Request:
		from.Record = m.Record
		s.handleRequest(now, from, l, m)
	case Accept:
		s.learnContacts(m.Contacts)
		if l == nil || l.phase != requested {
			if l == nil {
				s.send(from, Leave{Reason: ReasonTimeout})
			}
			return
		}
		if len(m.Record) > 0 {
			l.Record, l.Seq = m.Record, from.Seq
		}
		l.session, l.degree = m.Session, m.Degree
		l.rtt, l.leavingReplaced = now.Sub(l.since), m.Exchange
		if l.swap && s.link(l.leaving.ID) == nil {
			l.swap, l.overflow = false, false // who was to be left has gone by itself
		}
		enough := s.occupied() > s.cfg.Min && !l.wanted && len(l.tokens) == 0
		if !l.overflow && (enough || !s.hasRoom(0)) || !s.hasRoom(maxOverflow) {
			s.removeLink(l)
			s.answerAdds(l, ReasonFull, "") // with tokens it is for want of room
			s.book.markAlive(l.Contact, now)
			s.send(l.Contact, Leave{Reason: ReasonEnough})
			return
		}
		s.markAccepted(now, l)
	case Reject:
		s.learnContacts(m.Contacts)
		if l != nil && l.phase == requested {
			s.handleRefusal(now, l, m.Reason, m.Network)
			if m.Reason == ReasonFull && !l.urgent && !l.manual {
				s.joinOtherPart(now, l.Contact, m.Tag)
			}
		}
	case Ready:
		if l == nil || l.phase == requested {
			s.send(from, Leave{Reason: ReasonUnknown})
			return
		}
		l.degree = m.Degree
		if l.peerReady == nil {
			l.peerReady = &m
			s.completeHandshake(now, l)
		}
	case Keepalive:
		switch {
		case l == nil:
			s.send(from, Leave{Reason: ReasonUnknown})
		case l.phase == linked:
			l.degree, l.peerStamp, l.peerStampAt = m.Degree, m.Stamp, now
			if rtt := now.Sub(s.started) - m.Echo - m.Hold; m.Echo > 0 && rtt > 0 {
				l.rtt = rtt
			}
		}
	case Leave:
		s.learnContacts(m.Contacts)
		if l != nil {
			s.handleLeave(now, l, m.Reason)
			if m.Reason == ReasonSwapped {
				s.handleSwappedOut(now, m.Contacts)
			}
		}
	case Walk:
		if l != nil && l.phase == linked && l.allowWalk(now, 1) {
			s.handleWalk(now, l, m)
		}
	case Handover:
		if l != nil && l.phase == linked {
			s.handleHandover(now, l, m.To)
		}
	case Shuffle:
		s.handleShuffle(now, from, l, m)
	case ShuffleReply:
		s.handleShuffleReply(now, from, l, m)
	case Beacon:
		if l != nil && l.phase == linked {
			s.handleBeacon(now, l, m.Owner)
		}
	case Lookup:
		s.handleLookup(now, l, m)
	case Found:
		s.handleFound(now, l, m)
	}
}

// handleRequest answers the wish of a peer to be linked.
func (s *State) handleRequest(now time.Time, from Contact, l *link, m Request) {
	if m.Network != s.cfg.Network {
		s.send(from, Reject{Reason: ReasonNetwork, Network: s.cfg.Network})
		return
	}
	if l != nil && l.phase != requested {
		if l.session == m.Session && l.phase == accepted {
			s.send(from, s.acceptMessage(l)) // our first answer was lost, or requests crossed
			return
		}
		// It does not know our link any more: what we have is half of one.
		s.endLink(now, l, ReasonRestarted)
		l = nil
	}
	lone := m.Degree == 0 || m.Urgent || s.inOtherPart(m.Tag) && !m.Manual
	exchange := false
	switch {
	case s.coolingDown(now, from.ID) && m.Degree > 0 && !m.Manual && s.occupied() > 0:
		s.reject(from, ReasonCooldown)
		return
	case s.hasRoom(0):
	case lone && s.hasRoom(maxOverflow):
	case s.canExchange(now, from, m.Leaving):
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
		l.swap, l.leaving, l.overflow = true, m.Leaving, true
	}
	s.markAccepted(now, l)
	s.send(from, s.acceptMessage(l))
}

func (s *State) acceptMessage(l *link) Accept {
	return Accept{
		Session: s.cfg.Session, Record: s.record, Degree: s.count(linked), Exchange: l.leaving.ID != "", Contacts: s.sampleContacts(redirectSize, l.ID),
	}
}

// reject refuses a link. The asker is worth knowing all the same: it is the one that
// the next asker is best sent to.
func (s *State) reject(to Contact, why Reason) {
	s.book.markAlive(to, s.now)
	s.send(to, Reject{Reason: why, Tag: s.advertisedTag(), Contacts: s.sampleContacts(redirectSize, to.ID)})
}

// withKnownAddrs completes c, of whom only the ID may be known, with what the book has.
func (s *State) withKnownAddrs(c Contact) Contact {
	if e := s.book.find(c.ID); e != nil && len(c.Record) == 0 {
		c.Record, c.Seq = e.Record, e.Seq
		if len(c.Addrs) == 0 {
			c.Addrs = e.Addrs
		}
	}
	return c
}

// markAccepted moves a link on to where both let each other onto the topic.
func (s *State) markAccepted(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.nextProbe = now.Add(probeInterval)
	s.book.markAlive(l.Contact, now)
	s.emit(Pending{Peer: l.ID})
}

func (s *State) handleOnTopic(now time.Time, id peer.ID, present bool) {
	l := s.link(id)
	if l == nil || l.phase == requested || l.onTopic == present {
		return
	}
	l.onTopic = present
	switch {
	case !present && l.phase == linked:
		l.offTopicSince = now
	case present:
		l.offTopicSince = time.Time{}
		if !l.readySent {
			l.readySent = true
			s.send(l.Contact, Ready{Degree: s.count(linked)})
		}
		s.completeHandshake(now, l)
	}
}

// completeHandshake makes the link stand once both sides said that they are ready.
func (s *State) completeHandshake(now time.Time, l *link) {
	if l.phase != accepted || !l.readySent || l.peerReady == nil || !l.onTopic {
		return
	}
	if l.swap && !s.finishSwap(now, l) {
		s.leaveLink(now, l, ReasonEnough)
		return
	}
	l.phase, l.since, l.heard = linked, now, now
	// The first keepalive follows soon, as it measures the round trip; the others
	// are spread over the interval.
	l.nextKeepalive = now.Add(s.jitter(keepaliveInterval / 4))
	s.vainRounds, s.refusals, s.refusalsInRow = 0, 0, 0
	s.book.markNeighbor(l.Contact, now)
	s.emit(Linked{Peer: l.ID, Addrs: l.Addrs, Greeting: l.peerReady.Greeting})
	s.answerAdds(l, ReasonNone, "")
	s.announceDegree(now)
	s.sendBeacon(now, l)
	if old := s.link(l.replaces); old != nil && old.phase == linked {
		s.leaveLink(now, old, ReasonMoved)
	}
	l.replaces = ""
	if s.swaps.next.IsZero() {
		s.swapSoon(now)
	}
}

// removeLink takes the link out of the list.
func (s *State) removeLink(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// endLink drops a link because of a fault: it may be set up again at once.
func (s *State) endLink(now time.Time, l *link, why Reason) {
	s.removeLink(l)
	s.answerAdds(l, why, "")
	if l.phase == requested {
		return
	}
	if why.isFault() && why != ReasonRestarted && why != ReasonOffTopic && why != ReasonUnknown {
		s.book.markFailed(l.ID, now, s.spread)
	} else if e := s.book.find(l.ID); e != nil && e.retryAt.Before(now) {
		e.retryAt = now.Add(s.jitter(time.Second))
	}
	s.emit(Unlinked{Peer: l.ID, Reason: why, WasLinked: l.phase == linked})
	for _, x := range slices.Clone(s.links) {
		if x.replaces == l.ID { // what x was to take the place of is gone already
			x.replaces, x.overflow = "", false
			if x.phase == accepted && !s.hasRoom(1) {
				s.leaveLink(now, x, ReasonEnough)
			}
		}
	}
	if l.phase == linked {
		s.announceDegree(now)
		s.noteSeedUnlinked(now, l.ID, why)
		if s.Degree() == 0 {
			s.startRejoin(now)
		}
	}
}

// leaveLink ends a link on purpose and tells the peer.
func (s *State) leaveLink(now time.Time, l *link, why Reason) {
	var contacts []Contact
	if why == ReasonMoved || why == ReasonFull {
		contacts = s.sampleContacts(redirectSize, l.ID)
	}
	s.leaveLinkWith(now, l, why, contacts)
}

// leaveLinkWith ends a link on purpose and names others to the peer.
func (s *State) leaveLinkWith(now time.Time, l *link, why Reason, contacts []Contact) {
	s.send(l.Contact, Leave{Reason: why, Contacts: contacts})
	if l.phase == linked && !why.isFault() {
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// handleLeave handles the peer's wish to end the link.
func (s *State) handleLeave(now time.Time, l *link, why Reason) {
	if l.phase == requested {
		s.handleRefusal(now, l, why, "")
		return
	}
	switch {
	case why == ReasonClosed:
		// It may be restarted.
		s.endLink(now, l, why)
		s.book.markFailed(l.ID, now, s.spread)
		return
	case l.phase == linked && !why.isFault():
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// startCooldown notes that the pair parted without a fault.
func (s *State) startCooldown(now time.Time, id peer.ID) {
	s.partings = slices.DeleteFunc(s.partings, func(p parting) bool { return p.id == id || now.Sub(p.at) >= relinkCooldown })
	s.partings = append(s.partings, parting{id, now})
}

// coolingDown tells whether the pair parted a moment ago.
func (s *State) coolingDown(now time.Time, id peer.ID) bool {
	return slices.ContainsFunc(s.partings, func(p parting) bool { return p.id == id && now.Sub(p.at) < relinkCooldown })
}

// isFault tells whether a link that ended so may be set up again at once.
func (r Reason) isFault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed &&
		r != ReasonSwapped
}

// handleRefusal ends a request of ours that was answered with no.
func (s *State) handleRefusal(now time.Time, l *link, why Reason, network string) {
	s.removeLink(l)
	s.noteSeedRefused(l.ID, why)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID)
	} else {
		s.book.markAlive(l.Contact, now)
		if e := s.book.find(l.ID); e != nil {
			pause := fullPause
			if why == ReasonCooldown {
				pause = relinkCooldown / 3
			}
			e.retryAt = now.Add(s.jitter(pause))
		}
		s.refusals = s.activeRefusals(now) + 1
		s.lastRefusal = now
		s.refusalsInRow++
	}
	s.emit(Refused{Peer: l.ID, Reason: why, Network: network})
	s.answerAdds(l, why, network)
}

// answerAdds answers the Adds that wait for the link.
func (s *State) answerAdds(l *link, why Reason, network string) {
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
	l.tokens = nil
}

// activeRefusals returns the refusals that still count.
func (s *State) activeRefusals(now time.Time) float64 {
	return max(0, s.refusals-now.Sub(s.lastRefusal).Seconds()/s.refusalPause().Seconds())
}

func (s *State) refusalPause() time.Duration {
	if s.isolated() {
		return isolatedRefusalPause
	}
	return refusalPause
}

func (s *State) handleUnreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	if checked := s.failCheck(now, id); !checked && (l == nil || l.phase == requested) {
		s.book.markFailed(id, now, s.spread)
	}
	switch {
	case l == nil:
	case l.phase == requested:
		s.removeLink(l)
		s.noteSeedRefused(id, why)
		if why == ReasonProtocol {
			s.book.remove(id)
		}
		s.emit(Refused{Peer: id, Reason: why})
		s.answerAdds(l, why, "")
	default:
		s.endLink(now, l, why)
	}
}
