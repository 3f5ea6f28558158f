package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file is the life of one link: requested, accepted, linked, ended.

// Two nodes whose link one of them ended by decision, and not because of a fault, are not
// linked again for relinkCooldown. So the peer list does not flap.
const relinkCooldown = 30 * time.Second

// handleMessage passes a message to the handler for its kind.
func (s *State) handleMessage(now time.Time, from Contact, m Message) {
	// The sender has the identity of this node, as when two machines share one key. A
	// node cannot link to itself.
	if from.ID == s.cfg.Self {
		return
	}
	l := s.link(from.ID)
	if l != nil {
		l.heard = now
		// Most messages carry no addresses; then the ones that are known stay.
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
		// Walks travel over links only, and no neighbor may flood the network with them.
		if isNeighbor && l.allowWalk(now, walkCost) {
			s.handleWalk(now, l, m)
		}
	case Handover:
		// Only a neighbor has a link that it could hand over.
		if isNeighbor {
			s.handleHandover(now, l, m.To)
		}
	case Shuffle:
		s.handleShuffle(now, from, l, m)
	case ShuffleReply:
		s.handleShuffleReply(now, from, l, m)
	case Beacon:
		// A beacon that traveled outside the links would reach other parts of a split
		// network, which then could not notice that they are apart.
		if isNeighbor {
			s.handleBeacon(now, l, m.Owner)
		}
	case Lookup:
		s.handleLookup(now, l, m)
	case Found:
		s.handleFound(now, l, m)
	}
}

// handleRequest answers a request for a link. l is the link to the requester, or nil if
// there is none.
func (s *State) handleRequest(now time.Time, from Contact, l *link, m Request) {
	if m.Network != s.cfg.Network {
		s.send(from, Reject{Reason: ReasonNetwork, Network: s.cfg.Network})
		return
	}
	if l != nil && l.phase != requested {
		if l.session == m.Session && l.phase == accepted {
			s.send(from, s.acceptMessage(l)) // the first Accept was lost, or two requests crossed
			return
		}
		// A node sends no Request to a neighbor, so the peer no longer knows of this link.
		s.endLink(now, l, ReasonRestarted)
		l = nil
	}
	// A full node also accepts three kinds of requesters that could be cut off otherwise:
	// a node without links, a node that many others refused, and a node in another part
	// of the network, with which this link would connect this part.
	needy := m.Degree == 0 || m.Urgent || s.inOtherPart(m.Tag) && !m.Manual
	exchange := false
	switch {
	case s.coolingDown(now, from.ID) && m.Degree > 0 && !m.Manual && s.occupied() > 0:
		// The two nodes ended a link a moment ago, and both have other links.
		s.reject(from, ReasonCooldown)
		return
	case s.hasRoom(0):
	case needy && s.hasRoom(maxOverflow):
	case s.canExchange(now, from, m.Leaving):
		// This node is full, but can give up a neighbor to the node that from leaves.
		exchange = true
	default:
		s.reject(from, ReasonFull)
		return
	}
	if l == nil { // this node has not asked the requester for a link itself
		l = newLink(from)
		s.links = append(s.links, l)
	} else {
		// Both nodes sent a Request to each other. The two requests become one link.
		l.Record, l.Seq, l.Addrs = from.Record, from.Seq, from.Addrs
	}
	l.session, l.degree, l.manual = m.Session, m.Degree, l.manual || m.Manual
	if exchange { // finishSwap will make room, so the link may exceed Max until then
		l.swap, l.leaving, l.overflow = true, m.Leaving, true
	}
	s.markAccepted(now, l)
	s.send(from, s.acceptMessage(l))
}

// acceptMessage returns the Accept for the peer of l.
func (s *State) acceptMessage(l *link) Accept {
	return Accept{
		Session: s.cfg.Session, Record: s.record, Degree: s.count(linked), Exchange: l.leaving.ID != "",
		Contacts: s.sampleContacts(redirectSize, l.ID),
	}
}

// reject refuses a request for a link. It stores the requester in the book all the same:
// a node that looks for links is a good contact to name to the next requester.
func (s *State) reject(to Contact, why Reason) {
	s.book.markAlive(to, s.now)
	s.send(to, Reject{Reason: why, Tag: s.advertisedTag(), Contacts: s.sampleContacts(redirectSize, to.ID)})
}

// withKnownAddrs returns c, with the record and the addresses in the book for its node if
// c has none.
func (s *State) withKnownAddrs(c Contact) Contact {
	if e := s.book.find(c.ID); e != nil && len(c.Record) == 0 {
		c.Record, c.Seq = e.Record, e.Seq
		if len(c.Addrs) == 0 {
			c.Addrs = e.Addrs
		}
	}
	return c
}

// handleAccept continues the handshake after the peer has accepted this node's request.
func (s *State) handleAccept(now time.Time, from Contact, l *link, m Accept) {
	s.learnContacts(m.Contacts)
	if l == nil || l.phase != requested {
		// If this node's request has timed out, it tells the peer, which otherwise would
		// wait for a link that this node has given up.
		if l == nil {
			s.send(from, Leave{Reason: ReasonTimeout})
		}
		return
	}
	if len(m.Record) > 0 { // the peer states its addresses; others may have sent older ones
		l.Record, l.Seq = m.Record, from.Seq
	}
	l.session, l.degree = m.Session, m.Degree
	l.rtt, l.leavingReplaced = now.Sub(l.since), m.Exchange
	if l.swap && s.link(l.leaving.ID) == nil {
		// The neighbor that this node wanted to leave is gone already. So this request is
		// no longer part of a swap, and the link needs a free place like any other.
		l.swap, l.overflow = false, false
	}
	// A node asks more nodes than it lacks links, so it may have found enough by now. A
	// link that is marked wanted, or that the user asked for, is made all the same.
	enough := s.occupied() > s.cfg.Min && !l.wanted && len(l.tokens) == 0
	if !l.overflow && (enough || !s.hasRoom(0)) || !s.hasRoom(maxOverflow) {
		s.removeLink(l)
		s.answerAdds(l, ReasonFull, "") // only a lack of room ends a link that an Add waits for
		s.book.markAlive(l.Contact, now)
		s.send(l.Contact, Leave{Reason: ReasonEnough})
		return
	}
	s.markAccepted(now, l)
}

// handleReject ends a request of this node that the peer has rejected.
func (s *State) handleReject(now time.Time, l *link, m Reject) {
	s.learnContacts(m.Contacts)
	if l == nil || l.phase != requested {
		return // the request has timed out already
	}
	s.handleRefusal(now, l, m.Reason, m.Network)
	// If the tag shows that the peer is in another part of the network, an urgent request
	// follows, which a full node accepts.
	if m.Reason == ReasonFull && !l.urgent && !l.manual {
		s.joinOtherPart(now, l.Contact, m.Tag)
	}
}

// markAccepted moves l to the phase in which both nodes let each other onto the pubsub
// topic and wait until they see each other there.
func (s *State) markAccepted(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.nextProbe = now.Add(probeInterval)
	s.book.markAlive(l.Contact, now)
	s.emit(Pending{Peer: l.ID})
}

// handleOnTopic handles the news that a peer has joined or left the pubsub topic.
func (s *State) handleOnTopic(now time.Time, id peer.ID, present bool) {
	l := s.link(id)
	if l == nil || l.phase == requested || l.onTopic == present {
		return // no link needs this news
	}
	l.onTopic = present
	switch {
	case !present && l.phase == linked:
		// The peer may be back soon; if it is not, checkLinkTimers ends the link.
		l.offTopicSince = now
	case present:
		l.offTopicSince = time.Time{}
		// Ready is sent once for each link, even if the peer leaves the topic and returns.
		if !l.readySent {
			l.readySent = true
			s.send(l.Contact, Ready{Degree: s.count(linked)})
		}
		s.completeHandshake(now, l)
	}
}

// handleReady notes that the peer sees this node on the topic.
func (s *State) handleReady(now time.Time, from Contact, l *link, m Ready) {
	// The peer believes that both nodes accepted a link, but this node knows of none.
	if l == nil || l.phase == requested {
		s.send(from, Leave{Reason: ReasonUnknown})
		return
	}
	l.degree = m.Degree
	// The greeting in the first Ready may have been passed on already, so a second Ready
	// must not replace it.
	if l.peerReady == nil {
		l.peerReady = &m
		s.completeHandshake(now, l)
	}
}

// completeHandshake makes the peer of l a neighbor if both nodes have sent Ready and the
// peer is still on the topic. Otherwise it does nothing.
func (s *State) completeHandshake(now time.Time, l *link) {
	if l.phase != accepted || !l.readySent || l.peerReady == nil || !l.onTopic {
		return
	}
	// In a swap, another link has to end first. If none can, there is no room for this one.
	if l.swap && !s.finishSwap(now, l) {
		s.leaveLink(now, l, ReasonEnough)
		return
	}
	l.phase, l.since, l.heard = linked, now, now
	// The first keepalive is sent early, since it measures the round trip time. Its random
	// delay keeps the keepalives to different neighbors apart.
	l.nextKeepalive = now.Add(s.jitter(keepaliveInterval / 4))
	s.failedWalkRounds, s.refusals, s.refusalsInRow = 0, 0, 0
	s.book.markNeighbor(l.Contact, now)
	s.emit(Linked{Peer: l.ID, Addrs: l.Addrs, Greeting: l.peerReady.Greeting})
	s.answerAdds(l, ReasonNone, "")
	s.announceDegree(now)
	s.sendBeacon(now, l)
	// If this link was made for a handover, the neighbor that asked for it is left now.
	if old := s.link(l.replaces); old != nil && old.phase == linked {
		s.leaveLink(now, old, ReasonMoved)
	}
	l.replaces = ""
	// No swap was planned yet, so this is the first link of this node. Its place in the
	// network depends on the order of arrivals, so a swap should change it soon.
	if s.swaps.next.IsZero() {
		s.swapSoon(now)
	}
}

// handleKeepalive notes the peer's number of links, and measures the round trip time.
func (s *State) handleKeepalive(now time.Time, from Contact, l *link, m Keepalive) {
	switch {
	case l == nil:
		// The peer believes that it has a link to this node. The answer ends that link.
		s.send(from, Leave{Reason: ReasonUnknown})
	case l.phase == linked:
		l.degree, l.peerStamp, l.peerStampAt = m.Degree, m.Stamp, now
		// Echo is a reading of this node's own clock, so the peer's clock does not matter.
		// An Echo from before a restart of this node could give a negative time.
		if rtt := now.Sub(s.started) - m.Echo - m.Hold; m.Echo > 0 && rtt > 0 {
			l.rtt = rtt
		}
	}
}

// handleLeave ends a link because the peer has left it.
func (s *State) handleLeave(now time.Time, l *link, m Leave) {
	s.learnContacts(m.Contacts)
	if l == nil {
		return // the link has ended here already
	}
	s.endLinkByPeer(now, l, m.Reason)
	// The peer left in a swap, and names another node that has lost a link as well.
	if m.Reason == ReasonSwapped {
		s.handleSwappedOut(now, m.Contacts)
	}
}

// endLinkByPeer ends the link l, which the peer has left for the reason why.
func (s *State) endLinkByPeer(now time.Time, l *link, why Reason) {
	switch {
	case l.phase == requested:
		s.handleRefusal(now, l, why, "")
		return
	case why == ReasonClosed:
		// The node was closed, but may be started again, so its address is kept with the
		// lost addresses, which are tried now and then.
		s.endLink(now, l, why)
		s.book.markFailed(l.ID, now, s.spread)
		return
	case l.phase == linked && !why.isFault():
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// leaveLink ends a link by a decision of this node, and tells the peer.
func (s *State) leaveLink(now time.Time, l *link, why Reason) {
	var contacts []Contact
	// For these two reasons the peer may need a new link, so it gets contacts to ask.
	if why == ReasonMoved || why == ReasonFull {
		contacts = s.sampleContacts(redirectSize, l.ID)
	}
	s.leaveLinkWith(now, l, why, contacts)
}

// leaveLinkWith is like leaveLink, but the caller chooses the contacts for the peer.
func (s *State) leaveLinkWith(now time.Time, l *link, why Reason, contacts []Contact) {
	s.send(l.Contact, Leave{Reason: why, Contacts: contacts})
	// Without a cooldown, the two nodes could link again at once, so that the peer list flaps.
	if l.phase == linked && !why.isFault() {
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// removeLink removes l from the list of links, and does nothing else.
func (s *State) removeLink(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// endLink removes the link l, tells the driver, and updates the book, handovers and seeds.
// It sends nothing to the peer. It starts no cooldown, since after a fault the two nodes
// may link again at once.
func (s *State) endLink(now time.Time, l *link, why Reason) {
	s.removeLink(l)
	s.answerAdds(l, why, "")
	if l.phase == requested {
		return // the driver does not know of this link yet
	}
	// After the three reasons in the condition the peer is still alive at its address.
	// After any other fault it may be dead.
	if why.isFault() && why != ReasonRestarted && why != ReasonOffTopic && why != ReasonUnknown {
		s.book.markFailed(l.ID, now, s.spread)
	} else if e := s.book.find(l.ID); e != nil && e.retryAt.Before(now) {
		e.retryAt = now.Add(s.jitter(time.Second)) // so that the two do not ask each other at once
	}
	s.emit(Unlinked{Peer: l.ID, Reason: why, WasLinked: l.phase == linked})
	for _, x := range slices.Clone(s.links) {
		// In a handover, x was to replace l, and could exceed Max only for that reason. l
		// is gone, so x needs a free place like any other link.
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
		if s.Degree() == 0 { // that was the last link
			s.startRejoin(now)
		}
	}
}

// startCooldown notes that the link to id ended by decision. For relinkCooldown, the two
// nodes will not link again.
func (s *State) startCooldown(now time.Time, id peer.ID) {
	s.endedLinks = slices.DeleteFunc(s.endedLinks, func(p endedLink) bool { return p.id == id || now.Sub(p.at) >= relinkCooldown })
	s.endedLinks = append(s.endedLinks, endedLink{id, now})
}

// coolingDown reports whether the link to id ended by decision within relinkCooldown.
func (s *State) coolingDown(now time.Time, id peer.ID) bool {
	return slices.ContainsFunc(s.endedLinks, func(p endedLink) bool { return p.id == id && now.Sub(p.at) < relinkCooldown })
}

// isFault reports whether r is a fault, after which a link may be made again at once. All
// other reasons are decisions of one of the two nodes.
func (r Reason) isFault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed &&
		r != ReasonSwapped
}

// handleRefusal ends a request of this node that the peer has refused.
func (s *State) handleRefusal(now time.Time, l *link, why Reason, network string) {
	s.removeLink(l)
	s.noteSeedRefused(l.ID, why)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID) // a link to this peer will never be possible
	} else {
		s.book.markAlive(l.Contact, now) // the peer has answered, so it is alive
		if e := s.book.find(l.ID); e != nil {
			pause := fullPause
			// Until the cooldown is over, the peer would refuse again.
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

// handleUnreachable handles the news that a peer could not be dialed, or that a message
// could not be sent to it.
func (s *State) handleUnreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	// failCheck moves the peer to the lost addresses by itself. So does endLink, below,
	// for a link whose request was accepted. In all other cases it is done here.
	if checked := s.failCheck(now, id); !checked && (l == nil || l.phase == requested) {
		s.book.markFailed(id, now, s.spread)
	}
	switch {
	case l == nil:
	case l.phase == requested:
		s.removeLink(l)
		s.noteSeedRefused(id, why)
		if why == ReasonProtocol {
			s.book.remove(id) // the peer runs another program on libp2p
		}
		s.emit(Refused{Peer: id, Reason: why})
		s.answerAdds(l, why, "")
	default:
		s.endLink(now, l, why)
	}
}

// handleAdd requests a link to a node that the user named.
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
		l.tokens = append(l.tokens, in.Token) // the end of the running handshake is the answer
	case !s.hasRoom(0):
		answer(ReasonFull)
	default:
		s.book.learn(in.Contact)
		l = s.sendRequest(now, in.Contact, Request{Manual: true})
		l.manual = true
		l.tokens = append(l.tokens, in.Token)
	}
}

// answerAdds tells the driver the outcome of each Add that waits for the link l.
func (s *State) answerAdds(l *link, why Reason, network string) {
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
	l.tokens = nil
}

// A requestUrgency says whether a request asks the peer to accept it even if the peer has
// Max links.
type requestUrgency bool

const (
	ordinary requestUrgency = false
	urgent   requestUrgency = true
)

// requestLink sends the peer a request for a link, and returns the link that it may become.
func (s *State) requestLink(now time.Time, to Contact, u requestUrgency) *link {
	return s.sendRequest(now, to, Request{Urgent: bool(u)})
}

// sendRequest sends the request m after it has filled in the fields that all requests
// share. It returns the link that the request may become.
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
