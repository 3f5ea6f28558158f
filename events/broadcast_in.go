package events

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// inbox takes the messages from pubsub and brings them into order. It does so
// in pubsub's event loop, before pubsub passes them on: a mark then covers all
// that a neighbour not yet on the topic has missed.
type inbox struct {
	b *Broadcast

	mu     sync.Mutex
	closed bool
	core   *order.Core[*batch]
	steps  []order.Step[*batch] // reused
	timer  *time.Timer          // calls advance
	due    time.Time            // when; zero: not set
	warned limiter
}

// gapTimeout is how long a missing broadcast is waited for while nothing of its
// sender comes in its turn: longer than a busy machine may pause, since nothing
// fetches it.
const gapTimeout = 10 * time.Second

// settleTimeout is how long the first broadcast of an unknown sender waits for
// what it may have overtaken. It matters only when links appear while the sender
// is at work; the first event of all is never held up.
const settleTimeout = 5 * time.Second

func (in *inbox) init(b *Broadcast) {
	in.b = b
	in.core = order.New[*batch](order.Config{GapTimeout: gapTimeout, Settle: settleTimeout})
}

// take is the subscription's filter. It runs in pubsub's event loop, so it does
// not block, and keeps every message out of the subscription's own queue.
func (in *inbox) take(m *pubsub.Message) bool {
	defer in.recover()
	sender := m.GetFrom() // proven by the signature
	if sender == in.b.host.ID() {
		return false
	}
	msg, err := decodeBatch(m.Data)
	if err != nil {
		// Others may speak on the topic what they like.
		in.b.stats.foreign.Add(1)
		in.b.log.Debug("a message that is no batch", "sender", sender, "error", err)
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	now := time.Now()
	steps := in.core.Advance(now, in.steps[:0])
	var verdict order.Verdict
	verdict, steps = in.core.Receive(now, sender, order.Batch[*batch]{
		Session: msg.session, First: msg.first, Count: len(msg.events), Size: msg.size, Value: msg,
	}, steps)
	switch verdict {
	case order.Duplicate:
		in.b.stats.duplicates.Add(1)
	case order.OldSession:
		in.b.stats.oldSessions.Add(1)
		in.warned.warn(in.b.log, now, 1, "an event of an earlier run of its sender, which is ignored; was its clock set back?", "sender", sender)
	}
	in.perform(now, steps)
	return false
}

// recover keeps a fault of ours from ending pubsub, and the program with it.
func (in *inbox) recover() {
	if v := recover(); v != nil {
		in.b.log.Error("a panic in pubsub's event loop", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

func (in *inbox) learn(from peer.ID, marks []order.Mark) {
	// Without another neighbour nothing can come but through this one.
	sole := !slices.ContainsFunc(in.b.neighbours(), func(p peer.ID) bool { return p != from })
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	now := time.Now()
	steps := in.core.Advance(now, in.steps[:0])
	for _, m := range marks {
		if m.Sender != in.b.host.ID() {
			steps = in.core.Learn(now, m, m.Sender == from, sole, steps)
		}
	}
	in.perform(now, steps)
}

// advance is the timer's.
func (in *inbox) advance() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return
	}
	now := time.Now()
	in.due = time.Time{}
	in.perform(now, in.core.Advance(now, in.steps[:0]))
}

// perform carries out the steps of the core and sets the timer. It needs mu.
func (in *inbox) perform(now time.Time, steps []order.Step[*batch]) {
	for i := range steps {
		st := &steps[i]
		if st.Lost {
			n := st.To - st.From
			in.b.stats.lost.Add(n)
			in.warned.warn(in.b.log, now, n, "events were lost on the way", "sender", st.Sender, "first", st.From, "last", st.To-1)
			continue
		}
		in.b.backlog.put(st.Sender, st.Value.events[st.Skip:][:st.To-st.From], st.Value.size)
	}
	clear(steps)
	in.steps = steps[:0]
	if cap(in.steps) > 1024 {
		in.steps = nil
	}
	next := in.core.Next()
	if next.IsZero() || next.Equal(in.due) {
		return // a timer that is early does no harm
	}
	in.due = next
	if in.timer == nil {
		in.timer = time.AfterFunc(next.Sub(now), in.advance)
	} else {
		in.timer.Reset(next.Sub(now))
	}
}

func (in *inbox) marks(n int) []order.Mark {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.core.Marks(n)
}

func (in *inbox) mark(p peer.ID) (order.Mark, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.core.Mark(p)
}

func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	if in.timer != nil {
		in.timer.Stop()
	}
}

// Marks returns, encoded, how far this node is with each sender, itself first,
// as a new neighbour is to be told. It is to be called when the neighbour was
// seen on the topic: what this node sends or passes on after that goes to the
// neighbour too, and that is everything from the marks on. It has at most 64
// KiB. It waits for an Emit that has begun.
func (b *Broadcast) Marks() []byte {
	next := b.nextNumber()
	own := order.Mark{Sender: b.host.ID(), Session: b.session, Next: next, Above: next}
	return appendMarks(nil, append([]order.Mark{own}, b.in.marks(maxMarks-1)...))
}

// Learn takes the marks that a neighbour told: they say from where on this node
// is owed the events of each sender, and of the neighbour itself also up to
// where. A mark only counts until the first event of its sender came, except
// the neighbour's own. The error is ErrMalformed.
func (b *Broadcast) Learn(from peer.ID, marks []byte) error {
	list, err := decodeMarks(marks)
	if err != nil {
		return err
	}
	b.in.learn(from, list)
	return nil
}

// limiter logs a warning at most once a second, with how many there were.
type limiter struct {
	last  time.Time
	count uint64
}

func (l *limiter) warn(log *slog.Logger, now time.Time, n uint64, msg string, args ...any) {
	l.count += n
	if now.Sub(l.last) < time.Second {
		return
	}
	log.Warn(msg, append(args, "events", l.count)...)
	l.last, l.count = now, 0
}
