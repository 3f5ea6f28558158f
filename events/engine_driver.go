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
)

// engineDriver drives the engine: it tells it what comes from pubsub, neighbours and the
// clock, and carries out what it decides. Messages are taken in pubsub's event
// loop, before pubsub passes them on: a mark then covers all that a neighbour not
// yet on the topic has missed.
type engineDriver struct {
	b *Broadcast

	mu              sync.Mutex
	closed          bool
	engine          *engine.Engine[*signedBatch]
	links           map[peer.ID]*markSender
	hadNeighbor     atomic.Bool   // there was a neighbour
	unlinkedStreams int           // streams of peers that are not yet neighbours
	timer           *time.Timer   // calls advance
	timerDue        time.Time     // when; zero: not set
	warned          logLimiter    // of old sessions
	change          chan struct{} // closed when somebody acknowledged, came or went; nil: nobody waits

	check atomic.Pointer[pubsubCheck] // that Prove waits for

	inFlight bool          // a batch of ours is not yet through pubsub's event loop
	capacity chan struct{} // has a value when another may be published
}

// How long what is missing is waited for at most, after it has left every store. It
// ends earlier, with an event or with the certainty that nobody has it: only a node
// whose neighbours know nothing of the session waits so long, or one that is alone.
const (
	doubtAfter = 5 * time.Second
	gapAfter   = 10 * time.Second
)

// settleTimeout is how long the first broadcast of an unknown sender waits for
// what it may have overtaken. It matters only when links appear while the sender
// is at work; the first event of all is never held up.
const settleTimeout = 5 * time.Second

func (in *engineDriver) init(b *Broadcast) {
	in.b = b
	in.links = make(map[peer.ID]*markSender)
	in.capacity = make(chan struct{}, 1)
	in.engine = engine.New[*signedBatch](b.host.ID(), b.session, engine.Config{
		Order:  order.Config{GapTimeout: b.cfg.StoreAge + gapAfter, SettleTimeout: settleTimeout, MaxHeldPerSender: b.cfg.StoreBytes / 2, MaxHeld: b.cfg.StoreBytes},
		Store:  store.Config{MaxAge: b.cfg.StoreAge, MaxBytes: b.cfg.StoreBytes},
		Repair: repair.Config{UnseenTimeout: b.cfg.StoreAge + doubtAfter},
		Last:   b.cfg.Last,
	})
}

// receiveMessage is the subscription's filter. It runs in pubsub's event loop, so it does
// not block, and keeps every message out of the subscription's own queue.
func (in *engineDriver) receiveMessage(m *pubsub.Message) bool {
	defer in.recover()
	if in.isCheck(m) {
		return false
	}
	if len(m.Signature) == 0 {
		in.b.stats.unsigned.Add(1) // pubsub checks those that are there
		return false
	}
	sender := m.GetFrom() // proven by the signature
	o, err := parseSignedBatch(m.Message)
	switch {
	case errors.Is(err, errBounds):
		in.b.stats.malformed.Add(1)
		in.b.log.Debug("a message that is padded", "sender", sender, "by", m.ReceivedFrom)
		return false // what of it the sender has sent is repaired
	case err != nil:
		// Others may speak on the topic what they like.
		if sender != in.b.host.ID() && !in.b.raw.put(sender, m.Data) {
			in.b.stats.foreign.Add(1)
			in.b.log.Debug("a message that is no batch", "sender", sender, "error", err)
		}
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	now := time.Now()
	if sender != in.b.host.ID() {
		in.receiveBatch(now, sender, o, m.ReceivedFrom)
	} else if o.session == in.b.session && o.first == in.engine.Published() {
		in.engine.AddOwn(now, in.engineBatch(o))
		in.inFlight = false
		in.changed()
	}
	in.carryOut(now)
	return false
}

// receiveBatch gives a batch to the engine.
func (in *engineDriver) receiveBatch(now time.Time, sender peer.ID, o *signedBatch, giver peer.ID) {
	switch in.engine.Receive(now, sender, in.engineBatch(o), giver) {
	case order.Duplicate:
		in.b.stats.duplicates.Add(1)
	case order.OldSession:
		in.b.stats.oldSessions.Add(1)
		in.warned.warn(in.b.log, now, 1, "an event of an earlier run of its sender, which is ignored; was its clock set back?", "sender", sender)
	}
}

func (in *engineDriver) engineBatch(o *signedBatch) engine.Batch[*signedBatch] {
	return engine.Batch[*signedBatch]{Session: o.session, First: o.first, Count: o.count, Size: o.size(), Value: o}
}

// recover keeps a fault of ours from ending pubsub, and the program with it.
func (in *engineDriver) recover() {
	if v := recover(); v != nil {
		in.b.log.Error("a panic in pubsub's event loop", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

// withEngine lets f use the engine, and carries out what it decides, unless all is over.
func (in *engineDriver) withEngine(f func(now time.Time, e *engine.Engine[*signedBatch])) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	now := time.Now()
	f(now, in.engine)
	in.carryOut(now)
	return true
}

// onTimer is the timer's.
func (in *engineDriver) onTimer() {
	in.withEngine(func(time.Time, *engine.Engine[*signedBatch]) { in.timerDue = time.Time{} })
}

// carryOut carries out what the engine decided and sets the timer. It needs mu.
func (in *engineDriver) carryOut(now time.Time) {
	out := in.engine.Advance(now)
	for i := range out.Steps {
		in.b.deliverer.enqueue(&out.Steps[i])
	}
	for _, a := range out.Asks {
		in.b.tasks.Go(func() { in.b.repairFrom(a) })
	}
	for _, id := range out.Tell {
		if l := in.links[id]; l != nil {
			signal(l.wake)
		}
	}
	if !in.inFlight && in.engine.CanPublish() {
		signal(in.capacity)
	}
	next := in.engine.Next()
	if next.IsZero() || next.Equal(in.timerDue) || !in.timerDue.IsZero() && in.timerDue.After(now) && in.timerDue.Before(next) {
		return // a timer that is early does no harm
	}
	in.timerDue = next
	if in.timer == nil {
		in.timer = time.AfterFunc(next.Sub(now), in.onTimer)
	} else {
		in.timer.Reset(next.Sub(now))
	}
}

// signal puts a value into a channel that holds one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// changed wakes who waits for an acknowledgement or a neighbour. It needs mu.
func (in *engineDriver) changed() {
	if in.change != nil {
		close(in.change)
		in.change = nil
	}
}

// waitUntil waits until ok, which is asked with the lock, or until ctx or the
// Broadcast ends.
func (in *engineDriver) waitUntil(ctx context.Context, ok func() bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for !ok() {
		if in.change == nil {
			in.change = make(chan struct{})
		}
		change := in.change
		in.mu.Unlock()
		var err error
		select {
		case <-change:
		case <-ctx.Done():
			err = in.b.closedOr(ctx)
		case <-in.b.ctx.Done():
			err = ErrClosed
		}
		in.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// reservePublish reports whether a batch may be published now, which then has to be done.
// The one before has to be through pubsub's event loop, as only there is it known
// to the engine. With calm the neighbours must also have nearly all there is.
func (in *engineDriver) reservePublish(calm bool) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.inFlight || !in.engine.CanPublish() || calm && in.engine.Backlog() > calmBatches {
		return false
	}
	in.inFlight = true
	return true
}

// awaitCapacity waits until the neighbours can take another batch, and returns how many
// they lack.
func (in *engineDriver) awaitCapacity() (behind int, err error) {
	for {
		in.mu.Lock()
		room, behind := !in.inFlight && in.engine.CanPublish(), in.engine.Backlog()
		in.mu.Unlock()
		if room {
			return behind, nil
		}
		select {
		case <-in.capacity:
		case <-in.b.ctx.Done():
			return 0, ErrClosed
		}
	}
}

func (in *engineDriver) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	if in.timer != nil {
		in.timer.Stop()
	}
	in.changed()
}

// logLimiter logs a warning at most once a second, with how many there were.
type logLimiter struct {
	last  time.Time
	count uint64
}

func (l *logLimiter) warn(log *slog.Logger, now time.Time, n uint64, msg string, args ...any) {
	l.count += n
	if now.Sub(l.last) < time.Second {
		return
	}
	log.Warn(msg, append(args, "events", l.count)...)
	l.last, l.count = now, 0
}
