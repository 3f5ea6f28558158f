// Package engine is everything that a node knows and decides about broadcasts: their
// order, which neighbor lacks which of them, which are stored, and which have to be
// fetched. It joins the cores order, store, window and repair, performs no I/O and reads
// no clock. Its driver reports what happened, and then carries out what
// [Engine.Advance] returns.
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
	// Last is how many events of each sender from before this node joined are
	// delivered, as far as neighbors have them.
	Last uint64
}

// A Batch is a run of consecutive events of one session. Value is the caller's.
type Batch[V any] struct {
	Session order.SessionKey
	First   uint64
	Count   int
	Size    int // bytes of memory that Value keeps in use
	Value   V
}

func (b *Batch[V]) limit() uint64 { return b.First + uint64(b.Count) }

func (b *Batch[V]) entry() store.Entry[V] {
	return store.Entry[V]{First: b.First, End: b.limit(), Size: b.Size, Value: b.Value}
}

// A Mark is the high-water mark of a node for a session of a sender.
type Mark struct {
	order.Progress
	Floor   uint64 // the lowest number that the node has stored; zero: none
	Through uint64 // lower numbers have also reached the nodes that this node passes them on to
	Ask     bool   // the node asks for the mark of the other
}

// Actions is what the driver has to do.
type Actions struct {
	Steps []order.Step // to be carried out in order; valid until the next call of Advance
	Asks  []repair.Ask // to be sent, and ended by FinishAsk
	// Tell lists neighbors for which CollectMarks returns something. Each is listed
	// once until CollectMarks is called for it.
	Tell []peer.ID
}

// An Engine is not safe for concurrent use.
type Engine[V any] struct {
	cfg       Config
	self      peer.ID
	session   order.SessionKey
	published uint64 // the number after the last event of our own

	// The cores.
	order  *order.Sequencer
	store  *store.Store[V]
	window *window.Controller
	repair *repair.Planner

	// Neighbors.
	greeted map[peer.ID]bool // neighbors that have sent their greeting
	leaves  map[peer.ID]bool

	// Work between calls of Advance.
	steps         []order.Step
	holes         map[peer.ID][]order.Hole       // as the repair core knows them
	hintHoleSince map[order.SessionKey]time.Time // when a session known from hints first had a hole
	sweep         time.Time                      // when to remove old batches from the store
}

// sweepInterval is how often old batches are removed from the store.
const sweepInterval = time.Second

// New returns an engine for a node that begins a session.
func New[V any](self peer.ID, session order.SessionKey, cfg Config) *Engine[V] {
	return &Engine[V]{
		cfg: cfg, self: self, session: session, published: 1,
		order:         order.New(cfg.Order),
		store:         store.New[V](cfg.Store),
		window:        window.New(self, cfg.Window),
		repair:        repair.New(cfg.Repair),
		greeted:       make(map[peer.ID]bool),
		leaves:        make(map[peer.ID]bool),
		holes:         make(map[peer.ID][]order.Hole),
		hintHoleSince: make(map[order.SessionKey]time.Time),
	}
}

// AddNeighbor adds a neighbor. It is to receive the events published from now on.
func (e *Engine[V]) AddNeighbor(id peer.ID) {
	e.repair.AddNeighbor(id)
	e.window.AddNeighbor(id)
}

// AddLeaf adds a leaf, as AddNeighbor does. A leaf stores nothing of others, and this
// node has not chosen it, so only its marks about itself count.
func (e *Engine[V]) AddLeaf(id peer.ID) {
	e.leaves[id] = true
	e.AddNeighbor(id)
}

// RemoveNeighbor removes a neighbor or a leaf.
func (e *Engine[V]) RemoveNeighbor(now time.Time, id peer.ID) {
	delete(e.greeted, id)
	delete(e.leaves, id)
	e.window.RemoveNeighbor(now, id)
	e.repair.RemoveNeighbor(id)
}

// origin is how a neighbor's mark came to this node.
type origin int

const (
	fromUpdate       origin = iota // the neighbor announces a change
	fromGreeting                   // it is in the greeting; lower numbers may come from other neighbors
	fromSoleGreeting               // it is in the greeting, and lower numbers cannot come another way
)

// ReceiveGreeting handles the greeting of a neighbor: the marks of all senders it knows.
// The neighbor passes on to us what it receives from now on.
func (e *Engine[V]) ReceiveGreeting(now time.Time, id peer.ID, marks []Mark) {
	e.greeted[id] = true
	e.window.CatchUp(now, id)
	sole := len(e.repair.OtherNeighbors(id)) == 0
	for _, m := range marks {
		// Of our own events we know everything but how far the neighbor is.
		if m.Sender == e.self {
			e.acknowledge(now, id, m)
			continue
		}
		begin, from := max(m.Above, m.Next), fromGreeting
		// Events from before we joined are wanted, and the neighbor has some.
		if last := e.cfg.Last; last > 0 && m.Floor > 0 && m.Floor < begin {
			begin = max(m.Floor, begin-min(begin, last))
		}
		// Another neighbor may be passing on lower numbers at this moment. Without
		// one, or if Last has set the beginning, it stays where it is.
		if sole || begin < m.Above {
			from = fromSoleGreeting
		}
		e.applyMark(now, id, m, begin, from)
	}
}

// ReceiveMarks handles marks that have changed at a neighbor. A sender may be unknown
// here, and may have been unknown to the neighbor when it greeted. Then we want
// everything of the sender that the neighbor itself wants. Of a neighbor that has not
// greeted yet, we want what it receives from now on.
func (e *Engine[V]) ReceiveMarks(now time.Time, id peer.ID, marks []Mark) {
	for _, m := range marks {
		if m.Sender != e.self {
			begin := m.Begin
			// Its greeting said where to begin, or is still to come.
			if !e.greeted[id] || e.repair.HasGreetedWith(id, repair.Subject{Sender: m.Sender, Session: m.Session}) {
				begin = max(m.Next, m.Above)
			}
			e.applyMark(now, id, m, begin, fromUpdate)
		}
		e.acknowledge(now, id, m)
	}
}

func (e *Engine[V]) acknowledge(now time.Time, id peer.ID, m Mark) {
	e.window.ReceiveAck(now, id, window.Ack{Author: m.Sender, Session: m.Session, Next: m.Next, Through: m.Through, Ask: m.Ask})
}

// applyMark hands a neighbor's mark to the cores. If the session is unknown here, or may
// still begin lower, it begins with begin.
func (e *Engine[V]) applyMark(now time.Time, id peer.ID, m Mark, begin uint64, from origin) {
	if m.Next < 1 || m.Next > order.MaxNumber || begin < 1 {
		return
	}
	// Anybody can be a leaf. It could make us search for events that do not exist.
	if e.leaves[id] && m.Sender != id {
		return
	}
	_, known := e.order.Progress(m.Sender)
	_, hinted := e.order.Hint(m.Sender)
	// The sender is new to us. Store its earlier events, for neighbors that want them.
	if !known && !hinted && m.Floor > 0 {
		e.repair.AddBackfill(id, repair.Subject{Sender: m.Sender, Session: m.Session}, m.Floor, begin)
	}
	e.repair.ReceiveClaim(id, m.Sender, repair.Claim{Session: m.Session, Begin: m.Begin, Next: m.Next, Floor: m.Floor, Greeting: from != fromUpdate})
	m.Above = max(m.Above, m.Next)
	beginning := order.Tentative
	if from == fromSoleGreeting {
		beginning = order.Firm
	}
	if e.order.HasSession(m.Sender, m.Session) {
		m.Begin = begin
		e.steps = e.order.ReceiveClaim(now, m.Progress, e.steps)
	} else {
		hint := m.Progress
		hint.Begin, hint.Next, hint.Above = begin, begin, begin
		e.order.AddHint(hint, beginning)
	}
	// The sender itself knows best.
	if id == m.Sender {
		e.steps = e.order.ReceiveOwnMark(now, m.Progress, beginning, e.steps)
	}
	e.updateHoles(now, m.Sender)
}

// AddOwn adds a batch of our own, which is being published.
func (e *Engine[V]) AddOwn(now time.Time, b Batch[V]) {
	e.published = b.limit()
	e.store.Add(now, e.self, e.session, b.entry())
	e.window.AddBatch(now, e.self, e.session, b.First, b.limit(), b.Size, "")
	e.window.SetReceived(now, e.self, e.session, b.limit())
}

// Receive handles a batch that the neighbor giver passed on. An empty giver means that
// the batch did not come by pubsub.
func (e *Engine[V]) Receive(now time.Time, sender peer.ID, b Batch[V], giver peer.ID) order.Disposition {
	// Our own events enter by AddOwn alone.
	if sender == e.self {
		return order.Invalid
	}
	began := e.order.HasSession(sender, b.Session)
	var disposition order.Disposition
	disposition, e.steps = e.order.Receive(now, sender, order.Arrival{
		Session: b.Session, First: b.First, Count: b.Count, Size: b.Size,
	}, e.steps)
	if disposition == order.Accepted {
		e.store.Add(now, sender, b.Session, b.entry())
		e.store.AwaitReading(sender, b.Session, b.limit())
		e.window.AddBatch(now, sender, b.Session, b.First, b.limit(), b.Size, giver)
	}
	// Claims count only for a session that is under way. It is now, so the claims that
	// came before it count from now on.
	if !began {
		m := order.Progress{Sender: sender, Session: b.Session, Next: e.repair.FurthestClaim(repair.Subject{Sender: sender, Session: b.Session})}
		e.steps = e.order.ReceiveClaim(now, m, e.steps)
	}
	e.updateHoles(now, sender)
	return disposition
}

// ReceiveRepair handles a batch that the ask a brought.
func (e *Engine[V]) ReceiveRepair(now time.Time, a repair.Ask, b Batch[V]) {
	if !a.Backfill && e.Receive(now, a.Sender, b, "") != order.Duplicate {
		return
	}
	// The batch is older than our interest in the sender. It is stored for others.
	if e.store.AddBackfill(now, a.Sender, b.Session, b.entry()) {
		// Neighbors may lack it, and not know who has it.
		e.window.Announce(now, a.Sender)
	}
}

// FinishAsk reports the outcome of an ask. got is the number up to which it brought
// events.
func (e *Engine[V]) FinishAsk(now time.Time, a repair.Ask, got uint64, outcome repair.Outcome) {
	e.updateHoles(now, a.Sender)
	e.repair.FinishAsk(now, a, got, outcome)
}

// updateHoles tells the window and repair cores how far a sender has been received.
func (e *Engine[V]) updateHoles(now time.Time, sender peer.ID) {
	if m, ok := e.order.Progress(sender); ok {
		e.window.SetReceived(now, sender, m.Session, m.Next)
	}
	holes := e.order.Holes(sender)
	// A session that has not begun has no holes in the order core. But a neighbor may
	// claim events behind the number with which it is going to begin.
	if h, ok := e.order.Hint(sender); ok {
		claimed := e.repair.FurthestClaim(repair.Subject{Sender: sender, Session: h.Session})
		if claimed > h.Above {
			since, ok := e.hintHoleSince[h.Session]
			if !ok {
				since = now
				e.hintHoleSince[h.Session] = now
			}
			holes = append(holes, order.Hole{Session: h.Session, From: h.Above, To: claimed, Since: since, Hearsay: true})
		}
	}
	before := e.holes[sender]
	if len(holes) == 0 && len(before) == 0 {
		return // as nearly always
	}
	for _, g := range before {
		if !hasSession(holes, g.Session) {
			e.repair.ClearHole(repair.Subject{Sender: sender, Session: g.Session})
			delete(e.hintHoleSince, g.Session)
		}
	}
	for _, g := range holes {
		e.repair.SetHole(sender, g)
	}
	if len(holes) == 0 {
		delete(e.holes, sender)
	} else {
		e.holes[sender] = holes
	}
}

func hasSession(holes []order.Hole, s order.SessionKey) bool {
	for _, g := range holes {
		if g.Session == s {
			return true
		}
	}
	return false
}

// Advance applies the timeouts that are due at now, and returns what the driver has to
// do.
func (e *Engine[V]) Advance(now time.Time) Actions {
	if next := e.order.Next(); !next.IsZero() && !next.After(now) {
		n := len(e.steps)
		e.steps = e.order.Advance(now, e.steps)
		for i := range e.steps[n:] {
			e.updateHoles(now, e.steps[n:][i].Sender)
		}
	}
	if !e.sweep.After(now) {
		e.store.RemoveOld(now)
		e.sweep = now.Add(sweepInterval)
	}
	e.window.Advance(now)
	asks, given := e.repair.Advance(now)
	for _, g := range given {
		e.steps = e.order.GiveUp(g.Sender, g.Session, g.To, e.steps)
		e.updateHoles(now, g.Sender)
	}
	for i := range e.steps {
		if s := &e.steps[i]; !s.Lost {
			e.store.StartReading(s.Sender, s.Session, s.From)
		}
	}
	actions := Actions{Steps: e.steps, Asks: asks, Tell: e.window.Due(now)}
	e.steps = e.steps[:0]
	return actions
}

// Next returns when to call Advance although nothing happened; the zero time means
// never.
func (e *Engine[V]) Next() time.Time {
	next := order.Earlier(e.order.Next(), order.Earlier(e.window.Next(), e.repair.Next()))
	// An empty store has nothing to remove.
	if e.store.Bytes() > 0 {
		next = order.Earlier(next, e.sweep)
	}
	return next
}

// CollectMarks returns at most limit of the marks that a neighbor has to be told. If
// they cannot be sent, hand them to RequeueMarks.
func (e *Engine[V]) CollectMarks(now time.Time, id peer.ID, limit int) (marks []Mark) {
	for _, a := range e.window.CollectAcks(now, id, limit) {
		m, ok := e.Mark(a.Author)
		if !ok {
			// Nothing of the sender has arrived, but we may have stored its past.
			h, hinted := e.order.Hint(a.Author)
			if !hinted {
				continue
			}
			m = e.fullMark(h)
		}
		// The ack may be about an earlier session, whose Through means nothing here.
		if m.Session == a.Session {
			m.Through = min(a.Through, m.Next)
		}
		m.Ask = a.Ask
		marks = append(marks, m)
	}
	return marks
}

// RequeueMarks notes that marks which CollectMarks returned were not sent.
func (e *Engine[V]) RequeueMarks(now time.Time, id peer.ID, marks []Mark) {
	acks := make([]window.Ack, len(marks))
	for i, m := range marks {
		acks[i] = window.Ack{Author: m.Sender, Ask: m.Ask}
	}
	e.window.RequeueAcks(now, id, acks)
}

// Mark returns this node's mark of a sender, which may be the node itself.
func (e *Engine[V]) Mark(sender peer.ID) (Mark, bool) {
	if sender == e.self {
		return e.fullMark(order.Progress{Sender: e.self, Session: e.session, Begin: 1, Next: e.published, Above: e.published}), true
	}
	m, ok := e.order.Progress(sender)
	return e.fullMark(m), ok
}

// Greeting returns the marks for a new neighbor: our own, then those of at most n-1
// senders, the last heard first.
func (e *Engine[V]) Greeting(n int) []Mark {
	own, _ := e.Mark(e.self)
	marks := []Mark{own}
	for _, m := range e.order.AllProgress(n - 1) {
		marks = append(marks, e.fullMark(m))
	}
	return marks
}

func (e *Engine[V]) fullMark(m order.Progress) Mark {
	return Mark{Progress: m, Floor: e.store.Floor(m.Sender, m.Session), Through: m.Next}
}

// NextEntry returns the stored batch that holds number n of a session. If that is not
// stored any more, it returns the next batch that is, if it begins below to.
func (e *Engine[V]) NextEntry(sender peer.ID, session order.SessionKey, n, to uint64) (store.Entry[V], bool) {
	if b, ok := e.store.At(sender, session, n); ok {
		return b, true
	}
	if list := e.store.Range(sender, session, n, to, 1); len(list) > 0 {
		return list[0], true
	}
	return store.Entry[V]{}, false
}

// MarkHandled notes that handlers are done with the events of a session below to.
func (e *Engine[V]) MarkHandled(sender peer.ID, session order.SessionKey, to uint64) {
	e.store.MarkRead(sender, session, to)
}

// StoredEntries returns the stored batches that hold numbers of [from, to): as many as
// fit into bytes, but at least one if there is any.
func (e *Engine[V]) StoredEntries(sender peer.ID, session order.SessionKey, from, to uint64, bytes int) []store.Entry[V] {
	return e.store.Range(sender, session, from, to, bytes)
}

// CanPublish reports whether the neighbors keep up, so that another batch of our own may
// be published.
func (e *Engine[V]) CanPublish() bool { return e.window.CanPublish(e.self) }

// Backlog returns how many of our batches the slowest neighbor that we wait for lacks.
func (e *Engine[V]) Backlog() int {
	batches, _ := e.window.Backlog(e.self)
	return batches
}

// NeighborsLacking returns the neighbors that have not received all our events below
// goal. Neighbors that joined after the last of them was published do not count.
func (e *Engine[V]) NeighborsLacking(goal uint64) []peer.ID {
	return e.window.NeighborsLacking(e.self, goal)
}

// ReceivedBy returns the number up to which a neighbor has received our events.
func (e *Engine[V]) ReceivedBy(id peer.ID) uint64 { return e.window.ReceivedBy(id, e.self, e.session) }

// Published returns the number after the last event that we have published.
func (e *Engine[V]) Published() uint64 { return e.published }

// OtherNeighbors returns the neighbors other than id.
func (e *Engine[V]) OtherNeighbors(id peer.ID) []peer.ID { return e.repair.OtherNeighbors(id) }
