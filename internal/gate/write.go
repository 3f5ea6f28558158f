package gate

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

const (
	// loneAfter is how long nothing was written before an RPC that is written
	// without a goroutine in between. When they come faster, what gathers
	// during one write goes out with the next.
	loneAfter = time.Millisecond
	// writeChunk is the most that is given to a stream at once, so that a
	// long write is seen to make progress.
	writeChunk = 64 << 10
)

// Write sends one RPC, or leaves it to the writer. It waits for room while the
// peer takes something, but at most as long as SetWriteDeadline allowed, and not at
// all for a guest; then,
// as when the peer is stalled, the RPC is dropped, counted, and Write succeeds.
// An RPC that is begun when a stream breaks is dropped as well; those behind it
// go to the next stream. Only the end of the stream is an error.
func (o *outStream) Write(rpc []byte) (int, error) {
	start := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.count()
	o.note(rpc)
	for now := start; ; now = time.Now() {
		if o.ended {
			o.box.drop(rpc)
			return 0, errEnded
		}
		switch o.box.judge(rpc, now) {
		case dropped:
			return len(rpc), nil
		case accepted:
			o.send(rpc, now)
			return len(rpc), nil
		}
		if o.guest.Load() {
			// What waits before the gate has no bound.
			o.box.stall()
			continue
		}
		until := o.box.overdue()
		if o.timeout > 0 {
			limit := start.Add(o.timeout)
			if !now.Before(limit) {
				o.box.stall() // it is too slow for what is sent to it
				continue
			}
			if limit.Before(until) {
				until = limit
			}
		}
		o.wait(until)
	}
}

// send writes an RPC now if nothing else is being written, and otherwise adds
// it to what the writer writes. It needs mu, as all below.
func (o *outStream) send(rpc []byte, now time.Time) {
	if o.writing {
		o.box.add(rpc, now)
		return
	}
	o.writing = true
	c := o.carrier
	if c == nil || now.Sub(o.wrote) < loneAfter {
		o.box.add(rpc, now)
		go o.write(c)
		return
	}
	o.mu.Unlock()
	sent, err := 0, error(nil)
	for more := true; more; {
		var n int
		n, err = c.put(rpc[sent:], o.slice())
		sent += n
		more = err == nil && n == writeChunk && sent < len(rpc)
	}
	o.mu.Lock()
	if err != nil {
		o.giveUp(c)
	}
	if sent < len(rpc) {
		o.box.add(rpc, now)
		o.box.took(sent, time.Now())
		go o.write(c)
		return
	}
	o.written()
}

// write is the writer. It leaves when nothing is left to write; c is the
// stream that has begun with it.
func (o *outStream) write(c *carrier) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.ended && !o.box.empty() {
		switch {
		case o.carrier != c:
			o.box.cut(time.Now())
			c = o.carrier
			continue
		case c == nil:
			o.wait(time.Time{})
			continue
		}
		b := o.box.next()
		o.mu.Unlock()
		n, err := c.put(b, o.slice())
		o.mu.Lock()
		o.box.took(n, time.Now())
		if err != nil {
			o.giveUp(c)
		}
		o.count()
		o.changed()
	}
	o.written()
}

// written ends what send has begun.
func (o *outStream) written() {
	o.writing = false
	o.wrote = time.Now()
	if o.ended {
		o.finish()
	}
}

// finish is called once, when the stream has ended and nothing is written.
func (o *outStream) finish() {
	o.box.clear(time.Now())
	o.count()
	o.gate.tasks.Done()
}

// count passes the outbox's counters on to the gate's.
func (o *outStream) count() {
	if o.box.dropped > 0 {
		o.gate.dropped.Add(o.box.dropped)
		o.box.dropped = 0
	}
	if o.box.stalls > 0 {
		o.gate.stalls.Add(o.box.stalls)
		o.box.stalls = 0
		o.gate.log.Info("a peer takes nothing; what pubsub sends to it is dropped until it does", "peer", o.peer, "waiting", o.box.size)
	}
}

// wait releases mu until something has changed, but not beyond until, if that
// is not zero.
func (o *outStream) wait(until time.Time) {
	if o.change == nil {
		o.change = make(chan struct{})
	}
	change := o.change
	o.mu.Unlock()
	defer o.mu.Lock()
	var timeout <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-change:
	case <-timeout:
	}
}

// changed wakes those that wait.
func (o *outStream) changed() {
	if o.change != nil {
		close(o.change)
		o.change = nil
	}
}

// slice is how long a write may take until it is looked at again.
func (o *outStream) slice() time.Duration { return o.gate.cfg.StallTimeout / 8 }

// A carrier is a stream that carries a outStream.
type carrier struct {
	network.Stream
	deadline time.Time // the writer's
	dead     atomic.Bool
}

var errDead = errors.New("gate: the stream was given up")

// put writes as much of b as the peer takes, in one write, until the slice is
// over or half of it. An error means that the carrier broke.
func (c *carrier) put(b []byte, slice time.Duration) (int, error) {
	if now := time.Now(); c.deadline.Sub(now) < slice/2 {
		// Not at every write, as that costs about as much as a write.
		c.deadline = now.Add(slice)
		c.SetWriteDeadline(c.deadline)
	}
	if c.dead.Load() { // kill sets the deadline after this
		return 0, errDead
	}
	n, err := c.Write(b[:min(len(b), writeChunk)])
	// libp2p's connections also end with errors that call themselves timeouts;
	// those come before the deadline.
	if err != nil && isTimeout(err) && !time.Now().Before(c.deadline) && !c.dead.Load() {
		err = nil
	}
	return n, err
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return errors.Is(err, os.ErrDeadlineExceeded) || ok && t.Timeout()
}

// kill ends a blocked put. It does not block; the reset that has to follow can,
// on the connection to a frozen peer.
func (c *carrier) kill() {
	c.dead.Store(true)
	c.SetWriteDeadline(time.Now())
}
