package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file keeps the known addresses fresh: by exchanging some with others, and by
// asking one after the other whether it is still there.

const (
	// shuffleSize is how many addresses an exchange has each way (HyParView: 3
	// neighbours and 4 others).
	shuffleSize = 8
	// shuffleInterval is the pause between walks; the first few come sooner, as
	// a newcomer knows next to nobody.
	shuffleInterval      = 30 * time.Second
	earlyShuffleInterval = 4 * time.Second
	earlyShuffles        = 5
	// The pause between checks doubles when one answers and halves when not, so
	// that a book full of dead is cleared in a minute or two.
	firstCheckPause = 20 * time.Second
	minCheckPause   = time.Second
	maxCheckPause   = time.Minute
	// lostCheckInterval bounds the attempts at lost addresses (threats T13: one dial per
	// two seconds).
	lostCheckInterval = 2 * time.Second
)

type shuffleState struct {
	nextWalk      time.Time
	walks         int
	awaitingReply bool // a walk was sent whose reply has not come

	nextCheck     time.Time
	checkPause    time.Duration
	nextLostCheck time.Time // the next attempt at a lost address may be made
	checks        []check   // under way
}

// A check is a known or lost node that was asked for a sign of life.
type check struct {
	id          peer.ID
	at          time.Time
	wasNeighbor bool // it was one, and was lost
}

// runShuffles sends what is due.
func (s *State) runShuffles(now time.Time) {
	sh := &s.shuffles
	for _, c := range slices.Clone(sh.checks) {
		if now.Sub(c.at) >= requestTimeout {
			s.failCheck(now, c.id)
		}
	}
	if s.Degree() == 0 || s.cfg.Min == 0 {
		return // who is alone asks everybody anyway, who wants nobody no one
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

// isIdle tells whether there is no link to e and nothing under way.
func (s *State) isIdle(e *entry) bool { return s.link(e.ID) == nil && s.checkIndex(e.ID) < 0 }

func (s *State) checkIndex(id peer.ID) int {
	return slices.IndexFunc(s.shuffles.checks, func(c check) bool { return c.id == id })
}

// sendCheck asks a node directly, by a shuffle of no hops.
func (s *State) sendCheck(now time.Time, e *entry) {
	e.lastTry = now
	s.shuffles.checks = append(s.shuffles.checks, check{e.ID, now, e.wasNeighbor && e.fails > 0})
	s.send(e.Contact, Shuffle{
		Path: []peer.ID{s.cfg.Self}, Tag: s.advertisedTag(), Origin: s.ownContact(), Contacts: s.sampleContacts(shuffleSize, e.ID),
	})
}

// failCheck reports whether a check of id was under way, and ends it.
func (s *State) failCheck(now time.Time, id peer.ID) bool {
	i := s.checkIndex(id)
	if i < 0 {
		return false
	}
	s.shuffles.checks = slices.Delete(s.shuffles.checks, i, i+1)
	if s.book.findKnown(id) != nil { // that a lost one is still lost says nothing of the others
		s.shuffles.checkPause = max(s.shuffles.checkPause/2, minCheckPause)
		s.shuffles.nextCheck = earlier(s.shuffles.nextCheck, now.Add(s.shuffles.checkPause))
	}
	s.book.markFailed(id, now, s.spread)
	return true
}

// handleShuffle handles a Shuffle: passes it on, or answers it.
func (s *State) handleShuffle(now time.Time, from Contact, l *link, m Shuffle) {
	if !s.validPath(m.Path, from.ID) {
		return
	}
	linked := l != nil && l.phase == linked
	if linked && m.TTL > 0 && l.allowWalk(now, 1) {
		if next := s.randomNeighbor(m.Path...); next != nil {
			m.Path, m.TTL = append(slices.Clone(m.Path), s.cfg.Self), m.TTL-1
			s.send(next.Contact, m)
			return
		}
	}
	if !linked && len(m.Path) > 1 {
		return // a walk goes over links
	}
	reply := ShuffleReply{Path: m.Path[:len(m.Path)-1], Tag: s.advertisedTag(), Contacts: s.sampleContacts(shuffleSize, m.Path[0])}
	s.send(from, reply)
	if m.Origin.ID == m.Path[0] {
		if len(m.Path) == 1 {
			m.Origin.Addrs = from.Addrs
			s.book.markAlive(m.Origin, now)
			s.joinOtherPart(now, m.Origin, m.Tag)
		} else {
			s.book.learn(m.Origin) // whose walk came over links, so it is in our part
		}
	}
	s.learnContacts(m.Contacts)
}

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
		known := s.book.findKnown(from.ID) != nil
		s.book.markAlive(from, now)
		if known {
			s.shuffles.checkPause = min(s.shuffles.checkPause*2, maxCheckPause)
		}
		e := s.book.find(from.ID)
		switch {
		case e == nil || l != nil:
		case s.inOtherPart(m.Tag):
			s.joinOtherPart(now, e.Contact, m.Tag)
		case c.wasNeighbor && s.hasRoom(0) && s.usable(now)(e):
			s.requestLink(now, e.Contact, false).wanted = true
		}
	} else if l == nil || !s.shuffles.awaitingReply {
		return // nobody asked for it
	} else {
		s.shuffles.awaitingReply = false
	}
	s.learnContacts(m.Contacts)
}

// joinOtherPart asks a node for a link which turned out to be in another part of the
// network: that joins the two, so it may not be refused.
func (s *State) joinOtherPart(now time.Time, c Contact, t Tag) {
	if !s.inOtherPart(t) || s.link(c.ID) != nil || s.coolingDown(now, c.ID) || s.cfg.Max == 0 || s.cfg.Min == 0 || !s.hasRoom(maxOverflow) || s.count(requested) >= maxDials {
		return
	}
	l := s.sendRequest(now, c, Request{Urgent: true})
	l.wanted, l.overflow = true, true
}

// validPath tells whether a message that came from from by that path is as it should
// be: not too long, and not from us.
func (s *State) validPath(path []peer.ID, from peer.ID) bool {
	return len(path) > 0 && len(path) <= maxPath && path[len(path)-1] == from && !slices.Contains(path, s.cfg.Self)
}

// returnHop returns the next node on the way back of an answer that came from a
// neighbour: the last of its path, which was a neighbour when the question came from
// there. It returns nil if the answer cannot be passed on.
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
