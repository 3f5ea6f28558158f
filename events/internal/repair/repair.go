// Package repair decides which neighbor is asked for missing events, and when missing
// events are given up as lost. It performs no I/O and reads no clock.
//
// Events that have been missing for [Config.Grace] are asked of one neighbor after the
// other: first of the neighbors that claim to have them, then of the others. Those
// others pass the question on to their own neighbors once. They are asked only if it is
// certain that the events were sent.
//
// Events are given up after [Config.GiveUpTimeout] if no neighbor has them and at least
// one neighbor knew the session when they were sent. Neighbors that did not know the
// session could not have received the events, so their answers prove nothing. If all
// neighbors are like that, the events are given up only after [Config.UnseenTimeout].
package repair

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the limits of a planner. A zero field means the default in brackets.
type Config struct {
	// Grace is how long events must be missing before they are asked for [150 ms].
	Grace time.Duration
	// Pause is the time between two rounds of asking for the same missing events; in each
	// round all neighbors are asked, one after the other [500 ms].
	Pause time.Duration
	// GiveUpTimeout is how long events must be missing before they can be given up
	// [2 s].
	GiveUpTimeout time.Duration
	// UnseenTimeout is how long events must be missing before they can be given up, if none
	// of the neighbors knew their session at the time when they were sent [30 s].
	UnseenTimeout time.Duration

	// MaxAsks is how many asks may be in progress at once [16, or MaxPerPeer times the
	// number of neighbors if that is more, so that no neighbor can use up all of them].
	MaxAsks int
	// MaxPerPeer is how many asks to one neighbor may be in progress at once [4].
	MaxPerPeer int
	// MaxClaims is the number of senders about which the claims of one neighbor are
	// remembered [10,000].
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

// A Claim is what a neighbor says about a session: it has received, or given up as
// lost, every event from Begin to below Next, and it still stores the events from Floor
// on (zero: it stores none).
type Claim struct {
	Session            order.SessionKey
	Begin, Next, Floor uint64
	Greeting           bool // the claim was part of the neighbor's greeting
}

// covers reports whether the neighbor has received, or given up, the first event of the
// hole. If so, it knew the session when that event was sent.
func (c Claim) covers(h *openHole) bool {
	return c.Session == h.Session && c.Begin <= h.from && h.from < c.Next
}

// An Ask is a request to a neighbor for the events [From, To) of a session.
type Ask struct {
	Peer peer.ID
	Subject
	From, To uint64
	// Backfill means that the events were sent before this node knew the session. They
	// are stored so that other nodes can fetch them, but they are not delivered at this
	// node.
	Backfill bool
}

// An Outcome says how an Ask ended.
type Outcome int

const (
	Found    Outcome = iota // some of the events arrived; the neighbor may have more of them
	NotFound                // the neighbor does not have them
	Failed                  // the neighbor did not answer
)

// A Planner keeps the holes of all sessions and decides which neighbor to ask next. It
// is not safe for concurrent use.
type Planner struct {
	cfg       Config
	neighbors map[peer.ID]claims
	holes     map[Subject]*openHole
	backfills []*backfill

	// Asks in progress.
	asks       int
	asksByPeer map[peer.ID]int // how many asks to each peer are in progress; peers that are no longer neighbors are included

	// When Advance has to do something.
	due         time.Time // for a hole; zero: never
	pausedUntil time.Time // Advance ignores all holes until then
	backfillDue time.Time // when a failed backfill is to be tried again; zero: never
}

// claims holds the claims of one neighbor, by sender.
type claims map[peer.ID]Claim

// openHole is the first hole of a session: the first range [from, to) of its events
// that were sent but have not arrived.
type openHole struct {
	Subject
	from, to   uint64
	hearsay    bool // only nodes other than the sender claim that the events of this hole were sent
	since      time.Time
	progressed bool // the last ask for the events of this hole brought some of them

	// The current round of asking all neighbors, one after the other.
	askedPeer        peer.ID              // the neighbor that is being asked; empty: none is
	claimedMeanwhile bool                 // askedPeer has claimed, after it was asked, that it has the events
	tried            map[peer.ID]struct{} // the neighbors that were asked in the current round of asking all neighbors
	failed           bool                 // one of the neighbors in tried did not answer
	nextRound        time.Time            // before this time no neighbor is asked for the events of this hole
}

// backfill is a range [from, to) of events that were sent before this node knew the
// session. They are fetched from one neighbor, so that others can get them from this
// node.
type backfill struct {
	Subject
	from, to uint64
	peer     peer.ID
	asking   bool
	failures int       // how many asks in a row were not answered
	nextTry  time.Time // when the next ask may be sent
}

// maxFailed is the number of unanswered asks in a row after which a backfill is given
// up.
const maxFailed = 3

// If more than manyHoles sessions have holes (missing events), the planner examines the
// holes only once per manyPause, to limit the CPU time that it uses. Only lies of other
// nodes can cause so many holes.
const (
	manyHoles = 64
	manyPause = 10 * time.Millisecond
)

// maxBackfills is how many sessions may wait at once for their earlier events to be
// fetched.
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

// AddNeighbor adds a neighbor, which can be asked from now on.
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

// RemoveNeighbor removes a neighbor. Asks to it that are still in progress must be
// ended by FinishAsk all the same.
func (c *Planner) RemoveNeighbor(id peer.ID) {
	delete(c.neighbors, id)
	c.backfills = slices.DeleteFunc(c.backfills, func(f *backfill) bool { return f.peer == id && !f.asking })
}

// ReceiveClaim handles a neighbor's claim about a session of a sender.
func (c *Planner) ReceiveClaim(id, sender peer.ID, claim Claim) {
	n := c.neighbors[id]
	if n == nil {
		return
	}
	old, known := n[sender]
	// The claim is ignored if the neighbor has made a claim about a later session of the
	// sender before, or if the neighbor makes claims about too many senders.
	if known && old.Session.Compare(claim.Session) > 0 || !known && len(n) >= c.cfg.MaxClaims {
		return
	}
	if known && old.Session == claim.Session {
		// Claims can overtake each other on their way, so the furthest one counts. But
		// a neighbor that learns that the session begins lower starts to receive from
		// there, so then its Next may become less.
		if claim.Begin > old.Begin {
			claim.Begin, claim.Next = old.Begin, old.Next
		} else if claim.Begin == old.Begin {
			claim.Next = max(claim.Next, old.Next)
		}
		claim.Greeting = claim.Greeting || old.Greeting
	}
	n[sender] = claim
	// The neighbor claims only now to have the missing events. It can be asked for
	// them, even if it was asked before.
	if h := c.holes[Subject{sender, claim.Session}]; h != nil && claim.covers(h) && !old.covers(h) {
		h.claimedMeanwhile = h.claimedMeanwhile || h.askedPeer == id
		delete(h.tried, id)
		h.nextRound = time.Time{}
		c.schedule(h)
	}
}

// HasGreetedWith reports whether a neighbor's greeting contained a mark of a session.
func (c *Planner) HasGreetedWith(id peer.ID, key Subject) bool {
	claim, ok := c.neighbors[id][key.Sender]
	return ok && claim.Session == key.Session && claim.Greeting
}

// FurthestClaim returns the highest Next that any neighbor has claimed for a session;
// zero means that no neighbor knows the session.
func (c *Planner) FurthestClaim(key Subject) (next uint64) {
	for _, n := range c.neighbors {
		if claim, ok := n[key.Sender]; ok && claim.Session == key.Session {
			next = max(next, claim.Next)
		}
	}
	return next
}

// SetHole sets the first hole of a session, the first range of its events that are
// missing. If only hearsay says that these events were sent, they are asked only of the
// neighbors that claim to have them, and of the sender. So a neighbor that lies about
// events cannot make this node trouble all the others.
func (c *Planner) SetHole(sender peer.ID, g order.Hole) {
	key := Subject{sender, g.Session}
	h := c.holes[key]
	if h == nil {
		h = &openHole{Subject: key, from: g.From, tried: make(map[peer.ID]struct{})}
		c.holes[key] = h
	}
	// The hole begins with another event than before, or it has become certain that the
	// events were sent. Neighbors that could not help before may now be able to.
	if g.From != h.from || h.hearsay && !g.Hearsay {
		h.from = g.From
		clear(h.tried)
		h.failed = false
		h.nextRound = time.Time{}
	}
	h.to, h.since, h.hearsay = g.To, g.Since, g.Hearsay
	c.schedule(h)
}

// schedule makes sure that Advance is called when something is to be done about a hole.
func (c *Planner) schedule(h *openHole) {
	// While a neighbor is being asked, there is nothing to decide about the hole.
	if h.askedPeer == "" {
		c.due = order.Earlier(c.due, h.due(&c.cfg))
	}
}

// ClearHole notes that no event of a session is missing any more.
func (c *Planner) ClearHole(key Subject) {
	if h := c.holes[key]; h != nil && h.askedPeer == "" {
		delete(c.holes, key)
	} else if h != nil {
		h.to = h.from // FinishAsk removes the hole, as it is now empty
	}
}

// HoleCount returns the number of sessions with missing events.
func (c *Planner) HoleCount() int { return len(c.holes) }

// AddBackfill plans to fetch the events [from, to) of a session from a neighbor that
// stores them. They were sent before this node knew the session.
func (c *Planner) AddBackfill(id peer.ID, key Subject, from, to uint64) {
	if from < to && c.neighbors[id] != nil && len(c.backfills) < maxBackfills {
		c.backfills = append(c.backfills, &backfill{Subject: key, from: from, to: to, peer: id})
	}
}

func (c *Planner) maxAsks() int { return max(c.cfg.MaxAsks, c.cfg.MaxPerPeer*len(c.neighbors)) }

// Advance returns the asks to send at the time now, and in givenUp the events to give up
// as lost (with an empty Peer). Every ask must be ended by FinishAsk.
func (c *Planner) Advance(now time.Time) (asks, givenUp []Ask) {
	asks, givenUp = c.advanceHoles(now)
	c.backfillDue = time.Time{}
	// Fetching events from before this node knew a session (a backfill) may use only
	// the asks that missing events have left over.
	for i := 0; i < len(c.backfills) && c.asks < c.maxAsks(); i++ {
		f := c.backfills[i]
		if f.nextTry.After(now) {
			c.backfillDue = order.Earlier(c.backfillDue, f.nextTry)
		} else if !f.asking && c.neighbors[f.peer] != nil && c.asksByPeer[f.peer] == 0 {
			f.asking = true
			asks = append(asks, c.countAsk(Ask{Peer: f.peer, Subject: f.Subject, From: f.from, To: f.to, Backfill: true}))
		}
	}
	return asks, givenUp
}

// advanceHoles does the work of Advance for holes.
func (c *Planner) advanceHoles(now time.Time) (asks, givenUp []Ask) {
	if c.due.IsZero() || c.due.After(now) || c.pausedUntil.After(now) || c.asks >= c.maxAsks() {
		return nil, nil
	}
	c.due = time.Time{}
	if len(c.holes) > manyHoles {
		c.pausedUntil = now.Add(manyPause)
	}
	for _, h := range c.holes {
		if h.askedPeer == "" && !now.Before(h.due(&c.cfg)) && c.asks < c.maxAsks() {
			if a, ok := c.advanceHole(now, h); ok && a.Peer == "" {
				givenUp = append(givenUp, a)
			} else if ok {
				asks = append(asks, c.countAsk(a))
			}
		}
		c.schedule(h)
	}
	return asks, givenUp
}

// advanceHole returns the ask for the missing events of h that is to be sent now. If the
// Peer of the ask is empty, the events are to be given up as lost. ok is false if there
// is nothing to do about h.
func (c *Planner) advanceHole(now time.Time, h *openHole) (a Ask, ok bool) {
	a = Ask{Subject: h.Subject, From: h.from, To: h.to}
	id, left := c.chooseNeighbor(h)
	switch {
	case left && id == "":
		h.nextRound = now.Add(c.cfg.Grace) // the neighbors not asked yet all have MaxPerPeer asks in progress
		return a, false
	case left:
		h.askedPeer, h.claimedMeanwhile = id, false
		a.Peer = id
		return a, true
	}
	// Every neighbor was asked and none had the events. After a pause, all neighbors are
	// asked again.
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

// due returns when Advance has to act on the missing events of h.
func (h *openHole) due(cfg *Config) time.Time {
	at := h.since
	// Missing events may still arrive by themselves, so they get some time. But if the
	// events before them had to be fetched, these are missing for the same reason.
	if !h.progressed {
		at = at.Add(cfg.Grace)
	}
	if at.After(h.nextRound) {
		return at
	}
	return h.nextRound
}

// chooseNeighbor returns the neighbor to ask next for the missing events of h. best is
// empty if each neighbor that is left to ask has too many asks in progress. ok is false
// if every neighbor was asked in this round.
func (c *Planner) chooseNeighbor(h *openHole) (best peer.ID, ok bool) {
	rank := 0
	for id, claims := range c.neighbors {
		if _, tried := h.tried[id]; tried {
			continue
		}
		r := 1
		switch claim := claims[h.Sender]; {
		case claim.Session != h.Session || claim.Next <= h.from:
			// The neighbor has not received the event. The sender has it in all
			// likelihood. Any other neighbor would pass the question on to its own
			// neighbors, so it is asked only if the event is certain to exist.
			if id == h.Sender {
				r = 2
			} else if h.hearsay {
				continue
			}
		case claim.Floor == 0 || claim.Floor > h.from:
			r = 3 // the neighbor has received the event but no longer stores it, so it is the second choice
		default:
			r = 4
		}
		ok = true
		// This neighbor has too many asks in progress. It is still to be asked in this
		// round, but it is not chosen now.
		if c.asksByPeer[id] >= c.cfg.MaxPerPeer {
			continue
		}
		// Among equals the lowest id wins, so that the choice does not depend on the
		// order of the map.
		if r > rank || r == rank && id < best {
			best, rank = id, r
		}
	}
	return best, ok || len(c.neighbors) == 0
}

// canGiveUp reports whether the missing events of h can be given up as lost, after
// every neighbor was asked.
func (c *Planner) canGiveUp(h *openHole, now time.Time) bool {
	missing := now.Sub(h.since)
	// A neighbor that did not answer may have the events.
	if h.failed || missing < c.cfg.GiveUpTimeout {
		return false
	}
	for _, claims := range c.neighbors {
		// This neighbor knew the session when the events were sent, and cannot provide
		// them any more. So they are lost.
		if claims[h.Sender].covers(h) {
			return true
		}
	}
	return missing >= c.cfg.UnseenTimeout
}

// FinishAsk reports the outcome of an ask. SetHole or ClearHole must have been called
// before for the events that arrived. got matters only for an ask of a backfill, which
// fetches events that were sent before this node knew the session: it is the number after
// the last event that the ask brought.
func (c *Planner) FinishAsk(now time.Time, a Ask, got uint64, outcome Outcome) {
	c.asks--
	c.due = order.Earlier(c.due, now) // one more ask can be sent now
	if c.asksByPeer[a.Peer]--; c.asksByPeer[a.Peer] == 0 {
		delete(c.asksByPeer, a.Peer)
	}
	if a.Backfill {
		c.finishBackfill(now, a, got, outcome)
		return
	}
	h := c.holes[a.Subject]
	// The hole was closed and removed while the ask was in progress.
	if h == nil || h.askedPeer != a.Peer {
		return
	}
	h.askedPeer = ""
	h.progressed = outcome == Found && (h.from != a.From || h.to < a.To)
	// ClearHole has found that nothing is missing any more.
	if h.from >= h.to {
		delete(c.holes, a.Subject)
		return
	}
	// The neighbor counts as asked in vain if the same events are still missing. It
	// does not if it has claimed meanwhile to have them: then its answer is out of
	// date.
	if !h.claimedMeanwhile && h.from == a.From && (outcome != Found || h.to >= a.To) {
		h.tried[a.Peer] = struct{}{}
		h.failed = h.failed || outcome == Failed
	}
}

// finishBackfill handles the outcome of the ask a of a backfill, a range of events from
// before this node knew the session. The backfill continues with the event number got,
// unless the ask brought nothing.
func (c *Planner) finishBackfill(now time.Time, a Ask, got uint64, outcome Outcome) {
	i := slices.IndexFunc(c.backfills, func(f *backfill) bool { return f.asking && f.peer == a.Peer && f.Subject == a.Subject })
	if i < 0 {
		return
	}
	f := c.backfills[i]
	f.asking = false
	// Only asks in a row that got no answer count as failures. The backfill is not given
	// up at the first one, because the neighbor may be overloaded for a moment.
	if outcome == Failed {
		f.failures++
		f.nextTry = now.Add(c.cfg.Pause)
	} else {
		f.failures = 0
	}
	f.from = max(f.from, got)
	stuck := outcome == Found && got <= a.From
	if outcome == NotFound || stuck || f.failures == maxFailed || f.from >= f.to || c.neighbors[a.Peer] == nil {
		c.backfills = slices.Delete(c.backfills, i, i+1)
	}
}

// Next returns when to call Advance. The zero time means that nothing is to be done
// until another method was called.
func (c *Planner) Next() time.Time {
	switch {
	case c.asks >= c.maxAsks() || len(c.neighbors) == 0:
		return time.Time{} // no further ask can be sent
	case c.due.IsZero():
		return c.backfillDue
	case c.due.Before(c.pausedUntil):
		return order.Earlier(c.backfillDue, c.pausedUntil)
	}
	return order.Earlier(c.backfillDue, c.due)
}
