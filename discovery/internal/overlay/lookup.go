package overlay

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// This file finds the addresses of nodes that are not neighbors. Each node knows up to 128
// addresses, so one of a few random walks soon meets a node that knows the address.

const (
	// maxTTL bounds the number of hops of a walk.
	maxTTL = 16
	// maxPath bounds the number of nodes in the path of a message.
	maxPath = maxTTL + 1
	// answerPause is the time after an answer before a search goes on. The caller uses it
	// to try the address in the answer, which may be out of date.
	answerPause = 3 * time.Second
	// maxSearches is the number of searches that run at once; others wait.
	maxSearches = 64
)

// rounds lists the rounds of a search, each with its number of walks and the hops of each
// walk. The first rounds are cheap. All together ask nearly all of several thousand nodes.
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

// findState is a search that is under way, begun by a Find.
type findState struct {
	target peer.ID
	token  uint64
	round  int       // the index in rounds of the next round
	next   time.Time // when the next round begins
}

// startFind answers a Find with the address in this node's book, if there is one, and
// begins a search in the network.
func (s *State) startFind(now time.Time, in Find) {
	if l := s.link(in.Target); l != nil && l.phase == linked {
		s.emit(Located{Token: in.Token, Contact: l.Contact, Done: true})
		return
	}
	e := s.book.find(in.Target)
	if in.Target == s.cfg.Self || e == nil && s.Degree() == 0 {
		s.emit(Located{Token: in.Token, Done: true})
		return // a node does not look for itself; without links it cannot ask anybody
	}
	if s.Degree() == 0 {
		// Without links there is nobody to ask, so the address in the book is the only
		// answer.
		s.emit(Located{Token: in.Token, Contact: e.Contact, Done: true})
		return
	}
	x := &findState{target: in.Target, token: in.Token, next: now}
	if e != nil {
		s.emit(Located{Token: in.Token, Contact: e.Contact})
		// If the node did not fail before, its address probably works, so the search
		// begins only after answerPause.
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

// sendLookups sends the walks of each search whose next round is due.
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
		// A neighbor gets at most two walks, since it limits the walks that it passes on.
		for i := range min(r.walks, len(neighbors)*2) {
			s.send(neighbors[i%len(neighbors)].Contact, m)
		}
	}
}

// activeSearches returns the searches that may run now; later ones wait for their turn.
func (s *State) activeSearches() []*findState { return s.searches[:min(len(s.searches), maxSearches)] }

// lookupsDue returns when sendLookups has to act next; zero means never.
func (s *State) lookupsDue() (t time.Time) {
	for _, x := range s.activeSearches() {
		t = earlier(t, x.next)
	}
	return t
}

// handleLookup answers a Lookup if this node is the target or knows its address, and
// passes it on otherwise.
func (s *State) handleLookup(now time.Time, l *link, m Lookup) {
	// A lookup travels over links only. Its origin must be the first node of its path,
	// since otherwise anybody could make the target dial a third node.
	if l == nil || l.phase != linked || !s.validPath(m.Path, l.ID) || m.Origin.ID != m.Path[0] || !l.allowWalk(now, lookupCost) {
		return
	}
	answer := func(c Contact) { s.send(l.Contact, Found{Path: m.Path[:len(m.Path)-1], Token: m.Token, Target: c}) }
	if m.Target == s.cfg.Self {
		answer(s.ownContact())
		s.emit(DialBack{To: m.Origin}) // in case the origin cannot dial this node
		return
	}
	pass := func(to *link) {
		m.Path, m.TTL = append(slices.Clone(m.Path), s.cfg.Self), m.TTL-1
		s.send(to.Contact, m)
	}
	if t := s.link(m.Target); t != nil && t.phase == linked {
		pass(t) // the target knows its own address best, and can dial the origin
		return
	}
	if e := s.book.findKnown(m.Target); e != nil && len(e.Record) > 0 {
		answer(e.Contact)
		return
	}
	// At the end of its hops, or when all neighbors have seen it, a lookup is dropped. The
	// origin sends others in its next round.
	if next := s.randomNeighbor(m.Path...); next != nil && m.TTL > 1 {
		pass(next)
	}
}

// handleFound passes an answer back along the path of its Lookup. At the origin of that
// Lookup, it reports the answer to the driver.
func (s *State) handleFound(now time.Time, l *link, m Found) {
	if len(m.Path) > 0 {
		if next := s.returnHop(l, m.Path); next != nil {
			m.Path = m.Path[:len(m.Path)-1]
			s.send(next.Contact, m)
		}
		return
	}
	for _, x := range s.searches {
		// Only an answer to a question of this node counts; otherwise anybody could fill
		// its book.
		if x.token == m.Token && x.target == m.Target.ID {
			x.next = now.Add(answerPause)
			s.book.learn(m.Target)
			s.emit(Located{Token: x.token, Contact: m.Target})
			return
		}
	}
}
