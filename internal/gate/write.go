package gate

import (
	"context"
	"errors"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
)

// directAfter is how long nothing was written before an RPC is written without a
// goroutine in between. When RPCs follow faster, those that gather during one write go
// out with the next.
const directAfter = time.Millisecond

// Write sends one RPC, or queues it for the writer. When the queue is full it waits for
// space while the peer reads, but at most as long as SetWriteDeadline allowed, and not
// at all for a guest. After that, or when the peer is stalled, the RPC is dropped and
// counted, and Write succeeds. An RPC that is partly written when a carrier breaks is
// dropped as well; those behind it go to the next carrier. Only the end of the stream is
// an error.
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
		// Pubsub queues without bound in front of the gate, so a guest may not make it
		// wait.
		if o.guest.Load() {
			o.queue.stall()
			continue
		}
		until := o.queue.stallsAt()
		if o.timeout > 0 {
			limit := start.Add(o.timeout)
			if !now.Before(limit) {
				o.queue.stall() // it reads, but too slowly
				continue
			}
			if limit.Before(until) {
				until = limit
			}
		}
		ctx, cancel := context.WithDeadline(context.Background(), until)
		o.changed.Wait(ctx, &o.mu) // the loop looks at the clock
		cancel()
	}
}

// sendLocked writes an RPC now if nothing else is being written, and otherwise queues it
// for the writer.
func (o *writeStream) sendLocked(rpc []byte, now time.Time) {
	if o.writing {
		o.queue.push(rpc, now)
		return
	}
	o.writing = true
	c := o.carrier
	// Others are likely to follow, so they are gathered.
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

// writeDirectly writes rpc for as long as each write succeeds in full.
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

// write is the writer. It returns when the queue is empty. c is the carrier that has
// begun with the first RPC of the queue.
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
			o.changed.Wait(context.Background(), &o.mu) // end and openCarrier change it
			continue
		}
		b := o.queue.head()
		o.mu.Unlock()
		n, err := c.writer.Write(b, o.writeTimeout())
		o.mu.Lock()
		o.queue.written(n, time.Now())
		// After a timeout the carrier is intact; the queue notices when it is a stall.
		if err != nil && !errors.Is(err, deadline.ErrTimeout) {
			o.dropCarrierLocked(c)
		}
		o.reportCountsLocked()
		o.changed.Broadcast()
	}
	o.endWritingLocked()
}

// endWritingLocked ends the writing that sendLocked has begun.
func (o *writeStream) endWritingLocked() {
	o.writing = false
	o.wrote = time.Now()
	if o.ended {
		o.finishLocked()
	}
}

// finishLocked is called once, when the stream has ended and nothing is being written.
func (o *writeStream) finishLocked() {
	o.queue.clear(time.Now())
	o.reportCountsLocked()
	o.gate.tasks.Done()
}

// reportCountsLocked adds the queue's counters to the gate's.
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

// writeTimeout is how long a write may take until the queue looks for a stall.
func (o *writeStream) writeTimeout() time.Duration { return o.gate.cfg.StallTimeout / 8 }
