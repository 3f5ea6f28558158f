// Package fair shares a bounded number of goroutines among many senders.
package fair

import (
	"context"
	"iter"
	"sync"
)

// A Backlog holds the waiting work of one sender.
type Backlog interface {
	// Empty reports whether nothing waits. The scheduler calls it with its mutex.
	Empty() bool
}

// A Scheduler serves many senders, each of which has a queue of type Q under a key of
// type K. The work of one sender is done in order, one turn after another; senders
// take turns, so that one with much work does not keep others waiting. Turns run on
// goroutines that end when there is no work.
//
// The caller owns the queues and the mutex that guards them. All methods need it.
type Scheduler[K comparable, Q Backlog] struct {
	mu      sync.Locker
	cfg     Config[K, Q]
	queues  map[K]Q // of senders that wait or have their turn
	ready   []K     // senders that wait for a goroutine
	workers int
	closed  bool
}

// Config configures a [Scheduler]. All fields are required.
type Config[K comparable, Q Backlog] struct {
	// MaxWorkers bounds the goroutines; beyond it senders wait.
	MaxWorkers int
	// Go calls work on a new goroutine. The context is handed on to Turn. It is
	// called with the mutex.
	Go func(work func(context.Context))
	// Turn takes some work of one sender from the queue, and does it. It is called
	// without the mutex, and never twice at a time for one sender. It may call
	// runtime.Goexit; the sender gets its next turn on another goroutine.
	Turn func(ctx context.Context, sender K, q Q)
}

// New returns a Scheduler of queues that mu guards.
func New[K comparable, Q Backlog](mu sync.Locker, cfg Config[K, Q]) *Scheduler[K, Q] {
	return &Scheduler[K, Q]{mu: mu, cfg: cfg, queues: make(map[K]Q)}
}

// Queue returns the queue of a sender that waits or has its turn, to which work may be
// added, and false for any other sender.
func (s *Scheduler[K, Q]) Queue(sender K) (Q, bool) {
	q, ok := s.queues[sender]
	return q, ok
}

// Add begins to serve a sender that has no queue yet. After Close it does nothing.
func (s *Scheduler[K, Q]) Add(sender K, q Q) {
	if s.closed {
		return
	}
	s.queues[sender] = q
	s.ready = append(s.ready, sender)
	s.startWorker()
}

func (s *Scheduler[K, Q]) startWorker() {
	if s.workers < s.cfg.MaxWorkers {
		s.workers++
		s.cfg.Go(s.work)
	}
}

// Len returns how many senders have a queue.
func (s *Scheduler[K, Q]) Len() int { return len(s.queues) }

// All returns the senders that have a queue, in no particular order.
func (s *Scheduler[K, Q]) All() iter.Seq2[K, Q] {
	return func(yield func(K, Q) bool) {
		for sender, q := range s.queues {
			if !yield(sender, q) {
				return
			}
		}
	}
}

// Close drops all queues. The goroutines end after their turns; Close does not wait
// for them.
func (s *Scheduler[K, Q]) Close() {
	s.closed = true
	clear(s.queues)
	s.ready = nil
}

// Closed reports whether Close was called.
func (s *Scheduler[K, Q]) Closed() bool { return s.closed }

// work gives turns until nobody waits for one.
func (s *Scheduler[K, Q]) work(ctx context.Context) {
	s.mu.Lock()
	defer func() {
		s.workers--
		if len(s.ready) > 0 { // Turn has ended this goroutine with runtime.Goexit
			s.startWorker()
		}
		s.mu.Unlock()
	}()
	for len(s.ready) > 0 {
		sender := s.ready[0]
		clear(s.ready[:1]) // so that the array does not keep it alive
		s.ready = s.ready[1:]
		s.turn(ctx, sender, s.queues[sender])
	}
}

// turn calls Turn without the mutex, and then lets the sender wait for its next turn.
// It does so even if Turn ends the goroutine.
func (s *Scheduler[K, Q]) turn(ctx context.Context, sender K, q Q) {
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		switch {
		case s.closed:
			// The queue is dropped, and with it the next turn.
		case q.Empty():
			delete(s.queues, sender) // a silent sender costs nothing
		default:
			s.ready = append(s.ready, sender) // behind the senders that wait already
		}
	}()
	s.cfg.Turn(ctx, sender, q)
}
