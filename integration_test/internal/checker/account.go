package checker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The account of a receiver with one run of a sender: of every broadcast it is
// owed it was either given or told that it is lost, once and in order. The
// numbers here are the library's, which counts what Emit accepted from 1 in each
// session; those in the payloads also count what Emit refused.
type account struct {
	first     uint64 // the first number, as far as the log can tell; 0 for none
	delivered spans
	lost      spans
}

// next is the number that has to come next, 0 if any may be the first.
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

// accepted returns the payload numbers of the broadcasts that a run was told to
// emit and not seen to refuse.
func (c *check) accepted(run string) spans {
	told := c.commanded[sendKey(run, Broadcast, "")]
	if told == nil {
		return nil
	}
	return told.without(c.refused[run])
}

// count is how many numbers of s are at most n.
func (s spans) count(n uint64) (count uint64) {
	for _, sp := range s.within(1, n) {
		count += sp.to - sp.from + 1
	}
	return count
}

// openAccounts notes that everybody who is linked to a sender, on both sides, when it
// is told to emit knows its mark by then.
func (c *check) openAccounts(told Record) {
	sender := c.state.Proc(told.Proc)
	for _, p := range c.state.Running() {
		if p == sender || told.Channel != Broadcast || !p.Has(sender.ID) || !sender.Has(p.ID) {
			continue
		}
		if a := c.account(p.Name, told.Proc); a.next() == 0 {
			a.first = c.accepted(told.Proc).count(told.Seq-1) + 1
		}
	}
}

// addDelivery enters delivered broadcasts, which received has already judged by
// their own.
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

// addGap enters what was reported as lost.
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
		c.report(RuleGap, r, "from %d to %d of %s is no range", r.Seq, r.To, run)
		return
	case a.delivered.overlaps(r.Seq, r.To):
		c.report(RuleGap, r, "%v of %s was reported as lost after it had been delivered", lost, run)
	case a.lost.overlaps(r.Seq, r.To):
		c.report(RuleGap, r, "%v of %s was reported as lost twice", lost, run)
	default:
		c.checkTurn(r, a, r.Seq, run)
	}
	if all := c.accepted(run); r.To > all.count(all.last()) {
		c.report(RuleGap, r, "%v of %s was reported as lost, it emitted %d", lost, run, all.count(all.last()))
	}
	a.lost.add(r.Seq, r.To)
}

// checkTurn demands that what comes begins with the number whose turn it is.
func (c *check) checkTurn(r Record, a *account, from uint64, run string) {
	next := a.next()
	switch {
	case next == 0 || from == next:
	case from > next:
		if c.cfg.Accounted {
			c.report(RuleAccount, r, "%v of %s was neither delivered nor reported as lost", span{next, from - 1}, run)
		}
	case r.Kind == Gap || from > a.delivered.last(): // deliveries among themselves are judged by received
		c.report(RuleOrder, r, "%s of %d of %s after %d", r.Kind, from, run, next-1)
	}
}

// runOf returns the run that a gap is of: the one that said so when it started,
// else the only one that it can be.
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
		return "", "nobody had it"
	case 1:
		return fit[0], ""
	}
	return "", fmt.Sprintf("is it that of %s? Started has to say the session", strings.Join(fit, " or "))
}

// checkAccounts demands that everybody's accounts with a run end at the same number:
// all that a living sender emitted, else the most that anybody who lives knows of.
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
