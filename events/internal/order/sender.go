package order

import (
	"container/heap"
	"container/list"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// sender is what is known of one sender. From its first batch on it has at
// least one session.
type sender struct {
	id       peer.ID
	at       time.Time     // when it was last heard
	element  *list.Element // in Core.heard
	sessions []*session    // the earliest first: it is being delivered, the others wait
	held     int           // size of the batches that wait
	deadline time.Time     // when something is given up; zero: nothing is missing
	index    int           // in Core.due, or -1
}

func (s *sender) session(id Session) (*session, bool) {
	for _, ses := range s.sessions {
		if ses.Session == id {
			return ses, true
		}
	}
	return nil, false
}

// open begins a session, behind those before it.
func (s *sender) open(id Session, next uint64, now time.Time) *session {
	ses := &session{Session: id, first: next, next: next, born: now}
	i := len(s.sessions)
	for i > 0 && s.sessions[i-1].Compare(id) > 0 {
		i--
	}
	s.sessions = slices.Insert(s.sessions, i, ses)
	return ses
}

func (s *sender) mark() Mark {
	ses := s.sessions[len(s.sessions)-1]
	m := Mark{Sender: s.id, Session: ses.Session, Begin: ses.first, Next: ses.next}
	if ses.doubt != 0 {
		m.Next = ses.doubt // so that a lie does not spread
	}
	for i := range ses.held {
		b := &ses.held[i]
		if b.First <= m.Next {
			m.Next = max(m.Next, b.end())
		}
		m.Above = max(m.Above, b.end())
	}
	m.Above = max(m.Above, m.Next)
	return m
}

type session struct {
	Session
	first uint64    // where it began
	next  uint64    // the first number that is not delivered
	held  []waiting // by First; those of a session whose turn it is lie behind a gap
	tolds []told    // ascending, above next
	born  time.Time
	moved time.Time // when a batch arrived in its turn
	// settleEnd is until when a lower number may become the first; zero: it is known.
	settleEnd time.Time
	since     time.Time // when the number next was noticed to be missing; zero: not known
	// claimed is up to where others say that it was sent, and claimedAt when the
	// first of them said so.
	claimed   uint64
	claimedAt time.Time
	// doubt is the first number that was given up on such a word alone; 0: none.
	doubt uint64
}

// believe makes room for the numbers [from, to), which the sender has proven to
// have sent although they had been given up on the word of others.
func (s *session) believe(from, to uint64) {
	if s.doubt == 0 || to <= s.doubt {
		return
	}
	given := s.next
	from, s.doubt = max(from, s.doubt), 0
	if from < given {
		s.next = from
		s.since = time.Time{}
		if to < given {
			s.doubt = to
		}
	}
}

// settle gives lower numbers than next the time d to come. Number 1 is the lowest.
func (s *session) settle(d time.Duration, now time.Time) {
	s.settleEnd = time.Time{}
	if d > 0 && s.next > 1 {
		s.settleEnd = now.Add(d)
	}
}

func (s *session) settling() bool { return !s.settleEnd.IsZero() }

// begin ends the settling.
func (s *session) begin() { s.settleEnd = time.Time{} }

// told is a sender's word that it sent everything below a number.
type told struct {
	to uint64
	at time.Time
}

// maxTolds bounds the words of a sender that are waited for one by one.
const maxTolds = 16

type waiting struct {
	Batch
	at time.Time
}

// deliver appends the step that delivers what is new in b, which joins.
func (s *session) deliver(id peer.ID, b *Batch, steps []Step) []Step {
	steps = append(steps, Step{Sender: id, Session: s.Session, From: s.next, To: b.end()})
	s.advance(b.end())
	return steps
}

// hold files a batch; it reports whether there is anything new in it.
func (s *session) hold(b *Batch, now time.Time) bool {
	i, _ := slices.BinarySearchFunc(s.held, b.First, func(w waiting, first uint64) int {
		if w.First < first {
			return -1
		}
		return 1
	})
	// The one before begins earlier and may cover all of it. An equivocating
	// sender may make others overlap; those are trimmed when delivered.
	if i > 0 && s.held[i-1].end() >= b.end() {
		return false
	}
	if i < len(s.held) && s.held[i].First == b.First && s.held[i].end() >= b.end() {
		return false
	}
	s.held = slices.Insert(s.held, i, waiting{*b, now})
	return true
}

// tell notes that the sender has sent everything below to.
func (s *session) tell(to uint64, now time.Time) {
	n := len(s.tolds)
	switch {
	case to <= s.next || n > 0 && to <= s.tolds[n-1].to:
	case n == maxTolds:
		s.tolds[n-1] = told{to, now}
	default:
		s.tolds = append(s.tolds, told{to, now})
	}
}

// advance says that everything below to is done with.
func (s *session) advance(to uint64) {
	s.next = to
	s.since = time.Time{}
	for len(s.tolds) > 0 && s.tolds[0].to <= to {
		s.tolds = s.tolds[1:]
	}
}

// drop removes the first n batches held.
func (s *session) drop(n int) {
	if n == 0 {
		return
	}
	if n == len(s.held) {
		s.held = nil
		return
	}
	clear(s.held[:n])
	s.held = s.held[n:]
}

// gap reports whether something is known to be missing.
func (s *session) gap() bool {
	return len(s.held) > 0 || len(s.tolds) > 0 || s.claimed > s.next
}

// gapEnd returns up to where what is missing was noticed at the same moment as
// the number next. There must be a gap.
func (s *session) gapEnd() uint64 {
	end := uint64(MaxNumber)
	if len(s.held) > 0 {
		end = s.held[0].First
	}
	if len(s.tolds) > 0 {
		end = min(end, s.tolds[0].to)
	}
	if s.claimed > s.next {
		end = min(end, s.claimed)
	}
	return end
}

// missing returns the first gap, empty if there is none. Other than gapEnd it
// takes all that the sender says it has sent together.
func (s *session) missing() Gap {
	g := Gap{Session: s.Session, From: s.next, Since: s.waitsSince()}
	for i := range s.held {
		b := &s.held[i]
		if b.First > g.From {
			g.To = b.First
			break
		}
		g.From = max(g.From, b.end()) // it waits for an earlier session, or to settle
	}
	if n := len(s.tolds); n > 0 && g.To == 0 {
		g.To = s.tolds[n-1].to
	}
	if g.To <= g.From && s.claimed > g.From {
		g.To, g.Hearsay = s.claimed, true
	}
	if g.Since.Before(s.moved) {
		g.Since = s.moved
	}
	return g
}

// waitsSince returns when the number next was noticed to be missing; zero if
// nothing is missing.
func (s *session) waitsSince() time.Time {
	if s.since.IsZero() && s.gap() {
		if len(s.tolds) > 0 {
			s.since = s.tolds[0].at
		}
		if s.claimed > s.next && (s.since.IsZero() || s.claimedAt.Before(s.since)) {
			s.since = s.claimedAt
		}
		for i := range s.held {
			if s.since.IsZero() || s.held[i].at.Before(s.since) {
				s.since = s.held[i].at
			}
		}
	}
	return s.since
}

// dueHeap has the sender with the earliest deadline in front.
type dueHeap []*sender

var _ heap.Interface = (*dueHeap)(nil)

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].deadline.Before(h[j].deadline) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	s := x.(*sender)
	s.index = len(*h)
	*h = append(*h, s)
}

func (h *dueHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.index = -1
	return s
}
