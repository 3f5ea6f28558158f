package order

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// script drives a core step by step. Time begins at 0 s.
type script struct {
	t     *testing.T
	core  *Sequencer
	now   time.Time
	steps []Step
	last  Disposition
}

func newScript(t *testing.T, cfg Config) *script {
	return &script{t: t, core: New(cfg), now: time.Unix(0, 0)}
}

// life returns the n-th session of every sender.
func life(n int) SessionKey { return SessionKey{ID: [8]byte{byte(n)}, Start: uint64(n)} }

// recv receives the events first to first+count-1 of the sender "s".
func (s *script) recv(session int, first uint64, count int) {
	s.recvFrom("s", session, first, count)
}

func (s *script) recvFrom(id peer.ID, session int, first uint64, count int) {
	b := Arrival{Session: life(session), First: first, Count: count, Size: 100 * count}
	s.last, s.steps = s.core.Receive(s.now, id, b, s.steps)
}

func (s *script) hint(session int, next uint64) {
	s.core.AddHint(Progress{Sender: "s", Session: life(session), Next: next}, Firm)
}

func (s *script) ownMark(session int, next uint64) {
	s.steps = s.core.ReceiveOwnMark(s.now, Progress{Sender: "s", Session: life(session), Next: next}, Firm, s.steps)
}

func (s *script) advance(d time.Duration) {
	s.now = s.now.Add(d)
	s.steps = s.core.Advance(s.now, s.steps)
}

// want compares the steps since the last call, written like "1:3-5 1:lost 6-7": session 1
// delivered 3 to 5 and lost 6 and 7. Adjacent runs are joined.
func (s *script) want(what, steps string) {
	s.t.Helper()
	if got := render(s.steps); got != steps {
		s.t.Errorf("%s: got %q, want %q", what, got, steps)
	}
	s.steps = nil
}

func (s *script) wantVerdict(v Disposition) {
	s.t.Helper()
	if s.last != v {
		s.t.Errorf("verdict %v, want %v", s.last, v)
	}
}

func render(steps []Step) string {
	var joined []Step
	for _, st := range steps {
		if n := len(joined); n > 0 {
			p := &joined[n-1]
			if p.Sender == st.Sender && p.Session == st.Session && p.Lost == st.Lost && p.To == st.From {
				p.To = st.To
				continue
			}
		}
		joined = append(joined, st)
	}
	var b strings.Builder
	for i, st := range joined {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d:", st.Session.Start)
		if st.Lost {
			b.WriteString("lost ")
		}
		fmt.Fprint(&b, st.From)
		if st.To > st.From+1 {
			fmt.Fprintf(&b, "-%d", st.To-1)
		}
	}
	return b.String()
}

// Events in sequence are delivered at once, and of an overlapping batch only the new
// events.
func TestEventsInSequenceAreDeliveredAtOnce(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 2, 3)
	s.want("in sequence", "1:1-4")
	if !s.core.Next().IsZero() {
		t.Error("a deadline although nothing is missing")
	}
	s.recv(1, 2, 3)
	s.wantVerdict(Duplicate)
	s.recv(1, 3, 4)
	s.wantVerdict(Accepted)
	s.want("the new part of an overlapping batch", "1:5-6")
}

// Later events wait for a missing one and are delivered when it arrives before the
// timeout.
func TestLateEventsAreWaitedFor(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 4, 1)
	s.recv(1, 3, 1)
	s.recv(1, 3, 1)
	s.wantVerdict(Duplicate)
	s.want("2 is missing", "1:1")
	s.advance(1999 * time.Millisecond)
	s.want("before the timeout", "")
	s.recv(1, 2, 1)
	s.want("2 came", "1:2-4")
	s.advance(time.Hour - 1)
	s.want("nothing was lost", "")
}

// Each gap is reported once after its own timeout, and an event of it that arrives later
// is a duplicate.
func TestGapIsGivenUpOnce(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 5, 1)
	s.advance(time.Second)
	s.recv(1, 8, 1) // the second gap is noticed a second later
	if want := time.Unix(2, 0); !s.core.Next().Equal(want) {
		t.Errorf("next %v, want %v", s.core.Next(), want)
	}
	s.want("two gaps", "1:1")
	s.advance(time.Second)
	s.want("after 2 s", "1:lost 2-4 1:5")
	s.recv(1, 3, 1)
	s.wantVerdict(Duplicate)
	s.want("too late", "")
	s.recv(1, 6, 1)
	s.want("not too late", "1:6")
	s.advance(time.Second)
	s.want("after 3 s: 6 came a second ago", "")
	s.advance(time.Second)
	s.want("after 4 s", "1:lost 7 1:8")
}

// A slow path that still delivers is waited for, however far ahead a faster path is; but a
// newer session waits for an older one at most two seconds.
func TestSlowPathThatDeliversIsWaitedFor(t *testing.T) {
	s := newScript(t, Config{GapTimeout: 5 * time.Second})
	s.recv(1, 1, 1)
	s.recv(1, 50, 1)
	s.want("the first", "1:1")
	for n := uint64(2); n < 10; n++ {
		s.advance(4 * time.Second)
		s.recv(1, n, 1)
		s.want("on the slow path", fmt.Sprintf("1:%d", n))
	}
	s.recv(2, 1, 1)
	s.advance(1999 * time.Millisecond)
	s.want("before two seconds", "")
	s.advance(time.Millisecond)
	s.want("the old session is given up", "1:lost 10-49 1:50 2:1")
}

// The timeout of a gap starts again with every event that fills its beginning, as when a
// new link brings the latest events first.
func TestGapIsNotGivenUpWhileItIsFilled(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 10, 1)
	s.ownMark(1, 12)
	for n := uint64(2); n <= 7; n++ {
		s.advance(1900 * time.Millisecond)
		s.recv(1, n, 1)
	}
	s.want("8 and 9 are still to come", "1:1-7")
	s.advance(1900 * time.Millisecond)
	s.recv(1, 9, 1) // not the next
	s.advance(100 * time.Millisecond)
	s.want("8 did not come, 11 was told", "1:lost 8 1:9-10 1:lost 11")
}

// Without a mark, the first event that arrives is the beginning of an unknown sender.
func TestUnknownSenderBeginsWithTheFirstArrival(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 100, 1)
	s.want("first seen", "1:100")
	s.recv(1, 99, 1)
	s.wantVerdict(Duplicate)
}

// A neighbor's mark is the beginning of an unknown sender, and events from there on are
// waited for.
func TestUnknownSenderBeginsWithTheMarkOfANeighbor(t *testing.T) {
	s := newScript(t, Config{})
	s.hint(1, 98)
	s.recv(1, 100, 1)
	s.want("98 and 99 are owed", "")
	s.recv(1, 98, 1)
	s.want("98 came", "1:98")
	s.advance(2 * time.Second)
	s.want("99 did not", "1:lost 99 1:100")
}

// A false mark from a neighbor does not delay the events that the sender really sends.
func TestHearsayCannotSilenceASender(t *testing.T) {
	s := newScript(t, Config{})
	s.hint(1, MaxNumber)
	s.recv(1, 5, 1)
	s.want("a mark in the far future", "1:5")
	s.hint(1, MaxNumber)
	s.recv(1, 6, 1)
	s.want("about a known session", "1:6")
	s.hint(9, 1)
	s.recv(1, 7, 1)
	s.want("about a session that does not exist", "1:7")
	s.recv(2, 1, 1)
	s.want("the real later session", "2:1")
	s.advance(2 * time.Second)
	s.want("nothing was lost", "")
}

// A sender's own mark shows that its last events are missing.
func TestOwnMarkRevealsLossAtTheEnd(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 2)
	s.want("", "1:1-2")
	s.ownMark(1, 6)
	s.recv(1, 4, 1)
	s.want("3 and 5 are missing", "")
	s.advance(2 * time.Second)
	s.want("after 2 s", "1:lost 3 1:4 1:lost 5")
	if m, _ := s.core.Progress("s"); m.Next != 6 || m.Above != 6 {
		t.Errorf("mark %+v", m)
	}
}

// The first own mark of a silent sender is its beginning; the events between that and a
// later own mark are missing.
func TestOwnMarkOfASilentSender(t *testing.T) {
	s := newScript(t, Config{})
	s.ownMark(1, 6)
	s.recv(1, 5, 1)
	s.wantVerdict(Duplicate)
	s.ownMark(1, 8) // a link later: 6 and 7 were sent in between
	s.advance(2 * time.Second)
	s.want("from mark to mark", "1:lost 6-7")
}

// When a neighbor's hint is lower than the sender's own mark, the events between the two
// are waited for.
func TestLowerHintIsTheBeginningDespiteTheOwnMark(t *testing.T) {
	s := newScript(t, Config{})
	s.hint(1, 4)
	s.ownMark(1, 6)
	s.recv(1, 4, 1)
	s.want("4 came late", "1:4")
	s.advance(2 * time.Second)
	s.want("5 did not come", "1:lost 5")
}

// A new session is delivered at once when no event of the old one is missing, and ends the
// old session.
func TestNewSessionBeginsAtOnceWithoutAGap(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 3)
	s.recv(2, 1, 1)
	s.recv(1, 4, 1)
	s.wantVerdict(OldSession)
	s.recv(2, 2, 1)
	s.want("restart", "1:1-3 2:1-2")
}

// A new session is delivered after the gaps of the old session are filled.
func TestNewSessionWaitsForTheGapsOfTheOld(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 3, 1)
	s.advance(time.Second)
	s.recv(2, 1, 1)
	s.recv(2, 2, 1)
	s.want("2 of the old one is missing", "1:1")
	s.recv(1, 2, 1)
	s.want("it came", "1:2-3 2:1-2")
}

// A new session waits for all gaps of the old session together at most two seconds.
func TestNewSessionWaitsTwoSecondsAtMost(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(2, 1, 1) // no gap: session 1 ends
	s.recv(2, 3, 1)
	s.want("", "1:1 2:1")
	s.advance(time.Second)
	s.recv(3, 1, 1)
	s.advance(500 * time.Millisecond)
	s.recv(2, 5, 1) // noticed 1.5 s after the first gap; may not delay session 3 to 3.5 s
	s.advance(500 * time.Millisecond)
	s.want("the first gap at 2 s", "2:lost 2 2:3")
	s.advance(time.Second)
	s.want("session 3, 2 s after it came", "2:lost 4 2:5 3:1")
}

// A new session of a known sender begins with event 1, or with a neighbor's mark if there
// is one.
func TestNewSessionOfAKnownSenderBeginsWithOne(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 7, 1)
	s.recv(2, 2, 1)
	s.want("1 is owed", "1:7")
	s.advance(2 * time.Second)
	s.want("but did not come", "2:lost 1 2:2")

	s.hint(3, 9) // it restarted while we were away
	s.recv(3, 10, 1)
	s.advance(2 * time.Second)
	s.want("from the mark on", "3:lost 9 3:10")
}

// Sessions with the same start time are ordered by their ids.
func TestSessionsWithTheSameStartAreOrderedByID(t *testing.T) {
	s := newScript(t, Config{})
	a, b := SessionKey{ID: [8]byte{1}, Start: 5}, SessionKey{ID: [8]byte{2}, Start: 5}
	for _, id := range []SessionKey{a, b, a} {
		s.last, s.steps = s.core.Receive(s.now, "s", Arrival{Session: id, First: 1, Count: 1}, s.steps)
	}
	s.wantVerdict(OldSession)
	s.want("", "5:1 5:1")
}

// At most four sessions of a sender wait; the gaps of older sessions are given up at once.
func TestWaitingSessionsOfASenderAreBounded(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 3, 1)
	for n := 2; n <= 10; n++ {
		s.recv(n, 2, 1) // each without its first
	}
	s.want("all but the last four are given up", "1:1 1:lost 2 1:3 2:lost 1 2:2 3:lost 1 3:2 4:lost 1 4:2 5:lost 1 5:2 6:lost 1 6:2")
	s.advance(2 * time.Second)
	s.want("then the rest", "7:lost 1 7:2 8:lost 1 8:2 9:lost 1 9:2 10:lost 1 10:2")
}

// When the held events of a sender exceed its limit in bytes, its oldest gap is given up
// at once.
func TestHeldBytesOfASenderAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxHeldPerSender: 1000})
	s.recv(1, 1, 1)
	for n := uint64(3); n <= 12; n++ {
		s.recv(1, n, 1) // 100 bytes each
	}
	s.want("1,000 bytes wait", "1:1")
	s.recv(1, 20, 1)
	s.want("1,100 are too many", "1:lost 2 1:3-12")
	if s.core.HeldBytes() != 100 {
		t.Errorf("%d bytes held", s.core.HeldBytes())
	}
}

// The events of waiting sessions count toward the sender's limit in bytes.
func TestHeldBytesOfWaitingSessionsAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxHeldPerSender: 1000})
	s.recv(1, 1, 1)
	s.recv(1, 3, 1)
	s.recv(2, 1, 9)
	s.want("", "1:1")
	s.recv(2, 10, 1)
	s.want("too many", "1:lost 2 1:3 2:1-10")
}

// When all senders together exceed the limit, the sender with the most held bytes gives up
// its gap.
func TestHeldBytesOfAllSendersAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxHeld: 1000})
	s.recvFrom("small", 1, 1, 1)
	s.recvFrom("small", 1, 3, 1)
	s.recvFrom("large", 1, 1, 1)
	s.recvFrom("large", 1, 3, 9)
	s.steps = nil
	s.recvFrom("other", 1, 1, 1)
	s.recvFrom("other", 1, 3, 1)
	s.want("the largest gives up", "1:1 1:lost 2 1:3-11")
	if s.core.HeldBytes() != 200 {
		t.Errorf("%d bytes held", s.core.HeldBytes())
	}
}

// At the limit of senders the one that has been silent longest is forgotten, and hints
// have a limit of their own.
func TestSendersAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxSenders: 100, MaxHints: 50})
	s.recvFrom("first", 1, 1, 1)
	s.recvFrom("first", 1, 3, 1)
	s.steps = nil
	for i := range 99 {
		s.recvFrom(peer.ID(fmt.Sprint(i)), 1, 1, 1)
	}
	s.recvFrom("first", 1, 4, 1) // heard again, so not the longest silent
	s.recvFrom("new", 1, 1, 1)
	if s.core.SenderCount() != 100 {
		t.Errorf("%d senders", s.core.SenderCount())
	}
	if _, ok := s.core.Progress("0"); ok {
		t.Error("the longest silent was not forgotten")
	}
	if _, ok := s.core.Progress("first"); !ok {
		t.Error("the one heard again was forgotten")
	}
	for i := range 1000 {
		m := Progress{Sender: peer.ID(fmt.Sprintf("hint %d", i)), Session: life(1), Next: 1}
		s.core.AddHint(m, Firm)
	}
	if n := len(s.core.AllProgress(10_000)); n != 150 {
		t.Errorf("%d marks, want 100 and 50", n)
	}
	if n := len(s.core.AllProgress(10)); n != 10 {
		t.Errorf("%d marks, want 10", n)
	}
}

// The held events of a sender are delivered before it is forgotten, and neither bytes nor
// deadlines remain.
func TestForgottenSenderLeavesNoState(t *testing.T) {
	s := newScript(t, Config{MaxSenders: 1})
	s.recv(1, 1, 1)
	s.recv(1, 3, 1)
	s.recv(2, 2, 1)
	s.steps = nil
	s.recvFrom("other", 1, 1, 1)
	s.want("what it held is delivered first", "1:lost 2 1:3 2:lost 1 2:2 1:1")
	if s.core.HeldBytes() != 0 || !s.core.Next().IsZero() {
		t.Errorf("%d bytes held, next %v", s.core.HeldBytes(), s.core.Next())
	}
}

// A sender is forgotten an hour after its last message, replays included.
func TestSilentSendersAreForgottenAfterAnHour(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(2, 1, 1)
	s.advance(time.Hour - 1)
	s.recv(1, 1, 1)
	s.wantVerdict(OldSession)
	s.advance(time.Hour - 1) // since the replay
	s.recv(2, 1, 1)
	s.wantVerdict(Duplicate)
	s.advance(time.Hour)
	if s.core.SenderCount() != 0 {
		t.Error("still remembered")
	}
}

// Batches and marks with impossible sequence numbers are refused and create no sender.
func TestInvalidNumbersAreRefused(t *testing.T) {
	s := newScript(t, Config{})
	for _, b := range []Arrival{
		{First: 0, Count: 1},
		{First: 1, Count: 0},
		{First: 1, Count: -1},
		{First: MaxNumber, Count: 1},
		{First: 1<<64 - 1, Count: 2},
	} {
		if v, steps := s.core.Receive(s.now, "s", b, nil); v != Invalid || steps != nil {
			t.Errorf("%+v: verdict %v, steps %v", b, v, steps)
		}
	}
	for _, mark := range []uint64{0, MaxNumber + 1, 1<<64 - 1} {
		s.ownMark(1, mark)
	}
	if s.core.SenderCount() != 0 {
		t.Error("nonsense is remembered")
	}
}

// A mark includes received events that still wait for earlier ones or for an earlier
// session.
func TestMarksIncludeHeldEvents(t *testing.T) {
	s := newScript(t, Config{})
	s.recv(1, 1, 1)
	s.recv(1, 3, 1)
	if m, _ := s.core.Progress("s"); m.Next != 2 || m.Above != 4 {
		t.Errorf("mark %+v, want next 2, above 4", m)
	}
	s.recv(2, 1, 1) // waits for 2 of session 1, but was received
	s.recv(2, 2, 1)
	s.recv(2, 4, 1)
	if m, _ := s.core.Progress("s"); m.Session != life(2) || m.Next != 3 || m.Above != 5 {
		t.Errorf("mark %+v, want session 2, next 3, above 5", m)
	}
}

// The first events of an unknown sender without a firm mark wait for SettleTimeout, since
// lower events may still arrive on another path.
func TestFirstEventsOfAnUnknownSenderSettle(t *testing.T) {
	s := newScript(t, Config{SettleTimeout: time.Second})
	s.recv(1, 5, 1)
	s.advance(500 * time.Millisecond)
	s.recv(1, 3, 2)
	s.advance(999 * time.Millisecond)
	s.want("settling", "")
	s.advance(time.Millisecond)
	s.want("settled", "1:3-5")
	s.recv(1, 2, 1)
	s.wantVerdict(Duplicate)

	s = newScript(t, Config{SettleTimeout: time.Second})
	s.recv(1, 1, 1)
	s.want("nothing is lower than 1", "1:1")

	s = newScript(t, Config{SettleTimeout: time.Second})
	s.recv(1, 2, 2)
	s.recv(1, 1, 1)
	s.want("1 came, so nothing is lower", "1:1-3")

	s = newScript(t, Config{SettleTimeout: time.Second})
	s.hint(1, 5)
	s.recv(1, 5, 1)
	s.want("a neighbor told where to begin", "1:5")

	// So it is not when others may still bring what came before.
	s = newScript(t, Config{SettleTimeout: time.Second})
	s.core.AddHint(Progress{Sender: "s", Session: life(1), Next: 5}, Tentative)
	s.recv(1, 5, 1)
	s.recv(1, 3, 2)
	s.want("settling", "")
	s.advance(time.Second)
	s.want("settled", "1:3-5")

	// The sender's own word says how far it is, not where we begin, if others may
	// still bring what it sent before.
	s = newScript(t, Config{SettleTimeout: time.Second})
	s.steps = s.core.ReceiveOwnMark(s.now, Progress{Sender: "s", Session: life(1), Next: 4}, Tentative, s.steps)
	s.recv(1, 4, 1)
	s.recv(1, 2, 2)
	s.want("settling", "")
	s.advance(time.Second)
	s.want("settled", "1:2-4")

	s = newScript(t, Config{SettleTimeout: time.Second})
	s.recv(1, 5, 1)
	s.recv(2, 1, 1)
	s.want("a newer session ends the settling of the old", "1:5 2:1")
}
