package checker

import (
	"fmt"
	"slices"
	"time"
)

// The rules, as Violation.Rule names them.
const (
	RuleOrder      = "order per sender"
	RuleDuplicate  = "no duplicate"
	RuleInvented   = "nothing invented"
	RuleMissing    = "nothing missing"
	RuleGap        = "a gap is what did not come"
	RuleAccount    = "delivered + reported = sent"
	RuleSelf       = "own broadcasts are not heard"
	RuleEvents     = "events in the order of promise 1"
	RuleConnected  = "Connected inside handlers"
	RuleSnapshot   = "the list agrees with its events"
	RuleHalf       = "links are symmetric"
	RuleGhost      = "dead peers are removed"
	RuleFlapping   = "no flapping"
	RuleMax        = "nobody above max"
	RuleComponent  = "one component"
	RuleDegree     = "degree of at least min"
	RuleNetsplit   = "netsplit once per loss"
	RuleUnexpected = "no failure that nobody caused"
)

// A Violation is one promise broken.
type Violation struct {
	Rule string
	Proc string
	At   time.Time // when it showed, zero for what is missing at the end
	Text string
}

func (v Violation) String() string {
	at := ""
	if !v.At.IsZero() {
		at = v.At.Format(" 15:04:05.000")
	}
	return fmt.Sprintf("[%s] %s%s: %s", v.Rule, v.Proc, at, v.Text)
}

// SettleWithin is how long a log may take to settle at the end: as a half link to end,
// by promise 1.
const SettleWithin = halfAtMost

// Limits of the promises, the same for every run.
const (
	flapWithin   = 30 * time.Second // promise 1
	halfAtMost   = 10 * time.Second // promise 1
	halfCut      = 13 * time.Second // where the farewell was lost in a cut: the keepalive timeout
	aboveAtMost  = 30 * time.Second // promise 5: max + aboveExtra for at most this long
	aboveExtra   = 2
	handover     = time.Second      // one link more, until the one it takes the place of is left
	ghostAtMost  = 20 * time.Second // keepalive timeout of 12.5 s and some air
	faultExcuses = 20 * time.Second // how long after a fault a link may still break because of it
)

// Config says what holds of a run beyond the rules that always do.
type Config struct {
	// Whole demands one component, symmetric links and enough peers for
	// everybody at the end.
	Whole bool
	// CompleteFrom demands that every event that a node was told to emit after
	// this time and that Emit accepted reached all nodes (broadcast) or the one
	// it was for (direct), as far as both ends ran without a fault from then
	// on. Zero demands nothing.
	CompleteFrom time.Time
	// Accounted demands that of every run of a sender each node was given, or
	// told to have lost, all broadcasts from the first it knew of: at the latest
	// from what the sender was told to emit when both had each other as a peer.
	// At the end nothing may be on its way, and the network be whole.
	Accounted bool
	// Refusals allows Emit to fail.
	Refusals bool
}

// Check returns every breach of a rule in the records, in the order in which
// they showed. The records have to be in the order of Log.Records.
func Check(records []Record, cfg Config) []Violation {
	c := &check{cfg: cfg, state: NewState(), nodes: map[string]*node{}, half: map[link]time.Time{}, commanded: map[string]*spans{}, refused: map[string]*spans{}}
	for _, r := range records {
		if r.Kind == Fault {
			c.faults = append(c.faults, r)
		}
		if r.Kind == Commanded {
			c.addCommand(r)
			c.commands = append(c.commands, r)
		}
		if r.Kind == Failed && r.Channel == Broadcast {
			if c.refused[r.Proc] == nil {
				c.refused[r.Proc] = &spans{}
			}
			c.refused[r.Proc].add(r.Seq, r.To)
		}
	}
	for _, r := range records {
		c.step(r)
	}
	if len(records) > 0 {
		c.finish(records[len(records)-1].Time())
	}
	return c.found
}

// check is the running sum.
type check struct {
	cfg       Config
	state     *State
	nodes     map[string]*node
	faults    []Record
	half      map[link]time.Time // links that only the first end has, since when
	commanded map[string]*spans  // by sender, channel, receiver
	refused   map[string]*spans  // the broadcasts that Emit refused, by sender
	commands  []Record           // the Told records
	found     []Violation
}

type link struct{ a, b string } // names

// excess is a number of peers above a limit.
type excess struct {
	since    time.Time // zero while there is none
	reported bool      // it was reported already
}

// update keeps the books, now that there are too many peers, or not.
func (e *excess) update(is bool, now time.Time) {
	switch {
	case !is:
		*e = excess{}
	case e.since.IsZero():
		e.since = now
	}
}

// exceeds reports once that it has lasted for longer than most.
func (e *excess) exceeds(most time.Duration, now time.Time) bool {
	if e.since.IsZero() || e.reported || now.Sub(e.since) <= most {
		return false
	}
	e.reported = true
	return true
}

// node is what the rules remember of one process.
type node struct {
	started  time.Time
	next     Kind   // the event that has to come now, "" for none
	nextPeer string // its peer, "" for any
	removed  map[string]time.Time
	gone     map[string]time.Time // linked peers whose process ended, since when
	above    excess               // more than max
	far      excess               // more than max + aboveExtra
	heard    map[Stream]*spans
	accounts map[string]*account // by run of the sender
	sent     map[string]*spans   // by channel and receiver
	lost     map[string]bool     // seeds in netsplit
	snapshot *Record             // of the list, nil again when the list changes
	wentDown map[string]bool     // ids of peers whose link ended after CompleteFrom
}

func (c *check) node(name string) *node {
	n := c.nodes[name]
	if n == nil {
		n = &node{
			removed: map[string]time.Time{}, gone: map[string]time.Time{}, heard: map[Stream]*spans{}, accounts: map[string]*account{},
			sent: map[string]*spans{}, lost: map[string]bool{}, wentDown: map[string]bool{},
		}
		c.nodes[name] = n
	}
	return n
}

func (c *check) report(rule string, r Record, format string, args ...any) {
	c.found = append(c.found, Violation{Rule: rule, Proc: r.Proc, At: r.Time(), Text: fmt.Sprintf(format, args...)})
}

// name is how a report names a peer id.
func (c *check) name(id string) string {
	if p := c.state.ByID(id); p != nil {
		return p.Name
	}
	return "…" + short(id)
}

// step feeds one record to every rule, then to the state.
func (c *check) step(r Record) {
	c.reportOverdue(r.Time())
	switch r.Kind {
	case Connect, Disconnect, PeerAdded, PeerRemoved, ListAdd, ListRemove, PeerClose:
		c.checkOrder(r)
	case Received:
		c.checkReceived(r)
	case Gap:
		c.addGap(r)
	case Commanded:
		c.openAccounts(r)
	case Damaged:
		c.report(RuleInvented, r, "from %s, name %q: %s", c.name(r.Peer), r.Name, r.Err)
	case Sent:
		c.addSent(r)
	case Failed:
		if !c.cfg.Refusals {
			c.report(RuleUnexpected, r, "emit of %s %d failed: %s", r.Channel, r.Seq, r.Err)
		}
	case Netsplit, Resolved:
		c.checkNetsplit(r)
	case Snapshot:
		c.node(r.Proc).snapshot = &r
	case Started:
		c.node(r.Proc).started = r.Time()
	}
	c.state.Apply(r)
	switch r.Kind {
	case ListAdd, PeerClose:
		c.linkChanged(r)
	case Started, Exited, Fault:
		c.processChanged(r)
	}
}

// faultNear reports whether one of the nodes suffered something in the time
// before until that may still explain what happened there. A killed peer also
// moves the links of the others, so any fault counts for all.
func (c *check) faultNear(from, until time.Time) bool {
	return slices.ContainsFunc(c.faults, func(f Record) bool {
		return f.Time().After(from.Add(-faultExcuses)) && !f.Time().After(until)
	})
}

// linkChanged applies the rules about links between nodes, after a link came or went.
func (c *check) linkChanged(r Record) {
	n, p := c.node(r.Proc), c.state.Proc(r.Proc)
	n.snapshot = nil
	switch r.Kind {
	case ListAdd:
		if t, ok := n.removed[r.Peer]; ok && r.Time().Sub(t) < flapWithin && !c.faultNear(t, r.Time()) {
			c.report(RuleFlapping, r, "%s was removed and is back after %v without a fault", c.name(r.Peer), r.Time().Sub(t).Round(time.Millisecond))
		}
	case PeerClose:
		n.removed[r.Peer] = r.Time()
		delete(n.gone, r.Peer)
		if !c.cfg.CompleteFrom.IsZero() && r.Time().After(c.cfg.CompleteFrom) {
			n.wentDown[r.Peer] = true
		}
	}
	n.above.update(p.Max >= 0 && len(p.Peers) > p.Max, r.Time())
	n.far.update(p.Max >= 0 && len(p.Peers) > p.Max+aboveExtra, r.Time())
	c.updateHalfLinks(r.Time())
}

// processChanged keeps the books on who runs, after a process came or went.
func (c *check) processChanged(r Record) {
	for _, p := range c.state.Procs {
		n := c.node(p.Name)
		if !p.Up {
			clear(n.gone)
			n.above, n.far = excess{}, excess{}
			continue
		}
		for id := range p.Peers {
			q := c.state.ByID(id)
			alive := q == nil || (q.Up && !q.Frozen)
			if alive || p.Frozen {
				delete(n.gone, id)
			} else if n.gone[id].IsZero() {
				n.gone[id] = r.Time()
			}
		}
	}
	c.updateHalfLinks(r.Time())
}

// updateHalfLinks brings the books on half links up to date.
func (c *check) updateHalfLinks(now time.Time) {
	fresh := map[link]time.Time{}
	for _, p := range c.state.Running() {
		for id := range p.Peers {
			q := c.state.ByID(id)
			if q == nil || !q.Up || p.Frozen || q.Frozen || q.Has(p.ID) {
				continue
			}
			l := link{p.Name, q.Name}
			since, ok := c.half[l]
			if !ok {
				since = now
			}
			fresh[l] = since
		}
	}
	c.half = fresh
}

// reportOverdue reports what has lasted too long at now.
func (c *check) reportOverdue(now time.Time) {
	for l, since := range c.half {
		limit := halfAtMost
		if c.faultNear(since, now) {
			limit = halfCut
		}
		if now.Sub(since) > limit {
			c.found = append(c.found, Violation{RuleHalf, l.a, now, fmt.Sprintf("has %s, which has not had %s for %v", l.b, l.a, now.Sub(since).Round(time.Second))})
			c.half[l] = now.Add(time.Hour) // said once
		}
	}
	for name, n := range c.nodes {
		for id, since := range n.gone {
			if !since.IsZero() && now.Sub(since) > ghostAtMost {
				c.found = append(c.found, Violation{RuleGhost, name, now, fmt.Sprintf("still has %s, dead or frozen for %v", c.name(id), now.Sub(since).Round(time.Second))})
				n.gone[id] = now.Add(time.Hour)
			}
		}
		if n.above.exceeds(aboveAtMost, now) {
			c.found = append(c.found, Violation{RuleMax, name, now, fmt.Sprintf("above its maximum of %d for more than %v", c.state.Proc(name).Max, aboveAtMost)})
		}
		if n.far.exceeds(handover, now) {
			c.found = append(c.found, Violation{RuleMax, name, now, fmt.Sprintf("more than %d above its maximum of %d for more than %v", aboveExtra, c.state.Proc(name).Max, handover)})
		}
	}
}

// checkNetsplit: one netsplit for each loss of a seed, one end for each netsplit.
func (c *check) checkNetsplit(r Record) {
	n := c.node(r.Proc)
	split := r.Kind == Netsplit
	if n.lost[r.Seed] == split {
		c.report(RuleNetsplit, r, "%s of %s twice, nothing in between", r.Kind, r.Seed)
	}
	if split && len(c.faults) == 0 {
		c.report(RuleNetsplit, r, "netsplit of %s with every node alive", r.Seed)
	}
	n.lost[r.Seed] = split
}

// finish applies the rules that only the whole log can answer.
func (c *check) finish(now time.Time) {
	c.reportOverdue(now)
	at := Record{At: now.UnixNano()}
	for _, p := range c.state.Running() {
		n := c.node(p.Name)
		at.Proc = p.Name
		if n.next != "" && !p.Frozen {
			c.report(RuleEvents, at, "%q of %s never came", n.next, c.name(n.nextPeer))
		}
		if n.snapshot != nil {
			c.checkSnapshot(*n.snapshot, p)
		}
	}
	if c.cfg.Whole {
		c.checkWhole(at)
	}
	if !c.cfg.CompleteFrom.IsZero() {
		c.checkComplete(at)
	}
	if c.cfg.Accounted {
		c.checkAccounts(at)
	}
}

// checkSnapshot compares the list as the node read it with the sum of its events.
func (c *check) checkSnapshot(snap Record, p *Proc) {
	for _, id := range snap.Peers {
		if !p.Has(id) {
			c.report(RuleSnapshot, snap, "%s is in the list, no event told", c.name(id))
		}
	}
	for id := range p.Peers {
		if !slices.Contains(snap.Peers, id) {
			c.report(RuleSnapshot, snap, "%s is not in the list, no event told", c.name(id))
		}
	}
}

func (c *check) checkWhole(at Record) {
	up := c.state.Running()
	at.Proc = "all"
	if parts := c.state.Components(); len(parts) > 1 {
		c.report(RuleComponent, at, "%d parts: %v", len(parts), parts)
	}
	for _, half := range c.state.Half() {
		c.report(RuleHalf, at, "%s at the end, not the other way round", half)
	}
	for _, p := range up {
		at.Proc = p.Name
		if got, want := len(p.Peers), p.Want(len(up)); got < want {
			c.report(RuleDegree, at, "%d peers of %d", got, want)
		}
		if p.Max >= 0 && len(p.Peers) > p.Max && c.cfg.Whole {
			c.report(RuleMax, at, "%d peers at the end, the maximum is %d", len(p.Peers), p.Max)
		}
	}
}
