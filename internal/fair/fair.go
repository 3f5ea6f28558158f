// Package fair processes the work of many senders on a limited number of goroutines, so that
// no sender keeps the others waiting.
package fair

import (
	"context"
	"iter"
	"sync"
)

// A Backlog is a queue with the work of one sender that is still to be done.
type Backlog interface {
	// Empty reports whether the queue is empty. The scheduler holds its mutex when it calls
	// Empty.
	Empty() bool
}

// A Scheduler does the work of many senders. Each sender has a key of type K and a queue of
// type Q. The work of one sender is done in order, a part of it in each turn. Senders take
// turns, so that a sender with much work does not keep others waiting. Turns run on
// goroutines that end when there is no work.
//
// The caller owns the queues and the mutex that guards them, and holds it when it calls a
// method.
type Scheduler[K comparable, Q Backlog] struct {
	mu      sync.Locker
	cfg     Config[K, Q]
	queues  map[K]Q // the queues of the senders that wait for a turn or have one now
	ready   []K     // the senders that wait for a turn, in order
	workers int
	closed  bool
}

// Config configures a [Scheduler]. All fields are required.
type Config[K comparable, Q Backlog] struct {
	// MaxWorkers is the largest number of goroutines. If all are busy, senders wait.
	MaxWorkers int
	// Go starts a goroutine that calls work. It chooses the context, which is passed to
	// Turn. The scheduler holds the mutex when it calls Go.
	Go func(work func(context.Context))
	// Turn removes some work of one sender from its queue, and does it. The scheduler does
	// not hold the mutex when it calls Turn, and makes only one call at a time for one
	// sender. Turn may end its goroutine with runtime.Goexit; the sender then gets its next
	// turn on another goroutine.
	Turn func(ctx context.Context, sender K, q Q)
}

// New returns a Scheduler. mu is the mutex that guards the queues.
func New[K comparable, Q Backlog](mu sync.Locker, cfg Config[K, Q]) *Scheduler[K, Q] {
	return &Scheduler[K, Q]{mu: mu, cfg: cfg, queues: make(map[K]Q)}
}

// Queue returns the queue of a sender that waits for a turn or has one now. The caller may add
// work to it. For any other sender Queue returns false.
func (s *Scheduler[K, Q]) Queue(sender K) (Q, bool) {
	q, ok := s.queues[sender]
	return q, ok
}

// Add adds a sender that has no queue yet, with its queue. After Close it does nothing.
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

// Len returns the number of senders that have a queue.
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

// Close drops all queues. Each goroutine ends after its current turn. Close does not wait for
// that.
func (s *Scheduler[K, Q]) Close() {
	s.closed = true
	clear(s.queues)
	s.ready = nil
}

// Closed reports whether Close was called.
func (s *Scheduler[K, Q]) Closed() bool { return s.closed }

// work is one of the goroutines. It gives turns to senders until none waits for one.
func (s *Scheduler[K, Q]) work(ctx context.Context) {
	s.mu.Lock()
	defer func() {
		s.workers--
		if len(s.ready) > 0 { // true only if Turn has ended this goroutine with runtime.Goexit
			s.startWorker()
		}
		s.mu.Unlock()
	}()
	for len(s.ready) > 0 {
		sender := s.ready[0]
		clear(s.ready[:1]) // so that the array does not keep the sender in memory
		s.ready = s.ready[1:]
		s.turn(ctx, sender, s.queues[sender])
	}
}

// turn calls Turn without the mutex. If the sender has more work then, it waits for its next
// turn, even if Turn has ended the goroutine.
func (s *Scheduler[K, Q]) turn(ctx context.Context, sender K, q Q) {
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		switch {
		case s.closed:
			// Close has dropped the queue, so the sender gets no further turn.
		case q.Empty():
			delete(s.queues, sender) // a sender without work uses no memory
		default:
			s.ready = append(s.ready, sender) // after the senders that wait already
		}
	}()
	s.cfg.Turn(ctx, sender, q)
}
