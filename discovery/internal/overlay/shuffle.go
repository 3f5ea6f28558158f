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
	shuffleInterval = 30 * time.Second
	shuffleSoon     = 4 * time.Second
	shufflesSoon    = 5
	// The pause between checks doubles when one answers and halves when not, so
	// that a book full of dead is cleared in a minute or two.
	checkFirst = 20 * time.Second
	checkLeast = time.Second
	checkMost  = time.Minute
	// lostEvery bounds the attempts at lost addresses (threats T13: one dial per
	// two seconds).
	lostEvery = 2 * time.Second
)

type shuffling struct {
	nextWalk time.Time
	walks    int
	asked    bool // a walk was sent whose reply has not come

	nextCheck time.Time
	gap       time.Duration
	lostAt    time.Time // the next attempt at a lost address may be made
	checks    []check   // under way
}

// A check is a known or lost node that was asked for a sign of life.
type check struct {
	id        peer.ID
	at        time.Time
	neighbour bool // it was one, and was lost
}

// shuffle sends what is due.
func (s *State) shuffle(now time.Time) {
	sh := &s.shuffling
	for _, c := range slices.Clone(sh.checks) {
		if now.Sub(c.at) >= askTimeout {
			s.checkFailed(now, c.id)
		}
	}
	if s.Degree() == 0 || s.cfg.Min == 0 {
		return // who is alone asks everybody anyway, who wants nobody no one
	}
	if sh.nextCheck.IsZero() {
		sh.nextCheck = now.Add(s.vary(sh.gap))
	}
	if !now.Before(sh.nextWalk) {
		pause := shuffleInterval
		if sh.walks++; sh.walks < shufflesSoon {
			pause = shuffleSoon
		}
		sh.nextWalk = now.Add(s.vary(pause))
		if to := s.neighbour(); to != nil {
			sh.asked = true
			s.send(to.Contact, Shuffle{
				Path: []peer.ID{s.cfg.Self}, TTL: walkTTL, Tag: s.told(), Origin: s.contact(), Contacts: s.some(shuffleSize, to.ID),
			})
		}
	}
	if !now.Before(sh.nextCheck) && len(sh.checks) < maxDials/2 {
		sh.nextCheck = now.Add(s.vary(sh.gap))
		if e := s.book.stalest(s.unlinked); e != nil {
			e.checked = now
			s.check(now, e)
		}
	}
	if e := s.book.dueLost(s.unlinked); e != nil && !now.Before(e.retryAt) && !now.Before(sh.lostAt) && len(sh.checks) < maxDials {
		sh.lostAt = now.Add(lostEvery)
		s.check(now, e)
	}
}

func (s *State) shuffleDue() time.Time {
	sh := &s.shuffling
	var t time.Time
	for _, c := range sh.checks {
		t = earlier(t, c.at.Add(askTimeout))
	}
	if s.Degree() == 0 || s.cfg.Min == 0 {
		return t
	}
	t = earlier(t, sh.nextWalk)
	if len(sh.checks) < maxDials/2 && len(s.book.known) > 0 {
		t = earlier(t, sh.nextCheck)
	}
	if e := s.book.dueLost(s.unlinked); e != nil && len(sh.checks) < maxDials {
		if at := e.retryAt; at.After(sh.lostAt) {
			t = earlier(t, at)
		} else {
			t = earlier(t, sh.lostAt)
		}
	}
	return t
}

// unlinked tells whether there is no link to e and nothing under way.
func (s *State) unlinked(e *entry) bool { return s.link(e.ID) == nil && s.checking(e.ID) < 0 }

func (s *State) checking(id peer.ID) int {
	return slices.IndexFunc(s.shuffling.checks, func(c check) bool { return c.id == id })
}

// check asks a node directly, by a shuffle of no hops.
func (s *State) check(now time.Time, e *entry) {
	e.tried = now
	s.shuffling.checks = append(s.shuffling.checks, check{e.ID, now, e.neighbour && e.fails > 0})
	s.send(e.Contact, Shuffle{
		Path: []peer.ID{s.cfg.Self}, Tag: s.told(), Origin: s.contact(), Contacts: s.some(shuffleSize, e.ID),
	})
}

// checkFailed reports whether a check of id was under way, and ends it.
func (s *State) checkFailed(now time.Time, id peer.ID) bool {
	i := s.checking(id)
	if i < 0 {
		return false
	}
	s.shuffling.checks = slices.Delete(s.shuffling.checks, i, i+1)
	if s.book.knows(id) != nil { // that a lost one is still lost says nothing of the others
		s.shuffling.gap = max(s.shuffling.gap/2, checkLeast)
		s.shuffling.nextCheck = earlier(s.shuffling.nextCheck, now.Add(s.shuffling.gap))
	}
	s.book.failed(id, now, s.vary)
	return true
}

// shuffled handles a Shuffle: passes it on, or answers it.
func (s *State) shuffled(now time.Time, from Contact, l *link, m Shuffle) {
	if !s.goodPath(m.Path, from.ID) {
		return
	}
	linked := l != nil && l.phase == up
	if linked && m.TTL > 0 && l.allow(now, 1) {
		if next := s.neighbour(m.Path...); next != nil {
			m.Path, m.TTL = append(slices.Clone(m.Path), s.cfg.Self), m.TTL-1
			s.send(next.Contact, m)
			return
		}
	}
	if !linked && len(m.Path) > 1 {
		return // a walk goes over links
	}
	reply := ShuffleReply{Path: m.Path[:len(m.Path)-1], Tag: s.told(), Contacts: s.some(shuffleSize, m.Path[0])}
	s.send(from, reply)
	if m.Origin.ID == m.Path[0] {
		if len(m.Path) == 1 {
			m.Origin.Addrs = from.Addrs
			s.book.heard(m.Origin, now)
			s.met(now, m.Origin, m.Tag)
		} else {
			s.book.learn(m.Origin) // whose walk came over links, so it is in our part
		}
	}
	s.contacts(m.Contacts)
}

func (s *State) shuffleReplied(now time.Time, from Contact, l *link, m ShuffleReply) {
	if len(m.Path) > 0 {
		if next := s.back(l, m.Path); next != nil {
			m.Path = m.Path[:len(m.Path)-1]
			s.send(next.Contact, m)
		}
		return
	}
	if i := s.checking(from.ID); i >= 0 {
		c := s.shuffling.checks[i]
		s.shuffling.checks = slices.Delete(s.shuffling.checks, i, i+1)
		known := s.book.knows(from.ID) != nil
		s.book.heard(from, now)
		if known {
			s.shuffling.gap = min(s.shuffling.gap*2, checkMost)
		}
		e := s.book.get(from.ID)
		switch {
		case e == nil || l != nil:
		case s.foreign(m.Tag):
			s.met(now, e.Contact, m.Tag)
		case c.neighbour && s.room(0) && s.usable(now)(e):
			s.ask(now, e.Contact, false).keep = true
		}
	} else if l == nil || !s.shuffling.asked {
		return // nobody asked for it
	} else {
		s.shuffling.asked = false
	}
	s.contacts(m.Contacts)
}

// met asks a node for a link which turned out to be in another part of the
// network: that joins the two, so it may not be refused.
func (s *State) met(now time.Time, c Contact, t Tag) {
	if !s.foreign(t) || s.link(c.ID) != nil || s.apart(now, c.ID) || s.cfg.Max == 0 || s.cfg.Min == 0 || !s.room(over) || s.count(asking) >= maxDials {
		return
	}
	l := s.request(now, c, Request{Urgent: true})
	l.keep, l.beyond = true, true
}

// goodPath tells whether a message that came from from by that path is as it should
// be: not too long, and not from us.
func (s *State) goodPath(path []peer.ID, from peer.ID) bool {
	return len(path) > 0 && len(path) <= maxPath && path[len(path)-1] == from && !slices.Contains(path, s.cfg.Self)
}

// back returns the next node on the way back of an answer that came from a
// neighbour: the last of its path, which was a neighbour when the question came from
// there. It returns nil if the answer cannot be passed on.
func (s *State) back(from *link, path []peer.ID) *link {
	if from == nil || from.phase != up {
		return nil
	}
	next := s.link(path[len(path)-1])
	if next == nil || next.phase != up || next == from {
		return nil
	}
	return next
}
