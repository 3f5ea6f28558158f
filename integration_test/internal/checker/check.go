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
	RuleGap        = "a gap covers lost events only"
	RuleAccount    = "delivered + reported = sent"
	RuleSelf       = "no own broadcasts"
	RuleEvents     = "order of the link events"
	RuleConnected  = "Connected inside handlers"
	RuleSnapshot   = "the peer list agrees with its events"
	RuleHalf       = "links are symmetric"
	RuleGhost      = "dead peers are removed"
	RuleFlapping   = "no flapping"
	RuleMax        = "no node above max"
	RuleComponent  = "one component"
	RuleDegree     = "degree of at least min"
	RuleNetsplit   = "netsplit once per loss"
	RuleUnexpected = "no unexpected failure"
)

// A Violation is one broken rule.
type Violation struct {
	Rule string
	Proc string
	At   time.Time // when the log shows it
	Text string
}

func (v Violation) String() string {
	at := ""
	if !v.At.IsZero() {
		at = v.At.Format(" 15:04:05.000")
	}
	return fmt.Sprintf("[%s] %s%s: %s", v.Rule, v.Proc, at, v.Text)
}

// SettleWithin is how long it may take, at the end of a test, until every link exists on both
// sides or on neither.
const SettleWithin = halfAtMost

// Limits of the rules. They are the same for every test. docs/promises.md has the promises that
// the rules check.
const (
	flapWithin   = 30 * time.Second // a removed peer must not be added again within this time, unless there was a fault
	halfAtMost   = 10 * time.Second // how long a link may exist on one side only
	halfCut      = 13 * time.Second // how long a link may exist on one side only if a fault lost the message that ends the link: the keepalive timeout
	aboveAtMost  = 30 * time.Second // how long a node may have more peers than its maximum
	aboveExtra   = 2                // how many peers more than its maximum a node may have for longer than handover
	handover     = time.Second      // how long a node may have more than aboveExtra peers above its maximum, while a new link replaces an old one
	ghostAtMost  = 20 * time.Second // how long a dead peer may stay in a peer list: the keepalive timeout of 12.5 s plus a margin
	faultExcuses = 20 * time.Second // a link may break because of a fault that the test caused at most this long before
)

// Config selects the rules that Check applies in addition to those that hold in every test.
type Config struct {
	// Whole requires that at the end the running nodes form one component, every link exists on
	// both sides, and every node has at least its minimum of peers (or all other nodes) and at
	// most its maximum.
	Whole bool
	// CompleteFrom, if set, requires that every event that a node was commanded to emit after
	// this time, and that Emit accepted, reached all nodes (broadcast) or its receiver
	// (direct). Nodes that started or suffered a fault since then are exempt.
	CompleteFrom time.Time
	// Accounted requires that each node delivered, or reported as lost, every broadcast of each
	// process of a sender since the first one that the node knew of. It knows of a broadcast at
	// the latest if it was linked to the sender on both sides when the test commanded the
	// sender to emit it. At the end no broadcast may be under way, and the network must be
	// whole.
	Accounted bool
	// Refusals permits Emit to fail.
	Refusals bool
}

// Check returns all violations of the rules in the records of a test, in the order in which the
// records show them. The records must have the order of Log.Records.
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

// check holds what the rules remember while Check goes through the records.
type check struct {
	cfg       Config
	state     *State
	nodes     map[string]*node
	faults    []Record
	half      map[link]time.Time // the links that node a has and node b lacks, and since when
	commanded map[string]*spans  // by sendKey, the numbers of the events that a sender was commanded to emit on a channel
	refused   map[string]*spans  // by process of a sender, the numbers of the broadcasts that Emit refused
	commands  []Record           // the Commanded records
	found     []Violation
}

type link struct{ a, b string } // names

// An excess is a period in which a node has more peers than a limit allows.
type excess struct {
	since    time.Time // zero if there is none now
	reported bool      // exceeds has returned true
}

// update begins the excess at the time now, unless it has begun, if above is true: the node has
// too many peers. Otherwise it ends the excess.
func (e *excess) update(above bool, now time.Time) {
	switch {
	case !above:
		*e = excess{}
	case e.since.IsZero():
		e.since = now
	}
}

// exceeds reports whether the excess has lasted for longer than most at the time now. It
// returns true only once per excess.
func (e *excess) exceeds(most time.Duration, now time.Time) bool {
	if e.since.IsZero() || e.reported || now.Sub(e.since) <= most {
		return false
	}
	e.reported = true
	return true
}

// A node is what the rules need to remember about one process.
type node struct {
	started  time.Time
	next     Kind   // the kind that the node's next record about a link must have; "" if any may come
	nextPeer string // the peer that the node's next record about a link must have; "" if it may have any
	removed  map[string]time.Time
	gone     map[string]time.Time // when the processes of linked peers ended
	above    excess               // more than max
	far      excess               // more than max + aboveExtra
	heard    map[Stream]*spans
	accounts map[string]*account // by run of the sender
	sent     map[string]*spans   // by channel and receiver
	lost     map[string]bool     // seeds in netsplit
	snapshot *Record             // the node's last Snapshot record; nil if its peer list has changed since
	wentDown map[string]bool     // the ids of peers whose link has ended since Config.CompleteFrom
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

// name returns the name of the process with that peer id, or the end of the id, for the text of
// a violation.
func (c *check) name(id string) string {
	if p := c.state.ByID(id); p != nil {
		return p.Name
	}
	return "…" + short(id)
}

// step checks one record against every rule, and then updates the state with it.
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

// faultNear reports whether a fault that the test caused between from and until, or within
// faultExcuses before from, may explain a broken link. A fault of any node counts: when a peer
// is killed, the others move their links too.
func (c *check) faultNear(from, until time.Time) bool {
	return slices.ContainsFunc(c.faults, func(f Record) bool {
		return f.Time().After(from.Add(-faultExcuses)) && !f.Time().After(until)
	})
}

// linkChanged applies the rules for links after the record r has shown that a node added or
// removed a link.
func (c *check) linkChanged(r Record) {
	n, p := c.node(r.Proc), c.state.Proc(r.Proc)
	n.snapshot = nil
	switch r.Kind {
	case ListAdd:
		if t, ok := n.removed[r.Peer]; ok && r.Time().Sub(t) < flapWithin && !c.faultNear(t, r.Time()) {
			c.report(RuleFlapping, r, "%s was removed and added again after %v without a fault", c.name(r.Peer), r.Time().Sub(t).Round(time.Millisecond))
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

// processChanged notes, after a process started, ended or suffered a fault, which peers of each
// running node are dead or frozen.
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

// updateHalfLinks finds the links that only one of the two nodes has, and remembers since when.
// now is the time of the record.
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

// reportOverdue reports each state that has lasted longer than its limit at the time now, such
// as a link that only one side has.
func (c *check) reportOverdue(now time.Time) {
	for l, since := range c.half {
		limit := halfAtMost
		if c.faultNear(since, now) {
			limit = halfCut
		}
		if now.Sub(since) > limit {
			c.found = append(c.found, Violation{RuleHalf, l.a, now, fmt.Sprintf("has a link to %s, which has had no link to %s for %v", l.b, l.a, now.Sub(since).Round(time.Second))})
			c.half[l] = now.Add(time.Hour) // so that it is reported once
		}
	}
	for name, n := range c.nodes {
		for id, since := range n.gone {
			if !since.IsZero() && now.Sub(since) > ghostAtMost {
				c.found = append(c.found, Violation{RuleGhost, name, now, fmt.Sprintf("still has a link to %s, which has been dead or frozen for %v", c.name(id), now.Sub(since).Round(time.Second))})
				n.gone[id] = now.Add(time.Hour)
			}
		}
		if n.above.exceeds(aboveAtMost, now) {
			c.found = append(c.found, Violation{RuleMax, name, now, fmt.Sprintf("more peers than its maximum of %d for longer than %v", c.state.Proc(name).Max, aboveAtMost)})
		}
		if n.far.exceeds(handover, now) {
			c.found = append(c.found, Violation{RuleMax, name, now, fmt.Sprintf("more than %d peers above its maximum of %d for longer than %v", aboveExtra, c.state.Proc(name).Max, handover)})
		}
	}
}

// checkNetsplit reports a netsplit of a seed that is in netsplit already, a netsplit although
// the test has caused no fault, and the end of a netsplit that has not begun.
func (c *check) checkNetsplit(r Record) {
	n := c.node(r.Proc)
	split := r.Kind == Netsplit
	if n.lost[r.Seed] == split {
		c.report(RuleNetsplit, r, "%s of %s twice in a row", r.Kind, r.Seed)
	}
	if split && len(c.faults) == 0 {
		c.report(RuleNetsplit, r, "netsplit of %s without a fault", r.Seed)
	}
	n.lost[r.Seed] = split
}

// finish applies the rules that need the whole log. now is the time of its last record.
func (c *check) finish(now time.Time) {
	c.reportOverdue(now)
	at := Record{At: now.UnixNano()}
	for _, p := range c.state.Running() {
		n := c.node(p.Name)
		at.Proc = p.Name
		if n.next != "" && !p.Frozen {
			c.report(RuleEvents, at, "%q of %s is missing at the end", n.next, c.name(n.nextPeer))
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

// checkSnapshot compares the peer list in a Snapshot record with the peers that the node's
// records about links have added and not removed.
func (c *check) checkSnapshot(snap Record, p *Proc) {
	for _, id := range snap.Peers {
		if !p.Has(id) {
			c.report(RuleSnapshot, snap, "%s is in the list, but no event added it", c.name(id))
		}
	}
	for id := range p.Peers {
		if !slices.Contains(snap.Peers, id) {
			c.report(RuleSnapshot, snap, "%s is not in the list, but no event removed it", c.name(id))
		}
	}
}

func (c *check) checkWhole(at Record) {
	up := c.state.Running()
	at.Proc = "all"
	if parts := c.state.Components(); len(parts) > 1 {
		c.report(RuleComponent, at, "%d components: %v", len(parts), parts)
	}
	for _, half := range c.state.Half() {
		c.report(RuleHalf, at, "%s at the end, but not the other way round", half)
	}
	for _, p := range up {
		at.Proc = p.Name
		if got, want := len(p.Peers), p.Want(len(up)); got < want {
			c.report(RuleDegree, at, "%d peers, want at least %d", got, want)
		}
		if p.Max >= 0 && len(p.Peers) > p.Max && c.cfg.Whole {
			c.report(RuleMax, at, "%d peers at the end, the maximum is %d", len(p.Peers), p.Max)
		}
	}
}
