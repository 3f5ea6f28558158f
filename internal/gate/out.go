package gate

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// A writeStream is the stream on which pubsub sends RPCs to a peer. It sends them over a
// libp2p stream, its carrier. When the carrier breaks, the writeStream opens another and
// repeats the announcement of pubsub's topics on it. RPCs that the broken carrier had
// accepted and not delivered are lost. RPCs that are still queued go to the next carrier.
//
// Pubsub writes one whole RPC at a time, from one goroutine. Another goroutine of pubsub
// blocks in Read until the writeStream ends; Read uses this goroutine to open carriers.
//
// The caller of a method whose name ends in Locked holds mu.
type writeStream struct {
	network.Stream // the first libp2p stream of this writeStream, for its id, connection, protocol and scope

	// Set once.
	gate  *Gate
	peer  peer.ID
	ids   []protocol.ID
	began time.Time

	ctx      context.Context // ends when the writeStream ends
	cancel   context.CancelFunc
	guest    atomic.Bool   // the peer has no link
	retryNow notify.Signal // set to end the pause before the next attempt to open a libp2p stream

	mu      sync.Mutex
	changed notify.Cond // broadcast when carrier, ended or queue changed
	carrier *carrier    // the libp2p stream that is in use; nil after one broke, until the next is open
	ended   bool

	// The topics that pubsub announced, and the RPCs that it wants to send.
	timeout time.Duration     // how long a Write may wait for space in queue; 0 means that this sets no limit
	topics  map[string][]byte // the announced topics; each value is the encoded SubOpts, a topic's entry in an RPC
	version int               // incremented when topics changes
	queue   rpcQueue
	writing bool      // a goroutine is writing to the carrier: either the writer goroutine, or pubsub's own in Write
	wrote   time.Time // when writing was last set to false
}

// A carrier is one of the libp2p streams over which a writeStream sends, one after the
// other.
type carrier struct {
	network.Stream
	writer *deadline.Writer
}

func newCarrier(s network.Stream) *carrier { return &carrier{s, deadline.NewWriter(s)} }

var errEnded = errors.New("gate: the stream has ended")

// newWriteStream returns a writeStream to p that sends over the libp2p stream s first, and
// opens the next ones with the protocols ids. The writeStream is one of the gate's tasks
// until it has ended. The gate must not be closed.
func newWriteStream(g *Gate, p peer.ID, ids []protocol.ID, s network.Stream) *writeStream {
	o := &writeStream{
		Stream: s, gate: g, peer: p, ids: ids, began: time.Now(),
		retryNow: notify.NewSignal(), carrier: newCarrier(s), topics: make(map[string][]byte),
		queue: rpcQueue{max: g.cfg.MaxPending, timeout: g.cfg.StallTimeout},
	}
	o.ctx, o.cancel = context.WithCancel(g.ctx)
	g.tasks.Add(1)
	return o
}

// endForPubSub ends the writeStream, so that pubsub's Read and Write fail. It is called once
// and does not block.
func (o *writeStream) endForPubSub() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.dropCarrierLocked(o.carrier)
	o.cancel()
	o.changed.Broadcast()
	// If a goroutine is writing, endWritingLocked calls finishLocked when that write
	// has ended.
	if !o.writing {
		o.finishLocked()
	}
}

// dropCarrierLocked resets c, a libp2p stream of o that broke or is not needed. It does
// nothing if c is nil or no longer in use.
func (o *writeStream) dropCarrierLocked(c *carrier) {
	if c == nil || o.carrier != c {
		return
	}
	o.carrier = nil
	c.writer.Stop()
	// The reset is a task of its own, because it can block. Adding a task is allowed: this
	// writeStream is a task that has not ended, so Close is still waiting for tasks.
	o.gate.tasks.Go(func() { c.Reset() })
}

// Read opens a new carrier whenever the old one has broken. It returns, with an error, when
// the writeStream has ended. Pubsub calls it to learn when the stream ends.
func (o *writeStream) Read([]byte) (int, error) {
	o.mu.Lock()
	c := o.carrier
	o.mu.Unlock()
	var delay time.Duration
	for {
		if c != nil && o.awaitBreak(c) > soundAfter {
			delay = 0
		}
		if err := o.pause(delay); err != nil {
			return 0, errEnded
		}
		longest := maxDelay
		if o.guest.Load() {
			longest = maxGuestDelay
		}
		delay = min(max(2*delay, minDelay), longest)
		var err error
		if c, err = o.openCarrier(); err != nil {
			c = nil
			// If the peer is no longer connected, pubsub must see the stream
			// end, so that it forgets the peer's topics: the peer may announce
			// others when it is back.
			if o.gate.host.Network().Connectedness(o.peer) != network.Connected {
				o.gate.outLost(o)
			}
		}
	}
}

// awaitBreak waits until the libp2p stream c breaks or the peer closes it. Then it resets c
// and returns how long c was open.
func (o *writeStream) awaitBreak(c *carrier) time.Duration {
	opened := time.Now()
	// The peer's pubsub only reads from this stream and never writes to it. So Read returns
	// when the peer has closed the stream or violates the protocol.
	_, err := c.Read(make([]byte, 1))
	o.mu.Lock()
	o.dropCarrierLocked(c)
	o.mu.Unlock()
	if o.ctx.Err() == nil {
		o.gate.log.Debug("a pubsub stream broke", "peer", o.peer, "error", err)
	}
	return time.Since(opened)
}

// pause waits for the duration d, or until retryNow is set. It returns an error if the
// writeStream ends.
func (o *writeStream) pause(d time.Duration) error {
	if d == 0 {
		return o.ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-o.retryNow:
		return nil
	case <-o.ctx.Done():
		return o.ctx.Err()
	}
}

// repeatAnnouncement sends to the peer again which topics pubsub has subscribed to, on the
// libp2p stream that is in use. It does not block.
func (o *writeStream) repeatAnnouncement() {
	o.mu.Lock()
	defer o.mu.Unlock()
	rpc := announcement(o.topics)
	if o.ended || rpc == nil {
		return
	}
	now := time.Now()
	if o.queue.decide(rpc, now) != accepted {
		return // the peer does not read; if it is stalled, the queue keeps the announcement for later
	}
	o.queue.push(rpc, now)
	if !o.writing {
		o.writing = true
		go o.write(o.carrier)
	}
}

// announceAgain sends to the peer again which topics pubsub has subscribed to, on a new
// libp2p stream.
func (o *writeStream) announceAgain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropCarrierLocked(o.carrier)
	o.retryNow.Set()
}

// openCarrier opens a new libp2p stream to the peer and announces pubsub's topics on it.
func (o *writeStream) openCarrier() (*carrier, error) {
	ctx, cancel := context.WithTimeout(o.ctx, openTimeout)
	defer cancel()
	s, err := o.gate.openStream(ctx, o.peer, o.ids)
	if err != nil {
		return nil, err
	}
	c := newCarrier(s)
	s.SetWriteDeadline(time.Now().Add(openTimeout))
	stop := context.AfterFunc(o.ctx, func() { // if the writeStream ends, the write below returns
		c.writer.Stop()
		c.Reset()
	})
	defer stop()
	// Pubsub may change its topics while they are written. So the announcement is
	// written until it has the present version of the topics.
	for announced := -1; ; {
		o.mu.Lock()
		if o.ended {
			o.mu.Unlock()
			return nil, errEnded // the AfterFunc above resets the carrier
		}
		if announced == o.version {
			o.carrier = c
			o.changed.Broadcast()
			o.mu.Unlock()
			o.gate.reopened.Add(1)
			return c, nil
		}
		announced = o.version
		rpc := announcement(o.topics)
		o.mu.Unlock()
		if len(rpc) == 0 {
			continue
		}
		if _, err := c.Write(rpc); err != nil {
			go c.Reset() // it can block
			return nil, err
		}
	}
}

// recordTopicsLocked records which topics an RPC of pubsub announces.
func (o *writeStream) recordTopicsLocked(rpc []byte) {
	subs, _ := inspect(rpc)
	for _, sub := range subs {
		o.version++
		if sub.on {
			o.topics[sub.topic] = append([]byte(nil), sub.raw...)
		} else {
			delete(o.topics, sub.topic)
		}
	}
}

// SetWriteDeadline limits how long later calls of Write may wait for space in the queue: the
// time from now to t. The zero time means no limit.
func (o *writeStream) SetWriteDeadline(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timeout = 0
	if !t.IsZero() {
		o.timeout = max(time.Until(t), time.Nanosecond)
	}
	return nil
}

func (o *writeStream) SetDeadline(t time.Time) error   { return o.SetWriteDeadline(t) }
func (o *writeStream) SetReadDeadline(time.Time) error { return nil }

// Close ends pubsub's streams to and from the peer. Pubsub calls Close, Reset or a similar
// method only when it has forgotten the peer.
func (o *writeStream) Close() error      { o.gate.outLost(o); return nil }
func (o *writeStream) CloseRead() error  { return o.Close() }
func (o *writeStream) CloseWrite() error { return o.Close() }
func (o *writeStream) Reset() error      { return o.Close() }

func (o *writeStream) ResetWithError(network.StreamErrorCode) error { return o.Close() }
