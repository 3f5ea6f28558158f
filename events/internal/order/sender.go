package order

import (
	"container/heap"
	"container/list"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// senderState is what the sequencer knows about one sender. Except while the sender is
// being added, it has at least one session.
type senderState struct {
	id peer.ID
	// sessions has the earliest session first. That one is being delivered, and the
	// others wait for it.
	sessions []*sessionState
	held     int // bytes of this sender's batches that are held back

	// Position among the senders.
	lastHeard time.Time
	element   *list.Element // this sender's element of Sequencer.byLastHeard
	deadline  time.Time     // when Sequencer.Advance must act on this sender; zero: never
	index     int           // index in Sequencer.byDeadline; -1: the sender has no deadline
}

func (s *senderState) findSession(key SessionKey) (*sessionState, bool) {
	for _, ses := range s.sessions {
		if ses.SessionKey == key {
			return ses, true
		}
	}
	return nil, false
}

// addSession inserts a session that begins with the number next into the sender's
// sessions, which stay sorted from the earliest to the latest.
func (s *senderState) addSession(key SessionKey, next uint64, now time.Time) *sessionState {
	ses := &sessionState{SessionKey: key, begin: next, next: next, begunAt: now}
	i := len(s.sessions)
	for i > 0 && s.sessions[i-1].Compare(key) > 0 {
		i--
	}
	s.sessions = slices.Insert(s.sessions, i, ses)
	return ses
}

// progress returns how far the sender's latest session has been received.
func (s *senderState) progress() Progress {
	ses := s.sessions[len(s.sessions)-1]
	m := Progress{Sender: s.id, Session: ses.SessionKey, Begin: ses.begin, Next: ses.next}
	// Events that were given up although only other nodes claimed that they were sent may
	// never have been sent. A mark that counted them as received would spread the lie to
	// other nodes.
	if ses.givenUpOnClaim != 0 {
		m.Next = ses.givenUpOnClaim
	}
	for i := range ses.held {
		b := &ses.held[i]
		// The batch follows in order. It is held back only until an earlier session
		// ends.
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
	begin uint64 // number of the first event of the session to be delivered at this node
	next  uint64 // number of the first event that is neither delivered nor given up
	// held contains the batches that cannot be delivered yet, sorted by First. In the
	// session being delivered, each of them is behind a hole.
	held          []heldArrival
	begunAt       time.Time // when this node first heard of the session from its sender
	lastInOrderAt time.Time // when a batch last arrived in order
	// settleEnd is the time until which a batch with lower numbers may still become the
	// beginning of the session. It is zero once the beginning is final.
	settleEnd time.Time

	// announced lists the marks of the sender itself that are above next, in ascending
	// order. Like claimed, it is evidence that events which have not arrived were sent.
	announced []sentMark
	// firstMissed is when the event with the number next was first known to be missing.
	// It is zero if that was not computed yet: see missingSince.
	firstMissed time.Time
	// claimed is the highest number of which other nodes claim that every event below
	// it was sent.
	claimed uint64
	// claimedAt is when the first claim of another node arrived that events from the
	// number next on were sent.
	claimedAt time.Time
	// givenUpOnClaim is the number of the first event that was given up although only
	// other nodes claimed that it was sent; zero: there is no such event.
	givenUpOnClaim uint64
}

// A sentMark is the sender's own statement, received at the time at, that it has sent
// all events below the number to.
type sentMark struct {
	to uint64
	at time.Time
}

// maxAnnounced is how many marks of the sender itself are remembered one by one, each
// with its own time. Further marks only raise the last one.
const maxAnnounced = 16

// heldArrival is a batch that is held back, together with the time at which it arrived.
type heldArrival struct {
	Arrival
	at time.Time
}

// reopen is called for a batch with the numbers [from, to), which proves that these
// events were sent. If they were given up when only other nodes had claimed that they
// were sent, reopen makes them missing again, so that the batch is delivered.
func (s *sessionState) reopen(from, to uint64) {
	if s.givenUpOnClaim == 0 || to <= s.givenUpOnClaim {
		return
	}
	given := s.next
	from, s.givenUpOnClaim = max(from, s.givenUpOnClaim), 0
	if from < given {
		s.next = from
		s.firstMissed = time.Time{}
		// It is still unknown whether the given-up events after this batch were ever
		// sent.
		if to < given {
			s.givenUpOnClaim = to
		}
	}
}

// startSettling starts the time d, during which batches with numbers below next may
// still become the beginning of the session.
func (s *sessionState) startSettling(d time.Duration, now time.Time) {
	s.settleEnd = time.Time{}
	if d > 0 && s.next > 1 { // numbers begin with 1
		s.settleEnd = now.Add(d)
	}
}

// settling reports whether a lower number can still become the beginning of the
// session.
func (s *sessionState) settling() bool { return !s.settleEnd.IsZero() }

func (s *sessionState) endSettling() { s.settleEnd = time.Time{} }

// deliver appends to steps the step that delivers the new events of b, the next batch in
// order. id is the sender.
func (s *sessionState) deliver(id peer.ID, b *Arrival, steps []Step) []Step {
	steps = append(steps, Step{Sender: id, Session: s.SessionKey, From: s.next, To: b.limit()})
	s.advance(b.limit())
	return steps
}

// hold adds a batch to the held ones. It returns false, and does not add it, if the
// batch contains nothing new.
func (s *sessionState) hold(b *Arrival, now time.Time) bool {
	// The comparison never returns 0, so i is the first index whose batch does not
	// begin lower than b.
	i, _ := slices.BinarySearchFunc(s.held, b.First, func(w heldArrival, first uint64) int {
		if w.First < first {
			return -1
		}
		return 1
	})
	// The batches of an honest sender do not overlap. So only the held batch before the
	// new one and the one after it can contain the same events. If a sender used a number
	// twice, delivery cuts the overlap.
	if i > 0 && s.held[i-1].limit() >= b.limit() {
		return false
	}
	if i < len(s.held) && s.held[i].First == b.First && s.held[i].limit() >= b.limit() {
		return false
	}
	s.held = slices.Insert(s.held, i, heldArrival{*b, now})
	return true
}

// announce notes that the sender itself says it has sent every event below the number
// to.
func (s *sessionState) announce(to uint64, now time.Time) {
	n := len(s.announced)
	switch {
	case to <= s.next || n > 0 && to <= s.announced[n-1].to:
		// Every event below the number to was received, or an earlier mark has
		// announced as much.
	case n == maxAnnounced:
		s.announced[n-1] = sentMark{to, now}
	default:
		s.announced = append(s.announced, sentMark{to, now})
	}
}

// advance moves next up to the number to: every event below is delivered or lost.
func (s *sessionState) advance(to uint64) {
	s.next = to
	s.firstMissed = time.Time{}
	for len(s.announced) > 0 && s.announced[0].to <= to {
		s.announced = s.announced[1:]
	}
}

// dropHeld removes the first n held batches.
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

// hasHole reports whether the session has a hole: an event that was sent and has not
// arrived.
func (s *sessionState) hasHole() bool {
	return len(s.held) > 0 || len(s.announced) > 0 || s.claimed > s.next
}

// holeEnd returns the number at which the first hole, which begins with next, ends. If a
// held batch and marks of the sender name different ends, the lowest counts, since the
// events after it were found missing at another time. The session must have a hole.
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

// firstHole returns the first hole of the session, which is empty if nothing is
// missing. Unlike holeEnd it takes account of all marks of the sender, not only the
// first.
func (s *sessionState) firstHole() Hole {
	g := Hole{Session: s.SessionKey, From: s.next, Since: s.missingSince()}
	for i := range s.held {
		b := &s.held[i]
		if b.First > g.From {
			g.To = b.First
			break
		}
		// This batch has arrived. It is held back only until an earlier session ends or
		// the beginning is certain.
		g.From = max(g.From, b.limit())
	}
	if n := len(s.announced); n > 0 && g.To == 0 {
		g.To = s.announced[n-1].to
	}
	// A held batch or the sender's own mark is better evidence than another node's
	// claim, so the claim counts only without them.
	if g.To <= g.From && s.claimed > g.From {
		g.To, g.Hearsay = s.claimed, true
	}
	if g.Since.Before(s.lastInOrderAt) {
		g.Since = s.lastInOrderAt
	}
	return g
}

// missingSince returns when the event with the number next was first known to be
// missing, which is when the first evidence of it arrived. It is zero if nothing is
// missing.
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

// deadlineHeap is a heap of senders, the one with the earliest deadline first.
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
