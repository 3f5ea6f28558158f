package events

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// backlog holds what is in order until it was handled. Each sender's events are
// handled one after the other; senders take turns, on as many goroutines as
// there are senders with something to handle, which end when nothing waits.
type backlog struct {
	b *Broadcast

	mu      sync.Mutex
	closed  bool
	queues  map[peer.ID]*senderQueue // of senders that wait or are being handled
	ready   []*senderQueue           // those that wait for a goroutine
	workers int
	bytes   int // of all that is not handled yet
	warned  limiter
}

// maxWorkers bounds the goroutines that call handlers; beyond it senders wait.
const maxWorkers = 1024

type senderQueue struct {
	sender peer.ID
	items  []backlogItem // not yet being handled
	bytes  int           // of items
}

// backlogItem is a run of events in one message, which it keeps alive.
type backlogItem struct {
	events [][]byte
	size   int
}

func (l *backlog) init(b *Broadcast) {
	l.b = b
	l.queues = make(map[peer.ID]*senderQueue)
}

// put adds events behind those of the same sender. It does not block.
func (l *backlog) put(sender peer.ID, events [][]byte, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.b.stats.overrun.Add(uint64(len(events)))
		return
	}
	q := l.queues[sender]
	if q == nil {
		q = &senderQueue{sender: sender}
		l.queues[sender] = q
		l.ready = append(l.ready, q)
		if l.workers < maxWorkers {
			l.workers++
			ctx, leave := l.b.mux.enter(l.b.ctx)
			go func() {
				defer leave()
				l.work(ctx)
			}()
		}
	}
	q.items = append(q.items, backlogItem{events, size})
	q.bytes += size
	l.bytes += size
	for l.bytes > l.b.cfg.Backlog && l.shed() {
	}
}

// shed drops the newest of the sender for which most waits. It reports whether
// there was any.
func (l *backlog) shed() bool {
	var most *senderQueue
	for _, q := range l.queues {
		if most == nil || q.bytes > most.bytes {
			most = q
		}
	}
	if most == nil || len(most.items) == 0 {
		return false
	}
	last := len(most.items) - 1
	item := most.items[last]
	most.items[last] = backlogItem{}
	most.items = most.items[:last]
	most.bytes -= item.size
	l.bytes -= item.size
	n := uint64(len(item.events))
	l.b.stats.overrun.Add(n)
	l.warned.warn(l.b.log, time.Now(), n, "events were dropped since handlers are slow", "sender", most.sender, "backlog", l.b.cfg.Backlog)
	return true
}

// work handles whatever waits, until nothing does.
func (l *backlog) work(ctx context.Context) {
	for {
		q, item, ok := l.take()
		if !ok {
			return
		}
		l.handle(ctx, q.sender, item.events)
		l.done(q, item)
	}
}

// take returns the first run of events of the sender whose turn it is.
func (l *backlog) take() (*senderQueue, backlogItem, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) > 0 && !l.closed {
		q := l.ready[0]
		l.ready[0] = nil
		l.ready = l.ready[1:]
		if len(q.items) == 0 { // they were dropped
			delete(l.queues, q.sender)
			continue
		}
		item := q.items[0]
		q.items[0] = backlogItem{}
		q.items = q.items[1:]
		q.bytes -= item.size
		return q, item, true
	}
	l.workers--
	return nil, backlogItem{}, false
}

// done gives the sender its next turn.
func (l *backlog) done(q *senderQueue, item backlogItem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes -= item.size
	switch {
	case l.closed:
	case len(q.items) == 0:
		delete(l.queues, q.sender)
	default:
		l.ready = append(l.ready, q)
	}
}

func (l *backlog) handle(ctx context.Context, sender peer.ID, events [][]byte) {
	if admit := l.b.cfg.Admit; admit != nil {
		if err := admit(ctx, sender); err != nil {
			l.b.stats.overrun.Add(uint64(len(events)))
			l.b.log.Debug("events of a sender that is not admitted", "sender", sender, "events", len(events), "error", err)
			return
		}
	}
	for i, data := range events {
		if ctx.Err() != nil {
			l.b.stats.overrun.Add(uint64(len(events) - i))
			return
		}
		l.b.stats.delivered.Add(1)
		ev, err := decodeEvent(sender, data)
		if err != nil {
			l.b.stats.malformed.Add(1)
			l.b.log.Debug("an event that cannot be decoded", "sender", sender, "error", err)
			continue
		}
		l.b.mux.dispatch(ctx, ev)
	}
}

// close drops what waits.
func (l *backlog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, q := range l.queues {
		for _, item := range q.items {
			l.b.stats.overrun.Add(uint64(len(item.events)))
		}
	}
	clear(l.queues)
	l.ready = nil
}
