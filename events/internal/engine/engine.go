// Package engine decides what a node does about broadcasts: in which order events are
// delivered, which batches are stored, which neighbor lacks which batches, and which
// missing events are requested from which neighbor. It combines the packages order,
// store, window and repair (called cores below). It performs no I/O and reads no clock.
// Its driver reports everything that happens by calling methods, and then carries out
// the actions that [Engine.Advance] returns.
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
	// Last is how many of the events that each sender sent before this node joined are
	// delivered at this node, as far as neighbors still store them. Zero means none.
	Last uint64
}

// A Batch is a sequence of consecutively numbered events of one session. The engine
// stores Value for the caller and does not look at it.
type Batch[V any] struct {
	Session order.SessionKey
	First   uint64
	Count   int
	// Size is how many bytes of memory Value occupies.
	Size  int
	Value V
}

func (b *Batch[V]) limit() uint64 { return b.First + uint64(b.Count) }

func (b *Batch[V]) entry() store.Entry[V] {
	return store.Entry[V]{First: b.First, End: b.limit(), Size: b.Size, Value: b.Value}
}

// A Mark says how far a node has received a session of a sender. Neighbors send marks
// to each other, as acknowledgments and so that each can notice what it lacks.
type Mark struct {
	order.Progress
	// Floor is the lowest event number of the session that the node still stores; zero
	// means that it stores no events of the session.
	Floor uint64
	// Through says that the events numbered below it have also been received by the
	// neighbors to which the node forwarded them.
	Through uint64
	// Ask requests that the receiver of this mark sends back its own mark of the same
	// sender.
	Ask bool
}

// Actions lists what the driver has to do.
type Actions struct {
	// Steps are events to deliver or to report as lost, in this order. The slice is
	// valid until the next call of Advance.
	Steps []order.Step
	// Asks are requests for missing events, to be sent to neighbors. Each must be ended
	// by a call of FinishAsk.
	Asks []repair.Ask
	// MarksDue lists the neighbors to which marks must be sent: see CollectMarks. A
	// neighbor is listed once, and again only after CollectMarks was called for it.
	MarksDue []peer.ID
}

// An Engine holds all that a node knows about broadcasts. It is not safe for concurrent
// use.
type Engine[V any] struct {
	cfg     Config
	self    peer.ID
	session order.SessionKey
	// published is the number that this node's next event will get.
	published uint64

	// The cores.
	order  *order.Sequencer
	store  *store.Store[V]
	window *window.Controller
	repair *repair.Planner

	// greeted holds the neighbors whose greeting (the marks that a neighbor sends
	// first) has arrived.
	greeted map[peer.ID]bool
	leaves  map[peer.ID]bool

	// Work between calls of Advance.
	steps []order.Step
	// holes holds the missing ranges of events by sender, as they were last passed to the
	// repair core.
	holes map[peer.ID][]order.Hole
	// hintHoleSince holds, for sessions of which only other nodes' marks have arrived,
	// the time at which events were first known to be missing.
	hintHoleSince map[order.SessionKey]time.Time
	// nextSweep is when old batches are next removed from the store.
	nextSweep time.Time
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

// AddNeighbor adds the neighbor id. From now on, the neighbor is expected to acknowledge
// the batches that arrive at this node or that this node publishes.
func (e *Engine[V]) AddNeighbor(id peer.ID) {
	e.repair.AddNeighbor(id)
	e.window.AddNeighbor(id)
}

// AddLeaf adds a leaf, as AddNeighbor does. This node has not chosen the leaf and
// cannot trust it, so marks in which the leaf claims to have another sender's events
// are not used to search for missing events.
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

// origin says in which message a neighbor's mark arrived. With that, it says how certain
// the mark makes the number with which the session begins at this node.
type origin int

const (
	// fromUpdate means that the neighbor announced that its mark changed.
	fromUpdate origin = iota
	// fromGreeting means that the mark was in the neighbor's greeting. Events with lower
	// numbers than the mark may still arrive from other neighbors.
	fromGreeting
	// fromSoleGreeting means that the mark was in the neighbor's greeting, and that no
	// other neighbor can deliver events with lower numbers than the mark.
	fromSoleGreeting
)

// ReceiveGreeting handles the greeting of a neighbor: its marks of all senders that it
// knows. From then on the neighbor forwards every new batch to this node.
func (e *Engine[V]) ReceiveGreeting(now time.Time, id peer.ID, marks []Mark) {
	e.greeted[id] = true
	e.window.Heard(now, id)
	e.window.CatchUp(now, id)
	sole := len(e.repair.OtherNeighbors(id)) == 0
	for _, m := range marks {
		// About our own events the mark is only news of how far the neighbor has
		// received them.
		if m.Sender == e.self {
			e.acknowledge(now, id, m)
			continue
		}
		begin, from := max(m.Above, m.Next), fromGreeting
		// Config.Last asks for events from before this node joined, and this neighbor
		// stores some. The session begins at most Last events lower, but not below the
		// Floor.
		if last := e.cfg.Last; last > 0 && m.Floor > 0 && m.Floor < begin {
			begin = max(m.Floor, begin-min(begin, last))
		}
		// Another neighbor may be forwarding lower numbers at this moment, so the
		// beginning stays tentative. If there is no other neighbor, or if Config.Last
		// has moved the beginning down, it is final.
		if sole || begin < m.Above {
			from = fromSoleGreeting
		}
		e.applyMark(now, id, m, begin, from)
	}
}

// ReceiveMarks handles marks that the neighbor id sends because they changed. This node
// may not know the sender of a mark yet. If the neighbor has greeted this node but its
// greeting did not mention that sender, the session begins at this node with the same
// number as at the neighbor. If the neighbor has not greeted yet, the session begins
// with the first event that the neighbor has not received.
func (e *Engine[V]) ReceiveMarks(now time.Time, id peer.ID, marks []Mark) {
	e.window.Heard(now, id)
	for _, m := range marks {
		if m.Sender != e.self {
			begin := m.Begin
			// Where this node begins with the session is decided by the neighbor's
			// greeting: it has been, or it will be when the greeting arrives. So this
			// mark must not cause requests for the events before it.
			if !e.greeted[id] || e.repair.HasGreetedWith(id, repair.Subject{Sender: m.Sender, Session: m.Session}) {
				begin = max(m.Next, m.Above)
			}
			e.applyMark(now, id, m, begin, fromUpdate)
		}
		e.acknowledge(now, id, m)
	}
}

func (e *Engine[V]) acknowledge(now time.Time, id peer.ID, m Mark) {
	e.window.ReceiveAck(now, id, window.Ack{Sender: m.Sender, Session: m.Session, Next: m.Next, Through: m.Through, Ask: m.Ask})
}

// applyMark passes the mark m of the neighbor id to the order core and the repair core.
// begin is the number of the first event of the session to deliver at this node. It
// counts only if the session is unknown to this node or its beginning is still
// tentative. from says in which message the mark arrived.
func (e *Engine[V]) applyMark(now time.Time, id peer.ID, m Mark, begin uint64, from origin) {
	if m.Next < 1 || m.Next > order.MaxNumber || begin < 1 {
		return
	}
	// Anybody can connect as a leaf. By lying about other senders, a leaf could make
	// this node search for events that do not exist.
	if e.leaves[id] && m.Sender != id {
		return
	}
	_, known := e.order.Progress(m.Sender)
	_, hinted := e.order.Hint(m.Sender)
	// The sender is new to this node. Fetch its earlier events, not to deliver them but
	// to store them for neighbors that want them.
	if !known && !hinted && m.Floor > 0 {
		e.repair.AddBackfill(id, repair.Subject{Sender: m.Sender, Session: m.Session}, m.Floor, begin)
	}
	e.repair.ReceiveClaim(id, m.Sender, repair.Claim{Session: m.Session, Begin: m.Begin, Next: m.Next, Floor: m.Floor, Greeting: from != fromUpdate})
	m.Above = max(m.Above, m.Next)
	beginning := order.Tentative
	// No other neighbor can deliver events from before begin, so the beginning is
	// final.
	if from == fromSoleGreeting {
		beginning = order.Firm
	}
	// Once the session has begun at this node, the mark is a claim of the neighbor that
	// the sender has sent more events. Before that, the mark only says with which number
	// the session will begin at this node.
	if e.order.HasSession(m.Sender, m.Session) {
		m.Begin = begin
		e.steps = e.order.ReceiveClaim(now, m.Progress, e.steps)
	} else {
		hint := m.Progress
		hint.Begin, hint.Next, hint.Above = begin, begin, begin
		e.order.AddHint(hint, beginning)
	}
	// The sender itself knows for certain how many events it has sent; every other node
	// may be lying.
	if id == m.Sender {
		e.steps = e.order.ReceiveOwnMark(now, m.Progress, beginning, e.steps)
	}
	e.updateHoles(now, m.Sender)
}

// AddOwn adds a batch that this node is publishing.
func (e *Engine[V]) AddOwn(now time.Time, b Batch[V]) {
	e.published = b.limit()
	e.store.Add(now, e.self, e.session, b.entry())
	e.window.AddBatch(now, e.self, e.session, b.First, b.limit(), b.Size, "")
	e.window.SetReceived(now, e.self, e.session, b.limit())
}

// Receive handles the batch b of the sender that arrived from the neighbor giver through
// pubsub. giver is empty if the batch did not arrive through pubsub. It returns what
// became of the batch.
func (e *Engine[V]) Receive(now time.Time, sender peer.ID, b Batch[V], giver peer.ID) order.Disposition {
	// Our own events are added by AddOwn. A copy that comes back is not new.
	if sender == e.self {
		return order.Invalid
	}
	began := e.order.HasSession(sender, b.Session)
	var disposition order.Disposition
	disposition, e.steps = e.order.Receive(now, sender, order.Arrival{
		Session: b.Session, First: b.First, Count: b.Count, Size: b.Size,
	}, e.steps)
	// A batch that the order core does not accept is stored already, or nobody wants it.
	if disposition == order.Accepted {
		e.store.Add(now, sender, b.Session, b.entry())
		e.store.AwaitReading(sender, b.Session, b.limit())
		e.window.AddBatch(now, sender, b.Session, b.First, b.limit(), b.Size, giver)
	}
	// The order core ignores neighbors' claims about how far a session goes until the
	// session has begun at this node. This batch may have begun it, so pass on the
	// furthest claim that neighbors have made so far.
	if !began {
		m := order.Progress{Sender: sender, Session: b.Session, Next: e.repair.FurthestClaim(repair.Subject{Sender: sender, Session: b.Session})}
		e.steps = e.order.ReceiveClaim(now, m, e.steps)
	}
	e.updateHoles(now, sender)
	return disposition
}

// ReceiveRepair handles the batch b that arrived in answer to a, a request of this node
// for missing events.
func (e *Engine[V]) ReceiveRepair(now time.Time, a repair.Ask, b Batch[V]) {
	if !a.Backfill && e.Receive(now, a.Sender, b, "") != order.Duplicate {
		return
	}
	// The events of the batch are not delivered at this node: they were delivered already
	// or are from before this node joined. They are stored for neighbors.
	if e.store.AddBackfill(now, a.Sender, b.Session, b.entry()) {
		// Neighbors may lack the batch. The new mark shows them that it is stored here.
		e.window.Announce(now, a.Sender)
	}
}

// FinishAsk reports the outcome of a, a request to a neighbor for missing events. got is
// the number after the last event that the request has brought.
func (e *Engine[V]) FinishAsk(now time.Time, a repair.Ask, got uint64, outcome repair.Outcome) {
	e.updateHoles(now, a.Sender)
	e.repair.FinishAsk(now, a, got, outcome)
}

// updateHoles informs the window core how far a sender has been received, and the
// repair core which of its events are missing.
func (e *Engine[V]) updateHoles(now time.Time, sender peer.ID) {
	if m, ok := e.order.Progress(sender); ok {
		e.window.SetReceived(now, sender, m.Session, m.Next)
	}
	holes := e.order.Holes(sender)
	// The order core does not know which events are missing in a session of which no
	// batch has arrived. But events that a neighbor claims to have, with numbers from the
	// Above of the hint on, are missing at this node.
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
		return // no event is missing, as is nearly always the case
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

// Advance applies the timeouts that are due at now, and returns everything that the
// driver has to do.
func (e *Engine[V]) Advance(now time.Time) Actions {
	if next := e.order.Next(); !next.IsZero() && !next.After(now) {
		n := len(e.steps)
		e.steps = e.order.Advance(now, e.steps)
		for i := range e.steps[n:] {
			e.updateHoles(now, e.steps[n:][i].Sender)
		}
	}
	if !e.nextSweep.After(now) {
		e.store.RemoveOld(now)
		e.nextSweep = now.Add(sweepInterval)
	}
	e.window.Advance(now)
	asks, givenUp := e.repair.Advance(now)
	for _, g := range givenUp {
		e.steps = e.order.GiveUp(g.Sender, g.Session, g.To, e.steps)
		e.updateHoles(now, g.Sender)
	}
	for i := range e.steps {
		// Handlers read this session from the first event of this step on, if they have
		// not begun before. Earlier batches of the session are stored only for neighbors.
		if s := &e.steps[i]; !s.Lost {
			e.store.StartReading(s.Sender, s.Session, s.From)
		}
	}
	actions := Actions{Steps: e.steps, Asks: asks, MarksDue: e.window.Due(now)}
	e.steps = e.steps[:0]
	return actions
}

// Next returns when to call Advance even if nothing happens until then. The zero time
// means that no such call is needed.
func (e *Engine[V]) Next() time.Time {
	next := order.Earlier(e.order.Next(), order.Earlier(e.window.Next(), e.repair.Next()))
	// An empty store has nothing to remove.
	if e.store.Bytes() > 0 {
		next = order.Earlier(next, e.nextSweep)
	}
	return next
}

// CollectMarks returns at most limit of the marks that must be sent to a neighbor. If
// they cannot be sent, pass them to RequeueMarks.
func (e *Engine[V]) CollectMarks(now time.Time, id peer.ID, limit int) (marks []Mark) {
	for _, a := range e.window.CollectAcks(now, id, limit) {
		m, ok := e.Mark(a.Sender)
		if !ok {
			// No batch of the sender has arrived, but its earlier events may be stored
			// here, so that neighbors can fetch them.
			h, hinted := e.order.Hint(a.Sender)
			if !hinted {
				continue
			}
			m = e.fullMark(h)
		}
		// The window may know only an earlier session of the sender. How far that one
		// has been forwarded says nothing about the session of m.
		if m.Session == a.Session {
			m.Through = min(a.Through, m.Next)
		}
		m.Ask = a.Ask
		marks = append(marks, m)
	}
	return marks
}

// RequeueMarks takes back marks that CollectMarks returned but that could not be sent.
// CollectMarks will return them again.
func (e *Engine[V]) RequeueMarks(now time.Time, id peer.ID, marks []Mark) {
	acks := make([]window.Ack, len(marks))
	for i, m := range marks {
		acks[i] = window.Ack{Sender: m.Sender, Ask: m.Ask}
	}
	e.window.RequeueAcks(now, id, acks)
}

// Mark returns this node's mark of the latest session of a sender. The sender may be
// this node itself. It returns false if no batch or mark of the sender itself has
// arrived.
func (e *Engine[V]) Mark(sender peer.ID) (Mark, bool) {
	if sender == e.self {
		return e.fullMark(order.Progress{Sender: e.self, Session: e.session, Begin: 1, Next: e.published, Above: e.published}), true
	}
	m, ok := e.order.Progress(sender)
	return e.fullMark(m), ok
}

// Greeting returns the marks to send to a new neighbor: the mark of this node's own
// session first, then those of at most n-1 senders, in the order in which they were
// last heard, the latest first.
func (e *Engine[V]) Greeting(n int) []Mark {
	own, _ := e.Mark(e.self)
	marks := []Mark{own}
	for _, m := range e.order.AllProgress(n - 1) {
		marks = append(marks, e.fullMark(m))
	}
	return marks
}

// fullMark returns the mark that contains m, and the Floor from the store. It sets
// Through as if every neighbor had received the events below Next.
func (e *Engine[V]) fullMark(m order.Progress) Mark {
	return Mark{Progress: m, Floor: e.store.Floor(m.Sender, m.Session), Through: m.Next}
}

// NextEntry returns the stored batch that contains event n of a session. If that event
// is not stored, it returns the first stored batch with events in (n, to), or false if
// there is none.
func (e *Engine[V]) NextEntry(sender peer.ID, session order.SessionKey, n, to uint64) (store.Entry[V], bool) {
	if b, ok := e.store.At(sender, session, n); ok {
		return b, true
	}
	if list := e.store.Range(sender, session, n, to, 1); len(list) > 0 {
		return list[0], true
	}
	return store.Entry[V]{}, false
}

// MarkHandled notes that all handlers have run for the events of a session below the
// number to.
func (e *Engine[V]) MarkHandled(sender peer.ID, session order.SessionKey, to uint64) {
	e.store.MarkRead(sender, session, to)
}

// StoredEntries returns the stored batches that contain events with numbers in [from,
// to), in order. Their total size is at most bytes, except that one batch is returned
// whatever its size.
func (e *Engine[V]) StoredEntries(sender peer.ID, session order.SessionKey, from, to uint64, bytes int) []store.Entry[V] {
	return e.store.Range(sender, session, from, to, bytes)
}

// CanPublish reports whether this node may publish another batch: no neighbor that it
// waits for lacks too much of what it published before.
func (e *Engine[V]) CanPublish() bool { return e.window.CanPublish(e.self) }

// Backlog returns how many of this node's batches the slowest neighbor has not
// acknowledged. Neighbors that publishing no longer waits for do not count.
func (e *Engine[V]) Backlog() int {
	batches, _ := e.window.Backlog(e.self)
	return batches
}

// NeighborsLacking returns the neighbors that have not received all of this node's
// events below the number goal. Neighbors that joined after the latest event was
// published do not count.
func (e *Engine[V]) NeighborsLacking(goal uint64) []peer.ID {
	return e.window.NeighborsLacking(e.self, goal)
}

// ReceivedBy returns the number below which a neighbor has received all of this node's
// events; zero means that it has acknowledged none.
func (e *Engine[V]) ReceivedBy(id peer.ID) uint64 { return e.window.ReceivedBy(id, e.self, e.session) }

// Heard notes that a neighbor has sent something else than marks.
func (e *Engine[V]) Heard(now time.Time, id peer.ID) { e.window.Heard(now, id) }

// HeardAt returns when a neighbor last sent something; the zero time means never.
func (e *Engine[V]) HeardAt(id peer.ID) time.Time { return e.window.HeardAt(id) }

// BytesLacked returns the size of our batches that a neighbor lacks.
func (e *Engine[V]) BytesLacked(id peer.ID) int { return e.window.BytesLacked(id, e.self) }

// AskForMark asks a neighbor for its mark of our events. The neighbor answers even if it
// has received nothing new.
func (e *Engine[V]) AskForMark(now time.Time, id peer.ID) { e.window.AskForAck(now, id, e.self) }

// Published returns the number that this node's next event will get.
func (e *Engine[V]) Published() uint64 { return e.published }

// OtherNeighbors returns the neighbors other than id.
func (e *Engine[V]) OtherNeighbors(id peer.ID) []peer.ID { return e.repair.OtherNeighbors(id) }
