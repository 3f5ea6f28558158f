package checker

import (
	"fmt"
	"slices"
	"strings"
)

// addCommand notes the numbers of the events that the test commanded a sender to emit. An event
// of this sender with any other number was invented.
func (c *check) addCommand(r Record) {
	key := sendKey(r.Proc, r.Channel, r.Peer)
	if c.commanded[key] == nil {
		c.commanded[key] = &spans{}
	}
	c.commanded[key].add(r.Seq, r.To)
}

func sendKey(proc, channel, to string) string { return proc + "|" + channel + "|" + to }

// checkReceived checks the events of one Received record, which have consecutive numbers: the
// test must have commanded them, and they must arrive once and in order.
func (c *check) checkReceived(r Record) {
	n, p := c.node(r.Proc), c.state.Proc(r.Proc)
	to := ""
	if r.Channel == Direct {
		to = p.ID
	}
	from := c.state.Procs[r.Run]
	switch commanded := c.commanded[sendKey(r.Run, r.Channel, to)]; {
	case from == nil || from.ID != r.Peer:
		c.report(RuleInvented, r, "%s event %s claims to be from %q, but %s sent it", r.Channel, r.Name, r.Run, c.name(r.Peer))
	case commanded == nil || !commanded.contains(r.Seq, r.To):
		c.report(RuleInvented, r, "%s %d-%d of %s, which was not commanded to emit it", r.Channel, r.Seq, r.To, r.Run)
	}
	if r.Run == r.Proc {
		c.report(RuleSelf, r, "its own %s %d-%d", r.Channel, r.Seq, r.To)
	}
	key := Stream{r.Run, r.Channel}
	heard := n.heard[key]
	if heard == nil {
		heard = &spans{}
		n.heard[key] = heard
	}
	switch {
	case heard.overlaps(r.Seq, r.To):
		c.report(RuleDuplicate, r, "%s %d-%d of %s again", r.Channel, r.Seq, r.To, r.Run)
	case r.Seq <= heard.last():
		c.report(RuleOrder, r, "%s %d-%d of %s after %d", r.Channel, r.Seq, r.To, r.Run, heard.last())
	}
	heard.add(r.Seq, r.To)
	c.addDelivery(r)
}

func (c *check) addSent(r Record) {
	n := c.node(r.Proc)
	key := sendKey("", r.Channel, r.Peer)
	if n.sent[key] == nil {
		n.sent[key] = &spans{}
	}
	n.sent[key].add(r.Seq, r.To)
}

// checkComplete reports events that a node emitted since Config.CompleteFrom, and that Emit
// accepted, but that did not arrive.
func (c *check) checkComplete(at Record) {
	for _, cmd := range c.commands {
		sender := c.state.Proc(cmd.Proc)
		if cmd.Time().Before(c.cfg.CompleteFrom) || !c.untouched(sender) {
			continue
		}
		sent := c.node(cmd.Proc).sent[sendKey("", cmd.Channel, cmd.Peer)]
		if sent == nil {
			continue
		}
		for _, p := range c.state.Running() {
			if p == sender || !c.untouched(p) || (cmd.Channel == Direct && cmd.Peer != p.ID) {
				continue
			}
			if cmd.Channel == Direct && (c.node(cmd.Proc).wentDown[p.ID] || c.node(p.Name).wentDown[sender.ID]) {
				continue // direct events are delivered at most once: those on a link that ended may be lost
			}
			heard := c.node(p.Name).heard[Stream{cmd.Proc, cmd.Channel}]
			if missing := sent.within(cmd.Seq, cmd.To).without(heard); len(missing) > 0 {
				at.Proc = p.Name
				c.report(RuleMissing, at, "%s %v of %s", cmd.Channel, missing, cmd.Proc)
			}
		}
	}
}

// untouched reports whether the process has run since Config.CompleteFrom without a fault.
func (c *check) untouched(p *Proc) bool {
	started := c.node(p.Name).started
	if started.IsZero() || started.After(c.cfg.CompleteFrom) || !p.Up || p.Frozen {
		return false
	}
	return !slices.ContainsFunc(c.faults, func(f Record) bool {
		return f.Proc == p.Name && f.Time().After(c.cfg.CompleteFrom)
	})
}

// spans is a set of numbers, kept as sorted, disjoint, closed intervals. The zero
// value is empty. Adding is cheap when numbers come in order, as they mostly do.
type spans []span

type span struct{ from, to uint64 }

func (s span) String() string {
	if s.from == s.to {
		return fmt.Sprint(s.from)
	}
	return fmt.Sprintf("%d-%d", s.from, s.to)
}

func (s spans) String() string {
	var parts []string
	for i, sp := range s {
		if i == 5 {
			parts = append(parts, fmt.Sprintf("and %d more ranges", len(s)-i))
			break
		}
		parts = append(parts, sp.String())
	}
	return strings.Join(parts, ", ")
}

// search returns the index of the first interval that ends at or after n.
func (s spans) search(n uint64) int {
	i, _ := slices.BinarySearchFunc(s, n, func(sp span, n uint64) int {
		if sp.to < n {
			return -1
		}
		return 1
	})
	return i
}

func (s *spans) add(from, to uint64) {
	i := s.search(max(from, 1) - 1) // from-1, so that an interval that ends right before from is joined too
	j := i
	for ; j < len(*s) && (*s)[j].from <= to+1; j++ {
		from, to = min(from, (*s)[j].from), max(to, (*s)[j].to)
	}
	*s = slices.Replace(*s, i, j, span{from, to})
}

func (s spans) last() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].to
}

func (s spans) overlaps(from, to uint64) bool {
	i := s.search(from)
	return i < len(s) && s[i].from <= to
}

func (s spans) contains(from, to uint64) bool {
	i := s.search(from)
	return i < len(s) && s[i].from <= from && s[i].to >= to
}

// within returns the numbers of s between from and to, both included.
func (s spans) within(from, to uint64) spans {
	var part spans
	for _, sp := range s {
		if a, b := max(sp.from, from), min(sp.to, to); a <= b {
			part = append(part, span{a, b})
		}
	}
	return part
}

// without returns the numbers of s that are not in other, which may be nil.
func (s spans) without(other *spans) spans {
	rest := slices.Clone(s)
	if other == nil {
		return rest
	}
	for _, o := range *other {
		var next spans
		for _, sp := range rest {
			if o.to < sp.from || o.from > sp.to {
				next = append(next, sp)
				continue
			}
			if sp.from < o.from {
				next = append(next, span{sp.from, o.from - 1})
			}
			if sp.to > o.to {
				next = append(next, span{o.to + 1, sp.to})
			}
		}
		rest = next
	}
	return rest
}
