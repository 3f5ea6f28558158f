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
	Grace    time.Duration // how long something is missing before it is asked for [150 ms]
	Pause    time.Duration // between two rounds of asking everybody [500 ms]
	Patience time.Duration // how long something is missing before it is given up [2 s]
	// Doubt is the same if nobody who was asked was there [30 s].
	Doubt time.Duration
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
	c.Patience = cmp.Or(c.Patience, 2*time.Second)
	c.Doubt = cmp.Or(c.Doubt, 30*time.Second)
	c.MaxAsks = cmp.Or(c.MaxAsks, 16)
	c.MaxPerPeer = cmp.Or(c.MaxPerPeer, 4)
	c.MaxClaims = cmp.Or(c.MaxClaims, 10_000)
	return c
}

// A Key names a session of a sender.
type Key struct {
	Sender  peer.ID
	Session order.Session
}

// A Claim is a neighbour's word about a session: it has received, or given up,
// everything from Begin to Next, and still has what begins at Floor (0: nothing).
type Claim struct {
	Session            order.Session
	Begin, Next, Floor uint64
	Greeting           bool // it was part of its greeting
}

// covers reports whether what is needed was received or given up.
func (c Claim) covers(n *need) bool {
	return c.Session == n.Session && c.Begin <= n.from && n.from < c.Next
}

// An Ask is a question to a neighbour for the events [From, To).
type Ask struct {
	Peer peer.ID
	Key
	From, To uint64
	// Fill says that the events are of before our time: they are kept for others.
	Fill bool
}

// An Answer says what came of an Ask.
type Answer int

const (
	Got     Answer = iota // some of it came; there may be more
	Nothing               // the neighbour does not have it
	Failed                // no answer
)

// A Core is not safe for concurrent use.
type Core struct {
	cfg        Config
	neighbours map[peer.ID]*neighbour
	needs      map[Key]*need
	fills      []*fill
	asks       int             // under way
	asked      map[peer.ID]int // the same by whom is asked, neighbour still or not
	due        time.Time       // Advance has nothing to do before; zero: never
	rested     time.Time       // it does nothing before, however much there is to do
	refill     time.Time       // when a fill may be asked for that failed; zero: never
}

type neighbour struct {
	claims map[peer.ID]Claim
}

// need is the first gap of a session.
type need struct {
	Key
	from, to uint64
	hearsay  bool
	since    time.Time
	asking   peer.ID              // who is being asked
	renewed  bool                 // who has said meanwhile that it has it
	tried    map[peer.ID]struct{} // in this round
	failed   bool                 // somebody did not answer in this round
	again    time.Time            // when the next round may begin
	brought  bool                 // the last question brought something
}

// fill is what happened before our time.
type fill struct {
	Key
	from, to uint64
	peer     peer.ID
	asking   bool
	failed   int       // questions in a row
	again    time.Time // when the next may be asked
}

// maxFailed is after how many questions that failed a fill is given up.
const maxFailed = 3

// With more than manyNeeds sessions that lack something, which lies can bring
// about, they are looked at once in each manyPause only.
const (
	manyNeeds = 64
	manyPause = 10 * time.Millisecond
)

// maxFills bounds the sessions that wait to be filled.
const maxFills = 10_000

// New returns a core without neighbours.
func New(cfg Config) *Core {
	return &Core{
		cfg:        cfg.withDefaults(),
		neighbours: make(map[peer.ID]*neighbour),
		needs:      make(map[Key]*need),
		asked:      make(map[peer.ID]int),
	}
}

// Join adds a neighbour that can be asked.
func (c *Core) Join(id peer.ID) {
	if c.neighbours[id] == nil {
		c.neighbours[id] = &neighbour{claims: make(map[peer.ID]Claim)}
	}
}

// Others returns the neighbours besides id.
func (c *Core) Others(id peer.ID) (list []peer.ID) {
	for other := range c.neighbours {
		if other != id {
			list = append(list, other)
		}
	}
	return list
}

// Leave removes a neighbour. Its questions still have to be answered.
func (c *Core) Leave(id peer.ID) {
	delete(c.neighbours, id)
	c.fills = slices.DeleteFunc(c.fills, func(f *fill) bool { return f.peer == id && !f.asking })
}

// Claim takes a neighbour's word about a sender.
func (c *Core) Claim(id, sender peer.ID, claim Claim) {
	n := c.neighbours[id]
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
	if need := c.needs[Key{sender, claim.Session}]; need != nil && claim.covers(need) && !old.covers(need) {
		// What it did not have when it was asked it may have now.
		need.renewed = need.renewed || need.asking == id
		delete(need.tried, id)
		need.again = time.Time{}
		c.wake(need)
	}
}

// Greeted reports whether a neighbour's greeting had a session.
func (c *Core) Greeted(id peer.ID, key Key) bool {
	n := c.neighbours[id]
	if n == nil {
		return false
	}
	claim, ok := n.claims[key.Sender]
	return ok && claim.Session == key.Session && claim.Greeting
}

// Claimed returns the furthest that a neighbour claims of a session; zero: nobody
// knows it.
func (c *Core) Claimed(key Key) (next uint64) {
	for _, n := range c.neighbours {
		if claim, ok := n.claims[key.Sender]; ok && claim.Session == key.Session {
			next = max(next, claim.Next)
		}
	}
	return next
}

// Need says what is missing of a sender's session first. What is missing by hearsay
// is only asked of those who claim to have it and of the sender: who lies about it
// does not make us bother the others.
func (c *Core) Need(sender peer.ID, g order.Gap) {
	key := Key{sender, g.Session}
	n := c.needs[key]
	if n == nil {
		n = &need{Key: key, from: g.From, tried: make(map[peer.ID]struct{})}
		c.needs[key] = n
	}
	if g.From != n.from || n.hearsay && !g.Hearsay {
		// It got on, so whoever was asked before may be asked for the rest.
		n.from = g.From
		clear(n.tried)
		n.failed = false
		n.again = time.Time{}
	}
	n.to, n.since, n.hearsay = g.To, g.Since, g.Hearsay
	c.wake(n)
}

// wake makes Advance look at a need in time.
func (c *Core) wake(n *need) {
	if n.asking == "" {
		c.due = order.Earlier(c.due, n.due(&c.cfg))
	}
}

// Needless says that nothing is missing of a session any more.
func (c *Core) Needless(key Key) {
	if n := c.needs[key]; n != nil && n.asking == "" {
		delete(c.needs, key)
	} else if n != nil {
		n.to = n.from // until the answer comes
	}
}

// Needs returns how many sessions lack something.
func (c *Core) Needs() int { return len(c.needs) }

// Fill says that a neighbour has events of a session from before our time.
func (c *Core) Fill(id peer.ID, key Key, from, to uint64) {
	if from < to && c.neighbours[id] != nil && len(c.fills) < maxFills {
		c.fills = append(c.fills, &fill{Key: key, from: from, to: to, peer: id})
	}
}

func (c *Core) maxAsks() int { return max(c.cfg.MaxAsks, c.cfg.MaxPerPeer*len(c.neighbours)) }

// Advance returns whom to ask for what at now, and what is to be given up: the
// events from From to To, of which Peer is nobody. Every question has to be
// answered by Answered.
func (c *Core) Advance(now time.Time) (asks, given []Ask) {
	asks, given = c.advanceNeeds(now)
	c.refill = time.Time{}
	for i := 0; i < len(c.fills) && c.asks < c.maxAsks(); i++ {
		f := c.fills[i]
		if f.again.After(now) {
			c.refill = order.Earlier(c.refill, f.again)
		} else if !f.asking && c.neighbours[f.peer] != nil && c.asked[f.peer] == 0 {
			f.asking = true
			asks = append(asks, c.ask(Ask{Peer: f.peer, Key: f.Key, From: f.from, To: f.to, Fill: true}))
		}
	}
	return asks, given
}

// advanceNeeds is Advance for what is missing since we are here.
func (c *Core) advanceNeeds(now time.Time) (asks, given []Ask) {
	if c.due.IsZero() || c.due.After(now) || c.rested.After(now) || c.asks >= c.maxAsks() {
		return nil, nil
	}
	c.due = time.Time{}
	if len(c.needs) > manyNeeds {
		c.rested = now.Add(manyPause)
	}
	for _, n := range c.needs {
		if n.asking == "" && !now.Before(n.due(&c.cfg)) && c.asks < c.maxAsks() {
			if a, ok := c.advanceNeed(now, n); ok && a.Peer == "" {
				given = append(given, a)
			} else if ok {
				asks = append(asks, c.ask(a))
			}
		}
		c.wake(n)
	}
	return asks, given
}

// advanceNeed returns whom to ask, or what to give up, if either is to be done.
func (c *Core) advanceNeed(now time.Time, n *need) (a Ask, ok bool) {
	a = Ask{Key: n.Key, From: n.from, To: n.to}
	id, left := c.choose(n)
	switch {
	case left && id == "":
		n.again = now.Add(c.cfg.Grace) // all are busy
		return a, false
	case left:
		n.asking, n.renewed = id, false
		a.Peer = id
		return a, true
	}
	ok = c.hopeless(n, now)
	clear(n.tried)
	n.failed = false
	n.again = now.Add(c.cfg.Pause)
	return a, ok
}

func (c *Core) ask(a Ask) Ask {
	c.asks++
	c.asked[a.Peer]++
	return a
}

// due returns when a need has to be looked at. What follows an event that had to
// be asked for does not have the grace to come by itself.
func (n *need) due(cfg *Config) time.Time {
	at := n.since
	if !n.brought {
		at = at.Add(cfg.Grace)
	}
	if at.After(n.again) {
		return at
	}
	return n.again
}

// choose returns whom to ask next; nobody if all are busy. ok is false when all
// were asked.
func (c *Core) choose(n *need) (best peer.ID, ok bool) {
	rank := 0
	for id, nb := range c.neighbours {
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
		if c.asked[id] >= c.cfg.MaxPerPeer {
			continue
		}
		if r > rank || r == rank && id < best {
			best, rank = id, r
		}
	}
	return best, ok || len(c.neighbours) == 0
}

// hopeless reports whether a need can be given up when all were asked.
func (c *Core) hopeless(n *need, now time.Time) bool {
	missing := now.Sub(n.since)
	if n.failed || missing < c.cfg.Patience {
		return false
	}
	for _, nb := range c.neighbours {
		if claim := nb.claims[n.Sender]; claim.covers(n) {
			return true
		}
	}
	return missing >= c.cfg.Doubt
}

// Answered says what came of a question. What it brought has to be known before,
// by Need.
func (c *Core) Answered(now time.Time, a Ask, got uint64, answer Answer) {
	c.asks--
	c.due = order.Earlier(c.due, now) // there is room for a question
	if c.asked[a.Peer]--; c.asked[a.Peer] == 0 {
		delete(c.asked, a.Peer)
	}
	if a.Fill {
		c.filled(now, a, got, answer)
		return
	}
	n := c.needs[a.Key]
	if n == nil || n.asking != a.Peer {
		return
	}
	n.asking = ""
	n.brought = answer == Got && (n.from != a.From || n.to < a.To)
	if n.from >= n.to {
		delete(c.needs, a.Key)
		return
	}
	// Of what is missing now nothing is known if it was asked for something else.
	if !n.renewed && n.from == a.From && (answer != Got || n.to >= a.To) {
		n.tried[a.Peer] = struct{}{}
		n.failed = n.failed || answer == Failed
	}
}

// filled goes on with a fill, from got on, while it brings something.
func (c *Core) filled(now time.Time, a Ask, got uint64, answer Answer) {
	i := slices.IndexFunc(c.fills, func(f *fill) bool { return f.asking && f.peer == a.Peer && f.Key == a.Key })
	if i < 0 {
		return
	}
	f := c.fills[i]
	f.asking = false
	if answer == Failed {
		f.failed++
		f.again = now.Add(c.cfg.Pause)
	} else {
		f.failed = 0
	}
	f.from = max(f.from, got)
	if answer == Nothing || f.failed == maxFailed || answer == Got && got <= a.From || f.from >= f.to || c.neighbours[a.Peer] == nil {
		c.fills = slices.Delete(c.fills, i, i+1)
	}
}

// Next returns when to call Advance; zero: not before the next input.
func (c *Core) Next() time.Time {
	switch {
	case c.asks >= c.maxAsks() || len(c.neighbours) == 0:
		return time.Time{}
	case c.due.IsZero():
		return c.refill
	case c.due.Before(c.rested):
		return order.Earlier(c.refill, c.rested)
	}
	return order.Earlier(c.refill, c.due)
}
