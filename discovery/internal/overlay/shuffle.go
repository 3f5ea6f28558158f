package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file keeps the addresses in the book fresh, in two ways. A shuffle exchanges addresses
// with a random node. A check asks one node of the book to show that it is alive.

const (
	// shuffleSize is the number of contacts that a Shuffle carries, and also its reply. In the
	// protocol HyParView it is 7: 3 neighbors and 4 other nodes.
	shuffleSize = 8
	// shuffleInterval is the pause between two shuffles, which exchange addresses with random
	// nodes. The first few shuffles, earlyShuffles of them, have pauses of
	// earlyShuffleInterval, since a new node knows few others.
	shuffleInterval      = 30 * time.Second
	earlyShuffleInterval = 4 * time.Second
	earlyShuffles        = 5
	// A node asks one node of its book after the other to show that it is alive. The pause
	// between these checks doubles when a node answers, and halves when it does not. So a book
	// full of dead nodes is cleared in a minute or two.
	firstCheckPause = 20 * time.Second
	minCheckPause   = time.Second
	maxCheckPause   = time.Minute
	// lostCheckInterval is the least time between two checks of nodes that did not answer
	// before. Their addresses may belong to other programs by now, which should not be dialed
	// often.
	lostCheckInterval = 2 * time.Second
)

type shuffleState struct {
	nextWalk      time.Time
	walks         int
	awaitingReply bool // the last shuffle has no reply yet

	nextCheck     time.Time
	checkPause    time.Duration
	nextLostCheck time.Time
	checks        []check // the checks that have no answer yet
}

// A check is a question to a node of the book whether it is still alive.
type check struct {
	id          peer.ID
	at          time.Time // when the question was sent
	wasNeighbor bool      // the node did not answer before, but was once a neighbor
}

// runShuffles sends the shuffle of addresses that is due at the time now, and the checks
// whether nodes of the book are alive. It ends checks that got no answer in time.
func (s *State) runShuffles(now time.Time) {
	sh := &s.shuffles
	for _, c := range slices.Clone(sh.checks) {
		if now.Sub(c.at) >= requestTimeout {
			s.failCheck(now, c.id)
		}
	}
	// A node without links asks all nodes in its book for links anyway. A node with Min
	// zero requests no links, so it needs no addresses.
	if s.Degree() == 0 || s.cfg.Min == 0 {
		return
	}
	// The first link of this node is complete, so its checks of other nodes begin.
	if sh.nextCheck.IsZero() {
		sh.nextCheck = now.Add(s.spread(sh.checkPause))
	}
	if !now.Before(sh.nextWalk) {
		pause := shuffleInterval
		if sh.walks++; sh.walks < earlyShuffles { // a new node knows few others
			pause = earlyShuffleInterval
		}
		sh.nextWalk = now.Add(s.spread(pause))
		if to := s.randomNeighbor(); to != nil {
			sh.awaitingReply = true
			s.send(to.Contact, Shuffle{
				Path: []peer.ID{s.cfg.Self}, TTL: walkTTL, Tag: s.advertisedTag(), Origin: s.ownContact(), Contacts: s.sampleContacts(shuffleSize, to.ID),
			})
		}
	}
	// The checks of nodes that are believed to be alive use at most half of the dials, so that
	// nodes that did not answer before are checked as well.
	if !now.Before(sh.nextCheck) && len(sh.checks) < maxDials/2 {
		sh.nextCheck = now.Add(s.spread(sh.checkPause))
		if e := s.book.stalestKnown(s.isIdle); e != nil {
			e.lastCheck = now
			s.sendCheck(now, e)
		}
	}
	// The checks of nodes that did not answer before have a limit of their own; see
	// lostCheckInterval.
	if e := s.book.nextLost(s.isIdle); e != nil && !now.Before(e.retryAt) && !now.Before(sh.nextLostCheck) && len(sh.checks) < maxDials {
		sh.nextLostCheck = now.Add(lostCheckInterval)
		s.sendCheck(now, e)
	}
}

// shufflesDue returns the time at which runShuffles has to be called next. The zero time means
// never.
func (s *State) shufflesDue() time.Time {
	sh := &s.shuffles
	var t time.Time
	for _, c := range sh.checks {
		t = earlier(t, c.at.Add(requestTimeout))
	}
	if s.Degree() == 0 || s.cfg.Min == 0 {
		return t
	}
	t = earlier(t, sh.nextWalk)
	if len(sh.checks) < maxDials/2 && len(s.book.known) > 0 {
		t = earlier(t, sh.nextCheck)
	}
	if e := s.book.nextLost(s.isIdle); e != nil && len(sh.checks) < maxDials {
		if at := e.retryAt; at.After(sh.nextLostCheck) {
			t = earlier(t, at)
		} else {
			t = earlier(t, sh.nextLostCheck)
		}
	}
	return t
}

// isIdle reports whether this node has neither a link to e nor a check of e under way.
func (s *State) isIdle(e *candidate) bool { return s.link(e.ID) == nil && s.checkIndex(e.ID) < 0 }

// checkIndex returns the index of the check of the node id in the list of checks that are under
// way, or -1 if there is none.
func (s *State) checkIndex(id peer.ID) int {
	return slices.IndexFunc(s.shuffles.checks, func(c check) bool { return c.id == id })
}

// sendCheck asks the node e of the book to show that it is alive: e has to answer a Shuffle of
// no hops.
func (s *State) sendCheck(now time.Time, e *candidate) {
	e.lastTry = now
	s.shuffles.checks = append(s.shuffles.checks, check{e.ID, now, e.wasNeighbor && e.fails > 0})
	s.send(e.Contact, Shuffle{
		Path: []peer.ID{s.cfg.Self}, Tag: s.advertisedTag(), Origin: s.ownContact(), Contacts: s.sampleContacts(shuffleSize, e.ID),
	})
}

// failCheck ends the check whether the node id is alive, which got no answer. It reports
// whether such a check was under way.
func (s *State) failCheck(now time.Time, id peer.ID) bool {
	i := s.checkIndex(id)
	if i < 0 {
		return false
	}
	s.shuffles.checks = slices.Delete(s.shuffles.checks, i, i+1)
	// If a node that was believed to be alive is dead, more nodes may be dead, so the next
	// check comes sooner. If a node that did not answer before does not answer again, that says
	// nothing about other nodes.
	if s.book.findKnown(id) != nil {
		s.shuffles.checkPause = max(s.shuffles.checkPause/2, minCheckPause)
		s.shuffles.nextCheck = earlier(s.shuffles.nextCheck, now.Add(s.shuffles.checkPause))
	}
	s.book.markFailed(id, now, s.spread)
	return true
}

// handleShuffle passes the Shuffle m on to a random neighbor, or answers it with contacts. The
// node from sent m; l is the link to that node, or nil.
func (s *State) handleShuffle(now time.Time, from Contact, l *link, m Shuffle) {
	if !s.validPath(m.Path, from.ID) {
		return // the answer returns along the path in the message, so a wrong path would mislead it
	}
	isNeighbor := l != nil && l.phase == linked
	// If the neighbor exceeds its limit for messages that this node passes on, this Shuffle is
	// not dropped but ends at this node, so that the node that sent it first gets an answer.
	if isNeighbor && m.TTL > 0 && l.allowWalk(now, walkCost) {
		if next := s.randomNeighbor(m.Path...); next != nil {
			m.Path, m.TTL = append(slices.Clone(m.Path), s.cfg.Self), m.TTL-1
			s.send(next.Contact, m)
			return
		}
	}
	if !isNeighbor && len(m.Path) > 1 {
		return // a Shuffle that was passed on must come from a neighbor; a check has a path of one node
	}
	reply := ShuffleReply{Path: m.Path[:len(m.Path)-1], Tag: s.advertisedTag(), Contacts: s.sampleContacts(shuffleSize, m.Path[0])}
	s.send(from, reply)
	// If the origin of the message is not the first node of its path, the message is forged.
	if m.Origin.ID == m.Path[0] {
		if len(m.Path) == 1 {
			// The origin itself sent this message, so it is alive. It may be in another
			// part of the network.
			m.Origin.Addrs = from.Addrs
			s.book.markAlive(m.Origin, now)
			s.joinOtherPart(now, m.Origin, m.Tag)
		} else {
			// The message was passed on over links, so its origin is in this part of the
			// network.
			s.book.learn(m.Origin)
		}
	}
	s.learnContacts(m.Contacts)
}

// handleShuffleReply passes the reply m to a Shuffle back along the path of that Shuffle. If
// this node sent the Shuffle, it ends the check or the shuffle that it was for, and adds the
// contacts in m to the book. The node from sent m; l is the link to that node, or nil.
func (s *State) handleShuffleReply(now time.Time, from Contact, l *link, m ShuffleReply) {
	if len(m.Path) > 0 {
		if next := s.returnHop(l, m.Path); next != nil {
			m.Path = m.Path[:len(m.Path)-1]
			s.send(next.Contact, m)
		}
		return
	}
	if i := s.checkIndex(from.ID); i >= 0 {
		c := s.shuffles.checks[i]
		s.shuffles.checks = slices.Delete(s.shuffles.checks, i, i+1)
		s.checkAnswered(now, from, l, c, m.Tag)
	} else if l == nil || !s.shuffles.awaitingReply {
		return // this node sent no Shuffle; contacts from anybody could fill its book
	} else {
		s.shuffles.awaitingReply = false
	}
	s.learnContacts(m.Contacts)
}

// checkAnswered handles the answer of the node from to the check c, which asked whether it is
// alive. t is the tag of that node's part of the network. l is the link to that node, or nil.
func (s *State) checkAnswered(now time.Time, from Contact, l *link, c check, t Tag) {
	wasKnown := s.book.findKnown(from.ID) != nil
	s.book.markAlive(from, now)
	// A node that was believed to be alive has answered, so such nodes need to be checked less
	// often.
	if wasKnown {
		s.shuffles.checkPause = min(s.shuffles.checkPause*2, maxCheckPause)
	}
	e := s.book.find(from.ID)
	switch {
	case e == nil || l != nil:
		// A link exists already, or there is no address to make one.
	case s.inOtherPart(t):
		s.joinOtherPart(now, e.Contact, t)
	case c.wasNeighbor && s.hasRoom(0) && s.linkable(now)(e):
		// The node did not answer before, and had been a neighbor before that, so it may come
		// from the other side of a cut in the network.
		s.requestLink(now, e.Contact, ordinary).wanted = true
	}
}

// joinOtherPart asks the node c for a link if its tag t shows that it is in another part of
// the network. The link would join the two parts, so the request is urgent.
func (s *State) joinOtherPart(now time.Time, c Contact, t Tag) {
	// This node does not ask c for a link if one of the two ended their link by decision a
	// moment ago, if it wants no links, or if it has too many. The bound on requests keeps a
	// crowd of nodes from another part of the network from causing as many requests.
	if !s.inOtherPart(t) || s.link(c.ID) != nil || s.coolingDown(now, c.ID) || s.cfg.Max == 0 || s.cfg.Min == 0 ||
		!s.hasRoom(maxOverflow) || s.count(requested) >= maxDials {
		return
	}
	l := s.sendRequest(now, c, Request{Urgent: true})
	l.wanted, l.overflow = true, true
}

// validPath reports whether path can be the list of nodes that a message has passed before
// this node received it from the peer from. It must end with that peer, must not be too
// long, and must not contain this node.
func (s *State) validPath(path []peer.ID, from peer.ID) bool {
	return len(path) > 0 && len(path) <= maxPath && path[len(path)-1] == from && !slices.Contains(path, s.cfg.Self)
}

// returnHop returns the link over which this node passes an answer back: the link to the last
// node in path. The answer came over the link from. returnHop returns nil if one of the two
// links is not complete, or if they are the same.
func (s *State) returnHop(from *link, path []peer.ID) *link {
	if from == nil || from.phase != linked {
		return nil
	}
	next := s.link(path[len(path)-1])
	if next == nil || next.phase != linked || next == from {
		return nil // the link to that node has ended since, or the path in the answer is forged
	}
	return next
}
