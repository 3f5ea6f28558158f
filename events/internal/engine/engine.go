// Package engine is what a node knows and decides about broadcasts: their order,
// who lacks what, what is kept, and what has to be fetched. It joins the cores
// order, store, window and repair, performs no I/O and reads no clock. Whoever
// drives it tells it what happened, then asks [Engine.Output] what to do.
package engine

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
	"github.com/go-smokesignal/smokesignal/events/internal/store"
	"github.com/go-smokesignal/smokesignal/events/internal/window"
)

// Config configures an engine. Its zero value works.
type Config struct {
	Order  order.Config
	Store  store.Config
	Window window.Config
	Repair repair.Config
	// Last is how many of the events of each sender from before our time are
	// delivered, as far as neighbours have them.
	Last uint64
}

// A Batch is a run of consecutive events of one session. Value is the caller's.
type Batch[V any] struct {
	Session order.Session
	First   uint64
	Count   int
	Size    int // bytes that it keeps alive
	Value   V
}

// A Mark is how far a node is with a session of a sender.
type Mark struct {
	order.Mark
	Floor   uint64 // the lowest number it still has; 0: none
	Through uint64 // nobody behind it lacks anything below
	Ask     bool   // it wants to know how far the other is
}

// An Output is what has to be done.
type Output struct {
	Steps []Step       // to be carried out in their order; valid until the next call
	Asks  []repair.Ask // to be answered by Answered
	Due   []peer.ID    // neighbours for which Collect has something; once until it is called
}

// A Step is what became of events [From, To) of a session: lost, or ready to be read.
type Step = order.Step

// An Engine is not safe for concurrent use.
type Engine[V any] struct {
	cfg     Config
	self    peer.ID
	session order.Session
	own     uint64 // the number after the last that was published

	order  *order.Core
	store  *store.Store[V]
	window *window.Core
	repair *repair.Core

	steps  []Step
	met    map[peer.ID]bool // neighbours that have greeted
	leaves map[peer.ID]bool
	gaps   map[peer.ID][]order.Gap     // as repair knows them
	heard  map[order.Session]time.Time // when a session was first known to lack its beginning
	sweep  time.Time                   // of the store
}

// sweepEvery is how often the store is looked through for what is too old.
const sweepEvery = time.Second

// New returns an engine for a node that is beginning a session.
func New[V any](self peer.ID, session order.Session, cfg Config) *Engine[V] {
	return &Engine[V]{
		cfg: cfg, self: self, session: session, own: 1,
		order:  order.New(cfg.Order),
		store:  store.New[V](cfg.Store),
		window: window.New(self, cfg.Window),
		repair: repair.New(cfg.Repair),
		met:    make(map[peer.ID]bool),
		leaves: make(map[peer.ID]bool),
		gaps:   make(map[peer.ID][]order.Gap),
		heard:  make(map[order.Session]time.Time),
	}
}

// Join adds a neighbour, which is owed what is published from now on. A leaf is one that
// keeps nothing of others, and that nobody has chosen: it is believed about itself alone.
func (e *Engine[V]) Join(id peer.ID, leaf bool) {
	if leaf {
		e.leaves[id] = true
	}
	e.repair.Join(id)
	e.window.Join(id)
}

// Greet takes the greeting of a neighbour: the marks of all senders it knows. What
// it receives from now on it passes on to us.
func (e *Engine[V]) Greet(now time.Time, id peer.ID, marks []Mark) {
	e.met[id] = true
	e.window.Greeted(now, id)
	sole := len(e.repair.Others(id)) == 0
	for _, m := range marks {
		if m.Sender == e.self {
			e.acked(now, id, m)
			continue
		}
		begin := max(m.Above, m.Next)
		if last := e.cfg.Last; last > 0 && m.Floor > 0 && m.Floor < begin {
			begin = max(m.Floor, begin-min(begin, last))
		}
		e.claim(now, id, m, begin, sole || begin < m.Above, true)
	}
}

// Leave removes a neighbour.
func (e *Engine[V]) Leave(now time.Time, id peer.ID) {
	delete(e.met, id)
	delete(e.leaves, id)
	e.window.Leave(now, id)
	e.repair.Leave(id)
}

// Told takes marks of which a neighbour says that they changed. Of senders not
// known here, nor to the neighbour when it greeted, everything is owed that the
// neighbour itself was owed; of one that has not greeted, what is sent from now on.
func (e *Engine[V]) Told(now time.Time, id peer.ID, marks []Mark) {
	for _, m := range marks {
		if m.Sender != e.self {
			begin := m.Begin
			if !e.met[id] || e.repair.Greeted(id, repair.Key{Sender: m.Sender, Session: m.Session}) {
				begin = max(m.Next, m.Above) // it has told where to begin
			}
			e.claim(now, id, m, begin, false, false)
		}
		e.acked(now, id, m)
	}
}

func (e *Engine[V]) acked(now time.Time, id peer.ID, m Mark) {
	e.window.Acked(now, id, window.Ack{Author: m.Sender, Session: m.Session, Next: m.Next, Through: m.Through, Ask: m.Ask})
}

// claim takes a neighbour's mark. If the session is unknown here, or its beginning
// is, it begins with begin; firm says that nothing before that can be under way.
func (e *Engine[V]) claim(now time.Time, id peer.ID, m Mark, begin uint64, firm, greeting bool) {
	if m.Next < 1 || m.Next > order.MaxNumber || begin < 1 || e.leaves[id] && m.Sender != id {
		return
	}
	_, known := e.order.Mark(m.Sender)
	_, hinted := e.order.Hint(m.Sender)
	if !known && !hinted && m.Floor > 0 {
		e.repair.Fill(id, repair.Key{Sender: m.Sender, Session: m.Session}, m.Floor, begin)
	}
	e.repair.Claim(id, m.Sender, repair.Claim{Session: m.Session, Begin: m.Begin, Next: m.Next, Floor: m.Floor, Greeting: greeting})
	m.Above = max(m.Above, m.Next)
	if e.order.Knows(m.Sender, m.Session) {
		m.Begin = begin
		e.steps = e.order.Claim(now, m.Mark, e.steps)
	} else {
		hint := m.Mark
		hint.Begin, hint.Next, hint.Above = begin, begin, begin
		e.steps = e.order.Learn(now, hint, false, firm, e.steps)
	}
	if id == m.Sender {
		e.steps = e.order.Learn(now, m.Mark, true, firm, e.steps)
	}
	e.refresh(now, m.Sender)
}

// Own takes a batch of our own, which is being published.
func (e *Engine[V]) Own(now time.Time, b Batch[V]) {
	end := b.First + uint64(b.Count)
	e.own = end
	e.store.Put(now, e.self, e.session, store.Batch[V]{First: b.First, End: end, Size: b.Size, Value: b.Value})
	e.window.Took(now, e.self, e.session, b.First, end, b.Size, "")
	e.window.Reached(now, e.self, e.session, end)
}

// Receive takes a batch that came from the neighbour giver; or, if that is empty,
// not by pubsub.
func (e *Engine[V]) Receive(now time.Time, sender peer.ID, b Batch[V], giver peer.ID) order.Verdict {
	if sender == e.self {
		return order.Invalid
	}
	began := e.order.Knows(sender, b.Session)
	var verdict order.Verdict
	verdict, e.steps = e.order.Receive(now, sender, order.Batch{
		Session: b.Session, First: b.First, Count: b.Count, Size: b.Size,
	}, e.steps)
	if verdict == order.Accepted {
		end := b.First + uint64(b.Count)
		e.store.Put(now, sender, b.Session, store.Batch[V]{First: b.First, End: end, Size: b.Size, Value: b.Value})
		e.store.Keep(sender, b.Session, end)
		e.window.Took(now, sender, b.Session, b.First, end, b.Size, giver)
	}
	if !began {
		// What was claimed before counts from now on.
		m := order.Mark{Sender: sender, Session: b.Session, Next: e.repair.Claimed(repair.Key{Sender: sender, Session: b.Session})}
		e.steps = e.order.Claim(now, m, e.steps)
	}
	e.refresh(now, sender)
	return verdict
}

// Repaired takes a batch that a question brought.
func (e *Engine[V]) Repaired(now time.Time, sender peer.ID, b Batch[V], fill bool) {
	if !fill && e.Receive(now, sender, b, "") != order.Duplicate {
		return
	}
	// It is of before our time.
	end := b.First + uint64(b.Count)
	if e.store.Fill(now, sender, b.Session, store.Batch[V]{First: b.First, End: end, Size: b.Size, Value: b.Value}) {
		// Other neighbours may lack it and not know who had it.
		e.window.Tell(now, sender)
	}
}

// Answered says what came of a question, and for a fill up to where.
func (e *Engine[V]) Answered(now time.Time, a repair.Ask, got uint64, answer repair.Answer) {
	e.refresh(now, a.Sender)
	e.repair.Answered(now, a, got, answer)
}

// refresh tells the other cores how far a sender has come.
func (e *Engine[V]) refresh(now time.Time, sender peer.ID) {
	if m, ok := e.order.Mark(sender); ok {
		e.window.Reached(now, sender, m.Session, m.Next)
	}
	gaps := e.order.Missing(sender)
	if h, ok := e.order.Hint(sender); ok {
		key := repair.Key{Sender: sender, Session: h.Session}
		if claimed := e.repair.Claimed(key); claimed > h.Above {
			since, ok := e.heard[h.Session]
			if !ok {
				since = now
				e.heard[h.Session] = now
			}
			gaps = append(gaps, order.Gap{Session: h.Session, From: h.Above, To: claimed, Since: since, Hearsay: true})
		}
	}
	before := e.gaps[sender]
	if len(gaps) == 0 && len(before) == 0 {
		return
	}
	for _, g := range before {
		if !hasSession(gaps, g.Session) {
			e.repair.Needless(repair.Key{Sender: sender, Session: g.Session})
			delete(e.heard, g.Session)
		}
	}
	for _, g := range gaps {
		e.repair.Need(sender, g)
	}
	if len(gaps) == 0 {
		delete(e.gaps, sender)
	} else {
		e.gaps[sender] = gaps
	}
}

func hasSession(gaps []order.Gap, s order.Session) bool {
	for _, g := range gaps {
		if g.Session == s {
			return true
		}
	}
	return false
}

// Output lets the time be now and returns what has to be done.
func (e *Engine[V]) Output(now time.Time) Output {
	if next := e.order.Next(); !next.IsZero() && !next.After(now) {
		n := len(e.steps)
		e.steps = e.order.Advance(now, e.steps)
		for i := range e.steps[n:] {
			e.refresh(now, e.steps[n:][i].Sender)
		}
	}
	if !e.sweep.After(now) {
		e.store.Advance(now)
		e.sweep = now.Add(sweepEvery)
	}
	e.window.Advance(now)
	asks, given := e.repair.Advance(now)
	for _, g := range given {
		e.steps = e.order.GiveUp(g.Sender, g.Session, g.To, e.steps)
		e.refresh(now, g.Sender)
	}
	for i := range e.steps {
		if s := &e.steps[i]; !s.Lost {
			e.store.Begin(s.Sender, s.Session, s.From)
		}
	}
	out := Output{Steps: e.steps, Asks: asks, Due: e.window.Due(now)}
	e.steps = e.steps[:0]
	return out
}

// Next returns when to call Output although nothing happened; zero: never.
func (e *Engine[V]) Next() time.Time {
	next := order.Earlier(e.order.Next(), order.Earlier(e.window.Next(), e.repair.Next()))
	if e.store.Bytes() > 0 {
		next = order.Earlier(next, e.sweep)
	}
	return next
}

// Collect returns the marks that a neighbour has to be told, at most so many.
func (e *Engine[V]) Collect(now time.Time, id peer.ID, most int) (marks []Mark) {
	for _, a := range e.window.Collect(now, id, most) {
		m, ok := e.Mark(a.Author)
		if !ok {
			h, hinted := e.order.Hint(a.Author)
			if !hinted {
				continue
			}
			m = e.full(h)
		}
		if m.Session == a.Session {
			m.Through = min(a.Through, m.Next)
		}
		m.Ask = a.Ask
		marks = append(marks, m)
	}
	return marks
}

// Again says that a neighbour was not told the marks that Collect returned.
func (e *Engine[V]) Again(now time.Time, id peer.ID, marks []Mark) {
	acks := make([]window.Ack, len(marks))
	for i, m := range marks {
		acks[i] = window.Ack{Author: m.Sender, Ask: m.Ask}
	}
	e.window.Again(now, id, acks)
}

// Mark returns how far this node is with a sender, or itself.
func (e *Engine[V]) Mark(sender peer.ID) (Mark, bool) {
	if sender == e.self {
		return e.full(order.Mark{Sender: e.self, Session: e.session, Begin: 1, Next: e.own, Above: e.own}), true
	}
	m, ok := e.order.Mark(sender)
	return e.full(m), ok
}

// Marks returns the marks for a new neighbour: our own, then those of at most n-1
// senders, the last heard first.
func (e *Engine[V]) Marks(n int) []Mark {
	own, _ := e.Mark(e.self)
	marks := []Mark{own}
	for _, m := range e.order.Marks(n - 1) {
		marks = append(marks, e.full(m))
	}
	return marks
}

func (e *Engine[V]) full(m order.Mark) Mark {
	return Mark{Mark: m, Floor: e.store.Floor(m.Sender, m.Session), Through: m.Next}
}

// Read returns the batch that holds number n of a session. If it is no longer
// here, the batch is the next that is, below the number to, if there is one.
func (e *Engine[V]) Read(sender peer.ID, session order.Session, n, to uint64) (store.Batch[V], bool) {
	if b, ok := e.store.Find(sender, session, n); ok {
		return b, true
	}
	if list := e.store.Range(sender, session, n, to, 1); len(list) > 0 {
		return list[0], true
	}
	return store.Batch[V]{}, false
}

// Done says that the events of a session below to were handled.
func (e *Engine[V]) Done(sender peer.ID, session order.Session, to uint64) {
	e.store.Read(sender, session, to)
}

// Stored returns what is here of [from, to), up to so many bytes, or one batch.
func (e *Engine[V]) Stored(sender peer.ID, session order.Session, from, to uint64, bytes int) []store.Batch[V] {
	return e.store.Range(sender, session, from, to, bytes)
}

// Room reports whether another batch of our own may be published.
func (e *Engine[V]) Room() bool { return e.window.Room(e.self) }

// Behind returns how many of our batches the neighbours lack at most.
func (e *Engine[V]) Behind() int {
	batches, _ := e.window.Behind(e.self)
	return batches
}

// Lacking returns the neighbours that have not received all our events below goal,
// of those that were there when they were published.
func (e *Engine[V]) Lacking(goal uint64) []peer.ID { return e.window.Lacking(e.self, goal) }

// Has returns up to where a neighbour has received our events.
func (e *Engine[V]) Has(id peer.ID) uint64 { return e.window.Has(id, e.self, e.session) }

// Published returns the number after the last event that was published.
func (e *Engine[V]) Published() uint64 { return e.own }

// Others returns the neighbours besides id.
func (e *Engine[V]) Others(id peer.ID) []peer.ID { return e.repair.Others(id) }
