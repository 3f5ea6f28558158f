package gate

import (
	"sync"
	"time"
)

// An rpcQueue holds the RPCs that wait to be written to one peer. It decides which of
// them wait, which are dropped, and when the peer is stalled. It performs no I/O and
// reads no clock. One goroutine at a time may use it.
//
// A peer is stalled when it has accepted nothing for the timeout while something
// waited. From then on messages are dropped at once, until the queue is half empty.
// Announcements of topics are not dropped: the latest one of each topic is set aside,
// and is sent when the stall is over.
type rpcQueue struct {
	max     int           // bytes that may wait, plus one RPC
	timeout time.Duration // without progress until the peer is stalled

	// The RPCs.
	chunks [][]byte // whole RPCs, in order
	sent   int      // bytes of the first chunk that were written
	size   int      // memory of the chunks

	// The stall.
	progress time.Time // when the peer last accepted something, or the queue became non-empty
	stalled  bool
	skipped  bool              // AwaitRoom skips the peer until the queue is empty
	aside    map[string][]byte // SubOpts that a stalled peer has missed, by topic

	// Counters, which the owner resets.
	dropped uint64 // messages
	stalls  uint64
}

// chunkSize is the memory that small RPCs share. It is less than yamux and noise send
// in one piece.
const chunkSize = 32 << 10

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// A decision says what happens to an RPC.
type decision int

const (
	accepted decision = iota // it may be written, or pushed
	dropped                  // it will not be written
	full                     // it has to wait for space, but not beyond stallsAt
)

// decide decides about an RPC that pubsub wants to send, and counts it if it is dropped.
func (q *rpcQueue) decide(rpc []byte, now time.Time) decision {
	q.detectStall(now)
	switch {
	case q.stalled:
		q.drop(rpc)
		return dropped
	case q.size >= q.max:
		return full
	}
	return accepted
}

// stallsAt returns when the peer is stalled unless it accepts something before.
func (q *rpcQueue) stallsAt() time.Time { return q.progress.Add(q.timeout) }

// detectStall declares the peer stalled if it has accepted nothing for the timeout.
func (q *rpcQueue) detectStall(now time.Time) {
	if !q.stalled && !q.empty() && !now.Before(q.stallsAt()) {
		q.stall()
	}
}

// stall declares the peer stalled.
func (q *rpcQueue) stall() {
	q.stalled = true
	q.stalls++
}

// drop counts the messages of an RPC that is not written, and sets its announcements
// aside.
func (q *rpcQueue) drop(rpc []byte) {
	subs, messages := inspect(rpc)
	q.dropped += uint64(messages)
	for _, sub := range subs {
		if q.aside == nil {
			q.aside = make(map[string][]byte)
		}
		q.aside[sub.topic] = append([]byte(nil), sub.raw...)
	}
}

func (q *rpcQueue) empty() bool { return len(q.chunks) == 0 }

// crowded reports whether more is waiting than for a peer that keeps up.
func (q *rpcQueue) crowded() bool { return q.size > q.max/2 }

// push appends a copy of an RPC.
func (q *rpcQueue) push(rpc []byte, now time.Time) {
	if q.empty() {
		q.progress, q.skipped = now, false
	}
	last := len(q.chunks) - 1
	if last < 0 || cap(q.chunks[last])-len(q.chunks[last]) < len(rpc) {
		var chunk []byte
		if len(rpc) > chunkSize/4 {
			chunk = make([]byte, 0, len(rpc)) // a shared chunk would waste more
		} else {
			chunk = chunkPool.Get().(*[chunkSize]byte)[:0]
		}
		q.chunks = append(q.chunks, chunk)
		q.size += cap(chunk)
		last++
	}
	q.chunks[last] = append(q.chunks[last], rpc...)
}

// head returns the bytes to write next. They stay valid until all of them are written,
// also while more is pushed.
func (q *rpcQueue) head() []byte { return q.chunks[0][q.sent:] }

// written removes n bytes of head, which the peer has accepted.
func (q *rpcQueue) written(n int, now time.Time) {
	if n == 0 {
		q.detectStall(now)
		return
	}
	q.progress = now
	q.remove(n)
	// Half a queue must be free, or the next RPC would be the next stall.
	if q.stalled && !q.crowded() {
		q.endStall(now)
	}
}

// endStall ends a stall, and queues the announcements that were set aside.
func (q *rpcQueue) endStall(now time.Time) {
	q.stalled = false
	if rpc := announcement(q.aside); rpc != nil {
		q.push(rpc, now)
	}
	q.aside = nil
}

// remove removes n bytes of the first chunk.
func (q *rpcQueue) remove(n int) {
	q.sent += n
	if q.sent < len(q.chunks[0]) {
		return
	}
	q.size -= cap(q.chunks[0])
	if cap(q.chunks[0]) == chunkSize {
		chunkPool.Put((*[chunkSize]byte)(q.chunks[0][:chunkSize]))
	}
	q.chunks[0] = nil
	q.chunks, q.sent = q.chunks[1:], 0
}

// dropPartial drops the first RPC if the carrier that accepted a part of it is gone. The
// rest of it alone is useless, and the whole may be why the carrier broke. The RPCs
// behind it go to the next carrier.
func (q *rpcQueue) dropPartial(now time.Time) {
	if q.sent == 0 {
		return
	}
	begin, end := 0, 0
	for end < q.sent {
		begin = end
		end += frameEnd(q.chunks[0][end:])
	}
	if end == q.sent {
		return // the carrier broke between two RPCs
	}
	// Its announcements are not set aside: those that are there are newer, and the next
	// carrier begins with all topics.
	_, messages := inspect(q.chunks[0][begin:end])
	q.dropped += uint64(messages)
	q.remove(end - q.sent)
	// Nothing is left that the peer could accept to end the stall.
	if q.stalled && q.empty() {
		q.endStall(now)
	}
}

// clear drops all RPCs.
func (q *rpcQueue) clear(now time.Time) {
	q.dropPartial(now)
	for !q.empty() {
		end := frameEnd(q.head())
		q.drop(q.head()[:end])
		q.remove(end)
	}
	q.aside = nil
}
