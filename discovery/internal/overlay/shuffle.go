package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file keeps the known addresses fresh: it exchanges some with other nodes, and
// checks one after the other whether the node is still there.

const (
	// shuffleSize is how many addresses an exchange has in each direction (HyParView: 3
	// neighbors and 4 others).
	shuffleSize = 8
	// shuffleInterval is the pause between shuffles. The first earlyShuffles come every
	// earlyShuffleInterval, as a newcomer knows few nodes.
	shuffleInterval      = 30 * time.Second
	earlyShuffleInterval = 4 * time.Second
	earlyShuffles        = 5
	// The pause between checks doubles when a node answers and halves when not, so that
	// a book full of dead nodes is cleared in a minute or two.
	firstCheckPause = 20 * time.Second
	minCheckPause   = time.Second
	maxCheckPause   = time.Minute
	// lostCheckInterval bounds the dials to lost addresses, which may belong to somebody
	// else by now.
	lostCheckInterval = 2 * time.Second
)

type shuffleState struct {
	nextWalk      time.Time
	walks         int
	awaitingReply bool // a shuffle was sent whose reply has not come

	nextCheck     time.Time
	checkPause    time.Duration
	nextLostCheck time.Time
	checks        []check // under way
}

// A check is a known or lost node that was asked for a sign of life.
type check struct {
	id          peer.ID
	at          time.Time
	wasNeighbor bool // it is lost, and was a neighbor before
}

// runShuffles sends the shuffles and checks that are due.
func (s *State) runShuffles(now time.Time) {
	sh := &s.shuffles
	for _, c := range slices.Clone(sh.checks) {
		if now.Sub(c.at) >= requestTimeout {
			s.failCheck(now, c.id)
		}
	}
	// A node without links asks all addresses anyway. A node that wants no links needs
	// no addresses.
	if s.Degree() == 0 || s.cfg.Min == 0 {
		return
	}
	if sh.nextCheck.IsZero() {
		sh.nextCheck = now.Add(s.spread(sh.checkPause))
	}
	if !now.Before(sh.nextWalk) {
		pause := shuffleInterval
		if sh.walks++; sh.walks < earlyShuffles {
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
	// Half of the dials are kept for lost addresses and requests.
	if !now.Before(sh.nextCheck) && len(sh.checks) < maxDials/2 {
		sh.nextCheck = now.Add(s.spread(sh.checkPause))
		if e := s.book.stalestKnown(s.isIdle); e != nil {
			e.lastCheck = now
			s.sendCheck(now, e)
		}
	}
	if e := s.book.nextLost(s.isIdle); e != nil && !now.Before(e.retryAt) && !now.Before(sh.nextLostCheck) && len(sh.checks) < maxDials {
		sh.nextLostCheck = now.Add(lostCheckInterval)
		s.sendCheck(now, e)
	}
}

// shufflesDue returns when runShuffles has something to do; zero means never.
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

// isIdle reports whether there is neither a link to e nor a check of e.
func (s *State) isIdle(e *candidate) bool { return s.link(e.ID) == nil && s.checkIndex(e.ID) < 0 }

// checkIndex returns the index of the check of id, or -1.
func (s *State) checkIndex(id peer.ID) int {
	return slices.IndexFunc(s.shuffles.checks, func(c check) bool { return c.id == id })
}

// sendCheck asks a node directly for a sign of life, by a shuffle of no hops.
func (s *State) sendCheck(now time.Time, e *candidate) {
	e.lastTry = now
	s.shuffles.checks = append(s.shuffles.checks, check{e.ID, now, e.wasNeighbor && e.fails > 0})
	s.send(e.Contact, Shuffle{
		Path: []peer.ID{s.cfg.Self}, Tag: s.advertisedTag(), Origin: s.ownContact(), Contacts: s.sampleContacts(shuffleSize, e.ID),
	})
}

// failCheck ends a check of id that got no answer. It reports whether there was one.
func (s *State) failCheck(now time.Time, id peer.ID) bool {
	i := s.checkIndex(id)
	if i < 0 {
		return false
	}
	s.shuffles.checks = slices.Delete(s.shuffles.checks, i, i+1)
	// A known node that is dead suggests that more of them are. A lost node that is
	// still lost suggests nothing.
	if s.book.findKnown(id) != nil {
		s.shuffles.checkPause = max(s.shuffles.checkPause/2, minCheckPause)
		s.shuffles.nextCheck = earlier(s.shuffles.nextCheck, now.Add(s.shuffles.checkPause))
	}
	s.book.markFailed(id, now, s.spread)
	return true
}

// handleShuffle passes a Shuffle on, or answers it.
func (s *State) handleShuffle(now time.Time, from Contact, l *link, m Shuffle) {
	if !s.validPath(m.Path, from.ID) {
		return
	}
	isNeighbor := l != nil && l.phase == linked
	// A walk over the limit is not dropped but ends here, so its origin gets an answer.
	if isNeighbor && m.TTL > 0 && l.allowWalk(now, walkCost) {
		if next := s.randomNeighbor(m.Path...); next != nil {
			m.Path, m.TTL = append(slices.Clone(m.Path), s.cfg.Self), m.TTL-1
			s.send(next.Contact, m)
			return
		}
	}
	if !isNeighbor && len(m.Path) > 1 {
		return // a walk travels over links only; a check has a path of one node
	}
	reply := ShuffleReply{Path: m.Path[:len(m.Path)-1], Tag: s.advertisedTag(), Contacts: s.sampleContacts(shuffleSize, m.Path[0])}
	s.send(from, reply)
	if m.Origin.ID == m.Path[0] {
		if len(m.Path) == 1 {
			// The origin itself sent this, so it lives. It may be in another part.
			m.Origin.Addrs = from.Addrs
			s.book.markAlive(m.Origin, now)
			s.joinOtherPart(now, m.Origin, m.Tag)
		} else {
			// The walk came over links, so the origin is in this part.
			s.book.learn(m.Origin)
		}
	}
	s.learnContacts(m.Contacts)
}

// handleShuffleReply passes a reply on along the path of its Shuffle. At the origin it
// ends a check or a shuffle.
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
		return // this node did not ask, and unasked contacts could fill the book
	} else {
		s.shuffles.awaitingReply = false
	}
	s.learnContacts(m.Contacts)
}

// checkAnswered handles the sign of life of a node that was checked.
func (s *State) checkAnswered(now time.Time, from Contact, l *link, c check, t Tag) {
	wasKnown := s.book.findKnown(from.ID) != nil
	s.book.markAlive(from, now)
	if wasKnown {
		s.shuffles.checkPause = min(s.shuffles.checkPause*2, maxCheckPause)
	}
	e := s.book.find(from.ID)
	switch {
	case e == nil || l != nil:
		// There is a link already, or no address to make one.
	case s.inOtherPart(t):
		s.joinOtherPart(now, e.Contact, t)
	case c.wasNeighbor && s.hasRoom(0) && s.linkable(now)(e):
		// A neighbor that was lost has come back.
		s.requestLink(now, e.Contact, ordinary).wanted = true
	}
}

// joinOtherPart asks a node for a link if its tag t shows that it is in another part of
// the network. The link joins the two parts, so the request is urgent.
func (s *State) joinOtherPart(now time.Time, c Contact, t Tag) {
	// A pair that has just parted, or a node that wants no links, is not the one to join
	// parts. The bound on requests keeps a crowd of other nodes from causing a flood.
	if !s.inOtherPart(t) || s.link(c.ID) != nil || s.coolingDown(now, c.ID) || s.cfg.Max == 0 || s.cfg.Min == 0 ||
		!s.hasRoom(maxOverflow) || s.count(requested) >= maxDials {
		return
	}
	l := s.sendRequest(now, c, Request{Urgent: true})
	l.wanted, l.overflow = true, true
}

// validPath reports whether path is a possible path of a message that came from the peer
// from: it ends there, is not too long, and does not contain this node.
func (s *State) validPath(path []peer.ID, from peer.ID) bool {
	return len(path) > 0 && len(path) <= maxPath && path[len(path)-1] == from && !slices.Contains(path, s.cfg.Self)
}

// returnHop returns the next node on the way back of an answer: the last of its path. It
// returns nil if that node, or the sender from, is not a neighbor.
func (s *State) returnHop(from *link, path []peer.ID) *link {
	if from == nil || from.phase != linked {
		return nil
	}
	next := s.link(path[len(path)-1])
	if next == nil || next.phase != linked || next == from {
		return nil
	}
	return next
}
