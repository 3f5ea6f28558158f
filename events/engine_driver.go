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

// engineDriver feeds the engine with its inputs (messages from pubsub, marks and
// repairs from neighbors, the time) and carries out the engine's decisions.
//
// It receives messages in pubsub's event loop, before pubsub forwards them. So the
// marks with which a node greets a new neighbor cover every message that was forwarded
// before the neighbor came to the topic.
//
// engineDriver also decides whether this node may publish another batch; publisher asks
// for it. There are three states. Idle: a batch may be published. In flight: from
// reservePublish until the batch has come through pubsub's event loop and is in the
// engine. Waiting: the neighbors lack too much. The signal capacity is set whenever the
// state may have become idle. publisher has a mutex of its own, because Emit only
// encodes an event into the publisher's buffer and must not wait while the engine
// handles the marks of all neighbors.
type engineDriver struct {
	b     *Broadcast
	check atomic.Pointer[pubsubCheck] // the test message for which checkPubSub is waiting

	mu     sync.Mutex
	closed bool
	engine *engine.Engine[*signedBatch]

	// Neighbors.
	links           map[peer.ID]*markSender
	hadNeighbor     atomic.Bool // this node has had a neighbor or guest at some time
	unlinkedStreams int         // open repair streams of peers that are not neighbors yet
	changed         notify.Cond // its waiters wake up when a neighbor has acknowledged events, was added or was removed

	// Time.
	timer    *time.Timer // calls onTimer
	timerDue time.Time   // when timer fires; zero: it is not set

	// Publishing.
	inFlight bool          // a batch of this node is not through pubsub's event loop yet
	capacity notify.Signal // set when another batch may be published

	oldSessions logging.Limiter
}

// A missing event is given up at the latest when it has been missing for StoreAge, after
// which no node stores it any more, plus one of these times: doubtAfter if the neighbors
// answer but none of them knew the session of the event, gapAfter in any other case.
// Nearly always an event is given up much earlier, because the neighbors that knew the
// session do not have it.
const (
	doubtAfter = 5 * time.Second
	gapAfter   = 10 * time.Second
)

// settleTimeout is how long the first event that arrives from an unknown sender is held
// back, because earlier events of that sender may still arrive over another path. That
// can happen only if links are made while the sender emits. The event with number 1 is
// never held back.
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

// receiveMessage is called for each message on the topic before pubsub forwards it: see
// subscription.Join. It always returns false, so pubsub does not queue the message for
// this node.
func (d *engineDriver) receiveMessage(m *pubsub.Message) bool {
	defer d.recover()
	if d.isCheck(m) {
		return false
	}
	// Pubsub always verifies a signature that is present. But a pubsub that the
	// application has made may also accept messages without one.
	if len(m.Signature) == 0 {
		d.b.stats.unsigned.Add(1)
		return false
	}
	sender := m.GetFrom() // pubsub has verified the sender's signature
	o, err := parseSignedBatch(m.Message)
	switch {
	case errors.Is(err, errBounds):
		// A peer that forwarded this message has added fields to it. The message without
		// these fields will be fetched from another neighbor.
		d.b.stats.malformed.Add(1)
		d.b.log.Debug("a message with fields that its sender has not signed was dropped", "sender", sender, "by", m.ReceivedFrom)
		return false
	case err != nil:
		// Any program may publish on the topic, so such a message is not an offense. It
		// is passed to the handlers of OnRaw.
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
		// This is the batch that publisher is publishing. Other batches with this
		// node's signature are copies, or a second process uses the same key.
		d.engine.AddOwn(now, d.engineBatch(o))
		d.inFlight = false
		d.changed.Broadcast()
	}
	d.carryOut(now)
	return false
}

// receiveBatch passes the batch o of another node, the sender, to the engine. giver is
// the peer from which this node received the batch. The caller must hold mu.
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

// recover catches a panic of this package, which would otherwise end pubsub and the
// whole program.
func (d *engineDriver) recover() {
	if v := recover(); v != nil {
		d.b.log.Error("panic in pubsub's event loop", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// withEngine calls f with the engine and carries out the engine's decisions. After
// close it does nothing and returns false.
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

// carryOut carries out the engine's decisions and sets the timer. The caller must hold
// mu.
func (d *engineDriver) carryOut(now time.Time) {
	out := d.engine.Advance(now)
	for i := range out.Steps {
		if step := &out.Steps[i]; !d.b.deliverer.enqueue(step) {
			// No handler will read these events, so the store need not keep them.
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

// setTimer sets the timer for the engine's next deadline. The caller must hold mu.
func (d *engineDriver) setTimer(now time.Time) {
	next := d.engine.Next()
	switch {
	case next.IsZero() || next.Equal(d.timerDue):
		return
	case !d.timerDue.IsZero() && d.timerDue.After(now) && d.timerDue.Before(next):
		return // the timer is set to an earlier time; when it fires, it is set again, which is cheaper than setting it now
	}
	d.timerDue = next
	if d.timer == nil {
		d.timer = time.AfterFunc(next.Sub(now), d.onTimer)
	} else {
		d.timer.Reset(next.Sub(now))
	}
}

// waitUntil waits until ok returns true, ctx ends or the Broadcast is closed. Except in
// the first case it returns an error. It calls ok with mu held.
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

// mayPublish reports whether this node may publish a batch. The caller must hold mu.
func (d *engineDriver) mayPublish() bool {
	// The engine counts a batch only after it has come through pubsub's event loop.
	// Until then it does not know what the neighbors lack.
	return !d.inFlight && d.engine.CanPublish()
}

// reservePublish reports whether this node may publish a batch now. If it returns true,
// the caller must publish one. It returns false if the slowest neighbor lacks more than
// maxBehind batches.
func (d *engineDriver) reservePublish(maxBehind int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mayPublish() || d.engine.Backlog() > maxBehind {
		return false
	}
	d.inFlight = true
	return true
}

// awaitCapacity waits until this node may publish another batch. It returns how many
// batches the slowest neighbor lacks, or ErrClosed if the Broadcast is closed meanwhile.
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

// readStored returns the first stored batch o that contains events of the range r, and
// the numbers [from, to) of those events of o that belong to r. ok is false if no such
// batch is stored.
func (d *engineDriver) readStored(sender peer.ID, r eventRange) (o *signedBatch, from, to uint64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.engine.NextEntry(sender, r.session, r.from, r.to)
	if !ok {
		return nil, 0, 0, false
	}
	return b.Value, max(r.from, b.First), min(r.to, b.End), true
}

// releaseHandled informs the engine that the handlers have run for the events of a
// session below the number to, so the store need not keep them for handlers.
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
