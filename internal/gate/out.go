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

// A writeStream is the stream to which pubsub writes. It outlives the streams that carry
// it: when one breaks, it opens another and repeats the announcement of topics there.
// RPCs that the broken carrier had accepted and not delivered are lost; RPCs that still
// waited go to the next.
//
// Pubsub writes one whole RPC at a time, from one goroutine. Another goroutine of
// pubsub blocks in Read until the stream ends; that one opens the carriers.
//
// Methods whose names end in Locked need mu.
type writeStream struct {
	network.Stream // the first carrier, for its id, connection, protocol and scope

	// Set once.
	gate  *Gate
	peer  peer.ID
	ids   []protocol.ID
	began time.Time

	ctx      context.Context // ends with the stream
	cancel   context.CancelFunc
	guest    atomic.Bool   // the peer has no link
	retryNow notify.Signal // ends the pause before the next attempt to open a carrier

	mu      sync.Mutex
	changed notify.Cond // of carrier, ended and queue
	carrier *carrier    // nil while another is being opened
	ended   bool

	// What pubsub has announced and wants to send.
	timeout time.Duration     // of a Write; 0: none
	topics  map[string][]byte // the announced topics: an RPC's SubOpts
	version int               // of topics
	queue   rpcQueue
	writing bool      // queue and carrier are in use by the writer, or by a Write
	wrote   time.Time // when writing was last set to false
}

// A carrier is the libp2p stream that a writeStream uses at present.
type carrier struct {
	network.Stream
	writer *deadline.Writer
}

func newCarrier(s network.Stream) *carrier { return &carrier{s, deadline.NewWriter(s)} }

var errEnded = errors.New("gate: the stream has ended")

// newWriteStream returns a stream that is one of the gate's tasks until it has ended. The
// gate must not be closed.
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

// endForPubSub ends the stream for pubsub. It is called once and does not block.
func (o *writeStream) endForPubSub() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.dropCarrierLocked(o.carrier)
	o.cancel()
	o.changed.Broadcast()
	// Otherwise the writer finishes.
	if !o.writing {
		o.finishLocked()
	}
}

// dropCarrierLocked resets a carrier that broke or is not needed, unless it was dropped
// before.
func (o *writeStream) dropCarrierLocked(c *carrier) {
	if c == nil || o.carrier != c {
		return
	}
	o.carrier = nil
	c.writer.Stop()
	// A reset can block. The stream is a task of the gate and has not ended, so another
	// task may begin.
	o.gate.tasks.Go(func() { c.Reset() })
}

// Read opens a carrier whenever there is none, and returns when the stream has ended.
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
			// Pubsub has to know, since the peer may announce other topics when it is back.
			if o.gate.host.Network().Connectedness(o.peer) != network.Connected {
				o.gate.outLost(o)
			}
		}
	}
}

// awaitBreak waits until the other end is done with a carrier, drops it, and returns how
// long that took.
func (o *writeStream) awaitBreak(c *carrier) time.Duration {
	opened := time.Now()
	// Pubsub never sends on the streams that it reads from, so the other end has closed
	// the stream or misuses it.
	_, err := c.Read(make([]byte, 1))
	o.mu.Lock()
	o.dropCarrierLocked(c)
	o.mu.Unlock()
	if o.ctx.Err() == nil {
		o.gate.log.Debug("a pubsub stream broke", "peer", o.peer, "error", err)
	}
	return time.Since(opened)
}

// pause waits for d, until retryNow, or until the stream ends.
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

// repeatAnnouncement sends the announcement of topics once more on the present carrier.
// It does not wait.
func (o *writeStream) repeatAnnouncement() {
	o.mu.Lock()
	defer o.mu.Unlock()
	rpc := announcement(o.topics)
	if o.ended || rpc == nil {
		return
	}
	now := time.Now()
	if o.queue.decide(rpc, now) != accepted {
		return // the peer does not read; a stalled queue keeps announcements by itself
	}
	o.queue.push(rpc, now)
	if !o.writing {
		o.writing = true
		go o.write(o.carrier)
	}
}

// announceAgain makes the peer hear the announcement of topics again, on another
// carrier.
func (o *writeStream) announceAgain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropCarrierLocked(o.carrier)
	o.retryNow.Set()
}

// openCarrier opens a carrier and announces the topics on it.
func (o *writeStream) openCarrier() (*carrier, error) {
	ctx, cancel := context.WithTimeout(o.ctx, openTimeout)
	defer cancel()
	s, err := o.gate.openStream(ctx, o.peer, o.ids)
	if err != nil {
		return nil, err
	}
	c := newCarrier(s)
	s.SetWriteDeadline(time.Now().Add(openTimeout))
	stop := context.AfterFunc(o.ctx, func() { // unblocks the write below
		c.writer.Stop()
		c.Reset()
	})
	defer stop()
	// Pubsub may announce other topics meanwhile.
	for announced := -1; ; {
		o.mu.Lock()
		if o.ended {
			o.mu.Unlock()
			return nil, errEnded // and it is being reset
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

// recordTopicsLocked records the topics that an RPC announces.
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

// SetWriteDeadline sets how long a Write may wait for space in the queue.
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

// Pubsub closes or resets the stream only when it is done with the peer.

func (o *writeStream) Close() error      { o.gate.outLost(o); return nil }
func (o *writeStream) CloseRead() error  { return o.Close() }
func (o *writeStream) CloseWrite() error { return o.Close() }
func (o *writeStream) Reset() error      { return o.Close() }

func (o *writeStream) ResetWithError(network.StreamErrorCode) error { return o.Close() }
