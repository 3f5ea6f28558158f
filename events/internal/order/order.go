// Package order brings the batches of many senders, which may arrive late,
// twice or not at all, back into the order in which their senders numbered
// them. It performs no I/O, starts no goroutine and reads no clock: every
// method that depends on the time is told it.
//
// A sender numbers its events from 1 in each of its sessions (one session a
// start of the program), and a batch is a run of such numbers. The core
// answers every input with steps: runs of numbers, each either delivered or
// lost. The steps of a session join without a hole and never overlap, so that
// delivered and lost add up to what was sent.
//
// What is missing is waited for [Config.GapTimeout] long, counted from the
// moment something behind it arrived, or the one before it: as long as a slow
// path delivers, what a short cut brought waits. Whoever fetches what is missing
// ([Core.Missing]) can end the waiting with [Core.GiveUp]. A newer session waits
// until the older one has nothing missing, [Config.SessionTimeout] at most. An
// older session than the one being delivered is never delivered again.
package order

import (
	"bytes"
	"cmp"
	"container/heap"
	"container/list"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// MaxNumber is what the numbers of events are below.
const MaxNumber = 1 << 62

// Config holds the bounds of a core. Zero means the default in brackets.
type Config struct {
	GapTimeout time.Duration // how long a missing event is waited for [2 s]
	// SessionTimeout is how long a newer session waits for what the older one has
	// missing [2 s, but no longer than GapTimeout].
	SessionTimeout time.Duration
	// Settle is how long the first batch of an unknown sender waits for lower ones,
	// which may come by a slower way, if nobody has told where to begin [not at all].
	Settle     time.Duration
	Remember   time.Duration // how long a silent sender is remembered [1 h]
	MaxSenders int           // senders remembered, the longest silent go first [10,000]
	MaxHints   int           // senders known from hearsay only [4,096]
	MaxHeld    int           // size of the batches of one sender that wait [4 MiB]
	MaxTotal   int           // the same of all senders [16 MiB]
}

func (c Config) withDefaults() Config {
	c.GapTimeout = cmp.Or(c.GapTimeout, 2*time.Second)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, min(c.GapTimeout, 2*time.Second))
	c.Remember = cmp.Or(c.Remember, time.Hour)
	c.MaxSenders = cmp.Or(c.MaxSenders, 10_000)
	c.MaxHints = cmp.Or(c.MaxHints, 4096)
	c.MaxHeld = cmp.Or(c.MaxHeld, 4<<20)
	c.MaxTotal = cmp.Or(c.MaxTotal, 16<<20)
	return c
}

// maxSessions bounds the sessions of one sender that are under way: the one
// being delivered and those that wait for it.
const maxSessions = 4

// A Session is one life of a sender. The later of two has the greater Start;
// if both are equal, the greater ID.
type Session struct {
	ID    [8]byte
	Start uint64 // milliseconds since 1970
}

// Compare returns -1 if s is the earlier session, +1 if it is the later one.
func (s Session) Compare(t Session) int {
	return cmp.Or(cmp.Compare(s.Start, t.Start), bytes.Compare(s.ID[:], t.ID[:]))
}

// A Batch is a run of consecutive events of one session.
type Batch struct {
	Session Session
	First   uint64 // number of the first event, at least 1
	Count   int    // events, at least 1
	Size    int    // what the batch weighs while it waits, in bytes
}

func (b *Batch) end() uint64 { return b.First + uint64(b.Count) }

// A Step is what became of the events [From, To) of a session: lost, or to be
// delivered.
type Step struct {
	Sender   peer.ID
	Session  Session
	From, To uint64
	Lost     bool
}

// A Mark is how far a session of a sender has been received.
type Mark struct {
	Sender  peer.ID
	Session Session
	Begin   uint64 // the first number that was or will be delivered here
	Next    uint64 // every number below was received, or given up as lost
	Above   uint64 // none from here on was received; at least Next
}

// A Gap is the first numbers [From, To) that are missing of a session.
type Gap struct {
	Session  Session
	From, To uint64
	Since    time.Time // when it was noticed, or something came in its turn
	Hearsay  bool      // nothing but the word of others says that it was sent
}

// A Verdict says what happened to a batch.
type Verdict int

const (
	Accepted   Verdict = iota // delivered, or held back for its turn
	Duplicate                 // nothing new in it
	OldSession                // of a session that a later one has replaced
	Invalid                   // Count or First out of bounds
)

// A Core orders the batches of all senders. One goroutine at a time may use it.
type Core struct {
	cfg     Config
	senders map[peer.ID]*sender
	heard   *list.List // of *sender, the last heard in front
	due     dueHeap    // the senders that wait for something
	held    int        // size of all batches that wait
	hints   hints
}

// New returns an empty core.
func New(cfg Config) *Core {
	cfg = cfg.withDefaults()
	return &Core{
		cfg:     cfg,
		senders: make(map[peer.ID]*sender),
		heard:   list.New(),
		hints:   newHints(cfg.MaxHints),
	}
}

// Receive takes a batch that arrived at now and appends to steps what it sets
// free, in order. Of a sender never heard of it begins with the lowest number
// that [Core.Learn] was told or that arrives first; a later session of a known
// sender begins with 1, unless Learn was told otherwise.
func (c *Core) Receive(now time.Time, id peer.ID, b Batch, steps []Step) (Verdict, []Step) {
	if b.Count < 1 || b.First < 1 || b.First > MaxNumber-uint64(b.Count) {
		return Invalid, steps
	}
	steps = c.forget(now, steps)
	s, known := c.senders[id]
	if !known {
		s, steps = c.add(id, steps)
	}
	c.touch(s, now)
	ses, ok := s.session(b.Session)
	if !ok {
		if known && b.Session.Compare(s.sessions[0].Session) < 0 {
			return OldSession, steps
		}
		next, settle := b.First, time.Duration(0)
		if h, ok := c.hints.take(id); ok && h.Session == b.Session {
			// Hearsay may only make us wait for more. A neighbour that lies
			// upwards cannot silence the sender.
			next = min(next, h.Above)
			if !known && !h.firm {
				settle = c.cfg.Settle
			}
		} else if known {
			next = 1
		} else {
			settle = c.cfg.Settle
		}
		ses = s.open(b.Session, next, now)
		ses.settle(settle, now)
	}
	if ses.settling() && b.First < ses.next {
		ses.first, ses.next = b.First, b.First
		ses.settle(c.cfg.Settle, now)
	}
	if len(s.sessions) > 1 {
		s.sessions[0].begin()
	}
	ses.believe(b.First, b.end())
	switch {
	case b.end() <= ses.next:
		return Duplicate, steps
	case ses == s.sessions[0] && b.First <= ses.next && !ses.settling():
		steps = ses.deliver(s.id, &b, steps)
		ses.moved = now
	case ses.hold(&b, now):
		s.held += b.Size
		c.held += b.Size
	default:
		return Duplicate, steps
	}
	return Accepted, c.relieve(c.settle(s, steps))
}

// Advance gives up what was missing for too long at now and appends what that
// sets free to steps.
func (c *Core) Advance(now time.Time, steps []Step) []Step {
	for len(c.due) > 0 && !c.due[0].deadline.After(now) {
		s := c.due[0]
		if head := s.sessions[0]; head.settling() {
			head.begin()
			steps = c.settle(s, steps)
			continue
		}
		if len(s.sessions) > 1 && !s.sessions[1].born.Add(c.cfg.SessionTimeout).After(now) {
			steps = c.retire(s, steps)
		} else {
			steps = c.skip(s, steps)
		}
		steps = c.settle(s, steps)
	}
	return c.forget(now, steps)
}

// Earlier returns the earlier of two moments; the zero time is never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Next returns when to call Advance; the zero time means not before the next
// Receive or Learn.
func (c *Core) Next() time.Time {
	if len(c.due) == 0 {
		return time.Time{}
	}
	return c.due[0].deadline
}

// Learn takes a mark that a neighbour told at now. Events below the mark
// are not waited for; what is missing from the mark on, is.
//
// sole says that nothing of the sender can come by another way, so that the mark
// is where to begin; else what is below it may still be under way and is given
// [Config.Settle]. own says that it is the sender's own mark of itself. A sender has sent
// everything below its own mark, so what of it does not arrive within the gap
// timeout is lost even if nothing behind it ever comes. The word of a third
// party is only remembered for the first batch of an unknown session, since it
// may be wrong: it cannot move a known sender.
func (c *Core) Learn(now time.Time, m Mark, own, sole bool, steps []Step) []Step {
	m.Above = max(m.Next, m.Above)
	if m.Above < 1 || m.Above > MaxNumber {
		return steps
	}
	s, known := c.senders[m.Sender]
	if known {
		if ses, ok := s.session(m.Session); ok {
			if own {
				ses.tell(m.Above, now)
				steps = c.settle(s, steps)
			}
			return steps
		}
		if m.Session.Compare(s.sessions[0].Session) < 0 {
			return steps
		}
	}
	if !own {
		c.hints.put(hint{m, sole})
		return steps
	}
	if !known {
		s, steps = c.add(m.Sender, steps)
	}
	c.touch(s, now)
	next := m.Above
	h, hinted := c.hints.take(m.Sender)
	if hinted = hinted && h.Session == m.Session; hinted {
		next = min(next, h.Above)
	}
	ses := s.open(m.Session, next, now)
	ses.tell(m.Above, now)
	if !known && !sole && !(hinted && h.firm) {
		ses.settle(c.cfg.Settle, now)
	}
	return c.relieve(c.settle(s, steps))
}

// Claim takes the word of a third party that the session of m was sent up to
// m.Next. It counts only for a session that is under way. What it says is missing
// is waited for like other gaps, but since it may be a lie, what is given up on
// such a word alone is delivered all the same if it ever comes. As long as lower
// numbers may become the first, m.Begin does, if it is lower and not zero.
func (c *Core) Claim(now time.Time, m Mark, steps []Step) []Step {
	s, known := c.senders[m.Sender]
	if !known || m.Next > MaxNumber {
		return steps
	}
	ses, ok := s.session(m.Session)
	if !ok {
		return steps
	}
	if ses.settling() && 0 < m.Begin && m.Begin < ses.next {
		ses.first, ses.next = m.Begin, m.Begin
		if m.Begin == 1 {
			ses.begin()
		}
	} else if m.Next <= max(ses.next, ses.claimed) {
		return steps
	}
	if m.Next > max(ses.next, ses.claimed) {
		if ses.claimed <= ses.next {
			ses.claimedAt = now
		}
		ses.claimed = m.Next
	}
	return c.settle(s, steps)
}

// Missing returns the first gap of each session of a sender that has one.
func (c *Core) Missing(id peer.ID) []Gap {
	s, known := c.senders[id]
	if !known {
		return nil
	}
	var gaps []Gap
	for _, ses := range s.sessions {
		if g := ses.missing(); g.From < g.To {
			gaps = append(gaps, g)
		}
	}
	return gaps
}

// GiveUp ends the waiting for the numbers of a session below to. It does nothing
// while an earlier session of the sender is under way. What is missing of a
// session known from hearsay only is lost, too.
func (c *Core) GiveUp(id peer.ID, session Session, to uint64, steps []Step) []Step {
	if h, ok := c.hints.get(id); ok && h.Session == session && h.Above < to {
		c.hints.raise(id, session, to)
		return append(steps, Step{Sender: id, Session: session, From: h.Above, To: to, Lost: true})
	}
	s, known := c.senders[id]
	if !known || s.sessions[0].Session != session {
		return steps
	}
	head := s.sessions[0]
	head.begin()
	for steps = c.drain(s, steps); s.sessions[0] == head && head.gap() && head.next < to; {
		steps = c.settle(s, c.skip(s, steps))
	}
	return c.settle(s, steps)
}

// Knows reports whether a session is under way here.
func (c *Core) Knows(id peer.ID, session Session) bool {
	s, known := c.senders[id]
	if known {
		_, known = s.session(session)
	}
	return known
}

// Hint returns what is known from hearsay of a session that has not begun here;
// Above is where it will begin.
func (c *Core) Hint(id peer.ID) (Mark, bool) { return c.hints.get(id) }

// Mark returns the mark of a sender's latest session of which a batch arrived
// or which the sender itself told.
func (c *Core) Mark(id peer.ID) (Mark, bool) {
	s, ok := c.senders[id]
	if !ok {
		return Mark{}, false
	}
	return s.mark(), true
}

// Marks returns the marks of at most n senders, the last heard first, and those
// known from hearsay last.
func (c *Core) Marks(n int) []Mark {
	marks := make([]Mark, 0, min(n, len(c.senders)+c.hints.len()))
	for e := c.heard.Front(); e != nil && len(marks) < n; e = e.Next() {
		marks = append(marks, e.Value.(*sender).mark())
	}
	for m := range c.hints.all() {
		if len(marks) == n {
			break
		}
		if _, known := c.senders[m.Sender]; !known {
			marks = append(marks, m)
		}
	}
	return marks
}

// Senders returns the number of senders remembered, hearsay aside.
func (c *Core) Senders() int { return len(c.senders) }

// Held returns the size of the batches that wait.
func (c *Core) Held() int { return c.held }

// settle delivers what can be delivered of s and sets its deadline.
func (c *Core) settle(s *sender, steps []Step) []Step {
	for {
		steps = c.drain(s, steps)
		head := s.sessions[0]
		switch {
		case !head.gap() && len(s.sessions) > 1:
			s.sessions[0] = nil
			s.sessions = s.sessions[1:]
		case len(s.sessions) > maxSessions:
			steps = c.retire(s, steps)
		case head.settling() && s.held > c.cfg.MaxHeld:
			head.begin()
		case head.gap() && s.held > c.cfg.MaxHeld:
			steps = c.skip(s, steps)
		default:
			c.schedule(s)
			return steps
		}
	}
}

// relieve gives up gaps, of the senders that hold most, until everything held
// is within its bound.
func (c *Core) relieve(steps []Step) []Step {
	for c.held > c.cfg.MaxTotal {
		var most *sender
		for _, s := range c.due { // who holds something waits for something
			if most == nil || s.held > most.held {
				most = s
			}
		}
		most.sessions[0].begin()
		if steps = c.settle(most, steps); most.sessions[0].gap() {
			steps = c.settle(most, c.skip(most, steps))
		}
	}
	return steps
}

// drain delivers the batches of the first session that are next.
func (c *Core) drain(s *sender, steps []Step) []Step {
	head := s.sessions[0]
	n := 0
	if head.settling() {
		return steps
	}
	for ; n < len(head.held) && head.held[n].First <= head.next; n++ {
		b := &head.held[n]
		s.held -= b.Size
		c.held -= b.Size
		if b.end() > head.next {
			steps = head.deliver(s.id, &b.Batch, steps)
		}
	}
	head.drop(n)
	return steps
}

// skip gives up the first gap of the first session.
func (c *Core) skip(s *sender, steps []Step) []Step {
	head := s.sessions[0]
	to := head.gapEnd()
	steps = append(steps, Step{Sender: s.id, Session: head.Session, From: head.next, To: to, Lost: true})
	if head.doubt == 0 && len(head.held) == 0 && len(head.tolds) == 0 {
		head.doubt = head.next
	}
	head.advance(to)
	return c.drain(s, steps)
}

// retire gives up every gap of the first session.
func (c *Core) retire(s *sender, steps []Step) []Step {
	s.sessions[0].begin()
	for steps = c.drain(s, steps); s.sessions[0].gap(); {
		steps = c.skip(s, steps)
	}
	return steps
}

func (c *Core) schedule(s *sender) {
	head := s.sessions[0]
	s.deadline = head.settleEnd
	if since := head.waitsSince(); head.settling() {
		// What waits is looked at when the beginning is known.
	} else if !since.IsZero() {
		if since.Before(head.moved) {
			since = head.moved
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
		heap.Push(&c.due, s)
	case s.index >= 0 && s.deadline.IsZero():
		heap.Remove(&c.due, s.index)
	case s.index >= 0:
		heap.Fix(&c.due, s.index)
	}
}

// add makes room for a sender and adds it, without a session.
func (c *Core) add(id peer.ID, steps []Step) (*sender, []Step) {
	for len(c.senders) >= c.cfg.MaxSenders {
		steps = c.remove(c.heard.Back().Value.(*sender), steps)
	}
	s := &sender{id: id, index: -1}
	c.senders[id] = s
	s.element = c.heard.PushFront(s)
	return s, steps
}

func (c *Core) touch(s *sender, now time.Time) {
	s.at = now
	c.heard.MoveToFront(s.element)
}

// forget removes the senders that were silent for too long.
func (c *Core) forget(now time.Time, steps []Step) []Step {
	for e := c.heard.Back(); e != nil; e = c.heard.Back() {
		s := e.Value.(*sender)
		if s.at.Add(c.cfg.Remember).After(now) {
			break
		}
		steps = c.remove(s, steps)
	}
	return steps
}

// remove forgets s; what it holds is delivered first.
func (c *Core) remove(s *sender, steps []Step) []Step {
	for s.deadline != (time.Time{}) {
		steps = c.settle(s, c.retire(s, steps))
	}
	delete(c.senders, s.id)
	c.heard.Remove(s.element)
	return steps
}
