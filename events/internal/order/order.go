// Package order puts the batches of many senders, which may arrive late, twice or not
// at all, back into the order in which their senders numbered them. It performs no I/O,
// starts no goroutine and reads no clock: methods that depend on the time take it as an
// argument.
//
// A sender numbers its events from 1 in each of its sessions (one session per run of its
// program), and a batch contains events with consecutive numbers. The sequencer answers
// every input with steps: ranges of numbers that are either to be delivered or lost. The
// steps of a session follow each other without a hole and never overlap, so delivered
// and lost events add up to the events that were sent.
//
// Missing events are awaited for [Config.GapTimeout]. The wait begins when a later
// batch or a mark shows that they are missing. It begins again whenever a batch arrives
// in order, since missing events are then still arriving over a slow path. The caller
// may try to fetch missing events ([Sequencer.Holes]) and end the wait early
// ([Sequencer.GiveUp]). A newer session of a sender waits until the older one has no
// holes, for at most [Config.SessionTimeout]. After that nothing of the older session
// is delivered any more.
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

// MaxNumber is greater than the number of any event. Batches and marks with greater
// numbers are invalid.
const MaxNumber = 1 << 62

// Config holds the limits of a sequencer. A zero field means the default in brackets.
type Config struct {
	// GapTimeout is how long a missing event is awaited before it is given up as lost
	// [2 s].
	GapTimeout time.Duration
	// SessionTimeout is how long a newer session of a sender waits for the missing
	// events of the older session [2 s, but no longer than GapTimeout].
	SessionTimeout time.Duration
	// SettleTimeout is how long the first batch of an unknown sender is held back
	// because batches with lower numbers may still arrive over a slower path. If the
	// beginning of the session is [Firm], it is not held back, and by default it never
	// is.
	SettleTimeout time.Duration

	MaxSilence       time.Duration // how long a sender is remembered after its last batch or mark [1 h]
	MaxSenders       int           // how many senders are remembered at once; those silent for longest are forgotten first [10,000]
	MaxHints         int           // how many senders are remembered of which no batch and no mark of their own has arrived, only marks of other nodes [4,096]
	MaxHeldPerSender int           // bytes of batches of one sender that are held back until missing events arrive [4 MiB]
	MaxHeld          int           // bytes of batches of all senders that are held back [16 MiB]
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

// maxSessions is how many sessions of one sender are remembered at once: the one being
// delivered, and later ones that wait for it to end.
const maxSessions = 4

// A SessionKey identifies a session of a sender. It also orders the sessions of one
// sender: the later session has the greater Start, or the greater ID if both starts are
// equal.
type SessionKey struct {
	ID    protocol.Session
	Start uint64 // when the session began by its sender's clock, in milliseconds since 1970
}

// Compare returns -1 if s is an earlier session than t, +1 if s is a later one, and 0 if
// they are the same.
func (s SessionKey) Compare(t SessionKey) int {
	return cmp.Or(cmp.Compare(s.Start, t.Start), bytes.Compare(s.ID[:], t.ID[:]))
}

// An Arrival describes a batch that arrived: consecutive events of one session.
type Arrival struct {
	Session SessionKey
	First   uint64 // number of the first event; at least 1
	Count   int    // how many events the batch contains; at least 1
	Size    int    // bytes that count toward the limits of Config while the batch is held back
}

func (b *Arrival) limit() uint64 { return b.First + uint64(b.Count) }

// A Step tells the caller what becomes of the events numbered [From, To) of a session:
// they are to be delivered, or if Lost is set, they are given up.
type Step struct {
	Sender   peer.ID
	Session  SessionKey
	From, To uint64
	Lost     bool
}

// Progress is how far a node has received a session of a sender.
type Progress struct {
	Sender  peer.ID
	Session SessionKey
	Begin   uint64 // number of the first event that was or will be delivered at the node
	Next    uint64 // every event from Begin to below Next was received, or given up as lost
	Above   uint64 // no event numbered Above or higher was received; Above is at least Next
}

// A Hole is the first range [From, To) of events of a session that were sent but have
// not arrived.
type Hole struct {
	Session  SessionKey
	From, To uint64
	Since    time.Time // when the hole was noticed, or when a batch last arrived in order, whichever is later
	Hearsay  bool      // only nodes other than the sender claim that the events were sent; they may be lying
}

// A Disposition says what became of a batch that was passed to Receive.
type Disposition int

const (
	Accepted   Disposition = iota // the batch is delivered now, or is held back until earlier events arrive
	Duplicate                     // every event in the batch had arrived before
	OldSession                    // a later session of the sender is being delivered, so this one is over
	Invalid                       // Count or First is outside its limits
)

// A Sequencer puts the batches of all senders into order. It is not safe for concurrent
// use.
type Sequencer struct {
	cfg         Config
	senders     map[peer.ID]*senderState
	byLastHeard *list.List   // values are *senderState, the most recently heard first
	byDeadline  deadlineHeap // the senders that wait for missing events
	held        int          // bytes of all batches that are held back
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

// Receive handles a batch that arrived at the time now, and appends to steps the events
// that can be delivered now, in order. The first session of an unknown sender begins
// with the number of the first event that arrives, or with a lower number if another
// node's mark has said so (see AddHint). A later session of a known sender begins with
// 1, unless there is a hint about that session.
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
		// Sessions of one sender are delivered one after the other. A session earlier
		// than the one being delivered is over, and its late batches are dropped.
		if known && b.Session.Compare(s.sessions[0].SessionKey) < 0 {
			return OldSession, steps
		}
		ses = c.beginSession(now, s, known, &b)
	}
	// This batch was overtaken by later ones on its way. The beginning of the session
	// is still open, so the session begins with this batch instead.
	if ses.settling() && b.First < ses.next {
		ses.begin, ses.next = b.First, b.First
		ses.startSettling(c.cfg.SettleTimeout, now)
	}
	// The sender has restarted. Nothing of the new session can be delivered while the
	// old one still waits for its beginning.
	if len(s.sessions) > 1 {
		s.sessions[0].endSettling()
	}
	ses.reopen(b.First, b.limit())
	switch {
	case b.limit() <= ses.next:
		return Duplicate, steps
	case ses == s.sessions[0] && b.First <= ses.next && !ses.settling():
		// The batch is the next one in order, as nearly all batches are.
		steps = ses.deliver(s.id, &b, steps)
		ses.lastInOrderAt = now
	case ses.hold(&b, now):
		s.held += b.Size
		c.held += b.Size
	default:
		return Duplicate, steps
	}
	return Accepted, c.enforceMaxHeld(c.deliverReady(s, steps))
}

// beginSession adds the session whose first batch to arrive is b. known reports whether
// the sender had a session before.
func (c *Sequencer) beginSession(now time.Time, s *senderState, known bool, b *Arrival) *sessionState {
	next, settle := b.First, time.Duration(0)
	if h, ok := c.hints.remove(s.id); ok && h.Session == b.Session {
		// Another node's word (a hint) may lower the beginning but not raise it above
		// the first batch that arrived. So no neighbor can suppress a sender's events
		// by naming a high number.
		next = min(next, h.Above)
		if !known && h.beginning == Tentative {
			settle = c.cfg.SettleTimeout
		}
	} else if known {
		// This node saw the sender's previous session, so every event of the new session
		// was sent while this node was listening. The new session begins with event 1.
		next = 1
	} else {
		// No neighbor has said with which number the session begins, so its first batch
		// is held back for a while.
		settle = c.cfg.SettleTimeout
	}
	ses := s.addSession(b.Session, next, now)
	ses.startSettling(settle, now)
	return ses
}

// Advance gives up the events that have been missing for too long at the time now, and
// appends to steps both these losses and the events that can be delivered after them.
func (c *Sequencer) Advance(now time.Time, steps []Step) []Step {
	for len(c.byDeadline) > 0 && !c.byDeadline[0].deadline.After(now) {
		s := c.byDeadline[0]
		head := s.sessions[0]
		switch {
		case head.settling():
			// No batch with a lower number has arrived in time, so the session begins
			// with the number that it has now. Nothing is given up.
			head.endSettling()
		case len(s.sessions) > 1 && !s.sessions[1].begunAt.Add(c.cfg.SessionTimeout).After(now):
			// The newer session has waited long enough for the older one.
			steps = c.giveUpAllHoles(s, steps)
		default:
			steps = c.giveUpFirstHole(s, steps)
		}
		steps = c.deliverReady(s, steps)
	}
	return c.removeSilentSenders(now, steps)
}

// Earlier returns the earlier of two times. A zero time means never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Next returns when to call Advance. The zero time means that Advance has nothing to do
// until another method was called.
func (c *Sequencer) Next() time.Time {
	if len(c.byDeadline) == 0 {
		return time.Time{}
	}
	return c.byDeadline[0].deadline
}

// A Beginning says whether the number with which a session begins at this node is final.
type Beginning int

const (
	Tentative Beginning = iota // events with lower numbers may still arrive over another path
	Firm                       // no events with lower numbers can arrive any more
)

// AddHint remembers that another node, which is not the sender, has received a session
// as far as m says. If a batch of that session arrives later, the session begins with
// m.Above: events below it are not awaited, and all others are. If beginning is
// [Tentative], lower numbers can still become the beginning during
// [Config.SettleTimeout]. The other node may lie, so a hint never changes a session of
// which a batch has arrived.
func (c *Sequencer) AddHint(m Progress, beginning Beginning) {
	m.Above = max(m.Next, m.Above)
	if m.Above < 1 || m.Above > MaxNumber {
		return
	}
	if s, known := c.senders[m.Sender]; known {
		// The hint is of no use if the session has begun at this node, or if it is over
		// because a later session of the sender has begun.
		if _, ok := s.findSession(m.Session); ok || m.Session.Compare(s.sessions[0].SessionKey) < 0 {
			return
		}
	}
	c.hints.add(hint{m, beginning})
}

// ReceiveOwnMark handles a mark that a sender announced about itself at the time now.
// The sender has sent every event below m.Above. So events below that do not arrive
// within GapTimeout are lost, even if no later event ever arrives. If the session was
// unknown, it begins with m.Above, or lower if another node's mark has said so: see
// AddHint. beginning has the same meaning as there.
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
		// A sender does not return to an earlier session, so the mark is out of date.
		if m.Session.Compare(s.sessions[0].SessionKey) < 0 {
			return steps
		}
	} else {
		s, steps = c.addSender(m.Sender, steps)
	}
	c.markHeard(s, now)
	next := m.Above
	// A hint says that a neighbor knew the session before this mark. That neighbor
	// forwards every event from the number in the hint on, so the session begins with
	// that number if it is lower.
	if h, ok := c.hints.remove(m.Sender); ok && h.Session == m.Session {
		next = min(next, h.Above)
		beginning = max(beginning, h.beginning)
	}
	ses := s.addSession(m.Session, next, now)
	ses.announce(m.Above, now)
	// Batches of a new sender may arrive over a slower path than the sender's mark, and
	// could still lower the number with which the session begins. The next session of a
	// known sender begins at once.
	if !known && beginning == Tentative {
		ses.startSettling(c.cfg.SettleTimeout, now)
	}
	return c.enforceMaxHeld(c.deliverReady(s, steps))
}

// ReceiveClaim handles the claim of a node other than the sender that events of m's
// session were sent up to m.Next. It does nothing if the session has not begun at this
// node. Events that are missing only because of a claim are awaited like others. But the
// claim may be a lie, so if such events are given up and arrive later, they are
// delivered all the same. While the session settles (see [Config.SettleTimeout]),
// m.Begin lowers its beginning, unless it is zero.
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
		ses.begin, ses.next = m.Begin, m.Begin
		// No event has a number below 1, so the beginning cannot change again.
		if m.Begin == 1 {
			ses.endSettling()
		}
	} else if m.Next <= max(ses.next, ses.claimed) {
		return steps // the claim adds nothing new
	}
	if m.Next > max(ses.next, ses.claimed) {
		// The wait is counted from the first claim, so nobody can prolong it by
		// repeating claims.
		if ses.claimed <= ses.next {
			ses.claimedAt = now
		}
		ses.claimed = m.Next
	}
	return c.deliverReady(s, steps)
}

// Holes returns the first hole of each session of a sender. Sessions without a hole are
// left out.
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

// GiveUp stops waiting for the missing events of a session below the number to: they are
// lost. It does nothing while an earlier session of the sender is being delivered. If no
// batch of the session has arrived, the lost events begin with the number with which the
// session would have begun. GiveUp appends to steps what is lost, and what can be
// delivered after it.
func (c *Sequencer) GiveUp(id peer.ID, session SessionKey, to uint64, steps []Step) []Step {
	// No batch of the session has arrived. The session will begin with the number to
	// instead of the number in the hint.
	if h, ok := c.hints.get(id); ok && h.Session == session && h.Above < to {
		c.hints.raise(id, session, to)
		return append(steps, Step{Sender: id, Session: session, From: h.Above, To: to, Lost: true})
	}
	s, known := c.senders[id]
	// The later sessions of a sender wait for its first session to end, so only the first
	// session can lose events.
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

// HasSession reports whether a session has begun at this node and is not over.
func (c *Sequencer) HasSession(id peer.ID, session SessionKey) bool {
	s, known := c.senders[id]
	if known {
		_, known = s.findSession(session)
	}
	return known
}

// Hint returns what other nodes' marks say about a session of the sender that has not
// begun at this node. The session will begin with the Above of the result.
func (c *Sequencer) Hint(id peer.ID) (Progress, bool) { return c.hints.get(id) }

// Progress returns how far this node has received the latest session of a sender. It
// returns false if only marks of other nodes mention the sender.
func (c *Sequencer) Progress(id peer.ID) (Progress, bool) {
	s, ok := c.senders[id]
	if !ok {
		return Progress{}, false
	}
	return s.progress(), true
}

// AllProgress returns the progress of at most n senders: first the most recently heard
// ones, then those that only other nodes' marks mention.
func (c *Sequencer) AllProgress(n int) []Progress {
	list := make([]Progress, 0, min(n, len(c.senders)+c.hints.len()))
	for e := c.byLastHeard.Front(); e != nil && len(list) < n; e = e.Next() {
		list = append(list, e.Value.(*senderState).progress())
	}
	for m := range c.hints.all() {
		if len(list) == n {
			break
		}
		// A known sender is listed already. This hint is about a later session of it.
		if _, known := c.senders[m.Sender]; !known {
			list = append(list, m)
		}
	}
	return list
}

// SenderCount returns the number of senders remembered. Senders that only other nodes'
// marks mention do not count.
func (c *Sequencer) SenderCount() int { return len(c.senders) }

// HeldBytes returns the size of all batches that are held back.
func (c *Sequencer) HeldBytes() int { return c.held }

// deliverReady delivers the held batches of the sender s that are next in order, keeps
// the sender within its limits, and sets its deadline.
func (c *Sequencer) deliverReady(s *senderState, steps []Step) []Step {
	for {
		steps = c.deliverHeld(s, steps)
		head := s.sessions[0]
		switch {
		case !head.hasHole() && len(s.sessions) > 1:
			// The older session is complete, so the next session can be delivered.
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

// enforceMaxHeld gives up holes of the senders with the most held bytes, until the
// total is within Config.MaxHeld.
func (c *Sequencer) enforceMaxHeld(steps []Step) []Step {
	for c.held > c.cfg.MaxHeld {
		var most *senderState
		// A sender with held batches always has a deadline, so the heap byDeadline
		// contains it.
		for _, s := range c.byDeadline {
			if most == nil || s.held > most.held {
				most = s
			}
		}
		most.sessions[0].endSettling()
		// The beginning of the session was made final just now, so held batches may have
		// been delivered. Give up a hole only if there is still one.
		if steps = c.deliverReady(most, steps); most.sessions[0].hasHole() {
			steps = c.deliverReady(most, c.giveUpFirstHole(most, steps))
		}
	}
	return steps
}

// deliverHeld delivers those held batches of the first session of s that are next in
// order.
func (c *Sequencer) deliverHeld(s *senderState, steps []Step) []Step {
	head := s.sessions[0]
	n := 0
	if head.settling() {
		return steps // a batch with lower numbers may still arrive, so nothing is delivered yet
	}
	for ; n < len(head.held) && head.held[n].First <= head.next; n++ {
		b := &head.held[n]
		s.held -= b.Size
		c.held -= b.Size
		// A batch that overlaps the one before it may contain nothing new.
		if b.limit() > head.next {
			steps = head.deliver(s.id, &b.Arrival, steps)
		}
	}
	head.dropHeld(n)
	return steps
}

// giveUpFirstHole gives up as lost the first hole of the first session of the sender s,
// and delivers the held batches that follow it.
func (c *Sequencer) giveUpFirstHole(s *senderState, steps []Step) []Step {
	head := s.sessions[0]
	to := head.holeEnd()
	steps = append(steps, Step{Sender: s.id, Session: head.SessionKey, From: head.next, To: to, Lost: true})
	// Only claims of other nodes say that these events were sent, and claims can be
	// lies. Remember where the doubtful events begin, so that they are still delivered
	// if they arrive after all.
	if head.givenUpOnClaim == 0 && len(head.held) == 0 && len(head.announced) == 0 {
		head.givenUpOnClaim = head.next
	}
	head.advance(to)
	return c.deliverHeld(s, steps)
}

// giveUpAllHoles gives up as lost every hole of the first session of the sender s, and
// delivers the held batches between them.
func (c *Sequencer) giveUpAllHoles(s *senderState, steps []Step) []Step {
	s.sessions[0].endSettling()
	for steps = c.deliverHeld(s, steps); s.sessions[0].hasHole(); {
		steps = c.giveUpFirstHole(s, steps)
	}
	return steps
}

// setDeadline computes the deadline of s, at which Advance has to act on it, and moves
// s to its place in the heap.
func (c *Sequencer) setDeadline(s *senderState) {
	head := s.sessions[0]
	s.deadline = head.settleEnd
	// Where a settling session begins is not decided yet, so it is unknown which of its
	// events are missing.
	if since := head.missingSince(); !head.settling() && !since.IsZero() {
		// If batches have arrived in order since the hole was noticed, the missing events
		// may still be on the same slow path. So the time is counted from the last of
		// those batches.
		if since.Before(head.lastInOrderAt) {
			since = head.lastInOrderAt
		}
		s.deadline = since.Add(c.cfg.GapTimeout)
		if len(s.sessions) > 1 {
			// The newer session of the sender waits for this one to have no holes, but
			// for at most SessionTimeout.
			if end := s.sessions[1].begunAt.Add(c.cfg.SessionTimeout); end.Before(s.deadline) {
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

// addSender adds a sender that has no session yet. If there are too many senders, it
// removes those that have been silent for longest.
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

// removeSilentSenders removes the senders from which nothing has arrived for
// MaxSilence.
func (c *Sequencer) removeSilentSenders(now time.Time, steps []Step) []Step {
	for e := c.byLastHeard.Back(); e != nil; e = c.byLastHeard.Back() {
		s := e.Value.(*senderState)
		if s.lastHeard.Add(c.cfg.MaxSilence).After(now) {
			break // all others in the list were heard more recently
		}
		steps = c.removeSender(s, steps)
	}
	return steps
}

// removeSender removes s. Before that it delivers the held batches of s and gives up
// the holes between them.
func (c *Sequencer) removeSender(s *senderState, steps []Step) []Step {
	for s.deadline != (time.Time{}) {
		steps = c.deliverReady(s, c.giveUpAllHoles(s, steps))
	}
	delete(c.senders, s.id)
	c.byLastHeard.Remove(s.element)
	return steps
}
