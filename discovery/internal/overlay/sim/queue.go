package sim

import (
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// A kind says what an event is.
type kind uint8

const (
	nodeStart      kind = iota // node begins
	timerDue                   // node's state machine wanted to be called
	watchdogDue                // node's watchdog wanted to be called
	messageArrival             // a message of peer is at node, over conn
	dialEnd                    // node's dial has ended
	connClosed                 // node hears that peer has closed conn
	connTimedOut               // conn has been cut, or its peer silent, for too long
	resendDue                  // node sends again what was lost on conn
	topicUpdate                // node hears whether peer is on the topic
	lateDeliveries             // node, which is slow, looks at what has come
	script                     // a fault, or another part of the plot
)

// An event happens to node, if that is still in the life it was meant for.
type event struct {
	kind        kind
	node        int32
	peer        int32
	incarnation uint32
	conn        *conn
	dial        *dial
	msg         overlay.Message
	do          func()
}

// A queue holds the events to come. It is a heap of four children a node, which
// has no pointers in it, so that the collector need not look at it; the events
// themselves stay where they are. Of two events at one time the first added
// comes first.
type queue struct {
	heap   []key
	events []event
	free   []int32
	added  uint64
}

type key struct {
	at   time.Duration
	n    uint64
	slot int32
}

func (k key) before(x key) bool { return k.at < x.at || k.at == x.at && k.n < x.n }

func (q *queue) push(at time.Duration, e event) {
	var slot int32
	if last := len(q.free) - 1; last >= 0 {
		slot, q.free = q.free[last], q.free[:last]
		q.events[slot] = e
	} else {
		slot = int32(len(q.events))
		q.events = append(q.events, e)
	}
	q.added++
	k := key{at, q.added, slot}
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

// nextTime returns when the first event is.
func (q *queue) nextTime() (time.Duration, bool) {
	if len(q.heap) == 0 {
		return 0, false
	}
	return q.heap[0].at, true
}

// pop removes the first event.
func (q *queue) pop() event {
	slot := q.heap[0].slot
	e := q.events[slot]
	q.events[slot] = event{}
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
