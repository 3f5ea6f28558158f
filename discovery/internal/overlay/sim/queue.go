package sim

import (
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// An eventKind is the kind of a simEvent.
type eventKind uint8

const (
	nodeStart      eventKind = iota // the node starts
	timerDue                        // the state machine of the node wanted a Tick at the time of the event
	watchdogDue                     // the watchdog of the node wanted to be called at the time of the event
	messageArrival                  // a message from the peer arrives at the node
	dialEnd                         // a dial of the node has ended
	connClosed                      // the node notices that the peer has closed a connection
	connTimedOut                    // a connection had no answer for too long
	resendDue                       // the node sends lost messages again
	topicUpdate                     // the node may see that the peer joined or left the pubsub topic
	lateDeliveries                  // the node, which is slow, handles the messages and other inputs that wait for it
	script                          // the simulator calls the function do of the event: a fault, or another step of the case
)

// A simEvent is something that happens to a node. Some kinds of events have no effect if the
// node was restarted after the event was scheduled, which shows in the number incarnation.
type simEvent struct {
	kind        eventKind
	node        int32
	peer        int32
	incarnation uint32
	conn        *conn
	dial        *dial
	msg         overlay.Message
	do          func()
}

// A queue holds the future events in the order of their times. Of two events with the same
// time, the one that was added first comes first. It is a heap with four children per
// element. The heap holds slots, not pointers, so the garbage collector skips it and the
// events themselves never move.
type queue struct {
	heap   []eventKey
	events []simEvent
	free   []int32
	added  uint64
}

type eventKey struct {
	at   time.Duration
	n    uint64
	slot int32
}

func (k eventKey) before(x eventKey) bool { return k.at < x.at || k.at == x.at && k.n < x.n }

func (q *queue) push(at time.Duration, e simEvent) {
	var slot int32
	if last := len(q.free) - 1; last >= 0 {
		slot, q.free = q.free[last], q.free[:last]
		q.events[slot] = e
	} else {
		slot = int32(len(q.events))
		q.events = append(q.events, e)
	}
	q.added++
	k := eventKey{at, q.added, slot}
	q.heap = append(q.heap, k)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !k.before(q.heap[up]) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = k
}

// nextTime returns the time of the first event in the queue. It reports false if the queue is
// empty.
func (q *queue) nextTime() (time.Duration, bool) {
	if len(q.heap) == 0 {
		return 0, false
	}
	return q.heap[0].at, true
}

// pop removes and returns the first event.
func (q *queue) pop() simEvent {
	slot := q.heap[0].slot
	e := q.events[slot]
	q.events[slot] = simEvent{}
	q.free = append(q.free, slot)

	last := len(q.heap) - 1
	k := q.heap[last]
	q.heap = q.heap[:last]
	if last == 0 {
		return e
	}
	i := 0
	for {
		first := 4*i + 1
		if first >= last {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, last); c++ {
			if q.heap[c].before(q.heap[least]) {
				least = c
			}
		}
		if !q.heap[least].before(k) {
			break
		}
		q.heap[i] = q.heap[least]
		i = least
	}
	q.heap[i] = k
	return e
}
