package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
	"github.com/go-smokesignal/smokesignal/events/internal/store"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// engineDriver gives the engine its inputs (messages of pubsub, marks and repairs
// of neighbors, the time) and carries out its decisions.
//
// Messages are received in pubsub's event loop, before pubsub passes them on. So
// the marks that a node tells a new neighbor cover everything that was passed on
// before the neighbor was on the topic.
//
// Whether a batch of our own may be published is decided here and used by
// publisher, under two mutexes. The states are: idle; in flight (from
// reservePublish, until the batch comes back through pubsub's event loop into the
// engine); and waiting (no batch is in flight, and the neighbors lack too much).
// capacity is set whenever the state may have changed to idle. The two mutexes
// stay apart because Emit only encodes into the publisher's buffer, and must not
// wait for the engine, which works through the marks of all neighbors meanwhile.
type engineDriver struct {
	b     *Broadcast
	check atomic.Pointer[pubsubCheck] // a message that checkPubSub waits for

	mu     sync.Mutex
	closed bool
	engine *engine.Engine[*signedBatch]

	// Neighbors.
	links           map[peer.ID]*markSender
	hadNeighbor     atomic.Bool // there was a neighbor or guest, ever
	unlinkedStreams int         // repair streams of peers that are not neighbors yet
	changed         notify.Cond // a neighbor acknowledged, came or left

	// Time.
	timer    *time.Timer // calls onTimer
	timerDue time.Time   // when it does; zero: it is not set

	// Publishing.
	inFlight bool          // an own batch is not yet through pubsub's event loop
	capacity notify.Signal // another batch may be published

	oldSessions logging.Limiter
}

// A missing event is given up at the latest this long after it has left every
// store. Usually that is known earlier, from an event or from the answers of
// neighbors. Only a node that is alone, or whose neighbors know nothing of the
// session, waits so long.
const (
	doubtAfter = 5 * time.Second
	gapAfter   = 10 * time.Second
)

// settleTimeout is how long the first broadcast of an unknown sender waits for
// earlier ones that it may have overtaken. It matters only when links are made
// while the sender is emitting. The sender's very first event never waits.
const settleTimeout = 5 * time.Second

func (d *engineDriver) init(b *Broadcast) {
	d.b = b
	d.links = make(map[peer.ID]*markSender)
	d.capacity = notify.NewSignal()
	d.engine = engine.New[*signedBatch](b.host.ID(), b.session, engine.Config{
		Order:  order.Config{GapTimeout: b.cfg.StoreAge + gapAfter, SettleTimeout: settleTimeout, MaxHeldPerSender: b.cfg.StoreBytes / 2, MaxHeld: b.cfg.StoreBytes},
		Store:  store.Config{MaxAge: b.cfg.StoreAge, MaxBytes: b.cfg.StoreBytes},
		Repair: repair.Config{UnseenTimeout: b.cfg.StoreAge + doubtAfter},
		Last:   b.cfg.Last,
	})
}

// receiveMessage is the filter of the subscription, see subscribe.
func (d *engineDriver) receiveMessage(m *pubsub.Message) bool {
	defer d.recover()
	if d.isCheck(m) {
		return false
	}
	// Pubsub verifies signatures that are there, but one that the application has
	// made may also accept messages without.
	if len(m.Signature) == 0 {
		d.b.stats.unsigned.Add(1)
		return false
	}
	sender := m.GetFrom() // proven by the signature
	o, err := parseSignedBatch(m.Message)
	switch {
	case errors.Is(err, errBounds):
		// A peer on the way has padded the message. The sender's own message is
		// repaired from another neighbor.
		d.b.stats.malformed.Add(1)
		d.b.log.Debug("a message with padding was dropped", "sender", sender, "by", m.ReceivedFrom)
		return false
	case err != nil:
		// The topic is open to any program, so this is not an offense.
		if sender != d.b.host.ID() && !d.b.raw.Enqueue(sender, m.Data) {
			d.b.stats.foreign.Add(1)
			d.b.log.Debug("a message on the topic is not a batch", "sender", sender, "error", err)
		}
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	now := time.Now()
	if sender != d.b.host.ID() {
		d.receiveBatch(now, sender, o, m.ReceivedFrom)
	} else if o.session == d.b.session && o.first == d.engine.Published() {
		// Our own batch enters the store here. Other batches with our signature
		// are copies, or come from a second process with the same key.
		d.engine.AddOwn(now, d.engineBatch(o))
		d.inFlight = false
		d.changed.Broadcast()
	}
	d.carryOut(now)
	return false
}

// receiveBatch gives a batch of another node to the engine. It needs mu.
func (d *engineDriver) receiveBatch(now time.Time, sender peer.ID, o *signedBatch, giver peer.ID) {
	switch d.engine.Receive(now, sender, d.engineBatch(o), giver) {
	case order.Duplicate:
		d.b.stats.duplicates.Add(1)
	case order.OldSession:
		d.b.stats.oldSessions.Add(1)
		d.oldSessions.Log(d.b.log, slog.LevelWarn, now, 1, "events of an earlier session of their sender were ignored; was its clock set back?", "sender", sender)
	}
}

func (d *engineDriver) engineBatch(o *signedBatch) engine.Batch[*signedBatch] {
	return engine.Batch[*signedBatch]{Session: o.session, First: o.first, Count: o.count, Size: o.size(), Value: o}
}

// recover keeps a bug of this package from ending pubsub, and the program with it.
func (d *engineDriver) recover() {
	if v := recover(); v != nil {
		d.b.log.Error("panic in pubsub's event loop", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// withEngine calls f with the engine and carries out its decisions. After close it
// does nothing and reports false.
func (d *engineDriver) withEngine(f func(now time.Time, e *engine.Engine[*signedBatch])) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	now := time.Now()
	f(now, d.engine)
	d.carryOut(now)
	return true
}

func (d *engineDriver) onTimer() {
	d.withEngine(func(time.Time, *engine.Engine[*signedBatch]) { d.timerDue = time.Time{} })
}

// carryOut carries out the engine's decisions and sets the timer. It needs mu.
func (d *engineDriver) carryOut(now time.Time) {
	out := d.engine.Advance(now)
	for i := range out.Steps {
		if step := &out.Steps[i]; !d.b.deliverer.enqueue(step) {
			// Nobody will read these events, so the store need not keep them.
			d.engine.MarkHandled(step.Sender, step.Session, step.To)
		}
	}
	for _, a := range out.Asks {
		d.b.tasks.Go(func() { d.b.repairFrom(a) })
	}
	for _, id := range out.MarksDue {
		if l := d.links[id]; l != nil {
			l.wake.Set()
		}
	}
	if d.mayPublish() {
		d.capacity.Set()
	}
	d.setTimer(now)
}

// setTimer sets the timer for the engine's next deadline. It needs mu.
func (d *engineDriver) setTimer(now time.Time) {
	next := d.engine.Next()
	switch {
	case next.IsZero() || next.Equal(d.timerDue):
		return
	case !d.timerDue.IsZero() && d.timerDue.After(now) && d.timerDue.Before(next):
		return // it goes off early and is set again then, which is cheaper
	}
	d.timerDue = next
	if d.timer == nil {
		d.timer = time.AfterFunc(next.Sub(now), d.onTimer)
	} else {
		d.timer.Reset(next.Sub(now))
	}
}

// waitUntil waits until ok returns true, or until ctx or the Broadcast ends. ok is
// called with mu.
func (d *engineDriver) waitUntil(ctx context.Context, ok func() bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !ok() {
		if err := d.b.awaitChange(ctx, &d.changed, &d.mu); err != nil {
			return err
		}
	}
	return nil
}

// mayPublish reports whether an own batch may be published. It needs mu.
func (d *engineDriver) mayPublish() bool {
	// The engine counts a batch only when it has come through pubsub's event loop,
	// so until then it cannot say what the neighbors lack.
	return !d.inFlight && d.engine.CanPublish()
}

// reservePublish reports whether an own batch may be published now. If so, the
// caller has to publish one. maxBehind is how many batches the slowest neighbor may
// lack.
func (d *engineDriver) reservePublish(maxBehind int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mayPublish() || d.engine.Backlog() > maxBehind {
		return false
	}
	d.inFlight = true
	return true
}

// awaitCapacity waits until another own batch may be published, and returns how
// many the slowest neighbor lacks.
func (d *engineDriver) awaitCapacity() (behind int, err error) {
	for {
		d.mu.Lock()
		ok, behind := d.mayPublish(), d.engine.Backlog()
		d.mu.Unlock()
		if ok {
			return behind, nil
		}
		select {
		case <-d.capacity:
		case <-d.b.ctx.Done():
			return 0, ErrClosed
		}
	}
}

// readStored returns the first stored batch with events of r, and which of its
// events belong to r: those from from up to, but without, to.
func (d *engineDriver) readStored(sender peer.ID, r eventRange) (o *signedBatch, from, to uint64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.engine.NextEntry(sender, r.session, r.from, r.to)
	if !ok {
		return nil, 0, 0, false
	}
	return b.Value, max(r.from, b.First), min(r.to, b.End), true
}

// releaseHandled tells the engine that the events of a session below to need not
// be kept for handlers any more.
func (d *engineDriver) releaseHandled(sender peer.ID, session order.SessionKey, to uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.engine.MarkHandled(sender, session, to)
}

func (d *engineDriver) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
	d.changed.Broadcast()
}
