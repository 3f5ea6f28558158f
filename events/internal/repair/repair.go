// Package repair decides which neighbor to ask for missing events, and when to give
// them up. It performs no I/O and reads no clock.
//
// Events that are missing for [Config.Grace] are asked for, one neighbor after the
// other: first the neighbors that claim to have them, then the others, which ask their
// own neighbors once. The others are asked only if it is certain that the events were
// sent. When all have answered that they do not have the events, and one of them knew
// the session when the events were sent, the events are given up. The word of neighbors
// that never heard of the session proves nothing.
package repair

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the bounds of a planner. Zero means the default in brackets.
type Config struct {
	// Grace is how long events are missing before they are asked for [150 ms].
	Grace time.Duration
	// Pause is the time between two rounds of asking all neighbors [500 ms].
	Pause time.Duration
	// GiveUpTimeout is how long events are missing before they are given up [2 s].
	GiveUpTimeout time.Duration
	// UnseenTimeout is the same if no neighbor knew the session in time [30 s].
	UnseenTimeout time.Duration

	// MaxAsks bounds the asks in progress [16, or MaxPerPeer for each neighbor if that
	// is more, so that no neighbor can keep the others from being asked].
	MaxAsks int
	// MaxPerPeer bounds the asks in progress to one neighbor [4].
	MaxPerPeer int
	// MaxClaims bounds the sessions of which a neighbor's claim is remembered [10,000].
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

// A Subject is a session of a sender.
type Subject struct {
	Sender  peer.ID
	Session order.SessionKey
}

// A Claim is a neighbor's word about a session: it has received, or given up, everything
// from Begin to Next, and still stores the events from Floor on (0: none).
type Claim struct {
	Session            order.SessionKey
	Begin, Next, Floor uint64
	Greeting           bool // the neighbor greeted with it
}

// covers reports whether the neighbor has received, or given up, the beginning of the
// hole. It then knew the session when the event was sent.
func (c Claim) covers(h *openHole) bool {
	return c.Session == h.Session && c.Begin <= h.from && h.from < c.Next
}

// An Ask is a request to a neighbor for the events [From, To).
type Ask struct {
	Peer peer.ID
	Subject
	From, To uint64
	// Backfill means that the events were sent before this node knew the session. They
	// are stored for others, and not delivered.
	Backfill bool
}

// An Outcome says how an Ask ended.
type Outcome int

const (
	Found    Outcome = iota // some of the events came; there may be more
	NotFound                // the neighbor does not have them
	Failed                  // no answer came
)

// A Planner is not safe for concurrent use.
type Planner struct {
	cfg       Config
	neighbors map[peer.ID]claims
	holes     map[Subject]*openHole
	backfills []*backfill

	// Asks in progress.
	asks       int
	asksByPeer map[peer.ID]int // also by peers that are not neighbors any more

	// When Advance has something to do.
	due         time.Time // for a hole; zero: never
	pausedUntil time.Time // no hole is looked at before
	backfillDue time.Time // for a backfill that failed; zero: never
}

// claims holds the claims of one neighbor, by sender.
type claims map[peer.ID]Claim

// openHole is the first hole of a session.
type openHole struct {
	Subject
	from, to   uint64
	hearsay    bool // only claims say that the events were sent
	since      time.Time
	progressed bool // the last ask brought something

	// The round of asking all neighbors.
	asking    peer.ID              // the neighbor being asked; empty: none
	renewed   bool                 // since it was asked, that neighbor has claimed to have the events
	tried     map[peer.ID]struct{} // neighbors that were asked in this round
	failed    bool                 // one of them did not answer
	nextRound time.Time            // when the next round may begin
}

// backfill is a range of events that were sent before this node knew the session.
type backfill struct {
	Subject
	from, to uint64
	peer     peer.ID
	asking   bool
	failed   int       // failed asks in a row
	nextTry  time.Time // when it may be asked for again
}

// maxFailed is the number of failed asks after which a backfill is given up.
const maxFailed = 3

// While more than manyHoles sessions have holes, the planner looks at them only once per
// manyPause. Lies can make so many.
const (
	manyHoles = 64
	manyPause = 10 * time.Millisecond
)

// maxBackfills bounds the sessions that wait for their backfill.
const maxBackfills = 10_000

// New returns a planner without neighbors.
func New(cfg Config) *Planner {
	return &Planner{
		cfg:        cfg.withDefaults(),
		neighbors:  make(map[peer.ID]claims),
		holes:      make(map[Subject]*openHole),
		asksByPeer: make(map[peer.ID]int),
	}
}

// AddNeighbor adds a neighbor that can be asked.
func (c *Planner) AddNeighbor(id peer.ID) {
	if c.neighbors[id] == nil {
		c.neighbors[id] = make(claims)
	}
}

// OtherNeighbors returns the neighbors other than id.
func (c *Planner) OtherNeighbors(id peer.ID) (list []peer.ID) {
	for other := range c.neighbors {
		if other != id {
			list = append(list, other)
		}
	}
	return list
}

// RemoveNeighbor removes a neighbor. Asks to it that are in progress still need
// FinishAsk.
func (c *Planner) RemoveNeighbor(id peer.ID) {
	delete(c.neighbors, id)
	c.backfills = slices.DeleteFunc(c.backfills, func(f *backfill) bool { return f.peer == id && !f.asking })
}

// ReceiveClaim handles a neighbor's claim about a sender.
func (c *Planner) ReceiveClaim(id, sender peer.ID, claim Claim) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	old, known := n[sender]
	// The claim is about an earlier session, or the neighbor claims too much.
	if known && old.Session.Compare(claim.Session) > 0 || !known && len(n) >= c.cfg.MaxClaims {
		return
	}
	if known && old.Session == claim.Session {
		// Claims may overtake each other, so the furthest one counts. But a neighbor
		// that finds out that the session begins lower has received less at first.
		if claim.Begin > old.Begin {
			claim.Begin, claim.Next = old.Begin, old.Next
		} else if claim.Begin == old.Begin {
			claim.Next = max(claim.Next, old.Next)
		}
		claim.Greeting = claim.Greeting || old.Greeting
	}
	n[sender] = claim
	// The neighbor may not have had the events when it was asked. It has them now.
	if h := c.holes[Subject{sender, claim.Session}]; h != nil && claim.covers(h) && !old.covers(h) {
		h.renewed = h.renewed || h.asking == id
		delete(h.tried, id)
		h.nextRound = time.Time{}
		c.schedule(h)
	}
}

// HasGreetedWith reports whether a neighbor's greeting mentioned a session.
func (c *Planner) HasGreetedWith(id peer.ID, key Subject) bool {
	claim, ok := c.neighbors[id][key.Sender]
	return ok && claim.Session == key.Session && claim.Greeting
}

// FurthestClaim returns the highest Next that a neighbor claims for a session; zero: no
// neighbor knows the session.
func (c *Planner) FurthestClaim(key Subject) (next uint64) {
	for _, n := range c.neighbors {
		if claim, ok := n[key.Sender]; ok && claim.Session == key.Session {
			next = max(next, claim.Next)
		}
	}
	return next
}

// SetHole sets the first hole of a session. Events that are missing by hearsay are asked
// only of the neighbors that claim to have them, and of the sender. So a neighbor that
// lies about them cannot make us bother the others.
func (c *Planner) SetHole(sender peer.ID, g order.Hole) {
	key := Subject{sender, g.Session}
	h := c.holes[key]
	if h == nil {
		h = &openHole{Subject: key, from: g.From, tried: make(map[peer.ID]struct{})}
		c.holes[key] = h
	}
	// Other events are missing now, or now it is certain that they were sent. Neighbors
	// that could not help before may help now.
	if g.From != h.from || h.hearsay && !g.Hearsay {
		h.from = g.From
		clear(h.tried)
		h.failed = false
		h.nextRound = time.Time{}
	}
	h.to, h.since, h.hearsay = g.To, g.Since, g.Hearsay
	c.schedule(h)
}

// schedule makes Advance look at a hole in time.
func (c *Planner) schedule(h *openHole) {
	// During an ask there is nothing to decide.
	if h.asking == "" {
		c.due = order.Earlier(c.due, h.due(&c.cfg))
	}
}

// ClearHole notes that nothing is missing of a session any more.
func (c *Planner) ClearHole(key Subject) {
	if h := c.holes[key]; h != nil && h.asking == "" {
		delete(c.holes, key)
	} else if h != nil {
		h.to = h.from // empty; FinishAsk removes it
	}
}

// HoleCount returns the number of sessions that have a hole.
func (c *Planner) HoleCount() int { return len(c.holes) }

// AddBackfill plans to fetch the events [from, to) of a session, which a neighbor has
// and which were sent before this node knew the session.
func (c *Planner) AddBackfill(id peer.ID, key Subject, from, to uint64) {
	if from < to && c.neighbors[id] != nil && len(c.backfills) < maxBackfills {
		c.backfills = append(c.backfills, &backfill{Subject: key, from: from, to: to, peer: id})
	}
}

func (c *Planner) maxAsks() int { return max(c.cfg.MaxAsks, c.cfg.MaxPerPeer*len(c.neighbors)) }

// Advance returns the asks to send at now, and the events to give up. Every ask has to
// be ended by FinishAsk. In given, Peer is empty.
func (c *Planner) Advance(now time.Time) (asks, given []Ask) {
	asks, given = c.advanceHoles(now)
	c.backfillDue = time.Time{}
	// Holes come first; backfills get the asks that are left.
	for i := 0; i < len(c.backfills) && c.asks < c.maxAsks(); i++ {
		f := c.backfills[i]
		if f.nextTry.After(now) {
			c.backfillDue = order.Earlier(c.backfillDue, f.nextTry)
		} else if !f.asking && c.neighbors[f.peer] != nil && c.asksByPeer[f.peer] == 0 {
			f.asking = true
			asks = append(asks, c.countAsk(Ask{Peer: f.peer, Subject: f.Subject, From: f.from, To: f.to, Backfill: true}))
		}
	}
	return asks, given
}

// advanceHoles is Advance for holes.
func (c *Planner) advanceHoles(now time.Time) (asks, given []Ask) {
	if c.due.IsZero() || c.due.After(now) || c.pausedUntil.After(now) || c.asks >= c.maxAsks() {
		return nil, nil
	}
	c.due = time.Time{}
	if len(c.holes) > manyHoles {
		c.pausedUntil = now.Add(manyPause)
	}
	for _, h := range c.holes {
		if h.asking == "" && !now.Before(h.due(&c.cfg)) && c.asks < c.maxAsks() {
			if a, ok := c.advanceHole(now, h); ok && a.Peer == "" {
				given = append(given, a)
			} else if ok {
				asks = append(asks, c.countAsk(a))
			}
		}
		c.schedule(h)
	}
	return asks, given
}

// advanceHole returns an ask, or with an empty Peer the events to give up. It returns
// false if there is nothing to do.
func (c *Planner) advanceHole(now time.Time, h *openHole) (a Ask, ok bool) {
	a = Ask{Subject: h.Subject, From: h.from, To: h.to}
	id, left := c.chooseNeighbor(h)
	switch {
	case left && id == "":
		h.nextRound = now.Add(c.cfg.Grace) // all that are left are busy
		return a, false
	case left:
		h.asking, h.renewed = id, false
		a.Peer = id
		return a, true
	}
	// All neighbors were asked in vain.
	ok = c.canGiveUp(h, now)
	clear(h.tried)
	h.failed = false
	h.nextRound = now.Add(c.cfg.Pause)
	return a, ok
}

func (c *Planner) countAsk(a Ask) Ask {
	c.asks++
	c.asksByPeer[a.Peer]++
	return a
}

// due returns when Advance has to look at a hole.
func (h *openHole) due(cfg *Config) time.Time {
	at := h.since
	// Missing events may still arrive by themselves. If the events before them did not,
	// these will not either.
	if !h.progressed {
		at = at.Add(cfg.Grace)
	}
	if at.After(h.nextRound) {
		return at
	}
	return h.nextRound
}

// chooseNeighbor returns the neighbor to ask next, or an empty id if all are busy. ok is
// false when no neighbor is left to ask in this round.
func (c *Planner) chooseNeighbor(h *openHole) (best peer.ID, ok bool) {
	rank := 0
	for id, claims := range c.neighbors {
		if _, tried := h.tried[id]; tried {
			continue
		}
		r := 1
		switch claim := claims[h.Sender]; {
		case claim.Session != h.Session || claim.Next <= h.from:
			// It has not received the event. The sender may have it all the same, but
			// the others would ask their neighbors, which hearsay must not cause.
			if id == h.Sender {
				r = 2
			} else if h.hearsay {
				continue
			}
		case claim.Floor == 0 || claim.Floor > h.from:
			r = 3 // it has received the event, but does not store it any more
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

// canGiveUp reports whether a hole can be given up after all neighbors were asked.
func (c *Planner) canGiveUp(h *openHole, now time.Time) bool {
	missing := now.Sub(h.since)
	// A neighbor that did not answer may have the events.
	if h.failed || missing < c.cfg.GiveUpTimeout {
		return false
	}
	for _, claims := range c.neighbors {
		// It knew the session in time and has lost the events, so they are lost.
		if claims[h.Sender].covers(h) {
			return true
		}
	}
	return missing >= c.cfg.UnseenTimeout
}

// FinishAsk reports the outcome of an ask, after SetHole or ClearHole has taken account
// of the events that came. got is the number up to which a backfill brought events.
func (c *Planner) FinishAsk(now time.Time, a Ask, got uint64, outcome Outcome) {
	c.asks--
	c.due = order.Earlier(c.due, now) // another ask may be sent
	if c.asksByPeer[a.Peer]--; c.asksByPeer[a.Peer] == 0 {
		delete(c.asksByPeer, a.Peer)
	}
	if a.Backfill {
		c.finishBackfill(now, a, got, outcome)
		return
	}
	h := c.holes[a.Subject]
	if h == nil || h.asking != a.Peer {
		return
	}
	h.asking = ""
	h.progressed = outcome == Found && (h.from != a.From || h.to < a.To)
	if h.from >= h.to {
		delete(c.holes, a.Subject)
		return
	}
	// If other events are missing now, the neighbor was not asked for them. If it has
	// claimed meanwhile to have the events, its answer is out of date.
	if !h.renewed && h.from == a.From && (outcome != Found || h.to >= a.To) {
		h.tried[a.Peer] = struct{}{}
		h.failed = h.failed || outcome == Failed
	}
}

// finishBackfill continues a backfill from got on, as long as it brings something.
func (c *Planner) finishBackfill(now time.Time, a Ask, got uint64, outcome Outcome) {
	i := slices.IndexFunc(c.backfills, func(f *backfill) bool { return f.asking && f.peer == a.Peer && f.Subject == a.Subject })
	if i < 0 {
		return
	}
	f := c.backfills[i]
	f.asking = false
	if outcome == Failed {
		f.failed++
		f.nextTry = now.Add(c.cfg.Pause)
	} else {
		f.failed = 0
	}
	f.from = max(f.from, got)
	stuck := outcome == Found && got <= a.From
	if outcome == NotFound || stuck || f.failed == maxFailed || f.from >= f.to || c.neighbors[a.Peer] == nil {
		c.backfills = slices.Delete(c.backfills, i, i+1)
	}
}

// Next returns when to call Advance; zero: not before the next input.
func (c *Planner) Next() time.Time {
	switch {
	case c.asks >= c.maxAsks() || len(c.neighbors) == 0:
		return time.Time{} // nothing can be asked
	case c.due.IsZero():
		return c.backfillDue
	case c.due.Before(c.pausedUntil):
		return order.Earlier(c.backfillDue, c.pausedUntil)
	}
	return order.Earlier(c.backfillDue, c.due)
}
