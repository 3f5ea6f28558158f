package gate

import (
	"context"
	"errors"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
)

// directAfter decides how an RPC is written. If the last write ended at least directAfter ago,
// the goroutine that calls Write writes the RPC itself. Otherwise the RPC is queued for the
// writer goroutine, which sends all RPCs that were queued during one write with its next write.
const directAfter = time.Millisecond

// Write sends one RPC, or queues it for the writer goroutine. If the queue is full, Write
// waits for space, at most until the peer is stalled or the time set by SetWriteDeadline is
// over; for a guest it does not wait. If there is still no space, or if the peer is stalled
// already, the RPC is dropped and counted, and Write succeeds. If a carrier breaks, its partly
// written RPC is dropped, and the RPCs behind it go to the next carrier. Write fails only if
// the writeStream has ended.
func (o *writeStream) Write(rpc []byte) (int, error) {
	start := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.reportCountsLocked()
	o.recordTopicsLocked(rpc)
	for now := start; ; now = time.Now() {
		if o.ended {
			o.queue.drop(rpc)
			return 0, errEnded
		}
		switch o.queue.decide(rpc, now) {
		case dropped:
			return len(rpc), nil
		case accepted:
			o.sendLocked(rpc, now)
			return len(rpc), nil
		}
		// While Write waits, pubsub queues messages for the peer without a limit. So Write
		// does not wait for a guest.
		if o.guest.Load() {
			o.queue.stall()
			continue
		}
		until := o.queue.stallsAt()
		if o.timeout > 0 {
			limit := start.Add(o.timeout)
			if !now.Before(limit) {
				o.queue.stall() // the peer reads, but too slowly
				continue
			}
			if limit.Before(until) {
				until = limit
			}
		}
		ctx, cancel := context.WithDeadline(context.Background(), until)
		o.changed.Wait(ctx, &o.mu) // if the wait times out, the next call of decide finds that the peer is stalled
		cancel()
	}
}

// sendLocked writes rpc now if no goroutine is writing and the last write is not too
// recent. Otherwise it queues rpc for the writer goroutine.
func (o *writeStream) sendLocked(rpc []byte, now time.Time) {
	if o.writing {
		o.queue.push(rpc, now)
		return
	}
	o.writing = true
	c := o.carrier
	// If the last write is recent, more RPCs are likely to follow soon, so rpc is
	// queued and written together with them. If there is no libp2p stream now, rpc is
	// queued for the next one.
	if c == nil || now.Sub(o.wrote) < directAfter {
		o.queue.push(rpc, now)
		go o.write(c)
		return
	}
	o.mu.Unlock()
	sent, err := o.writeDirectly(c, rpc)
	o.mu.Lock()
	if err != nil {
		o.dropCarrierLocked(c)
	}
	if sent < len(rpc) {
		o.queue.push(rpc, now)
		o.queue.written(sent, time.Now())
		go o.write(c)
		return
	}
	o.endWritingLocked()
}

// writeDirectly writes rpc to c and returns the number of bytes written. It stops early if
// a write fails, and also if a write times out, which is not an error here.
func (o *writeStream) writeDirectly(c *carrier, rpc []byte) (sent int, err error) {
	for sent < len(rpc) {
		n, err := c.writer.Write(rpc[sent:], o.writeTimeout())
		sent += n
		switch {
		case errors.Is(err, deadline.ErrTimeout):
			return sent, nil
		case err != nil:
			return sent, err
		}
	}
	return sent, nil
}

// write is the writer goroutine: it writes the queued RPCs and returns when the queue is
// empty. c is the libp2p stream to which a part of the first RPC may have been written
// already.
func (o *writeStream) write(c *carrier) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.ended && !o.queue.empty() {
		switch {
		case o.carrier != c: // the old one broke
			o.queue.dropPartial(time.Now())
			c = o.carrier
			continue
		case c == nil:
			o.changed.Wait(context.Background(), &o.mu) // endForPubSub or openCarrier wakes it
			continue
		}
		b := o.queue.head()
		o.mu.Unlock()
		n, err := c.writer.Write(b, o.writeTimeout())
		o.mu.Lock()
		o.queue.written(n, time.Now())
		// A timeout does not mean that the libp2p stream broke: the peer may be
		// slow. The queue decides when the peer is stalled.
		if err != nil && !errors.Is(err, deadline.ErrTimeout) {
			o.dropCarrierLocked(c)
		}
		o.reportCountsLocked()
		o.changed.Broadcast()
	}
	o.endWritingLocked()
}

// endWritingLocked records that no goroutine is writing to the peer any more.
func (o *writeStream) endWritingLocked() {
	o.writing = false
	o.wrote = time.Now()
	if o.ended {
		o.finishLocked()
	}
}

// finishLocked drops the queued RPCs and ends the gate's task for this stream. It is called
// once, when the writeStream has ended and no goroutine is writing.
func (o *writeStream) finishLocked() {
	o.queue.clear(time.Now())
	o.reportCountsLocked()
	o.gate.tasks.Done()
}

// reportCountsLocked adds the counters of the queue to those of the gate, and sets the
// counters of the queue to zero.
func (o *writeStream) reportCountsLocked() {
	if o.queue.dropped > 0 {
		o.gate.dropped.Add(o.queue.dropped)
		o.queue.dropped = 0
	}
	if o.queue.stalls > 0 {
		o.gate.stalls.Add(o.queue.stalls)
		o.queue.stalls = 0
		o.gate.log.Info("a peer does not read; messages for it are dropped until it does", "peer", o.peer, "waiting", o.queue.size)
	}
}

// writeTimeout returns how long one write to the carrier may take. After each write, the
// queue checks whether the peer is stalled.
func (o *writeStream) writeTimeout() time.Duration { return o.gate.cfg.StallTimeout / 8 }
