package gate

import (
	"sync"
	"time"
)

// An outbox holds the RPCs that wait to be written to one peer. It decides
// which wait, which are dropped, and when the peer is stalled. It performs no
// I/O and reads no clock; one goroutine at a time may use it.
//
// A peer is stalled when it has taken nothing for the timeout while something
// waited. From then on messages are dropped at once, until it has taken half of
// what may wait. Announcements of topics are not dropped: of each topic the
// latest waits aside and goes out when the stall is over.
type outbox struct {
	max     int           // bytes that may wait, and one RPC more
	timeout time.Duration // without progress until the peer is stalled

	chunks  [][]byte // whole RPCs, in order
	sent    int      // bytes of the first chunk that were taken
	size    int      // memory of the chunks
	since   time.Time
	stalled bool
	slow    bool              // it was waited for in vain, and was not empty since
	late    map[string][]byte // SubOpts that a stalled peer has missed

	dropped uint64 // messages
	stalls  uint64
}

// chunkSize is the memory that small RPCs share. It is less than what yamux
// and noise send in one piece.
const chunkSize = 32 << 10

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// A verdict says what becomes of an RPC.
type verdict int

const (
	accepted verdict = iota // it may be written, or added
	dropped                 // it will not be written
	full                    // it has to wait for room, but not beyond overdue
)

// judge says what becomes of an RPC that pubsub wants to send.
func (b *outbox) judge(rpc []byte, now time.Time) verdict {
	switch b.check(now); {
	case b.stalled:
		b.drop(rpc)
		return dropped
	case b.size >= b.max:
		return full
	}
	return accepted
}

// overdue returns when the peer is stalled unless it takes something before.
func (b *outbox) overdue() time.Time { return b.since.Add(b.timeout) }

// check notices that the peer has taken nothing for the timeout.
func (b *outbox) check(now time.Time) {
	if !b.stalled && !b.empty() && !now.Before(b.overdue()) {
		b.stall()
	}
}

// stall declares the peer stalled.
func (b *outbox) stall() {
	b.stalled = true
	b.stalls++
}

// drop drops an RPC, but for what it announces.
func (b *outbox) drop(rpc []byte) {
	subs, messages := inspect(rpc)
	b.dropped += uint64(messages)
	for _, sub := range subs {
		if b.late == nil {
			b.late = make(map[string][]byte)
		}
		b.late[sub.topic] = append([]byte(nil), sub.raw...)
	}
}

func (b *outbox) empty() bool { return len(b.chunks) == 0 }

// crowded reports whether more waits than a peer that gets on leaves waiting.
func (b *outbox) crowded() bool { return b.size > b.max/2 }

// add appends a copy of an RPC.
func (b *outbox) add(rpc []byte, now time.Time) {
	if b.empty() {
		b.since, b.slow = now, false
	}
	last := len(b.chunks) - 1
	if last < 0 || cap(b.chunks[last])-len(b.chunks[last]) < len(rpc) {
		var chunk []byte
		if len(rpc) > chunkSize/4 {
			chunk = make([]byte, 0, len(rpc)) // sharing would waste more
		} else {
			chunk = chunkPool.Get().(*[chunkSize]byte)[:0]
		}
		b.chunks = append(b.chunks, chunk)
		b.size += cap(chunk)
		last++
	}
	b.chunks[last] = append(b.chunks[last], rpc...)
}

// next returns what to write next. It stays valid until took is told that all
// of it was taken, also while more is added behind it.
func (b *outbox) next() []byte { return b.chunks[0][b.sent:] }

// took notes that the peer took n bytes of next.
func (b *outbox) took(n int, now time.Time) {
	if n == 0 {
		b.check(now)
		return
	}
	b.since = now
	b.skip(n)
	if b.stalled && !b.crowded() {
		b.resume(now)
	}
}

// resume ends a stall.
func (b *outbox) resume(now time.Time) {
	b.stalled = false
	if rpc := announcing(b.late); rpc != nil {
		b.add(rpc, now)
	}
	b.late = nil
}

// skip takes n bytes away.
func (b *outbox) skip(n int) {
	b.sent += n
	if b.sent < len(b.chunks[0]) {
		return
	}
	b.size -= cap(b.chunks[0])
	if cap(b.chunks[0]) == chunkSize {
		chunkPool.Put((*[chunkSize]byte)(b.chunks[0][:chunkSize]))
	}
	b.chunks[0] = nil
	b.chunks, b.sent = b.chunks[1:], 0
}

// cut tells that the stream which took part of the first RPC is gone. The rest
// alone is of no use, and the whole may be why the stream broke, so it is
// dropped; those behind it go to the next stream. If there are none, that ends a stall:
// nothing is left that the peer could take.
func (b *outbox) cut(now time.Time) {
	if b.sent == 0 {
		return
	}
	begin, end := 0, 0
	for end < b.sent {
		begin = end
		end += frameEnd(b.chunks[0][end:])
	}
	if end == b.sent {
		return
	}
	// What it announces is older than what is late, and the next stream begins with
	// all that is announced.
	_, messages := inspect(b.chunks[0][begin:end])
	b.dropped += uint64(messages)
	b.skip(end - b.sent)
	if b.stalled && b.empty() {
		b.resume(now)
	}
}

// clear drops all that waits.
func (b *outbox) clear(now time.Time) {
	b.cut(now)
	for !b.empty() {
		end := frameEnd(b.next())
		b.drop(b.next()[:end])
		b.skip(end)
	}
	b.late = nil
}
