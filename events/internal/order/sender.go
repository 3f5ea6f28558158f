package order

import (
	"container/heap"
	"container/list"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// senderState is what the sequencer knows about one sender. It has at least one session
// from its first batch on.
type senderState struct {
	id       peer.ID
	sessions []*sessionState // the earliest first: it is being delivered, the others wait
	held     int             // bytes of the batches that wait

	// Position among the senders.
	lastHeard time.Time
	element   *list.Element // in Sequencer.byLastHeard
	deadline  time.Time     // when something is given up; zero: nothing is missing
	index     int           // in Sequencer.byDeadline, or -1
}

func (s *senderState) findSession(key SessionKey) (*sessionState, bool) {
	for _, ses := range s.sessions {
		if ses.SessionKey == key {
			return ses, true
		}
	}
	return nil, false
}

// addSession adds a session that begins with the number next, in its place among the
// others.
func (s *senderState) addSession(key SessionKey, next uint64, now time.Time) *sessionState {
	ses := &sessionState{SessionKey: key, first: next, next: next, born: now}
	i := len(s.sessions)
	for i > 0 && s.sessions[i-1].Compare(key) > 0 {
		i--
	}
	s.sessions = slices.Insert(s.sessions, i, ses)
	return ses
}

// progress returns how far the latest session has been received.
func (s *senderState) progress() Progress {
	ses := s.sessions[len(s.sessions)-1]
	m := Progress{Sender: s.id, Session: ses.SessionKey, Begin: ses.first, Next: ses.next}
	// Numbers given up on a claim alone may not exist. Passing them on as received
	// would spread the lie.
	if ses.givenUpOnClaim != 0 {
		m.Next = ses.givenUpOnClaim
	}
	for i := range ses.held {
		b := &ses.held[i]
		// It has arrived in order, and waits for an earlier session.
		if b.First <= m.Next {
			m.Next = max(m.Next, b.limit())
		}
		m.Above = max(m.Above, b.limit())
	}
	m.Above = max(m.Above, m.Next)
	return m
}

// sessionState is what the sequencer knows about one session.
type sessionState struct {
	SessionKey

	// Delivery.
	first      uint64        // where the session began here
	next       uint64        // the first number that is not delivered
	held       []heldArrival // sorted by First; in the session being delivered, all are behind a hole
	born       time.Time     // when the session began here
	progressed time.Time     // when a batch last arrived in its turn
	settleEnd  time.Time     // until when a lower number may become the first; zero: first is certain

	// Evidence for numbers that have not arrived.
	announced   []sentMark // by the sender, ascending, above next
	firstMissed time.Time  // when the number next was noticed to be missing; zero: see missingSince
	claimed     uint64     // third parties claim that everything below was sent
	claimedAt   time.Time  // when the first of them claimed that
	// givenUpOnClaim is the first number that was given up because of a claim alone;
	// zero: none.
	givenUpOnClaim uint64
}

// A sentMark is the sender's own statement that it has sent all events below to.
type sentMark struct {
	to uint64
	at time.Time
}

// maxAnnounced bounds the announcements of a sender that are remembered one by one.
const maxAnnounced = 16

// heldArrival is a batch that waits for its turn.
type heldArrival struct {
	Arrival
	at time.Time
}

// reopen takes back that the numbers [from, to) were given up because of a claim. A
// batch has now proved that the sender has sent them.
func (s *sessionState) reopen(from, to uint64) {
	if s.givenUpOnClaim == 0 || to <= s.givenUpOnClaim {
		return
	}
	given := s.next
	from, s.givenUpOnClaim = max(from, s.givenUpOnClaim), 0
	if from < given {
		s.next = from
		s.firstMissed = time.Time{}
		// The numbers behind the batch are as doubtful as before.
		if to < given {
			s.givenUpOnClaim = to
		}
	}
}

// startSettling lets lower numbers than next become the beginning for the time d.
func (s *sessionState) startSettling(d time.Duration, now time.Time) {
	s.settleEnd = time.Time{}
	if d > 0 && s.next > 1 { // no number is lower than 1
		s.settleEnd = now.Add(d)
	}
}

func (s *sessionState) settling() bool { return !s.settleEnd.IsZero() }

func (s *sessionState) endSettling() { s.settleEnd = time.Time{} }

// deliver appends the step that delivers the new events of b, which is next in order.
func (s *sessionState) deliver(id peer.ID, b *Arrival, steps []Step) []Step {
	steps = append(steps, Step{Sender: id, Session: s.SessionKey, From: s.next, To: b.limit()})
	s.advance(b.limit())
	return steps
}

// hold lets a batch wait for its turn. It reports whether anything in it is new.
func (s *sessionState) hold(b *Arrival, now time.Time) bool {
	// Equal batches compare as greater, so i is behind all that begin lower.
	i, _ := slices.BinarySearchFunc(s.held, b.First, func(w heldArrival, first uint64) int {
		if w.First < first {
			return -1
		}
		return 1
	})
	// Only the batches beside it need a look, since those of an honest sender do not
	// overlap. If a sender gave numbers twice, the overlap is cut at delivery.
	if i > 0 && s.held[i-1].limit() >= b.limit() {
		return false
	}
	if i < len(s.held) && s.held[i].First == b.First && s.held[i].limit() >= b.limit() {
		return false
	}
	s.held = slices.Insert(s.held, i, heldArrival{*b, now})
	return true
}

// announce notes that the sender says it has sent everything below to.
func (s *sessionState) announce(to uint64, now time.Time) {
	n := len(s.announced)
	switch {
	case to <= s.next || n > 0 && to <= s.announced[n-1].to:
		// It is received already, or announced.
	case n == maxAnnounced:
		s.announced[n-1] = sentMark{to, now}
	default:
		s.announced = append(s.announced, sentMark{to, now})
	}
}

// advance moves next up to to: everything below is delivered or lost.
func (s *sessionState) advance(to uint64) {
	s.next = to
	s.firstMissed = time.Time{}
	for len(s.announced) > 0 && s.announced[0].to <= to {
		s.announced = s.announced[1:]
	}
}

// dropHeld removes the first n waiting batches.
func (s *sessionState) dropHeld(n int) {
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

// hasHole reports whether a number is known to be missing.
func (s *sessionState) hasHole() bool {
	return len(s.held) > 0 || len(s.announced) > 0 || s.claimed > s.next
}

// holeEnd returns the end of the hole that begins with next, as far as it was noticed at
// the same moment. There must be a hole.
func (s *sessionState) holeEnd() uint64 {
	end := uint64(MaxNumber)
	if len(s.held) > 0 {
		end = s.held[0].First
	}
	if len(s.announced) > 0 {
		end = min(end, s.announced[0].to)
	}
	if s.claimed > s.next {
		end = min(end, s.claimed)
	}
	return end
}

// firstHole returns the first hole, which is empty if nothing is missing. Unlike
// holeEnd it joins all that the sender has announced.
func (s *sessionState) firstHole() Hole {
	g := Hole{Session: s.SessionKey, From: s.next, Since: s.missingSince()}
	for i := range s.held {
		b := &s.held[i]
		if b.First > g.From {
			g.To = b.First
			break
		}
		// This batch is here, although it waits for an earlier session or for the
		// session to settle.
		g.From = max(g.From, b.limit())
	}
	if n := len(s.announced); n > 0 && g.To == 0 {
		g.To = s.announced[n-1].to
	}
	// Better evidence than a claim comes first.
	if g.To <= g.From && s.claimed > g.From {
		g.To, g.Hearsay = s.claimed, true
	}
	if g.Since.Before(s.progressed) {
		g.Since = s.progressed
	}
	return g
}

// missingSince returns when the number next was noticed to be missing: when the first
// evidence for it arrived. It is zero if nothing is missing.
func (s *sessionState) missingSince() time.Time {
	if s.firstMissed.IsZero() && s.hasHole() {
		if len(s.announced) > 0 {
			s.firstMissed = s.announced[0].at
		}
		if s.claimed > s.next && (s.firstMissed.IsZero() || s.claimedAt.Before(s.firstMissed)) {
			s.firstMissed = s.claimedAt
		}
		for i := range s.held {
			if s.firstMissed.IsZero() || s.held[i].at.Before(s.firstMissed) {
				s.firstMissed = s.held[i].at
			}
		}
	}
	return s.firstMissed
}

// deadlineHeap has the sender with the earliest deadline in front.
type deadlineHeap []*senderState

var _ heap.Interface = (*deadlineHeap)(nil)

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].deadline.Before(h[j].deadline) }
func (h deadlineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *deadlineHeap) Push(x any) {
	s := x.(*senderState)
	s.index = len(*h)
	*h = append(*h, s)
}

func (h *deadlineHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.index = -1
	return s
}
