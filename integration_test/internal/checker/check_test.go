package checker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// A script is a log written by hand.
type script struct {
	log []Record
	now time.Duration
}

var epoch = time.Unix(1_700_000_000, 0)

func (s *script) at(d time.Duration) *script { s.now = d; return s }

func (s *script) add(proc string, k Kind, r Record) *script {
	r.Proc, r.Kind, r.At = proc, k, epoch.Add(s.now).UnixNano()
	if r.To == 0 {
		r.To = r.Seq
	}
	s.log = append(s.log, r)
	return s
}

func id(proc string) string { return "id-of-" + proc }

func (s *script) start(procs ...string) *script {
	for _, p := range procs {
		s.add(p, Started, Record{Peer: id(p), Min: 3, Max: 5})
	}
	return s
}

// gain adds the events of a when it gets the peer b, lose those when it loses b.
func (s *script) gain(a, b string, first bool) *script {
	if first {
		s.add(a, Connect, Record{Up: true})
	}
	return s.add(a, PeerAdded, Record{Peer: id(b), Up: true}).add(a, ListAdd, Record{Peer: id(b), Up: true})
}

func (s *script) lose(a, b string, last bool) *script {
	if last {
		s.add(a, Disconnect, Record{})
	}
	return s.add(a, PeerRemoved, Record{Peer: id(b), Up: !last}).add(a, ListRemove, Record{Peer: id(b)}).add(a, PeerClose, Record{Peer: id(b)})
}

func (s *script) commanded(a string, from, to uint64) *script {
	return s.add(a, Commanded, Record{Channel: Broadcast, Name: "n", Seq: from, To: to})
}

func (s *script) sent(a string, from, to uint64) *script {
	return s.add(a, Sent, Record{Channel: Broadcast, Name: "n", Seq: from, To: to})
}

func (s *script) heard(a, from string, first, last uint64) *script {
	return s.add(a, Received, Record{Peer: id(from), Run: from, Channel: Broadcast, Name: "n", Seq: first, To: last})
}

// three returns a run without violations: three nodes, all linked, ten broadcasts
// from a.
func three() *script {
	s := (&script{}).start("a", "b", "c")
	s.at(time.Second).gain("a", "b", true).gain("b", "a", true).gain("c", "a", true).gain("a", "c", false)
	s.gain("b", "c", false).gain("c", "b", false)
	s.at(2*time.Second).commanded("a", 1, 10).sent("a", 1, 10)
	return s.at(3*time.Second).heard("b", "a", 1, 10).heard("c", "a", 1, 4).heard("c", "a", 5, 10)
}

var whole = Config{Whole: true, CompleteFrom: epoch.Add(1500 * time.Millisecond)}

// Logs without a breach pass.
func TestGoodLogsPass(t *testing.T) {
	logs := map[string]*script{
		"three nodes": three(),
		"killed, back under the same id, linked again": three().at(4*time.Second).add("c", Fault, Record{Text: FaultKill}).
			at(5*time.Second).lose("a", "c", false).lose("b", "c", false).
			at(6*time.Second).add("c+1", Started, Record{Peer: id("c"), Min: 3, Max: 5}).
			gain("c+1", "a", true).gain("a", "c", false).gain("c+1", "b", false).gain("b", "c", false),
		"netsplit and its end after a fault": three().at(4*time.Second).add("c", Fault, Record{Text: FaultStop}).
			at(5*time.Second).lose("a", "c", false).lose("b", "c", false).
			at(9*time.Second).add("a", Netsplit, Record{Seed: "s"}).
			at(20*time.Second).add("c", Fault, Record{Text: FaultContinue}).
			lose("c", "a", false).lose("c", "b", true).
			at(21*time.Second).gain("a", "c", false).gain("c", "a", true).gain("b", "c", false).gain("c", "b", false).
			at(22*time.Second).add("a", Resolved, Record{Seed: "s"}),
		"a snapshot that agrees": three().add("a", Snapshot, Record{Peers: []string{id("b"), id("c")}}),
		"an old snapshot": three().add("a", Snapshot, Record{Peers: []string{id("b"), id("c")}}).
			at(4*time.Second).lose("a", "c", false).lose("c", "a", false).
			at(40*time.Second).gain("a", "c", false).gain("c", "a", false),
		"above max + 2 for a moment": many(8, time.Second).lose("a", "b", false).lose("b", "a", true).lose("a", "c", false).lose("c", "a", true).
			lose("a", "d", false).lose("d", "a", true).at(5*time.Second).commanded("a", 1, 1),
		"gone for good, the rest goes on": three().at(4*time.Second).add("c", Fault, Record{Text: FaultClose}).
			lose("c", "a", false).lose("c", "b", true).add("c", Exited, Record{}).lose("a", "c", false).lose("b", "c", false),
	}
	for name, s := range logs {
		cfg := whole
		cfg.Whole = name != "above max + 2 for a moment" // a star that fell apart
		for _, v := range Check(s.log, cfg) {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// A breach is a log that breaks the rule.
type breach struct {
	rule, name string
	log        *script
	cfg        Config
}

// TestEachRuleFails checks a log with one violation for every rule. A rule that cannot
// fail would prove nothing in other tests.
func TestEachRuleFails(t *testing.T) {
	const sec = time.Second
	bad := []breach{
		{RuleOrder, "late number", three().commanded("a", 11, 14).heard("b", "a", 13, 14).heard("b", "a", 11, 12), Config{}},
		{RuleDuplicate, "one number twice", three().heard("b", "a", 10, 10), Config{}},
		{RuleDuplicate, "overlap", three().commanded("a", 11, 12).heard("b", "a", 10, 12), Config{}},
		{RuleInvented, "never commanded", three().heard("b", "a", 11, 11), Config{}},
		{RuleInvented, "in another's name", three().add("b", Received, Record{Peer: id("c"), Run: "a", Channel: Broadcast, Seq: 1, To: 1}), Config{}},
		{RuleInvented, "unknown sender", three().heard("b", "nobody", 1, 1), Config{}},
		{RuleInvented, "direct event to somebody else", three().add("a", Commanded, Record{Channel: Direct, Peer: id("c"), Seq: 1, To: 1}).
			add("b", Received, Record{Peer: id("a"), Run: "a", Channel: Direct, Seq: 1, To: 1}), Config{}},
		{RuleInvented, "damaged payload", three().add("b", Damaged, Record{Peer: id("a")}), Config{}},
		{RuleSelf, "own broadcast", three().heard("a", "a", 1, 1), Config{}},
		{RuleMissing, "broadcast", three().commanded("a", 11, 20).sent("a", 11, 20).heard("b", "a", 11, 20).heard("c", "a", 11, 19), whole},
		{RuleMissing, "a hole in the middle", three().commanded("a", 11, 20).sent("a", 11, 20).heard("b", "a", 11, 20).heard("c", "a", 11, 14).heard("c", "a", 16, 20), whole},
		{RuleMissing, "at a node that heard nothing", three().commanded("c", 1, 1).sent("c", 1, 1).heard("b", "c", 1, 1), whole},
		{RuleMissing, "direct", three().add("a", Commanded, Record{Channel: Direct, Peer: id("b"), Seq: 1, To: 2}).
			add("a", Sent, Record{Channel: Direct, Peer: id("b"), Seq: 1, To: 2}).
			add("b", Received, Record{Peer: id("a"), Run: "a", Channel: Direct, Seq: 1, To: 1}), whole},
		{RuleUnexpected, "emit failed", three().add("a", Failed, Record{Channel: Broadcast, Seq: 11}), Config{}},
		{RuleEvents, "first peer without connect", (&script{}).start("a", "b").gain("a", "b", false), Config{}},
		{RuleEvents, "connect with peers", three().start("d").gain("a", "d", true), Config{}},
		{RuleEvents, "connect twice", (&script{}).start("a", "b").add("a", Connect, Record{Up: true}).gain("a", "b", true), Config{}},
		{RuleEvents, "connect after peer added", (&script{}).start("a", "b").add("a", PeerAdded, Record{Peer: id("b"), Up: true}).
			add("a", Connect, Record{Up: true}).add("a", ListAdd, Record{Peer: id("b"), Up: true}), Config{}},
		{RuleEvents, "add before peer added", three().start("d").add("a", ListAdd, Record{Peer: id("d"), Up: true}).add("a", PeerAdded, Record{Peer: id("d"), Up: true}), Config{}},
		{RuleEvents, "added twice", three().gain("a", "b", false), Config{}},
		{RuleEvents, "no add after peer added", three().start("d").add("a", PeerAdded, Record{Peer: id("d"), Up: true}), Config{}},
		{RuleEvents, "another peer in between", three().start("d", "e").add("a", PeerAdded, Record{Peer: id("d"), Up: true}).add("a", PeerAdded, Record{Peer: id("e"), Up: true}), Config{}},
		{RuleEvents, "last peer without disconnect", three().at(9*sec).lose("a", "b", false).lose("a", "c", false), Config{}},
		{RuleEvents, "disconnect with a peer left", three().at(9*sec).lose("a", "b", true), Config{}},
		{RuleEvents, "disconnect while alone", (&script{}).start("a").add("a", Disconnect, Record{}), Config{}},
		{RuleEvents, "removed, never added", three().start("d").lose("a", "d", false), Config{}},
		{RuleEvents, "close before remove", three().add("a", PeerRemoved, Record{Peer: id("b"), Up: true}).add("a", PeerClose, Record{Peer: id("b")}).add("a", ListRemove, Record{Peer: id("b")}), Config{}},
		{RuleEvents, "close never came", three().add("a", PeerRemoved, Record{Peer: id("b"), Up: true}).add("a", ListRemove, Record{Peer: id("b")}), Config{}},
		{RuleEvents, "close twice", three().at(9*sec).lose("a", "b", false).add("a", PeerClose, Record{Peer: id("b")}), Config{}},
		{RuleConnected, "false in connect", (&script{}).start("a", "b").add("a", Connect, Record{}), Config{}},
		{RuleConnected, "true in disconnect", three().at(9*sec).lose("a", "b", false).add("a", Disconnect, Record{Up: true}), Config{}},
		{RuleSnapshot, "too many", three().start("d").add("a", Snapshot, Record{Peers: []string{id("b"), id("c"), id("d")}}), Config{}},
		{RuleSnapshot, "too few", three().add("a", Snapshot, Record{Peers: []string{id("b")}}), Config{}},
		{RuleHalf, "for more than ten seconds", (&script{}).start("a", "b").gain("a", "b", true).at(11*sec).commanded("a", 1, 1), Config{}},
		{RuleHalf, "at the end", three().at(4*sec).lose("c", "b", false), whole},
		{RuleGhost, "killed and kept", three().at(4*sec).add("c", Fault, Record{Text: FaultKill}).at(5*sec).lose("b", "c", false).at(25*sec).commanded("a", 11, 11), Config{}},
		{RuleGhost, "frozen and kept", three().at(4*sec).add("c", Fault, Record{Text: FaultStop}).at(5*sec).lose("b", "c", false).at(25*sec).commanded("a", 11, 11), Config{}},
		{RuleFlapping, "removed and back", three().at(40*sec).lose("a", "b", false).at(45*sec).gain("a", "b", false), Config{}},
		{RuleFlapping, "a fault long ago is no excuse", three().at(4*sec).add("c", Fault, Record{Text: FaultLink}).
			at(60*sec).lose("a", "b", false).at(65*sec).gain("a", "b", false), Config{}},
		{RuleMax, "above max + 2", many(8, 8*sec).at(10*sec).commanded("a", 1, 1), Config{}},
		{RuleMax, "above max for 31 s", many(6, 8*sec).at(40*sec).commanded("a", 1, 1), Config{}},
		{RuleMax, "above max at the end", many(6, 8*sec), Config{Whole: true}},
		{RuleComponent, "two parts", three().start("d", "e").gain("d", "e", true).gain("e", "d", true), whole},
		{RuleComponent, "an isolated node", three().start("d"), whole},
		{RuleDegree, "a chain of three", (&script{}).start("a", "b", "c").gain("a", "b", true).gain("b", "a", true).gain("b", "c", false).gain("c", "b", true), whole},
		{RuleNetsplit, "twice", three().add("c", Fault, Record{Text: FaultKill}).add("a", Netsplit, Record{Seed: "s"}).add("a", Netsplit, Record{Seed: "s"}), Config{}},
		{RuleNetsplit, "resolved, never lost", three().add("c", Fault, Record{Text: FaultKill}).add("a", Resolved, Record{Seed: "s"}), Config{}},
		{RuleNetsplit, "with every node alive", three().add("a", Netsplit, Record{Seed: "s"}), Config{}},
	}
	seen := map[string]bool{}
	for _, tt := range append(bad, badAccounts()...) {
		seen[tt.rule] = true
		found := Check(tt.log.log, tt.cfg)
		if !slices.ContainsFunc(found, func(v Violation) bool { return v.Rule == tt.rule }) {
			t.Errorf("%s, %s: not found; found %v", tt.rule, tt.name, found)
		}
	}
	for _, rule := range []string{
		RuleOrder, RuleDuplicate, RuleInvented, RuleMissing, RuleSelf, RuleEvents, RuleConnected, RuleSnapshot,
		RuleGap, RuleAccount, RuleHalf, RuleGhost, RuleFlapping, RuleMax, RuleComponent, RuleDegree, RuleNetsplit, RuleUnexpected,
	} {
		if !seen[rule] {
			t.Errorf("no log breaks the rule %q", rule)
		}
	}
}

// many returns a star: a gets n peers at the same moment.
func many(n int, at time.Duration) *script {
	s := (&script{}).start("a").at(at)
	for i := range n {
		p := string(rune('b' + i))
		s.start(p).gain("a", p, i == 0).gain(p, "a", true)
	}
	return s
}

// A single mistake is reported once. A report full of its consequences would be hard to
// read.
func TestOneBreachOneReport(t *testing.T) {
	found := Check(three().heard("b", "a", 10, 10).log, whole)
	if len(found) != 1 || found[0].Rule != RuleDuplicate || found[0].Proc != "b" || !strings.Contains(found[0].String(), "broadcast 10-10 of a") {
		t.Errorf("found %v", found)
	}
}

func TestMergeKeepsInformation(t *testing.T) {
	event := func(run string, seq uint64) Record {
		return Record{Kind: Received, Peer: id(run), Run: run, Channel: Broadcast, Name: "n", Seq: seq}
	}
	var log []Record
	for _, r := range []Record{
		event("a", 1), event("a", 2), event("a", 3), // one line
		event("a", 3), // a duplicate
		event("a", 5), // a gap
		event("b", 6), // another sender
		event("b", 7),
		{Kind: PeerAdded}, // anything in between
		event("b", 8),
	} {
		log = Merge(log, r)
	}
	var got []string
	for _, r := range log {
		got = append(got, r.Run+" "+span{r.Seq, r.To}.String())
	}
	want := []string{"a 1-3", "a 3", "a 5", "b 6-7", " 0", "b 8"}
	if !slices.Equal(got, want) {
		t.Errorf("merged to %q, want %q", got, want)
	}
}

func TestSpans(t *testing.T) {
	var s spans
	for _, sp := range []span{{5, 6}, {1, 2}, {9, 9}, {3, 4}, {8, 8}, {20, 30}, {1, 1}} {
		s.add(sp.from, sp.to)
	}
	if got, want := s.String(), "1-6, 8-9, 20-30"; got != want {
		t.Fatalf("spans %s, want %s", got, want)
	}
	if s.last() != 30 || !s.contains(2, 5) || s.contains(6, 8) || !s.overlaps(7, 8) || s.overlaps(7, 7) || s.overlaps(31, 40) {
		t.Error("contains, overlaps or last is wrong")
	}
	other := spans{{2, 3}, {9, 21}, {40, 50}}
	if got, want := s.without(&other).String(), "1, 4-6, 8, 22-30"; got != want {
		t.Errorf("without: %s, want %s", got, want)
	}
	if got, want := s.within(6, 20).String(), "6, 8-9, 20"; got != want {
		t.Errorf("within: %s, want %s", got, want)
	}
}

func TestStateAddsUp(t *testing.T) {
	s := NewState()
	for _, r := range three().log {
		s.Apply(r)
	}
	if !s.Gathered(3) || s.Gathered(2) || s.Gathered(4) {
		t.Error("three nodes in a triangle are gathered, two or four are not")
	}
	if got := s.Proc("c").Heard[Stream{"a", Broadcast}]; got != 10 {
		t.Errorf("c heard %d, want 10", got)
	}
	s.Apply(Record{Proc: "b", Kind: PeerClose, Peer: id("c")})
	if s.Gathered(3) || len(s.Half()) != 1 || len(s.Components()) != 1 {
		t.Errorf("half links %v, components %v", s.Half(), s.Components())
	}
	if got := s.Degrees(); got[2] != 2 || got[1] != 1 {
		t.Errorf("degrees %v", got)
	}
}

func TestLogWaits(t *testing.T) {
	l := NewLog()
	go func() {
		for i := range uint64(100) {
			l.Add(Record{Proc: "b", Kind: Received, Run: "a", Channel: Broadcast, Seq: i + 1})
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	all := func(s *State) bool { return s.Proc("b").Heard[Stream{"a", Broadcast}] == 100 }
	if err := l.Wait(ctx, all); err != nil {
		t.Fatal(err)
	}
	if n := len(l.RecordsOf("b", Received)); n != 1 {
		t.Errorf("%d records for 100 events in order, want 1", n)
	}
	cause := errors.New("enough")
	ctx, stop := context.WithCancelCause(t.Context())
	stop(cause)
	if err := l.Wait(ctx, func(*State) bool { return false }); !errors.Is(err, cause) {
		t.Errorf("Wait returned %v, want %v", err, cause)
	}
	if l.Never(time.Nanosecond, all) == nil {
		t.Error("Never did not notice what had happened already")
	}
	if err := l.Never(time.Millisecond, func(*State) bool { return false }); err != nil {
		t.Error(err)
	}
}

// Settle waits for links that are being added or removed at the end of a test.
func TestLogSettles(t *testing.T) {
	full := new(script).start("a", "b").gain("a", "b", true).gain("b", "a", true)
	full.add("a", Snapshot, Record{Peers: []string{id("b")}}).add("b", Snapshot, Record{Peers: []string{id("a")}})
	for n := range len(full.log) { // of which so many are there at first
		if n < 2 {
			continue // there have to be two nodes
		}
		l := NewLog()
		for _, r := range full.log[:n] {
			l.Add(r)
		}
		asked := 0
		got := l.Settle(t.Context(), true, func() {
			if asked++; asked == 1 {
				go func() {
					for _, r := range full.log[n:] {
						l.Add(r)
					}
				}()
			}
		})
		if found := Check(got, Config{Whole: true}); len(found) > 0 {
			t.Errorf("of %d records %d were there: %v", len(full.log), n, found)
		}
	}
	l := NewLog()
	for _, r := range new(script).start("a", "b").gain("a", "b", true).log {
		l.Add(r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if found := Check(l.Settle(ctx, true, func() {}), Config{Whole: true}); len(found) == 0 {
		t.Error("a half link that stays is not reported")
	}
}

// Check accepts a record that was missing at first and arrives before ctx ends.
func TestCheckWaitsForMissingRecords(t *testing.T) {
	whole := new(script).start("a", "b").gain("a", "b", true).gain("b", "a", true).log
	l := NewLog()
	for _, r := range whole[:2] {
		l.Add(r)
	}
	cfg := Config{Whole: true}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if found := l.Check(ctx, cfg, func() {}); len(found) == 0 {
		t.Error("that the links do not come is not reported")
	}
	for _, r := range whole[2:] {
		l.Add(r)
	}
	if found := l.Check(t.Context(), cfg, func() {}); len(found) > 0 {
		t.Error(found)
	}
}

// The records of a process keep their order even if the clock steps back.
func TestRecordsKeepAProcessesOrder(t *testing.T) {
	l := NewLog()
	l.Add(Record{Proc: "a", At: 10, Kind: Connect})
	l.Add(Record{Proc: "a", At: 5, Kind: PeerAdded})
	l.Add(Record{Proc: "b", At: 7, Kind: Started})
	var got []Kind
	for _, r := range l.Records() {
		got = append(got, r.Kind)
	}
	if want := []Kind{Started, Connect, PeerAdded}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}
