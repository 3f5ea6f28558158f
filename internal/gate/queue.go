package gate

import (
	"sync"
	"time"
)

// An rpcQueue holds the RPCs that wait to be written to one peer. It decides which RPCs
// wait, which are dropped, and when the peer is stalled. It performs no I/O and reads no
// clock. One goroutine at a time may use it.
//
// A peer is stalled when it has accepted no bytes for the timeout while RPCs were queued.
// From then on messages for it are dropped at once, until the queue is half empty.
// Announcements of topics are not dropped: the latest one of each topic is kept in aside,
// and is sent when the stall is over.
type rpcQueue struct {
	max     int           // the number of bytes that may be queued; one more RPC may exceed it
	timeout time.Duration // a peer that accepts nothing for this time is stalled

	// The RPCs.
	chunks [][]byte // the queued RPCs, in order; a chunk has one or more whole RPCs
	sent   int      // the number of bytes of chunks[0] that were written to the peer
	size   int      // the memory of all chunks, in bytes

	// The stall.
	progress time.Time // when the peer last accepted bytes, or when the queue was last empty and became non-empty
	stalled  bool
	skipped  bool              // AwaitRoom ignores this peer until the queue is empty
	aside    map[string][]byte // for each topic, the last announcement (an encoded SubOpts) that was not sent because the peer was stalled

	// Counters since the writeStream last reset them.
	dropped uint64 // messages
	stalls  uint64
}

// chunkSize is the size in bytes of the buffer that several small RPCs share. The libp2p
// layers below (yamux, noise) send at least that much in one piece.
const chunkSize = 32 << 10

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// A decision says what is to be done with an RPC that pubsub wants to send.
type decision int

const (
	accepted decision = iota // write the RPC, or push it
	dropped                  // the RPC was dropped and counted
	full                     // wait for space in the queue, until stallsAt at the latest
)

// decide decides what to do with rpc, which pubsub wants to send at the time now. If it
// drops rpc, it counts that.
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

// stallsAt returns the time at which the peer will be stalled if it accepts no bytes
// before.
func (q *rpcQueue) stallsAt() time.Time { return q.progress.Add(q.timeout) }

// detectStall makes the peer stalled if it has accepted no bytes for the timeout of the
// queue.
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

// drop counts the messages of an RPC that will not be written, and keeps its announcements
// of topics in aside.
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

// crowded reports whether the queue is more than half full. The queue of a peer that keeps
// up is not.
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
			chunk = make([]byte, 0, len(rpc)) // in a shared chunk, rpc would leave too much memory unused
		} else {
			chunk = chunkPool.Get().(*[chunkSize]byte)[:0]
		}
		q.chunks = append(q.chunks, chunk)
		q.size += cap(chunk)
		last++
	}
	q.chunks[last] = append(q.chunks[last], rpc...)
}

// head returns the bytes to write next. They stay valid until all of them are written, even
// if more RPCs are pushed meanwhile.
func (q *rpcQueue) head() []byte { return q.chunks[0][q.sent:] }

// written removes the first n bytes of head, which were written to the peer. n is 0 if a
// write timed out; then written checks whether the peer is stalled now.
func (q *rpcQueue) written(n int, now time.Time) {
	if n == 0 {
		q.detectStall(now)
		return
	}
	q.progress = now
	q.remove(n)
	// The stall ends only when half the queue is free. If it ended earlier, the next
	// RPCs would fill the queue and start another stall.
	if q.stalled && !q.crowded() {
		q.endStall(now)
	}
}

// endStall ends a stall, and queues the announcements of topics that were kept in aside.
func (q *rpcQueue) endStall(now time.Time) {
	q.stalled = false
	if rpc := announcement(q.aside); rpc != nil {
		q.push(rpc, now)
	}
	q.aside = nil
}

// remove removes n bytes from the beginning of the first chunk. A chunk is removed when all
// its bytes are.
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

// dropPartial drops the first RPC if a part of it was written. It is called when the carrier
// (the libp2p stream) has broken: the rest alone would be useless on the next carrier, and the
// whole RPC may be what broke the old one. The RPCs behind it go to the next carrier.
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
	// The announcements in this RPC need not be kept: aside has newer ones, and the next
	// carrier begins with an announcement of all topics.
	_, messages := inspect(q.chunks[0][begin:end])
	q.dropped += uint64(messages)
	q.remove(end - q.sent)
	// A stall normally ends when the peer accepts bytes. The queue has none left, so
	// the stall ends here.
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
