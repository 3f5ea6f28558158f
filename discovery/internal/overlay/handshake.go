package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file is the life of one link: requested, accepted, linked, ended.

// relinkCooldown is how long a pair whose link ended without a fault is not linked
// again, so that the peer list does not flap.
const relinkCooldown = 30 * time.Second

// handleMessage handles a message of a peer.
func (s *State) handleMessage(now time.Time, from Contact, m Message) {
	// Two machines with one identity can meet; a link to oneself is useless.
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
	isNeighbor := l != nil && l.phase == linked
	switch m := m.(type) {
	case Request:
		from.Record = m.Record
		s.handleRequest(now, from, l, m)
	case Accept:
		s.handleAccept(now, from, l, m)
	case Reject:
		s.handleReject(now, l, m)
	case Ready:
		s.handleReady(now, from, l, m)
	case Keepalive:
		s.handleKeepalive(now, from, l, m)
	case Leave:
		s.handleLeave(now, l, m)
	case Walk:
		if isNeighbor && l.allowWalk(now, walkCost) {
			s.handleWalk(now, l, m)
		}
	case Handover:
		if isNeighbor {
			s.handleHandover(now, l, m.To)
		}
	case Shuffle:
		s.handleShuffle(now, from, l, m)
	case ShuffleReply:
		s.handleShuffleReply(now, from, l, m)
	case Beacon:
		// A beacon counts only if it came over links, or parts could not be told apart.
		if isNeighbor {
			s.handleBeacon(now, l, m.Owner)
		}
	case Lookup:
		s.handleLookup(now, l, m)
	case Found:
		s.handleFound(now, l, m)
	}
}

// handleRequest answers a request for a link. l is the link to that peer, or nil.
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
		// A node does not ask a neighbor, so the peer has lost its half of the link.
		s.endLink(now, l, ReasonRestarted)
		l = nil
	}
	// These three would be cut off if this node refused: a node without links, one that
	// was refused for long, and one in another part of the network.
	needy := m.Degree == 0 || m.Urgent || s.inOtherPart(m.Tag) && !m.Manual
	exchange := false
	switch {
	case s.coolingDown(now, from.ID) && m.Degree > 0 && !m.Manual && s.occupied() > 0:
		// The pair parted a moment ago, and both have other links.
		s.reject(from, ReasonCooldown)
		return
	case s.hasRoom(0):
	case needy && s.hasRoom(maxOverflow):
	case s.canExchange(now, from, m.Leaving):
		exchange = true
	default:
		s.reject(from, ReasonFull)
		return
	}
	if l == nil {
		l = newLink(from)
		s.links = append(s.links, l)
	} else {
		// The requests crossed: one link serves both.
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
		Session: s.cfg.Session, Record: s.record, Degree: s.count(linked), Exchange: l.leaving.ID != "",
		Contacts: s.sampleContacts(redirectSize, l.ID),
	}
}

// reject refuses a link. The requester is remembered all the same: since it looks for
// links, it is a good contact for the next requester.
func (s *State) reject(to Contact, why Reason) {
	s.book.markAlive(to, s.now)
	s.send(to, Reject{Reason: why, Tag: s.advertisedTag(), Contacts: s.sampleContacts(redirectSize, to.ID)})
}

// withKnownAddrs returns c with the record and addresses that the book has, unless c
// has its own.
func (s *State) withKnownAddrs(c Contact) Contact {
	if e := s.book.find(c.ID); e != nil && len(c.Record) == 0 {
		c.Record, c.Seq = e.Record, e.Seq
		if len(c.Addrs) == 0 {
			c.Addrs = e.Addrs
		}
	}
	return c
}

// handleAccept goes on with a request that the peer accepted.
func (s *State) handleAccept(now time.Time, from Contact, l *link, m Accept) {
	s.learnContacts(m.Contacts)
	if l == nil || l.phase != requested {
		// The request timed out here. The peer must hear so, or it would keep half a link.
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
		// The neighbor to be left has gone by itself, so this is an ordinary link now.
		l.swap, l.overflow = false, false
	}
	// More nodes are asked than links are needed, so others may have been faster.
	enough := s.occupied() > s.cfg.Min && !l.wanted && len(l.tokens) == 0
	if !l.overflow && (enough || !s.hasRoom(0)) || !s.hasRoom(maxOverflow) {
		s.removeLink(l)
		s.answerAdds(l, ReasonFull, "") // a link that an Add waits for ends only for want of room
		s.book.markAlive(l.Contact, now)
		s.send(l.Contact, Leave{Reason: ReasonEnough})
		return
	}
	s.markAccepted(now, l)
}

// handleReject ends a request that the peer rejected.
func (s *State) handleReject(now time.Time, l *link, m Reject) {
	s.learnContacts(m.Contacts)
	if l == nil || l.phase != requested {
		return // the request has timed out already
	}
	s.handleRefusal(now, l, m.Reason, m.Network)
	// A full node in another part of the network would have accepted an urgent request.
	if m.Reason == ReasonFull && !l.urgent && !l.manual {
		s.joinOtherPart(now, l.Contact, m.Tag)
	}
}

// markAccepted moves l to the phase in which both let each other onto the topic.
func (s *State) markAccepted(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.nextProbe = now.Add(probeInterval)
	s.book.markAlive(l.Contact, now)
	s.emit(Pending{Peer: l.ID})
}

// handleOnTopic handles a peer that joined or left the topic.
func (s *State) handleOnTopic(now time.Time, id peer.ID, present bool) {
	l := s.link(id)
	if l == nil || l.phase == requested || l.onTopic == present {
		return
	}
	l.onTopic = present
	switch {
	case !present && l.phase == linked:
		// It may be back at once; checkLinkTimers ends the link if it is not.
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

func (s *State) handleReady(now time.Time, from Contact, l *link, m Ready) {
	if l == nil || l.phase == requested {
		s.send(from, Leave{Reason: ReasonUnknown})
		return
	}
	l.degree = m.Degree
	// A repeated Ready must not replace the greeting that was passed on.
	if l.peerReady == nil {
		l.peerReady = &m
		s.completeHandshake(now, l)
	}
}

// completeHandshake turns an accepted link into a link once both sides are ready.
func (s *State) completeHandshake(now time.Time, l *link) {
	if l.phase != accepted || !l.readySent || l.peerReady == nil || !l.onTopic {
		return
	}
	if l.swap && !s.finishSwap(now, l) {
		s.leaveLink(now, l, ReasonEnough)
		return
	}
	l.phase, l.since, l.heard = linked, now, now
	// The first keepalive follows soon, as it measures the round trip. The later ones
	// are spread over the interval.
	l.nextKeepalive = now.Add(s.jitter(keepaliveInterval / 4))
	s.vainRounds, s.refusals, s.refusalsInRow = 0, 0, 0
	s.book.markNeighbor(l.Contact, now)
	s.emit(Linked{Peer: l.ID, Addrs: l.Addrs, Greeting: l.peerReady.Greeting})
	s.answerAdds(l, ReasonNone, "")
	s.announceDegree(now)
	s.sendBeacon(now, l)
	// The link was asked for by a handover: it stands, so the old one may go.
	if old := s.link(l.replaces); old != nil && old.phase == linked {
		s.leaveLink(now, old, ReasonMoved)
	}
	l.replaces = ""
	// This is the first link of this node: its place in the network is a matter of
	// chance, and should be mixed soon.
	if s.swaps.next.IsZero() {
		s.swapSoon(now)
	}
}

func (s *State) handleKeepalive(now time.Time, from Contact, l *link, m Keepalive) {
	switch {
	case l == nil:
		// The peer believes in a link that does not exist here: end its half.
		s.send(from, Leave{Reason: ReasonUnknown})
	case l.phase == linked:
		l.degree, l.peerStamp, l.peerStampAt = m.Degree, m.Stamp, now
		// Echo is this node's own clock, so clocks of peers do not matter. An echo of an
		// earlier session could give a negative time.
		if rtt := now.Sub(s.started) - m.Echo - m.Hold; m.Echo > 0 && rtt > 0 {
			l.rtt = rtt
		}
	}
}

// handleLeave ends the link on the peer's wish.
func (s *State) handleLeave(now time.Time, l *link, m Leave) {
	s.learnContacts(m.Contacts)
	if l == nil {
		return
	}
	s.leftByPeer(now, l, m.Reason)
	if m.Reason == ReasonSwapped {
		s.handleSwappedOut(now, m.Contacts)
	}
}

func (s *State) leftByPeer(now time.Time, l *link, why Reason) {
	switch {
	case l.phase == requested:
		s.handleRefusal(now, l, why, "")
		return
	case why == ReasonClosed:
		// The node may be restarted, so its address is tried again, like a lost one.
		s.endLink(now, l, why)
		s.book.markFailed(l.ID, now, s.spread)
		return
	case l.phase == linked && !why.isFault():
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// leaveLink ends a link on purpose and tells the peer.
func (s *State) leaveLink(now time.Time, l *link, why Reason) {
	var contacts []Contact
	// These two leave the peer with one link less, so it needs others to ask.
	if why == ReasonMoved || why == ReasonFull {
		contacts = s.sampleContacts(redirectSize, l.ID)
	}
	s.leaveLinkWith(now, l, why, contacts)
}

// leaveLinkWith ends a link on purpose and names contacts to the peer.
func (s *State) leaveLinkWith(now time.Time, l *link, why Reason, contacts []Contact) {
	s.send(l.Contact, Leave{Reason: why, Contacts: contacts})
	if l.phase == linked && !why.isFault() {
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// removeLink takes the link out of the list.
func (s *State) removeLink(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// endLink drops a link and does what follows from its end. It does not start a
// cooldown: after a fault the link may be set up again at once.
func (s *State) endLink(now time.Time, l *link, why Reason) {
	s.removeLink(l)
	s.answerAdds(l, why, "")
	if l.phase == requested {
		return // the driver has heard nothing of it yet
	}
	// After the three named reasons the node is still there, and its address is good.
	if why.isFault() && why != ReasonRestarted && why != ReasonOffTopic && why != ReasonUnknown {
		s.book.markFailed(l.ID, now, s.spread)
	} else if e := s.book.find(l.ID); e != nil && e.retryAt.Before(now) {
		e.retryAt = now.Add(s.jitter(time.Second)) // both ends would ask each other at once
	}
	s.emit(Unlinked{Peer: l.ID, Reason: why, WasLinked: l.phase == linked})
	for _, x := range slices.Clone(s.links) {
		// x was to replace l, so it had a place beyond Max only for as long as l stood.
		if x.replaces == l.ID {
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

// startCooldown notes that the link to id ended without a fault.
func (s *State) startCooldown(now time.Time, id peer.ID) {
	s.partings = slices.DeleteFunc(s.partings, func(p endedLink) bool { return p.id == id || now.Sub(p.at) >= relinkCooldown })
	s.partings = append(s.partings, endedLink{id, now})
}

// coolingDown reports whether the link to id ended a moment ago without a fault.
func (s *State) coolingDown(now time.Time, id peer.ID) bool {
	return slices.ContainsFunc(s.partings, func(p endedLink) bool { return p.id == id && now.Sub(p.at) < relinkCooldown })
}

// isFault reports whether the link ended by a fault, so that it may be set up again at
// once. All other reasons are decisions of one of the two nodes.
func (r Reason) isFault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed &&
		r != ReasonSwapped
}

// handleRefusal ends a request of this node that the peer refused.
func (s *State) handleRefusal(now time.Time, l *link, why Reason, network string) {
	s.removeLink(l)
	s.noteSeedRefused(l.ID, why)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID) // no link to it will ever be possible
	} else {
		s.book.markAlive(l.Contact, now) // it has answered
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

// handleUnreachable handles a peer that could not be dialed or written to.
func (s *State) handleUnreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	// A failed check has marked the address already. An established link may still have
	// another connection, and marks it when it ends.
	if checked := s.failCheck(now, id); !checked && (l == nil || l.phase == requested) {
		s.book.markFailed(id, now, s.spread)
	}
	switch {
	case l == nil:
	case l.phase == requested:
		s.removeLink(l)
		s.noteSeedRefused(id, why)
		if why == ReasonProtocol {
			s.book.remove(id) // a libp2p node of another kind
		}
		s.emit(Refused{Peer: id, Reason: why})
		s.answerAdds(l, why, "")
	default:
		s.endLink(now, l, why)
	}
}

// handleAdd asks for a link that the user wants.
func (s *State) handleAdd(now time.Time, in Add) {
	answer := func(why Reason) { s.emit(Added{Token: in.Token, Peer: in.Contact.ID, Reason: why}) }
	if in.Contact.ID == s.cfg.Self {
		answer(ReasonSelf)
		return
	}
	l := s.link(in.Contact.ID)
	switch {
	case l != nil && l.phase == linked:
		answer(ReasonNone)
	case l != nil:
		l.tokens = append(l.tokens, in.Token) // the handshake that is under way answers
	case !s.hasRoom(0):
		answer(ReasonFull)
	default:
		s.book.learn(in.Contact)
		l = s.sendRequest(now, in.Contact, Request{Manual: true})
		l.manual = true
		l.tokens = append(l.tokens, in.Token)
	}
}

// answerAdds answers the Adds that wait for the link.
func (s *State) answerAdds(l *link, why Reason, network string) {
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
	l.tokens = nil
}

// A requestUrgency is whether the peer should accept a request even if it is full.
type requestUrgency bool

const (
	ordinary requestUrgency = false
	urgent   requestUrgency = true
)

// requestLink sends a request for a link.
func (s *State) requestLink(now time.Time, to Contact, u requestUrgency) *link {
	return s.sendRequest(now, to, Request{Urgent: bool(u)})
}

// sendRequest sends m after it has filled in the fields that all requests share.
func (s *State) sendRequest(now time.Time, to Contact, m Request) *link {
	if e := s.book.find(to.ID); e != nil {
		e.lastTry = now
	}
	l := newLink(to)
	l.since, l.dialed, l.urgent = now, true, m.Urgent
	s.links = append(s.links, l)
	m.Session, m.Network, m.Record, m.Degree, m.Tag = s.cfg.Session, s.cfg.Network, s.record, s.occupied(), s.advertisedTag()
	s.send(to, m)
	return l
}
