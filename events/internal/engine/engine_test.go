package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
)

// script drives the engine of the node "me" step by step. All that happens is
// about the first session of the sender "s".
type script struct {
	t    *testing.T
	e    *Engine[string]
	now  time.Time
	asks []repair.Ask
}

func newScript(t *testing.T, cfg Config) *script {
	if cfg.Order.GapTimeout == 0 {
		cfg.Order = order.Config{GapTimeout: 70 * time.Second, SettleTimeout: 5 * time.Second}
	}
	return &script{t: t, e: New[string]("me", first, cfg), now: time.Unix(1000, 0)}
}

var first = order.SessionKey{Start: 1}

// mark returns the mark of a neighbor that has received and stored the events [begin,
// next).
func mark(begin, next uint64) []Mark {
	return []Mark{{Progress: order.Progress{Sender: "s", Session: first, Begin: begin, Next: next, Above: next}, Floor: begin, Through: next}}
}

func (s *script) greet(id peer.ID, marks []Mark) {
	s.e.AddNeighbor(id)
	s.e.ReceiveGreeting(s.now, id, marks)
}

func batch(from, to uint64) Batch[string] {
	return Batch[string]{Session: first, First: from, Count: int(to - from), Size: 100}
}

func (s *script) receive(from, to uint64, giver peer.ID) {
	s.e.Receive(s.now, "s", batch(from, to), giver)
}

// want moves the clock forward a second at a time and compares the events delivered or
// lost and the questions asked, like "1-5, lost 5-9, a? 9-12".
func (s *script) want(after time.Duration, want string) {
	s.t.Helper()
	var got []string
	for end := s.now.Add(after); ; {
		out := s.e.Advance(s.now)
		for _, st := range out.Steps {
			text := fmt.Sprintf("%d-%d", st.From, st.To)
			if st.Lost {
				text = "lost " + text
			} else if _, ok := s.e.NextEntry("s", st.Session, st.From, st.To); !ok {
				text += " which is gone"
			}
			got = append(got, text)
		}
		for _, a := range out.Asks {
			text := fmt.Sprintf("%s? %d-%d", string(a.Peer), a.From, a.To)
			if a.Backfill {
				text = "fill " + text
			}
			got = append(got, text)
			s.asks = append(s.asks, a)
		}
		if !s.now.Before(end) {
			break
		}
		s.now = s.now.Add(min(time.Second, end.Sub(s.now)))
	}
	if text := strings.Join(got, ", "); text != want {
		s.t.Errorf("%q, want %q", text, want)
	}
}

// answer answers the oldest question with the events [from, to), or with none if the range
// is empty.
func (s *script) answer(from, to uint64) {
	s.t.Helper()
	if len(s.asks) == 0 {
		s.t.Fatal("nobody was asked")
	}
	a := s.asks[0]
	s.asks = s.asks[1:]
	answer := repair.NotFound
	if from < to {
		s.e.ReceiveRepair(s.now, a, batch(from, to))
		answer = repair.Found
	}
	s.e.FinishAsk(s.now, a, to, answer)
}

// wantMarks compares the marks of s for a neighbor, like "5-9?" for a mark that begins
// with 5, is at 9, and asks for an answer.
func (s *script) wantMarks(id peer.ID, want string) {
	s.t.Helper()
	var got []string
	for _, m := range s.e.CollectMarks(s.now, id, 10) {
		text := fmt.Sprintf("%d-%d", m.Begin, m.Next)
		if m.Ask {
			text += "?"
		}
		got = append(got, text)
	}
	if text := strings.Join(got, ", "); text != want {
		s.t.Errorf("%s is told %q, want %q", string(id), text, want)
	}
}

// A new node stores the events before its neighbor's greeting and delivers those after it,
// also when the neighbor's next mark arrives before the batch.
func TestNewNodeBeginsWithTheGreeting(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", mark(1, 100))
	s.want(0, "fill a? 1-100")
	s.answer(90, 100)
	s.e.ReceiveMarks(s.now, "a", mark(1, 110))
	s.want(200*time.Millisecond, "a? 100-110")
	s.answer(100, 110)
	s.want(0, "100-110")
	if list := s.e.StoredEntries("s", first, 1, 200, 1<<20); len(list) != 2 {
		t.Errorf("%d batches are stored", len(list))
	}
}

// With Last, that many events before the greeting are delivered too.
func TestLastEventsBeforeTheGreetingAreDelivered(t *testing.T) {
	s := newScript(t, Config{Last: 10})
	s.greet("a", mark(1, 100))
	s.want(200*time.Millisecond, "fill a? 1-90, a? 90-100")
}

// A leaf stores only its own events, so its marks of other senders cause no question, no
// wait and no gap.
func TestLeafIsBelievedAboutItselfAlone(t *testing.T) {
	for _, leaf := range []bool{true, false} {
		s := newScript(t, Config{})
		if leaf {
			s.e.AddLeaf("a")
		} else {
			s.e.AddNeighbor("a")
		}
		s.e.ReceiveGreeting(s.now, "a", mark(5, 9))
		s.e.ReceiveMarks(s.now, "a", mark(5, 1000))
		if leaf {
			s.want(2*time.Minute, "")
		} else {
			s.want(time.Second, "fill a? 5-9, a? 9-1000")
		}
	}
	s := newScript(t, Config{})
	s.e.AddLeaf("s")
	s.e.ReceiveGreeting(s.now, "s", mark(5, 9))
	s.e.ReceiveMarks(s.now, "s", mark(5, 12))
	s.want(time.Second, "fill s? 5-9, s? 9-12")
}

// If the neighbor did not know a sender when it greeted, all events of it that the
// neighbor has received since are missing here.
func TestSenderUnknownAtTheGreetingIsDeliveredWhole(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", nil)
	s.greet("b", nil)
	s.receive(5, 9, "a") // what was before was dropped
	s.want(time.Second, "")
	s.e.ReceiveMarks(s.now, "a", mark(1, 9))
	s.want(200*time.Millisecond, "a? 1-5")
	s.answer(1, 5)
	s.want(0, "1-5, 5-9")

	s = newScript(t, Config{})
	s.greet("a", nil)
	s.e.ReceiveMarks(s.now, "a", mark(1, 5)) // all was dropped
	s.want(200*time.Millisecond, "a? 1-5")
	s.answer(1, 5)
	s.want(0, "1-5")
}

// Events that were claimed before the first batch of their session arrived are asked for
// afterwards.
func TestClaimsBeforeTheFirstBatchCount(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", nil)
	s.e.ReceiveMarks(s.now, "a", mark(1, 20))
	s.want(200*time.Millisecond, "a? 1-20")
	s.answer(1, 9)
	s.want(0, "1-9, a? 9-20")
}

// A new neighbor gets the marks of batches sent between our greeting and the link, as
// pubsub may have dropped them.
func TestNewNeighborGetsMarksOfRecentBatches(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", nil)
	s.receive(1, 5, "a")
	s.greet("b", nil)
	s.want(20*time.Millisecond, "1-5")
	s.wantMarks("b", "1-5")
	s.want(time.Minute, "")
	s.greet("c", nil)
	s.want(20*time.Millisecond, "")
	s.wantMarks("c", "")
}

// Events that wait for a repair stay in the store, however long the repair takes.
func TestEventsBehindAGapAreStored(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", mark(1, 1))
	s.receive(5, 9, "a")
	s.want(65*time.Second, "a? 1-5")
	s.answer(1, 5)
	s.want(0, "1-5, 5-9")
}

// Events that handlers have not reached stay in the store, however slow the handlers are,
// also when more events wait behind them.
func TestUnhandledEventsAreStored(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", mark(1, 1))
	s.receive(1, 5, "a")
	s.receive(5, 9, "a")
	s.want(0, "1-5, 5-9")
	s.receive(9, 12, "a")
	s.want(3*time.Minute, "9-12")
	for _, from := range []uint64{1, 5, 9} {
		if _, ok := s.e.NextEntry("s", first, from, from+3); !ok {
			t.Errorf("from %d on it is gone", from)
		}
	}
	s.e.MarkHandled("s", first, 9)
	s.want(3*time.Minute, "")
	if _, ok := s.e.NextEntry("s", first, 5, 9); ok {
		t.Error("what was read long ago is still here")
	}
	if _, ok := s.e.NextEntry("s", first, 9, 12); !ok {
		t.Error("what was not read is gone")
	}
}

// A new node between two parts of a network sends one part the mark of a silent sender
// that it backfilled from the other.
func TestBackfillIsAnnouncedToOtherNeighbors(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", nil)
	s.greet("b", mark(1, 100))
	s.want(0, "fill b? 1-100")
	s.want(100*time.Millisecond, "")
	s.wantMarks("a", "")
	s.answer(90, 100)
	s.now = s.now.Add(10 * time.Millisecond)
	if due := s.e.Advance(s.now).MarksDue; !slices.Contains(due, "a") {
		t.Errorf("due are %v", due)
	}
	s.wantMarks("a", "100-100")
}

// A neighbor that asks for the mark of a sender gets it even if no event of that sender
// was received.
func TestQuestionAboutAnUnreceivedSenderIsAnswered(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", mark(100, 100))
	ask := mark(1, 100)
	ask[0].Ask = true
	s.e.ReceiveMarks(s.now, "a", ask)
	s.wantMarks("a", "100-100")
}

// Lost events are reported once, and nothing about them is remembered when later events
// arrive.
func TestLostIsReportedOnce(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", mark(1, 1))
	s.receive(1, 3, "a")
	s.e.ReceiveMarks(s.now, "a", mark(1, 9))
	s.want(200*time.Millisecond, "1-3, a? 3-9")
	s.now = s.now.Add(2 * time.Second)
	s.answer(0, 0)
	s.want(0, "lost 3-9")
	s.receive(9, 12, "a")
	s.want(10*time.Second, "9-12")
	if s.e.repair.HoleCount() != 0 || len(s.e.holes) != 0 {
		t.Errorf("%d needs, gaps %v", s.e.repair.HoleCount(), s.e.holes)
	}
}

// A node publishes sixteen batches ahead of its neighbor's mark, and refuses batches of
// its own that come back from a neighbor.
func TestOwnEventsWaitForAcknowledgments(t *testing.T) {
	s := newScript(t, Config{})
	s.greet("a", nil)
	for s.e.CanPublish() {
		s.e.AddOwn(s.now, batch(s.e.Published(), s.e.Published()+2))
	}
	if n := s.e.Published(); n != 33 {
		t.Errorf("%d events of batches of two were published, not sixteen batches", n-1)
	}
	if got := s.e.NeighborsLacking(33); !slices.Equal(got, []peer.ID{"a"}) {
		t.Errorf("lacking %v", got)
	}
	m := mark(1, 33)
	m[0].Sender = "me"
	s.e.ReceiveMarks(s.now, "a", m)
	if !s.e.CanPublish() || s.e.ReceivedBy("a") != 33 || s.e.NeighborsLacking(33) != nil {
		t.Errorf("room %v, a has %d", s.e.CanPublish(), s.e.ReceivedBy("a"))
	}
	if v := s.e.Receive(s.now, "me", batch(1, 3), "a"); v != order.Invalid {
		t.Errorf("an own batch from a neighbor is %v", v)
	}
	if marks := s.e.Greeting(1); len(marks) != 1 || marks[0].Sender != "me" || marks[0].Next != 33 || marks[0].Floor != 1 {
		t.Errorf("marks %+v", marks)
	}
}
