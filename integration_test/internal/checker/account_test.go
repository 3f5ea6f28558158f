package checker

import (
	"strings"
	"testing"
	"time"
)

// gap adds the report of a that it lost the broadcasts first to last of from.
func (s *script) gap(a, from string, first, last uint64) *script {
	return s.gapOf(a, from, "", first, last)
}

func (s *script) gapOf(a, from, session string, first, last uint64) *script {
	return s.add(a, Gap, Record{Peer: id(from), Session: session, Seq: first, To: last})
}

// twenty returns the run of three after which a emits ten more broadcasts.
func twenty() *script { return three().commanded("a", 11, 20).sent("a", 11, 20) }

// again starts a second run of a, with the same id and a link to b.
func again(s *script, session string) *script {
	s.at(4*time.Second).add("a", Fault, Record{Text: FaultKill}).at(5*time.Second).lose("b", "a", false).lose("c", "a", false)
	s.at(6*time.Second).add("a+1", Started, Record{Peer: id("a"), Min: 3, Max: 5, Session: session})
	return s.gain("a+1", "b", true).gain("b", "a", false)
}

var accounted = Config{Accounted: true}

// Logs in which every event is delivered or reported pass.
func TestGoodAccountsPass(t *testing.T) {
	for name, s := range map[string]*script{
		"all delivered":                 twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 20),
		"a gap in the middle":           twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 14).gap("c", "a", 15, 16).heard("c", "a", 17, 20),
		"a gap at the end":              twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 19).gap("c", "a", 20, 20),
		"a gap in two parts":            twenty().heard("b", "a", 11, 20).gap("c", "a", 11, 12).gap("c", "a", 13, 20),
		"all lost by all receivers":     twenty().gap("b", "a", 11, 20).gap("c", "a", 11, 20),
		"a newcomer begins in between":  twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 20).start("d").heard("d", "a", 16, 20),
		"a newcomer begins with a gap":  twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 20).start("d").gap("d", "a", 16, 18).heard("d", "a", 19, 20),
		"a newcomer that heard nothing": twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 20).start("d"),
		"refused by Emit, so not numbered": three().commanded("a", 11, 20).sent("a", 11, 12).add("a", Failed, Record{Channel: Broadcast, Seq: 13}).sent("a", 14, 20).
			heard("b", "a", 11, 12).heard("b", "a", 14, 20).heard("c", "a", 11, 12).gap("c", "a", 13, 14).heard("c", "a", 16, 20), // of 14 and 15
		"the sender died and no receiver knows its last broadcast": twenty().heard("b", "a", 11, 18).heard("c", "a", 11, 15).gap("c", "a", 16, 18).
			at(4*time.Second).add("a", Fault, Record{Text: FaultKill}),
		"the sender died before it reported what it sent": three().commanded("a", 11, 20).heard("b", "a", 11, 12).heard("c", "a", 11, 12).
			at(4*time.Second).add("a", Fault, Record{Text: FaultKill}),
		"a receiver died owing": twenty().heard("b", "a", 11, 20).at(4*time.Second).add("c", Fault, Record{Text: FaultKill}),
		"a receiver is frozen":  twenty().heard("b", "a", 11, 20).at(4*time.Second).add("c", Fault, Record{Text: FaultStop}),
		"two runs of one id with different sessions": func() *script {
			s := twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 18).gapOf("c", "a", "01", 19, 20)
			s.log[0].Session = "01"
			s = again(s, "02").commanded("a+1", 1, 5).sent("a+1", 1, 5).add("b", Gap, Record{Peer: id("a"), Session: "02", Seq: 1, To: 4})
			return s.add("b", Received, Record{Peer: id("a"), Run: "a+1", Channel: Broadcast, Seq: 5, To: 5}).
				add("c", Received, Record{Peer: id("a"), Run: "a+1", Channel: Broadcast, Seq: 1, To: 5})
		}(),
		"direct events have no gaps": twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 20).
			add("a", Commanded, Record{Channel: Direct, Peer: id("b"), Seq: 1, To: 9}).add("b", Received, Record{Peer: id("a"), Run: "a", Channel: Direct, Seq: 5, To: 5}),
	} {
		cfg := accounted
		if strings.HasPrefix(name, "refused") {
			cfg.Refusals = true
		}
		for _, v := range Check(s.log, cfg) {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// badAccounts returns the cases of TestEachRuleFails about accounts.
func badAccounts() []breach {
	b := func() *script { return twenty().heard("b", "a", 11, 20) }
	return []breach{
		{RuleAccount, "a hole that nobody reported", b().heard("c", "a", 11, 14).heard("c", "a", 16, 20), accounted},
		{RuleAccount, "a gap that is too short", b().heard("c", "a", 11, 14).gap("c", "a", 15, 15).heard("c", "a", 17, 20), accounted},
		{RuleAccount, "a hole in front of a gap", b().heard("c", "a", 11, 14).gap("c", "a", 16, 16).heard("c", "a", 17, 20), accounted},
		{RuleAccount, "the last one is missing", b().heard("c", "a", 11, 19), accounted},
		{RuleAccount, "the last ones, after a gap", b().heard("c", "a", 11, 12).gap("c", "a", 13, 15), accounted},
		{RuleAccount, "all of them", b(), accounted},
		{RuleAccount, "everybody lacks what a living sender emitted", twenty().heard("b", "a", 11, 19).heard("c", "a", 11, 19), accounted},
		{RuleAccount, "the sender died, a survivor knows more", twenty().heard("b", "a", 11, 15).gap("b", "a", 16, 18).heard("c", "a", 11, 15).
			at(4*time.Second).add("a", Fault, Record{Text: FaultKill}), accounted},
		{RuleAccount, "a linked peer must get the first broadcast", (&script{}).start("a", "b").gain("a", "b", true).gain("b", "a", true).
			commanded("a", 1, 9).sent("a", 1, 9).heard("b", "a", 3, 9), accounted},
		{RuleAccount, "a peer that heard nothing at all", (&script{}).start("a", "b").gain("a", "b", true).gain("b", "a", true).
			commanded("a", 1, 9).sent("a", 1, 9), accounted},
		{RuleGap, "reported after it came", b().heard("c", "a", 11, 20).gap("c", "a", 15, 15), accounted},
		{RuleGap, "comes after it was reported", b().heard("c", "a", 11, 14).gap("c", "a", 15, 16).heard("c", "a", 15, 20), accounted},
		{RuleGap, "reported twice", b().heard("c", "a", 11, 14).gap("c", "a", 15, 16).gap("c", "a", 16, 17).heard("c", "a", 18, 20), accounted},
		{RuleGap, "never emitted", b().heard("c", "a", 11, 20).gap("c", "a", 21, 21), accounted},
		{RuleGap, "no range", b().heard("c", "a", 11, 20).gap("c", "a", 0, 0), accounted},
		{RuleGap, "backwards", b().heard("c", "a", 11, 20).gap("c", "a", 22, 21), accounted},
		{RuleGap, "of nobody", b().heard("c", "a", 11, 20).gap("c", "nobody", 1, 1), accounted},
		{RuleGap, "of a session that nobody had", again(b(), "02").gapOf("b", "a+1", "03", 1, 1), accounted},
		{RuleGap, "the run is ambiguous", again(three(), "").gapOf("b", "a", "03", 11, 11), accounted},
		{RuleOrder, "a gap that comes late", b().heard("c", "a", 11, 14).heard("c", "a", 16, 20).gap("c", "a", 15, 15), accounted},
		{RuleOrder, "delivered behind a gap beyond it", b().heard("c", "a", 11, 14).gap("c", "a", 16, 16).heard("c", "a", 15, 15), Config{}},
	}
}

// A missing broadcast is reported once, not again for every later one.
func TestOneGapOneReport(t *testing.T) {
	found := Check(twenty().heard("b", "a", 11, 20).heard("c", "a", 11, 14).heard("c", "a", 16, 17).heard("c", "a", 18, 20).log, accounted)
	if len(found) != 1 || found[0].Rule != RuleAccount || found[0].Proc != "c" || !strings.Contains(found[0].Text, "15 of a was neither") {
		t.Errorf("found %v", found)
	}
	if found := Check(twenty().heard("b", "a", 11, 14).log, Config{}); len(found) != 0 {
		t.Errorf("checked although Accounted is not set: %v", found)
	}
}

func TestGapsAreKept(t *testing.T) {
	log := Merge(nil, Record{Kind: Gap, Peer: id("a"), Session: "01", Seq: 3, To: 5})
	log = Merge(log, Record{Kind: Gap, Peer: id("a"), Session: "01", Seq: 6})
	if len(log) != 2 || log[1].To != 6 || !strings.Contains(log[0].String(), "3-5 session=01") {
		t.Errorf("%v", log)
	}
	s := NewState()
	for _, r := range log {
		s.Apply(r)
	}
	if got := s.Proc("").Lost[id("a")]; got != 4 {
		t.Errorf("%d lost, want 4", got)
	}
}
