package checker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An account covers the broadcasts that one process of a sender emits, at one receiver. From
// the first broadcast on that must arrive, the receiver must either deliver each or report it
// as lost, once and in order. The numbers are those of the library, which counts the broadcasts
// that Emit accepted, from 1 in each session. The numbers in the payloads also count the
// broadcasts that Emit refused.
type account struct {
	first     uint64 // the number of the first broadcast that must arrive; 0 if the log does not show which broadcast that is
	delivered spans
	lost      spans
}

// next returns the number of the sender's broadcast that must be delivered or reported as lost
// next, or 0 if any broadcast may come first.
func (a *account) next() uint64 {
	if last := max(a.delivered.last(), a.lost.last()); last > 0 {
		return last + 1
	}
	return a.first
}

func (c *check) account(receiver, run string) *account {
	n := c.node(receiver)
	a := n.accounts[run]
	if a == nil {
		a = &account{}
		n.accounts[run] = a
	}
	return a
}

// accepted returns the numbers, as in the payloads, of the broadcasts that a process of a
// sender was commanded to emit and that Emit did not refuse. run is the name of the process.
func (c *check) accepted(run string) spans {
	commanded := c.commanded[sendKey(run, Broadcast, "")]
	if commanded == nil {
		return nil
	}
	return commanded.without(c.refused[run])
}

// count returns how many numbers of s are at most n.
func (s spans) count(n uint64) (count uint64) {
	for _, sp := range s.within(1, n) {
		count += sp.to - sp.from + 1
	}
	return count
}

// openAccounts is called when the test commands a process to emit broadcasts. It fixes the
// first broadcast that each receiver must get: a node that is linked to the sender on both
// sides at that moment knows the sender's high-water mark.
func (c *check) openAccounts(cmd Record) {
	sender := c.state.Proc(cmd.Proc)
	for _, p := range c.state.Running() {
		if p == sender || cmd.Channel != Broadcast || !p.Has(sender.ID) || !sender.Has(p.ID) {
			continue
		}
		if a := c.account(p.Name, cmd.Proc); a.next() == 0 {
			a.first = c.accepted(cmd.Proc).count(cmd.Seq-1) + 1
		}
	}
}

// addDelivery adds the broadcasts of a Received record to the receiver's account of their
// sender. checkReceived has already compared them with the receiver's other deliveries.
func (c *check) addDelivery(r Record) {
	accepted := c.accepted(r.Run)
	if r.Channel != Broadcast || len(accepted) == 0 {
		return
	}
	from, to := accepted.count(r.Seq), accepted.count(r.To)
	a := c.account(r.Proc, r.Run)
	switch {
	case a.lost.overlaps(from, to):
		c.report(RuleGap, r, "%v of %s was delivered after it had been reported as lost", span{from, to}, r.Run)
	default:
		c.checkTurn(r, a, from, r.Run)
	}
	a.delivered.add(from, to)
}

// addGap adds the broadcasts that a Gap record reports as lost to the receiver's account of
// their sender.
func (c *check) addGap(r Record) {
	run, why := c.runOf(r)
	if run == "" {
		c.report(RuleGap, r, "%v of session %s of %s: %s", span{r.Seq, r.To}, r.Session, c.name(r.Peer), why)
		return
	}
	a := c.account(r.Proc, run)
	lost := span{r.Seq, r.To}
	switch {
	case r.Seq == 0 || r.To < r.Seq:
		c.report(RuleGap, r, "%d to %d of %s is not a range", r.Seq, r.To, run)
		return
	case a.delivered.overlaps(r.Seq, r.To):
		c.report(RuleGap, r, "%v of %s was reported as lost after it had been delivered", lost, run)
	case a.lost.overlaps(r.Seq, r.To):
		c.report(RuleGap, r, "%v of %s was reported as lost twice", lost, run)
	default:
		c.checkTurn(r, a, r.Seq, run)
	}
	if all := c.accepted(run); r.To > all.count(all.last()) {
		c.report(RuleGap, r, "%v of %s was reported as lost, but it emitted only %d", lost, run, all.count(all.last()))
	}
	a.lost.add(r.Seq, r.To)
}

// checkTurn reports a violation if the delivery or gap in r does not begin with the number that
// must come next in the account a. from is the number with which it begins, and run names the
// process of the sender.
func (c *check) checkTurn(r Record, a *account, from uint64, run string) {
	next := a.next()
	switch {
	case next == 0 || from == next:
	case from > next:
		if c.cfg.Accounted {
			c.report(RuleAccount, r, "%v of %s was neither delivered nor reported as lost", span{next, from - 1}, run)
		}
	case r.Kind == Gap || from > a.delivered.last(): // checkReceived reports deliveries in the wrong order
		c.report(RuleOrder, r, "%s of %d of %s after %d", r.Kind, from, run, next-1)
	}
}

// runOf returns the name of the process that emitted the lost broadcasts of a Gap record.
// Processes with the same peer id differ by the session that they reported when they started.
// If they reported none, the gap must fit a single process. If no process fits, why says what
// is wrong.
func (c *check) runOf(r Record) (run, why string) {
	var fit []string
	for _, name := range slices.Sorted(maps.Keys(c.state.Procs)) {
		p := c.state.Procs[name]
		switch {
		case p.ID != r.Peer || p.ID == "":
		case p.Session != "" && p.Session == r.Session:
			return name, ""
		case p.Session == "":
			fit = append(fit, name)
		}
	}
	switch len(fit) {
	case 0:
		return "", "no run had it"
	case 1:
		return fit[0], ""
	}
	return "", fmt.Sprintf("it could be that of %s; set the session in Started", strings.Join(fit, " or "))
}

// checkAccounts reports receivers whose account of a sender's process ends too early. If that
// process still runs, every account must reach the last broadcast that it emitted. Otherwise
// all must reach the last broadcast that any running receiver has delivered or reported as
// lost.
func (c *check) checkAccounts(at Record) {
	for _, run := range slices.Sorted(maps.Keys(c.state.Procs)) {
		accepted := c.accepted(run)
		if len(accepted) == 0 {
			continue
		}
		sender := c.state.Proc(run)
		last := uint64(0)
		if sent := c.node(run).sent[sendKey("", Broadcast, "")]; sender.Up && sent != nil {
			last = accepted.count(sent.last())
		}
		for _, p := range c.state.Running() {
			if a := c.node(p.Name).accounts[run]; a != nil {
				last = max(last, a.delivered.last(), a.lost.last())
			}
		}
		for _, p := range c.state.Running() {
			a := c.node(p.Name).accounts[run]
			if p.Frozen || a == nil {
				continue
			}
			if next := a.next(); 0 < next && next <= last {
				at.Proc = p.Name
				c.report(RuleAccount, at, "%v of %s was neither delivered nor reported as lost at the end", span{next, last}, run)
			}
		}
	}
}
