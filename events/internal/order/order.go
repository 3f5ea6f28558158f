// Package order puts the batches of many senders, which may arrive late, twice or not
// at all, back into the order in which their senders numbered them. It performs no I/O,
// starts no goroutine and reads no clock: methods that depend on the time take it as an
// argument.
//
// A sender numbers its events from 1 in each of its sessions (one session per run of
// the program), and a batch is a run of such numbers. The sequencer answers every input
// with steps: runs of numbers that are either delivered or lost. The steps of a session
// have no hole between them and never overlap, so that delivered and lost add up to the
// number of sent events.
//
// Missing numbers are awaited for [Config.GapTimeout]. The time counts from the arrival
// of something behind them, or of the batch before them if that is later: while a slow
// path delivers, the events of a short cut wait. Whoever fetches missing numbers
// ([Sequencer.Holes]) can end the wait with [Sequencer.GiveUp]. A newer session waits
// until the older one has no holes, for at most [Config.SessionTimeout]. After that the
// older session is never delivered again.
package order

import (
	"bytes"
	"cmp"
	"container/heap"
	"container/list"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// MaxNumber is above the number of every event.
const MaxNumber = 1 << 62

// Config holds the bounds of a sequencer. Zero means the default in brackets.
type Config struct {
	// GapTimeout is how long a missing event is awaited [2 s].
	GapTimeout time.Duration
	// SessionTimeout is how long a newer session waits for the missing events of the
	// older one [2 s, but no longer than GapTimeout].
	SessionTimeout time.Duration
	// SettleTimeout is how long the first batch of an unknown sender waits for lower
	// numbers, which may come by a slower way, unless a neighbor has said where to
	// begin [not at all].
	SettleTimeout time.Duration

	MaxSilence       time.Duration // how long a silent sender is remembered [1 h]
	MaxSenders       int           // senders remembered; the longest silent ones go first [10,000]
	MaxHints         int           // senders known from hearsay only [4,096]
	MaxHeldPerSender int           // bytes of one sender's batches that wait [4 MiB]
	MaxHeld          int           // bytes of all batches that wait [16 MiB]
}

func (c Config) withDefaults() Config {
	c.GapTimeout = cmp.Or(c.GapTimeout, 2*time.Second)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, min(c.GapTimeout, 2*time.Second))
	c.MaxSilence = cmp.Or(c.MaxSilence, time.Hour)
	c.MaxSenders = cmp.Or(c.MaxSenders, 10_000)
	c.MaxHints = cmp.Or(c.MaxHints, 4096)
	c.MaxHeldPerSender = cmp.Or(c.MaxHeldPerSender, 4<<20)
	c.MaxHeld = cmp.Or(c.MaxHeld, 16<<20)
	return c
}

// maxSessions bounds the sessions of one sender: the one being delivered and the ones
// that wait for it.
const maxSessions = 4

// A SessionKey names a session, and orders it among the sessions of its sender: the
// later one has the greater Start, or the greater ID if both starts are equal.
type SessionKey struct {
	ID    protocol.Session
	Start uint64 // milliseconds since 1970
}

// Compare returns -1 if s is the earlier session, +1 if it is the later one.
func (s SessionKey) Compare(t SessionKey) int {
	return cmp.Or(cmp.Compare(s.Start, t.Start), bytes.Compare(s.ID[:], t.ID[:]))
}

// An Arrival is a batch that arrived: a run of consecutive events of one session.
type Arrival struct {
	Session SessionKey
	First   uint64 // number of the first event, at least 1
	Count   int    // events, at least 1
	Size    int    // bytes that count toward the limits while the batch waits
}

func (b *Arrival) limit() uint64 { return b.First + uint64(b.Count) }

// A Step says that the events [From, To) of a session are lost, or are to be delivered.
type Step struct {
	Sender   peer.ID
	Session  SessionKey
	From, To uint64
	Lost     bool
}

// Progress is how far a session of a sender has been received.
type Progress struct {
	Sender  peer.ID
	Session SessionKey
	Begin   uint64 // the first number that was or will be delivered here
	Next    uint64 // every lower number was received, or given up as lost
	Above   uint64 // no number from here on was received; at least Next
}

// A Hole is the first run [From, To) of missing numbers of a session.
type Hole struct {
	Session  SessionKey
	From, To uint64
	Since    time.Time // when it was noticed, or when a batch last arrived in its turn
	Hearsay  bool      // only third parties say that the events were sent
}

// A Disposition says what happened to a batch.
type Disposition int

const (
	Accepted   Disposition = iota // delivered, or held back for its turn
	Duplicate                     // nothing new in it
	OldSession                    // of a session that a later one has replaced
	Invalid                       // Count or First out of bounds
)

// A Sequencer orders the batches of all senders. One goroutine at a time may use it.
type Sequencer struct {
	cfg         Config
	senders     map[peer.ID]*senderState
	byLastHeard *list.List   // of *senderState, the last heard in front
	byDeadline  deadlineHeap // the senders that wait for something
	held        int          // bytes of all batches that wait
	hints       hints
}

// New returns a sequencer that knows no senders.
func New(cfg Config) *Sequencer {
	cfg = cfg.withDefaults()
	return &Sequencer{
		cfg:         cfg,
		senders:     make(map[peer.ID]*senderState),
		byLastHeard: list.New(),
		hints:       newHints(cfg.MaxHints),
	}
}

// Receive handles a batch that arrived at now, and appends to steps the events that can
// be delivered now, in order. The first session of an unknown sender begins with the
// first number that arrives, or lower if a hint says so. A later session of a known
// sender begins with 1, unless a hint says otherwise.
func (c *Sequencer) Receive(now time.Time, id peer.ID, b Arrival, steps []Step) (Disposition, []Step) {
	if b.Count < 1 || b.First < 1 || b.First > MaxNumber-uint64(b.Count) {
		return Invalid, steps
	}
	steps = c.removeSilentSenders(now, steps)
	s, known := c.senders[id]
	if !known {
		s, steps = c.addSender(id, steps)
	}
	c.markHeard(s, now)
	ses, ok := s.findSession(b.Session)
	if !ok {
		// Sessions are delivered in their order, so the time for an earlier one than
		// the one being delivered is over.
		if known && b.Session.Compare(s.sessions[0].SessionKey) < 0 {
			return OldSession, steps
		}
		ses = c.beginSession(now, s, known, &b)
	}
	// The first batch of an unknown sender was overtaken by later ones. While the
	// session settles, the lower number becomes its beginning.
	if ses.settling() && b.First < ses.next {
		ses.first, ses.next = b.First, b.First
		ses.startSettling(c.cfg.SettleTimeout, now)
	}
	// The sender has restarted, so the older session must not hold up the newer one.
	if len(s.sessions) > 1 {
		s.sessions[0].endSettling()
	}
	ses.reopen(b.First, b.limit())
	switch {
	case b.limit() <= ses.next:
		return Duplicate, steps
	case ses == s.sessions[0] && b.First <= ses.next && !ses.settling():
		// It is the next one in order, as nearly all batches are.
		steps = ses.deliver(s.id, &b, steps)
		ses.progressed = now
	case ses.hold(&b, now):
		s.held += b.Size
		c.held += b.Size
	default:
		return Duplicate, steps
	}
	return Accepted, c.enforceMaxHeld(c.deliverReady(s, steps))
}

// beginSession begins the session of which b is the first batch to arrive. known says
// that the sender had a session before.
func (c *Sequencer) beginSession(now time.Time, s *senderState, known bool, b *Arrival) *sessionState {
	next, settle := b.First, time.Duration(0)
	if h, ok := c.hints.remove(s.id); ok && h.Session == b.Session {
		// A hint may only make us wait for more. So a neighbor that lies with a
		// number that is too high cannot silence the sender.
		next = min(next, h.Above)
		if !known && h.beginning == Tentative {
			settle = c.cfg.SettleTimeout
		}
	} else if known {
		// We were there when the sender restarted, so all of the new session is ours.
		next = 1
	} else {
		// Nobody has said where to begin.
		settle = c.cfg.SettleTimeout
	}
	ses := s.addSession(b.Session, next, now)
	ses.startSettling(settle, now)
	return ses
}

// Advance gives up the events that are missing for too long at now, and appends to
// steps the events that can be delivered without them.
func (c *Sequencer) Advance(now time.Time, steps []Step) []Step {
	for len(c.byDeadline) > 0 && !c.byDeadline[0].deadline.After(now) {
		s := c.byDeadline[0]
		head := s.sessions[0]
		switch {
		case head.settling():
			// The time for lower numbers is over; nothing is given up yet.
			head.endSettling()
		case len(s.sessions) > 1 && !s.sessions[1].born.Add(c.cfg.SessionTimeout).After(now):
			// The newer session has waited long enough for the older one.
			steps = c.giveUpAllHoles(s, steps)
		default:
			steps = c.giveUpFirstHole(s, steps)
		}
		steps = c.deliverReady(s, steps)
	}
	return c.removeSilentSenders(now, steps)
}

// Earlier returns the earlier of two moments; the zero time means never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Next returns when to call Advance. The zero time means not before the next Receive,
// ReceiveOwnMark or ReceiveClaim.
func (c *Sequencer) Next() time.Time {
	if len(c.byDeadline) == 0 {
		return time.Time{}
	}
	return c.byDeadline[0].deadline
}

// A Beginning says how certain it is where a session begins for this node.
type Beginning int

const (
	Tentative Beginning = iota // lower numbers may still arrive by another way
	Firm                       // nothing lower can arrive any more
)

// AddHint remembers that a third party has received m. If a batch of that session
// arrives later, the session begins with m.Above: lower numbers are not awaited, and
// every number from there on is. A [Tentative] beginning may still move down for
// [Config.SettleTimeout]. The third party may lie, so a hint never changes a session of
// which a batch has arrived.
func (c *Sequencer) AddHint(m Progress, beginning Beginning) {
	m.Above = max(m.Next, m.Above)
	if m.Above < 1 || m.Above > MaxNumber {
		return
	}
	if s, known := c.senders[m.Sender]; known {
		// A session that is under way has begun, and an earlier one is over.
		if _, ok := s.findSession(m.Session); ok || m.Session.Compare(s.sessions[0].SessionKey) < 0 {
			return
		}
	}
	c.hints.add(hint{m, beginning})
}

// ReceiveOwnMark handles the mark that a sender announced about itself at now. The
// sender has sent everything below m.Above, so events below it that do not arrive
// within the gap timeout are lost, even if nothing behind them ever arrives. A session
// that was unknown begins there, or lower if a hint says so; for beginning see
// [Sequencer.AddHint].
func (c *Sequencer) ReceiveOwnMark(now time.Time, m Progress, beginning Beginning, steps []Step) []Step {
	m.Above = max(m.Next, m.Above)
	if m.Above < 1 || m.Above > MaxNumber {
		return steps
	}
	s, known := c.senders[m.Sender]
	if known {
		if ses, ok := s.findSession(m.Session); ok {
			ses.announce(m.Above, now)
			return c.deliverReady(s, steps)
		}
		// A sender does not go back to an earlier session.
		if m.Session.Compare(s.sessions[0].SessionKey) < 0 {
			return steps
		}
	} else {
		s, steps = c.addSender(m.Sender, steps)
	}
	c.markHeard(s, now)
	next := m.Above
	// A neighbor that knew the session earlier owes us the events since then, too.
	if h, ok := c.hints.remove(m.Sender); ok && h.Session == m.Session {
		next = min(next, h.Above)
		beginning = max(beginning, h.beginning)
	}
	ses := s.addSession(m.Session, next, now)
	ses.announce(m.Above, now)
	// Batches of a new sender may come by a slower way than its mark. A known sender's
	// next session is counted from its mark at once.
	if !known && beginning == Tentative {
		ses.startSettling(c.cfg.SettleTimeout, now)
	}
	return c.enforceMaxHeld(c.deliverReady(s, steps))
}

// ReceiveClaim handles the claim of a third party that the session of m was sent up to
// m.Next. It counts only for a session that is under way. Numbers that are missing
// because of it are awaited like others. But the claim may be a lie, so events that are
// given up because of a claim alone are delivered all the same if they arrive later.
// While the session settles, it may begin as low as m.Begin, unless that is zero.
func (c *Sequencer) ReceiveClaim(now time.Time, m Progress, steps []Step) []Step {
	s, known := c.senders[m.Sender]
	if !known || m.Next > MaxNumber {
		return steps
	}
	ses, ok := s.findSession(m.Session)
	if !ok {
		return steps
	}
	if ses.settling() && 0 < m.Begin && m.Begin < ses.next {
		ses.first, ses.next = m.Begin, m.Begin
		// No number is lower than 1, so there is nothing left to wait for.
		if m.Begin == 1 {
			ses.endSettling()
		}
	} else if m.Next <= max(ses.next, ses.claimed) {
		return steps // nothing new
	}
	if m.Next > max(ses.next, ses.claimed) {
		// The wait counts from the first claim, so repeated claims cannot prolong it.
		if ses.claimed <= ses.next {
			ses.claimedAt = now
		}
		ses.claimed = m.Next
	}
	return c.deliverReady(s, steps)
}

// Holes returns the first hole of each session of a sender that has one.
func (c *Sequencer) Holes(id peer.ID) []Hole {
	s, known := c.senders[id]
	if !known {
		return nil
	}
	var holes []Hole
	for _, ses := range s.sessions {
		if g := ses.firstHole(); g.From < g.To {
			holes = append(holes, g)
		}
	}
	return holes
}

// GiveUp ends the wait for the missing numbers of a session below to. It does nothing
// while an earlier session of the sender is under way. The numbers of a session that is
// known from hints only are lost, too.
func (c *Sequencer) GiveUp(id peer.ID, session SessionKey, to uint64, steps []Step) []Step {
	// The session has not begun here. Its beginning moves up instead.
	if h, ok := c.hints.get(id); ok && h.Session == session && h.Above < to {
		c.hints.raise(id, session, to)
		return append(steps, Step{Sender: id, Session: session, From: h.Above, To: to, Lost: true})
	}
	s, known := c.senders[id]
	if !known || s.sessions[0].SessionKey != session {
		return steps
	}
	head := s.sessions[0]
	head.endSettling()
	for steps = c.deliverHeld(s, steps); s.sessions[0] == head && head.hasHole() && head.next < to; {
		steps = c.deliverReady(s, c.giveUpFirstHole(s, steps))
	}
	return c.deliverReady(s, steps)
}

// HasSession reports whether a session is under way here.
func (c *Sequencer) HasSession(id peer.ID, session SessionKey) bool {
	s, known := c.senders[id]
	if known {
		_, known = s.findSession(session)
	}
	return known
}

// Hint returns the hint about a session that has not begun here. It will begin with
// Above.
func (c *Sequencer) Hint(id peer.ID) (Progress, bool) { return c.hints.get(id) }

// Progress returns how far the latest session of a sender has been received. Hints do
// not count.
func (c *Sequencer) Progress(id peer.ID) (Progress, bool) {
	s, ok := c.senders[id]
	if !ok {
		return Progress{}, false
	}
	return s.progress(), true
}

// AllProgress returns the progress of at most n senders: first the ones heard last,
// then the ones known from hints.
func (c *Sequencer) AllProgress(n int) []Progress {
	list := make([]Progress, 0, min(n, len(c.senders)+c.hints.len()))
	for e := c.byLastHeard.Front(); e != nil && len(list) < n; e = e.Next() {
		list = append(list, e.Value.(*senderState).progress())
	}
	for m := range c.hints.all() {
		if len(list) == n {
			break
		}
		// The hint may be about a later session of a sender that is listed already.
		if _, known := c.senders[m.Sender]; !known {
			list = append(list, m)
		}
	}
	return list
}

// SenderCount returns the number of senders remembered. Hints do not count.
func (c *Sequencer) SenderCount() int { return len(c.senders) }

// HeldBytes returns the size of the batches that wait.
func (c *Sequencer) HeldBytes() int { return c.held }

// deliverReady delivers the batches of s that are next in order, keeps s within its
// bounds, and sets its deadline.
func (c *Sequencer) deliverReady(s *senderState, steps []Step) []Step {
	for {
		steps = c.deliverHeld(s, steps)
		head := s.sessions[0]
		switch {
		case !head.hasHole() && len(s.sessions) > 1:
			// The older session is complete, and the next one has its turn.
			s.sessions[0] = nil
			s.sessions = s.sessions[1:]
		case len(s.sessions) > maxSessions:
			steps = c.giveUpAllHoles(s, steps)
		case head.settling() && s.held > c.cfg.MaxHeldPerSender:
			head.endSettling()
		case head.hasHole() && s.held > c.cfg.MaxHeldPerSender:
			steps = c.giveUpFirstHole(s, steps)
		default:
			c.setDeadline(s)
			return steps
		}
	}
}

// enforceMaxHeld gives up holes of the senders that hold most, until all waiting
// batches together are within their bound.
func (c *Sequencer) enforceMaxHeld(steps []Step) []Step {
	for c.held > c.cfg.MaxHeld {
		var most *senderState
		// Batches only wait behind something that has a deadline, so this finds all.
		for _, s := range c.byDeadline {
			if most == nil || s.held > most.held {
				most = s
			}
		}
		most.sessions[0].endSettling()
		if steps = c.deliverReady(most, steps); most.sessions[0].hasHole() {
			steps = c.deliverReady(most, c.giveUpFirstHole(most, steps))
		}
	}
	return steps
}

// deliverHeld delivers the waiting batches of the first session that are next in order.
func (c *Sequencer) deliverHeld(s *senderState, steps []Step) []Step {
	head := s.sessions[0]
	n := 0
	if head.settling() {
		return steps // a lower number may still become the first one
	}
	for ; n < len(head.held) && head.held[n].First <= head.next; n++ {
		b := &head.held[n]
		s.held -= b.Size
		c.held -= b.Size
		// A batch that overlaps the one before may have nothing new left.
		if b.limit() > head.next {
			steps = head.deliver(s.id, &b.Arrival, steps)
		}
	}
	head.dropHeld(n)
	return steps
}

// giveUpFirstHole gives up the first hole of the first session.
func (c *Sequencer) giveUpFirstHole(s *senderState, steps []Step) []Step {
	head := s.sessions[0]
	to := head.holeEnd()
	steps = append(steps, Step{Sender: s.id, Session: head.SessionKey, From: head.next, To: to, Lost: true})
	// Neither a batch nor the sender proves that the events exist. Remember where the
	// doubt begins, so that they are delivered if they turn out to exist.
	if head.givenUpOnClaim == 0 && len(head.held) == 0 && len(head.announced) == 0 {
		head.givenUpOnClaim = head.next
	}
	head.advance(to)
	return c.deliverHeld(s, steps)
}

// giveUpAllHoles gives up every hole of the first session.
func (c *Sequencer) giveUpAllHoles(s *senderState, steps []Step) []Step {
	s.sessions[0].endSettling()
	for steps = c.deliverHeld(s, steps); s.sessions[0].hasHole(); {
		steps = c.giveUpFirstHole(s, steps)
	}
	return steps
}

// setDeadline computes when something of s is given up next, and sorts s by that.
func (c *Sequencer) setDeadline(s *senderState) {
	head := s.sessions[0]
	s.deadline = head.settleEnd
	// While the session settles, its holes have no deadline: where they begin is open.
	if since := head.missingSince(); !head.settling() && !since.IsZero() {
		// A slow path that still delivers gets more time.
		if since.Before(head.progressed) {
			since = head.progressed
		}
		s.deadline = since.Add(c.cfg.GapTimeout)
		if len(s.sessions) > 1 {
			if end := s.sessions[1].born.Add(c.cfg.SessionTimeout); end.Before(s.deadline) {
				s.deadline = end
			}
		}
	}
	switch {
	case s.index < 0 && !s.deadline.IsZero():
		heap.Push(&c.byDeadline, s)
	case s.index >= 0 && s.deadline.IsZero():
		heap.Remove(&c.byDeadline, s.index)
	case s.index >= 0:
		heap.Fix(&c.byDeadline, s.index)
	}
}

// addSender adds a sender without a session. If there are too many senders, it removes
// the ones that are silent for longest.
func (c *Sequencer) addSender(id peer.ID, steps []Step) (*senderState, []Step) {
	for len(c.senders) >= c.cfg.MaxSenders {
		steps = c.removeSender(c.byLastHeard.Back().Value.(*senderState), steps)
	}
	s := &senderState{id: id, index: -1}
	c.senders[id] = s
	s.element = c.byLastHeard.PushFront(s)
	return s, steps
}

func (c *Sequencer) markHeard(s *senderState, now time.Time) {
	s.lastHeard = now
	c.byLastHeard.MoveToFront(s.element)
}

// removeSilentSenders removes the senders that were silent for longer than MaxSilence.
func (c *Sequencer) removeSilentSenders(now time.Time, steps []Step) []Step {
	for e := c.byLastHeard.Back(); e != nil; e = c.byLastHeard.Back() {
		s := e.Value.(*senderState)
		if s.lastHeard.Add(c.cfg.MaxSilence).After(now) {
			break // the others were heard later
		}
		steps = c.removeSender(s, steps)
	}
	return steps
}

// removeSender delivers the waiting batches of s and then removes it.
func (c *Sequencer) removeSender(s *senderState, steps []Step) []Step {
	for s.deadline != (time.Time{}) {
		steps = c.deliverReady(s, c.giveUpAllHoles(s, steps))
	}
	delete(c.senders, s.id)
	c.byLastHeard.Remove(s.element)
	return steps
}
