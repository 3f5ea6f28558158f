package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file finds the addresses of nodes that are not neighbors. Each node knows up to 128
// addresses, so one of a few random walks soon meets a node that knows the address.

const (
	// maxTTL bounds the number of hops that a message travels over random links.
	maxTTL = 16
	// maxPath bounds the list in a message of the nodes that the message has passed.
	maxPath = maxTTL + 1
	// After an answer to a search for a node's address, the search pauses for answerPause. In
	// that time, the caller tries the address in the answer, which may be out of date.
	answerPause = 3 * time.Second
	// maxSearches is the number of searches for the addresses of nodes that run at once; others
	// wait.
	maxSearches = 64
)

// rounds lists the rounds of a search for the address of a node. Each round sends several
// random walks with a given number of hops. The first rounds are cheap. All rounds together ask
// nearly all nodes of a network of several thousand.
var rounds = []struct {
	walks, ttl int
	wait       time.Duration // the time before the next round
}{
	{3, 4, 750 * time.Millisecond},
	{4, 8, 1250 * time.Millisecond},
	{8, 16, 2 * time.Second},
	{8, 16, 2 * time.Second},
	{8, 16, 2 * time.Second},
}

// findState is a search for the address of the node target. It is under way since the driver
// asked for it with the input Find.
type findState struct {
	target peer.ID
	token  uint64
	round  int       // the index in the list rounds of the round that begins next
	next   time.Time // when the next round begins
}

// startFind answers the input in, which asks for the address of a node, with the address in
// this node's book, if there is one, and begins a search in the network. It begins no search
// for a neighbor or for this node itself, or if this node has no links.
func (s *State) startFind(now time.Time, in Find) {
	if l := s.link(in.Target); l != nil && l.phase == linked {
		s.emit(Located{Token: in.Token, Contact: l.Contact, Done: true})
		return
	}
	e := s.book.find(in.Target)
	if in.Target == s.cfg.Self || e == nil && s.Degree() == 0 {
		s.emit(Located{Token: in.Token, Done: true})
		return // a node does not search for itself; without links it cannot ask anybody
	}
	if s.Degree() == 0 {
		// Without links this node can ask nobody, so the address in its book is the only answer
		// to the search.
		s.emit(Located{Token: in.Token, Contact: e.Contact, Done: true})
		return
	}
	x := &findState{target: in.Target, token: in.Token, next: now}
	if e != nil {
		s.emit(Located{Token: in.Token, Contact: e.Contact})
		// If no attempt to reach the node has failed, its address in the book probably works.
		// So the search begins only after answerPause.
		if e.fails == 0 {
			x.next = now.Add(answerPause)
		}
	}
	s.searches = append(s.searches, x)
}

// endFind removes the search with that token.
func (s *State) endFind(token uint64) {
	s.searches = slices.DeleteFunc(s.searches, func(x *findState) bool { return x.token == token })
}

// sendLookups sends the random walks of each search for an address whose next round is due at
// the time now.
func (s *State) sendLookups(now time.Time) {
	for _, x := range slices.Clone(s.activeSearches()) {
		if now.Before(x.next) {
			continue
		}
		if x.round == len(rounds) { // all rounds were in vain
			s.endFind(x.token)
			s.emit(Located{Token: x.token, Done: true})
			continue
		}
		r := rounds[x.round]
		x.round++
		x.next = now.Add(r.wait)
		m := Lookup{Path: []peer.ID{s.cfg.Self}, TTL: r.ttl, Token: x.token, Target: x.target, Origin: s.ownContact()}
		var neighbors []*link
		for _, l := range s.links {
			if l.phase == linked {
				neighbors = append(neighbors, l)
			}
		}
		s.cfg.Rand.Shuffle(len(neighbors), func(i, j int) { neighbors[i], neighbors[j] = neighbors[j], neighbors[i] })
		// A neighbor gets at most two walks of one round, since it limits the walks that it
		// passes on.
		for i := range min(r.walks, len(neighbors)*2) {
			s.send(neighbors[i%len(neighbors)].Contact, m)
		}
	}
}

// activeSearches returns the searches for addresses that may run now, which are the oldest
// ones; later ones wait for their turn.
func (s *State) activeSearches() []*findState { return s.searches[:min(len(s.searches), maxSearches)] }

// lookupsDue returns the time at which sendLookups has to be called next. The zero time means
// never.
func (s *State) lookupsDue() (t time.Time) {
	for _, x := range s.activeSearches() {
		t = earlier(t, x.next)
	}
	return t
}

// handleLookup handles the message m, with which a node searches for the address of a target.
// If this node is the target or knows its address, it answers; otherwise it passes m on. l is
// the link over which m came, or nil.
func (s *State) handleLookup(now time.Time, l *link, m Lookup) {
	// A lookup, which searches for the address of a node, travels over links only. The node
	// that searches must be the first node of the path in the message, since otherwise anybody
	// could make the target dial a third node.
	if l == nil || l.phase != linked || !s.validPath(m.Path, l.ID) || m.Origin.ID != m.Path[0] || !l.allowWalk(now, lookupCost) {
		return
	}
	answer := func(c Contact) { s.send(l.Contact, Found{Path: m.Path[:len(m.Path)-1], Token: m.Token, Target: c}) }
	if m.Target == s.cfg.Self {
		answer(s.ownContact())
		// This node dials the node that searches for it, in case that node cannot dial this
		// one.
		s.emit(DialBack{To: m.Origin})
		return
	}
	pass := func(to *link) {
		m.Path, m.TTL = append(slices.Clone(m.Path), s.cfg.Self), m.TTL-1
		s.send(to.Contact, m)
	}
	if t := s.link(m.Target); t != nil && t.phase == linked {
		// This neighbor is the target: it knows its own address best, and can dial the
		// searching node.
		pass(t)
		return
	}
	if e := s.book.findKnown(m.Target); e != nil && len(e.Record) > 0 {
		answer(e.Contact)
		return
	}
	// A lookup that has no hops left, or that all neighbors of this node have already seen, is
	// dropped. The node that searches sends other lookups in its next round.
	if next := s.randomNeighbor(m.Path...); next != nil && m.TTL > 1 {
		pass(next)
	}
}

// handleFound handles the answer m to a lookup, a search for the address of a node. If another
// node sent the lookup, handleFound passes m back along the path of the lookup. If this node
// did, it reports the answer to the driver. l is the link over which m came.
func (s *State) handleFound(now time.Time, l *link, m Found) {
	if len(m.Path) > 0 {
		if next := s.returnHop(l, m.Path); next != nil {
			m.Path = m.Path[:len(m.Path)-1]
			s.send(next.Contact, m)
		}
		return
	}
	for _, x := range s.searches {
		// An answer counts only if this node searches for that address; otherwise anybody could
		// fill this node's book.
		if x.token == m.Token && x.target == m.Target.ID {
			x.next = now.Add(answerPause)
			s.book.learn(m.Target)
			s.emit(Located{Token: x.token, Contact: m.Target})
			return
		}
	}
}
