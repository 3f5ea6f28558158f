// Package repair decides whom to ask for events that are missing, and when
// nothing is left but to give them up. It performs no I/O and reads no clock.
//
// What is missing for [Config.Grace] is asked for, one neighbour after the other:
// first those that say they have it, then the others, which ask theirs once; the
// others only if it is certain that it was sent. When
// all have answered that they do not have it, it is given up, provided that one
// of them was there when it was sent: that others never heard of it proves nothing.
package repair

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the bounds. Zero means the default in brackets.
type Config struct {
	Grace         time.Duration // how long something is missing before it is asked for [150 ms]
	Pause         time.Duration // between two rounds of asking everybody [500 ms]
	GiveUpTimeout time.Duration // how long something is missing before it is given up [2 s]
	// UnseenTimeout is the same if nobody who was asked was there [30 s].
	UnseenTimeout time.Duration
	// MaxAsks bounds the questions under way [16, or MaxPerPeer for each neighbour, so
	// that none can keep others from being asked], MaxPerPeer those to one neighbour [4].
	MaxAsks    int
	MaxPerPeer int
	// MaxClaims bounds what is remembered of a neighbour's word [10,000 sessions].
	MaxClaims int
}

func (c Config) withDefaults() Config {
	c.Grace = cmp.Or(c.Grace, 150*time.Millisecond)
	c.Pause = cmp.Or(c.Pause, 500*time.Millisecond)
	c.GiveUpTimeout = cmp.Or(c.GiveUpTimeout, 2*time.Second)
	c.UnseenTimeout = cmp.Or(c.UnseenTimeout, 30*time.Second)
	c.MaxAsks = cmp.Or(c.MaxAsks, 16)
	c.MaxPerPeer = cmp.Or(c.MaxPerPeer, 4)
	c.MaxClaims = cmp.Or(c.MaxClaims, 10_000)
	return c
}

// A Subject names a session of a sender.
type Subject struct {
	Sender  peer.ID
	Session order.SessionKey
}

// A Claim is a neighbour's word about a session: it has received, or given up,
// everything from Begin to Next, and still has what begins at Floor (0: nothing).
type Claim struct {
	Session            order.SessionKey
	Begin, Next, Floor uint64
	Greeting           bool // it was part of its greeting
}

// covers reports whether what is needed was received or given up.
func (c Claim) covers(n *openHole) bool {
	return c.Session == n.Session && c.Begin <= n.from && n.from < c.Next
}

// An Ask is a question to a neighbour for the events [From, To).
type Ask struct {
	Peer peer.ID
	Subject
	From, To uint64
	// Past says that the events are of before our time: they are kept for others.
	Past bool
}

// An Outcome says what came of an Ask.
type Outcome int

const (
	Found    Outcome = iota // some of it came; there may be more
	NotFound                // the neighbour does not have it
	Failed                  // no answer
)

// A Planner is not safe for concurrent use.
type Planner struct {
	cfg         Config
	neighbors   map[peer.ID]*neighbour
	holes       map[Subject]*openHole
	pasts       []*past
	asks        int             // under way
	asksByPeer  map[peer.ID]int // the same by whom is asked, neighbour still or not
	due         time.Time       // Advance has nothing to do before; zero: never
	pausedUntil time.Time       // it does nothing before, however much there is to do
	pastDue     time.Time       // when a fill may be asked for that failed; zero: never
}

type neighbour struct {
	claims map[peer.ID]Claim
}

// openHole is the first gap of a session.
type openHole struct {
	Subject
	from, to   uint64
	hearsay    bool
	since      time.Time
	asking     peer.ID              // who is being asked
	renewed    bool                 // who has said meanwhile that it has it
	tried      map[peer.ID]struct{} // in this round
	failed     bool                 // somebody did not answer in this round
	nextRound  time.Time            // when the next round may begin
	progressed bool                 // the last question brought something
}

// past is what happened before our time.
type past struct {
	Subject
	from, to uint64
	peer     peer.ID
	asking   bool
	failed   int       // questions in a row
	nextTry  time.Time // when the next may be asked
}

// maxFailed is after how many questions that failed a fill is given up.
const maxFailed = 3

// With more than manyNeeds sessions that lack something, which lies can bring
// about, they are looked at once in each manyPause only.
const (
	manyHoles = 64
	manyPause = 10 * time.Millisecond
)

// maxPasts bounds the sessions that wait to be filled.
const maxPasts = 10_000

// New returns a core without neighbours.
func New(cfg Config) *Planner {
	return &Planner{
		cfg:        cfg.withDefaults(),
		neighbors:  make(map[peer.ID]*neighbour),
		holes:      make(map[Subject]*openHole),
		asksByPeer: make(map[peer.ID]int),
	}
}

// AddNeighbor adds a neighbour that can be asked.
func (c *Planner) AddNeighbor(id peer.ID) {
	if c.neighbors[id] == nil {
		c.neighbors[id] = &neighbour{claims: make(map[peer.ID]Claim)}
	}
}

// OtherNeighbors returns the neighbours besides id.
func (c *Planner) OtherNeighbors(id peer.ID) (list []peer.ID) {
	for other := range c.neighbors {
		if other != id {
			list = append(list, other)
		}
	}
	return list
}

// RemoveNeighbor removes a neighbour. Its questions still have to be answered.
func (c *Planner) RemoveNeighbor(id peer.ID) {
	delete(c.neighbors, id)
	c.pasts = slices.DeleteFunc(c.pasts, func(f *past) bool { return f.peer == id && !f.asking })
}

// ReceiveClaim takes a neighbour's word about a sender.
func (c *Planner) ReceiveClaim(id, sender peer.ID, claim Claim) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	old, known := n.claims[sender]
	if known && old.Session.Compare(claim.Session) > 0 || !known && len(n.claims) >= c.cfg.MaxClaims {
		return
	}
	if known && old.Session == claim.Session {
		// Its words may overtake each other. When it finds that it begins lower,
		// it has less at first.
		if claim.Begin > old.Begin {
			claim.Begin, claim.Next = old.Begin, old.Next
		} else if claim.Begin == old.Begin {
			claim.Next = max(claim.Next, old.Next)
		}
		claim.Greeting = claim.Greeting || old.Greeting
	}
	n.claims[sender] = claim
	if need := c.holes[Subject{sender, claim.Session}]; need != nil && claim.covers(need) && !old.covers(need) {
		// What it did not have when it was asked it may have now.
		need.renewed = need.renewed || need.asking == id
		delete(need.tried, id)
		need.nextRound = time.Time{}
		c.schedule(need)
	}
}

// HasGreetedWith reports whether a neighbour's greeting had a session.
func (c *Planner) HasGreetedWith(id peer.ID, key Subject) bool {
	n := c.neighbors[id]
	if n == nil {
		return false
	}
	claim, ok := n.claims[key.Sender]
	return ok && claim.Session == key.Session && claim.Greeting
}

// FurthestClaim returns the furthest that a neighbour claims of a session; zero: nobody
// knows it.
func (c *Planner) FurthestClaim(key Subject) (next uint64) {
	for _, n := range c.neighbors {
		if claim, ok := n.claims[key.Sender]; ok && claim.Session == key.Session {
			next = max(next, claim.Next)
		}
	}
	return next
}

// SetHole says what is missing of a sender's session first. What is missing by hearsay
// is only asked of those who claim to have it and of the sender: who lies about it
// does not make us bother the others.
func (c *Planner) SetHole(sender peer.ID, g order.Hole) {
	key := Subject{sender, g.Session}
	n := c.holes[key]
	if n == nil {
		n = &openHole{Subject: key, from: g.From, tried: make(map[peer.ID]struct{})}
		c.holes[key] = n
	}
	if g.From != n.from || n.hearsay && !g.Hearsay {
		// It got on, so whoever was asked before may be asked for the rest.
		n.from = g.From
		clear(n.tried)
		n.failed = false
		n.nextRound = time.Time{}
	}
	n.to, n.since, n.hearsay = g.To, g.Since, g.Hearsay
	c.schedule(n)
}

// schedule makes Advance look at a need in time.
func (c *Planner) schedule(n *openHole) {
	if n.asking == "" {
		c.due = order.Earlier(c.due, n.due(&c.cfg))
	}
}

// ClearHole says that nothing is missing of a session any more.
func (c *Planner) ClearHole(key Subject) {
	if n := c.holes[key]; n != nil && n.asking == "" {
		delete(c.holes, key)
	} else if n != nil {
		n.to = n.from // until the answer comes
	}
}

// HoleCount returns how many sessions lack something.
func (c *Planner) HoleCount() int { return len(c.holes) }

// FetchPast says that a neighbour has events of a session from before our time.
func (c *Planner) FetchPast(id peer.ID, key Subject, from, to uint64) {
	if from < to && c.neighbors[id] != nil && len(c.pasts) < maxPasts {
		c.pasts = append(c.pasts, &past{Subject: key, from: from, to: to, peer: id})
	}
}

func (c *Planner) maxAsks() int { return max(c.cfg.MaxAsks, c.cfg.MaxPerPeer*len(c.neighbors)) }

// Advance returns whom to ask for what at now, and what is to be given up: the
// events from From to To, of which Peer is nobody. Every question has to be
// answered by Answered.
func (c *Planner) Advance(now time.Time) (asks, given []Ask) {
	asks, given = c.advanceHoles(now)
	c.pastDue = time.Time{}
	for i := 0; i < len(c.pasts) && c.asks < c.maxAsks(); i++ {
		f := c.pasts[i]
		if f.nextTry.After(now) {
			c.pastDue = order.Earlier(c.pastDue, f.nextTry)
		} else if !f.asking && c.neighbors[f.peer] != nil && c.asksByPeer[f.peer] == 0 {
			f.asking = true
			asks = append(asks, c.countAsk(Ask{Peer: f.peer, Subject: f.Subject, From: f.from, To: f.to, Past: true}))
		}
	}
	return asks, given
}

// advanceHoles is Advance for what is missing since we are here.
func (c *Planner) advanceHoles(now time.Time) (asks, given []Ask) {
	if c.due.IsZero() || c.due.After(now) || c.pausedUntil.After(now) || c.asks >= c.maxAsks() {
		return nil, nil
	}
	c.due = time.Time{}
	if len(c.holes) > manyHoles {
		c.pausedUntil = now.Add(manyPause)
	}
	for _, n := range c.holes {
		if n.asking == "" && !now.Before(n.due(&c.cfg)) && c.asks < c.maxAsks() {
			if a, ok := c.advanceHole(now, n); ok && a.Peer == "" {
				given = append(given, a)
			} else if ok {
				asks = append(asks, c.countAsk(a))
			}
		}
		c.schedule(n)
	}
	return asks, given
}

// advanceHole returns whom to ask, or what to give up, if either is to be done.
func (c *Planner) advanceHole(now time.Time, n *openHole) (a Ask, ok bool) {
	a = Ask{Subject: n.Subject, From: n.from, To: n.to}
	id, left := c.chooseNeighbor(n)
	switch {
	case left && id == "":
		n.nextRound = now.Add(c.cfg.Grace) // all are busy
		return a, false
	case left:
		n.asking, n.renewed = id, false
		a.Peer = id
		return a, true
	}
	ok = c.canGiveUp(n, now)
	clear(n.tried)
	n.failed = false
	n.nextRound = now.Add(c.cfg.Pause)
	return a, ok
}

func (c *Planner) countAsk(a Ask) Ask {
	c.asks++
	c.asksByPeer[a.Peer]++
	return a
}

// due returns when a need has to be looked at. What follows an event that had to
// be asked for does not have the grace to come by itself.
func (n *openHole) due(cfg *Config) time.Time {
	at := n.since
	if !n.progressed {
		at = at.Add(cfg.Grace)
	}
	if at.After(n.nextRound) {
		return at
	}
	return n.nextRound
}

// chooseNeighbor returns whom to ask next; nobody if all are busy. ok is false when all
// were asked.
func (c *Planner) chooseNeighbor(n *openHole) (best peer.ID, ok bool) {
	rank := 0
	for id, nb := range c.neighbors {
		if _, tried := n.tried[id]; tried {
			continue
		}
		r := 1
		switch claim := nb.claims[n.Sender]; {
		case claim.Session != n.Session || claim.Next <= n.from:
			if id == n.Sender {
				r = 2
			} else if n.hearsay {
				continue
			}
		case claim.Floor == 0 || claim.Floor > n.from:
			r = 3
		default:
			r = 4
		}
		ok = true
		if c.asksByPeer[id] >= c.cfg.MaxPerPeer {
			continue
		}
		if r > rank || r == rank && id < best {
			best, rank = id, r
		}
	}
	return best, ok || len(c.neighbors) == 0
}

// canGiveUp reports whether a need can be given up when all were asked.
func (c *Planner) canGiveUp(n *openHole, now time.Time) bool {
	missing := now.Sub(n.since)
	if n.failed || missing < c.cfg.GiveUpTimeout {
		return false
	}
	for _, nb := range c.neighbors {
		if claim := nb.claims[n.Sender]; claim.covers(n) {
			return true
		}
	}
	return missing >= c.cfg.UnseenTimeout
}

// FinishAsk says what came of a question. What it brought has to be known before,
// by Need.
func (c *Planner) FinishAsk(now time.Time, a Ask, got uint64, answer Outcome) {
	c.asks--
	c.due = order.Earlier(c.due, now) // there is room for a question
	if c.asksByPeer[a.Peer]--; c.asksByPeer[a.Peer] == 0 {
		delete(c.asksByPeer, a.Peer)
	}
	if a.Past {
		c.finishPast(now, a, got, answer)
		return
	}
	n := c.holes[a.Subject]
	if n == nil || n.asking != a.Peer {
		return
	}
	n.asking = ""
	n.progressed = answer == Found && (n.from != a.From || n.to < a.To)
	if n.from >= n.to {
		delete(c.holes, a.Subject)
		return
	}
	// Of what is missing now nothing is known if it was asked for something else.
	if !n.renewed && n.from == a.From && (answer != Found || n.to >= a.To) {
		n.tried[a.Peer] = struct{}{}
		n.failed = n.failed || answer == Failed
	}
}

// finishPast goes on with a fill, from got on, while it brings something.
func (c *Planner) finishPast(now time.Time, a Ask, got uint64, answer Outcome) {
	i := slices.IndexFunc(c.pasts, func(f *past) bool { return f.asking && f.peer == a.Peer && f.Subject == a.Subject })
	if i < 0 {
		return
	}
	f := c.pasts[i]
	f.asking = false
	if answer == Failed {
		f.failed++
		f.nextTry = now.Add(c.cfg.Pause)
	} else {
		f.failed = 0
	}
	f.from = max(f.from, got)
	if answer == NotFound || f.failed == maxFailed || answer == Found && got <= a.From || f.from >= f.to || c.neighbors[a.Peer] == nil {
		c.pasts = slices.Delete(c.pasts, i, i+1)
	}
}

// Next returns when to call Advance; zero: not before the next input.
func (c *Planner) Next() time.Time {
	switch {
	case c.asks >= c.maxAsks() || len(c.neighbors) == 0:
		return time.Time{}
	case c.due.IsZero():
		return c.pastDue
	case c.due.Before(c.pausedUntil):
		return order.Earlier(c.pastDue, c.pausedUntil)
	}
	return order.Earlier(c.pastDue, c.due)
}
