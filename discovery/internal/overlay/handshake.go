package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file handles the life of one link: the request, the handshake, and the end.

// If one of two nodes ended their link by decision, and not because of a fault, the two nodes
// are not linked again for relinkCooldown. So the list of peers does not change back and forth.
const relinkCooldown = 30 * time.Second

// handleMessage passes the message m, which the node from sent, to the handler for its kind.
func (s *State) handleMessage(now time.Time, from Contact, m Message) {
	// The sender has the same id as this node, as when two machines share one key. A node
	// cannot link to itself.
	if from.ID == s.cfg.Self {
		return
	}
	l := s.link(from.ID)
	if l != nil {
		l.heard = now
		// Most messages carry no addresses of the sender. Then the addresses that this node
		// already knows stay.
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
		// A random walk travels over links only, and no neighbor may flood the network with
		// walks.
		if isNeighbor && l.allowWalk(now, walkCost) {
			s.handleWalk(now, l, m)
		}
	case Handover:
		// Only a neighbor has a link to this node, so only a neighbor may ask this node to
		// leave it.
		if isNeighbor {
			s.handleHandover(now, l, m.To)
		}
	case Shuffle:
		s.handleShuffle(now, from, l, m)
	case ShuffleReply:
		s.handleShuffleReply(now, from, l, m)
	case Beacon:
		// A beacon names the part of the network in which its sender is. If beacons traveled
		// outside the links, they would reach other parts of a split network, whose nodes then
		// could not notice that they are apart.
		if isNeighbor {
			s.handleBeacon(now, l, m.Owner)
		}
	case Lookup:
		s.handleLookup(now, l, m)
	case Found:
		s.handleFound(now, l, m)
	}
}

// handleRequest answers the request m of the node from for a link with Accept or Reject. l is
// the link to that node, or nil if there is none.
func (s *State) handleRequest(now time.Time, from Contact, l *link, m Request) {
	if m.Network != s.cfg.Network {
		s.send(from, Reject{Reason: ReasonNetwork, Network: s.cfg.Network})
		return
	}
	if l != nil && l.phase != requested {
		if l.session == m.Session && l.phase == accepted {
			// The first Accept was lost, or both nodes requested the link at the same time.
			s.send(from, s.acceptMessage(l))
			return
		}
		// A node sends no request for a link to a neighbor. So the peer no longer knows of this
		// link, as after a restart.
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
		// One of the two nodes ended their link by decision less than thirty seconds ago, and
		// both nodes have other links.
		s.reject(from, ReasonCooldown)
		return
	case s.hasRoom(0):
	case needy && s.hasRoom(maxOverflow):
	case s.canExchange(now, from, m.Leaving):
		// This node is full. But it can leave one of its neighbors, which then links to the
		// neighbor that the requester leaves in exchange for this link.
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
	if exchange { // this link may exceed Max until finishSwap ends another one in exchange
		l.swap, l.leaving, l.overflow = true, m.Leaving, true
	}
	s.markAccepted(now, l)
	s.send(from, s.acceptMessage(l))
}

// acceptMessage returns the message Accept, with which this node agrees to the link l.
func (s *State) acceptMessage(l *link) Accept {
	return Accept{
		Session: s.cfg.Session, Record: s.record, Degree: s.count(linked), Exchange: l.leaving.ID != "",
		Contacts: s.sampleContacts(redirectSize, l.ID),
	}
}

// reject refuses a request of the node to for a link, for the reason why. It stores the
// requester in the book all the same: a node that looks for links is a good contact to name to
// the next requester.
func (s *State) reject(to Contact, why Reason) {
	s.book.markAlive(to, s.now)
	s.send(to, Reject{Reason: why, Tag: s.advertisedTag(), Contacts: s.sampleContacts(redirectSize, to.ID)})
}

// withKnownAddrs returns c. If c has no record, it fills in the record that the book has for
// the same node, and also the addresses in the book if c has none.
func (s *State) withKnownAddrs(c Contact) Contact {
	if e := s.book.find(c.ID); e != nil && len(c.Record) == 0 {
		c.Record, c.Seq = e.Record, e.Seq
		if len(c.Addrs) == 0 {
			c.Addrs = e.Addrs
		}
	}
	return c
}

// handleAccept continues the handshake of the link l after the peer from has accepted this
// node's request for a link with the message m. If l is nil, it tells the peer that there is no
// such link.
func (s *State) handleAccept(now time.Time, from Contact, l *link, m Accept) {
	s.learnContacts(m.Contacts)
	if l == nil || l.phase != requested {
		// If this node's request has timed out, this node tells the peer so. Otherwise the peer
		// would wait for a link that this node has given up.
		if l == nil {
			s.send(from, Leave{Reason: ReasonTimeout})
		}
		return
	}
	// The peer itself states its record; other nodes may have passed on an older one.
	if len(m.Record) > 0 {
		l.Record, l.Seq = m.Record, from.Seq
	}
	l.session, l.degree = m.Session, m.Degree
	l.rtt, l.leavingReplaced = now.Sub(l.since), m.Exchange
	if l.swap && s.link(l.leaving.ID) == nil {
		// This node wanted to leave a neighbor in exchange for this link, but that neighbor is
		// gone already. So the link needs a free place like any other.
		l.swap, l.overflow = false, false
	}
	// A node sends more requests for links than it lacks links, so it may have found enough
	// links by now. A link that is marked wanted, or that the user asked for, is made all the
	// same.
	enough := s.occupied() > s.cfg.Min && !l.wanted && len(l.tokens) == 0
	if !l.overflow && (enough || !s.hasRoom(0)) || !s.hasRoom(maxOverflow) {
		s.removeLink(l)
		// A link that the user asked for with Add is given up at this point only for lack of
		// room.
		s.answerAdds(l, ReasonFull, "")
		s.book.markAlive(l.Contact, now)
		s.send(l.Contact, Leave{Reason: ReasonEnough})
		return
	}
	s.markAccepted(now, l)
}

// handleReject ends this node's request for the link l, which the peer has refused with the
// message m.
func (s *State) handleReject(now time.Time, l *link, m Reject) {
	s.learnContacts(m.Contacts)
	if l == nil || l.phase != requested {
		return // the request has timed out already
	}
	s.handleRefusal(now, l, m.Reason, m.Network)
	// The tag in the message names the peer's part of the network. If it is another part than
	// that of this node, this node sends an urgent request, which a full node accepts.
	if m.Reason == ReasonFull && !l.urgent && !l.manual {
		s.joinOtherPart(now, l.Contact, m.Tag)
	}
}

// markAccepted moves the link l to the phase accepted, in which both nodes let each other onto
// the pubsub topic and wait until they see each other there.
func (s *State) markAccepted(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.nextProbe = now.Add(probeInterval)
	s.book.markAlive(l.Contact, now)
	s.emit(Pending{Peer: l.ID})
}

// handleOnTopic handles the news that the peer id has joined the pubsub topic, if present is
// true, or has left it.
func (s *State) handleOnTopic(now time.Time, id peer.ID, present bool) {
	l := s.link(id)
	if l == nil || l.phase == requested || l.onTopic == present {
		return // no link needs this news
	}
	l.onTopic = present
	switch {
	case !present && l.phase == linked:
		// The peer may return to the topic soon. If it does not, checkLinkTimers ends the link.
		l.offTopicSince = now
	case present:
		l.offTopicSince = time.Time{}
		// The message Ready is sent only once for each link, even if the peer leaves the topic
		// and returns.
		if !l.readySent {
			l.readySent = true
			s.send(l.Contact, Ready{Degree: s.count(linked)})
		}
		s.completeHandshake(now, l)
	}
}

// handleReady handles the message Ready of the peer from, which means that the peer sees this
// node on the pubsub topic. l is the link to the peer, or nil.
func (s *State) handleReady(now time.Time, from Contact, l *link, m Ready) {
	// The peer believes that both nodes have accepted a link, but this node knows of no such
	// link.
	if l == nil || l.phase == requested {
		s.send(from, Leave{Reason: ReasonUnknown})
		return
	}
	l.degree = m.Degree
	// This node may have passed on the greeting in the peer's first Ready, so a second Ready of
	// the same peer must not replace the first.
	if l.peerReady == nil {
		l.peerReady = &m
		s.completeHandshake(now, l)
	}
}

// completeHandshake makes the peer of the link l a neighbor if both nodes have sent the message
// Ready and the peer is still on the pubsub topic. Otherwise it does nothing.
func (s *State) completeHandshake(now time.Time, l *link) {
	if l.phase != accepted || !l.readySent || l.peerReady == nil || !l.onTopic {
		return
	}
	// If the link was requested in exchange for another one, that other link has to end first.
	// If no link can end, there is no room for this one.
	if l.swap && !s.finishSwap(now, l) {
		s.leaveLink(now, l, ReasonEnough)
		return
	}
	l.phase, l.since, l.heard = linked, now, now
	// The first keepalive on a new link is sent early, since it measures the round trip time.
	// Its random delay keeps the keepalives to different neighbors apart.
	l.nextKeepalive = now.Add(s.jitter(keepaliveInterval / 4))
	s.failedWalkRounds, s.refusals, s.refusalsInRow = 0, 0, 0
	s.book.markNeighbor(l.Contact, now)
	s.emit(Linked{Peer: l.ID, Addrs: l.Addrs, Greeting: l.peerReady.Greeting})
	s.answerAdds(l, ReasonNone, "")
	s.announceDegree(now)
	s.sendBeacon(now, l)
	// If a neighbor with too many links asked this node to make this link, this node leaves
	// that neighbor now.
	if old := s.link(l.replaces); old != nil && old.phase == linked {
		s.leaveLink(now, old, ReasonMoved)
	}
	l.replaces = ""
	// No swap of links was planned yet, so this is the first link of this node. The place of
	// this node in the network depends on the order in which the nodes arrived, so a swap
	// should change it soon.
	if s.swaps.next.IsZero() {
		s.swapSoon(now)
	}
}

// handleKeepalive handles the keepalive m of the peer from. It notes the peer's number of
// links, and measures the round trip time. If the link l is nil, it tells the peer that the two
// are not linked.
func (s *State) handleKeepalive(now time.Time, from Contact, l *link, m Keepalive) {
	switch {
	case l == nil:
		// The peer believes that it has a link to this node. This answer makes the peer end
		// that link.
		s.send(from, Leave{Reason: ReasonUnknown})
	case l.phase == linked:
		l.degree, l.peerStamp, l.peerStampAt = m.Degree, m.Stamp, now
		// Echo is a time that this node's own clock showed, so the peer's clock does not
		// matter. An Echo from before a restart of this node could give a negative round trip
		// time.
		if rtt := now.Sub(s.started) - m.Echo - m.Hold; m.Echo > 0 && rtt > 0 {
			l.rtt = rtt
		}
	}
}

// handleLeave ends the link l, which the peer has left with the message m. l is nil if the link
// has already ended.
func (s *State) handleLeave(now time.Time, l *link, m Leave) {
	s.learnContacts(m.Contacts)
	if l == nil {
		return // the link has ended here already
	}
	s.endLinkByPeer(now, l, m.Reason)
	// The peer left in a swap of links, and its message names another node that has lost a link
	// in the same swap.
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
		// The peer was closed, but may be started again. So its address moves to the lost
		// addresses in the book, which are tried now and then.
		s.endLink(now, l, why)
		s.book.markFailed(l.ID, now, s.spread)
		return
	case l.phase == linked && !why.isFault():
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// leaveLink ends the link l by a decision of this node, for the reason why, and tells the peer.
func (s *State) leaveLink(now time.Time, l *link, why Reason) {
	var contacts []Contact
	// After ReasonMoved or ReasonFull the peer may need a new link, so this node names other
	// nodes that the peer can ask.
	if why == ReasonMoved || why == ReasonFull {
		contacts = s.sampleContacts(redirectSize, l.ID)
	}
	s.leaveLinkWith(now, l, why, contacts)
}

// leaveLinkWith ends the link l by a decision of this node, for the reason why. It tells the
// peer the reason, and names contacts, nodes that the peer can ask for a link.
func (s *State) leaveLinkWith(now time.Time, l *link, why Reason, contacts []Contact) {
	s.send(l.Contact, Leave{Reason: why, Contacts: contacts})
	// Without this cooldown, the two nodes could link again at once, and the list of peers
	// would change back and forth.
	if l.phase == linked && !why.isFault() {
		s.startCooldown(now, l.ID)
	}
	s.endLink(now, l, why)
}

// removeLink removes l from the list of links, and does nothing else.
func (s *State) removeLink(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// endLink removes the link l, which ended for the reason why. It tells the driver, and updates
// the book, the seeds, and the links that were to replace l. It sends nothing to the peer. It
// starts no cooldown, since after a fault the two nodes may link again at once.
func (s *State) endLink(now time.Time, l *link, why Reason) {
	s.removeLink(l)
	s.answerAdds(l, why, "")
	if l.phase == requested {
		return // the peer has not accepted the request, so the driver does not know of this link
	}
	// If the link ended for one of the three reasons in the condition, the peer is still alive
	// at its address. After any other fault, the peer may be dead.
	if why.isFault() && why != ReasonRestarted && why != ReasonOffTopic && why != ReasonUnknown {
		s.book.markFailed(l.ID, now, s.spread)
	} else if e := s.book.find(l.ID); e != nil && e.retryAt.Before(now) {
		// The pause keeps the two nodes from asking each other for a link at the same moment.
		e.retryAt = now.Add(s.jitter(time.Second))
	}
	s.emit(Unlinked{Peer: l.ID, Reason: why, WasLinked: l.phase == linked})
	for _, x := range slices.Clone(s.links) {
		// The link x was to replace l, and was allowed to exceed Max only for that reason.
		// Since l has ended, x needs a free place like any other link.
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

// startCooldown notes that the link to the peer id was ended by decision at the time now. For
// relinkCooldown, the two nodes will not link again.
func (s *State) startCooldown(now time.Time, id peer.ID) {
	s.endedLinks = slices.DeleteFunc(s.endedLinks, func(p endedLink) bool { return p.id == id || now.Sub(p.at) >= relinkCooldown })
	s.endedLinks = append(s.endedLinks, endedLink{id, now})
}

// coolingDown reports whether the link to the peer id was ended by decision less than
// relinkCooldown before now.
func (s *State) coolingDown(now time.Time, id peer.ID) bool {
	return slices.ContainsFunc(s.endedLinks, func(p endedLink) bool { return p.id == id && now.Sub(p.at) < relinkCooldown })
}

// isFault reports whether the end of a link for the reason r is a fault, after which the two
// nodes may link again at once. All other reasons are decisions of one of the two nodes.
func (r Reason) isFault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed &&
		r != ReasonSwapped
}

// handleRefusal ends this node's request for the link l, which the peer has refused for the
// reason why. network is the name of the peer's network if that is the reason.
func (s *State) handleRefusal(now time.Time, l *link, why Reason, network string) {
	s.removeLink(l)
	s.noteSeedRefused(l.ID, why)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID) // a link to this peer will never be possible
	} else {
		s.book.markAlive(l.Contact, now) // the peer has answered, so it is alive
		if e := s.book.find(l.ID); e != nil {
			pause := fullPause
			// One of the two nodes ended their last link by decision, so the peer refuses new
			// links for a while.
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

// handleUnreachable handles the news that the peer id could not be dialed, or that a message
// could not be sent to it, for the reason why.
func (s *State) handleUnreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	// failCheck and endLink move the peer to the lost addresses in the book: failCheck if this
	// node was checking whether the peer is alive, endLink if a request for a link was accepted
	// before. In all other cases the peer is moved here, by markFailed.
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

// handleAdd requests a link to the node that the user named in the input Add.
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
		// The outcome of the handshake that is under way will answer this Add, too.
		l.tokens = append(l.tokens, in.Token)
	case !s.hasRoom(0):
		answer(ReasonFull)
	default:
		s.book.learn(in.Contact)
		l = s.sendRequest(now, in.Contact, Request{Manual: true})
		l.manual = true
		l.tokens = append(l.tokens, in.Token)
	}
}

// answerAdds tells the driver the outcome of each Add that waits for the link l. why is the
// reason for which the link failed. network is the name of the peer's network if it differs.
func (s *State) answerAdds(l *link, why Reason, network string) {
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
	l.tokens = nil
}

// A requestUrgency says whether a request for a link asks the peer to accept it even if the
// peer has Max links.
type requestUrgency bool

const (
	ordinary requestUrgency = false
	urgent   requestUrgency = true
)

// requestLink sends the node to a request for a link. u says whether the request is urgent.
// requestLink returns the link, whose handshake has just begun.
func (s *State) requestLink(now time.Time, to Contact, u requestUrgency) *link {
	return s.sendRequest(now, to, Request{Urgent: bool(u)})
}

// sendRequest sends the request m for a link to the node to, after it has filled in the fields
// that are the same in all requests. It returns the link, whose handshake has just begun.
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
