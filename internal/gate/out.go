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
)

// outStream is the stream to which pubsub writes. It outlives the streams that
// carry it: when one breaks, it opens another and repeats the announcement of
// topics there. What the broken one had taken and not delivered is lost; what
// still waited goes to the next.
//
// Pubsub writes one whole RPC at a time, from one goroutine, and reads from
// another until the stream ends; the latter is where it is opened again.
type outStream struct {
	network.Stream // the first carrier, for its id, connection, protocol and scope

	gate  *Gate
	peer  peer.ID
	ids   []protocol.ID
	born  time.Time
	ctx   context.Context // ends with the stream
	close context.CancelFunc
	guest atomic.Bool   // the peer was not admitted by Admit
	early chan struct{} // 1: see hurry

	mu      sync.Mutex
	change  chan struct{} // closed when something has changed; nil: nobody waits
	carrier *carrier      // nil while another is being opened
	ended   bool
	timeout time.Duration     // of a Write; 0: none
	topics  map[string][]byte // what is announced: the RPC's SubOpts
	version int               // of topics

	box     outbox
	writing bool      // box and carrier are in use by the writer, or by a Write
	wrote   time.Time // when that was last over
}

var errEnded = errors.New("gate: the stream has ended")

// newGateOut returns a stream that is one of the gate's tasks until it has
// ended; the gate must not be closed.
func newGateOut(g *Gate, p peer.ID, ids []protocol.ID, s network.Stream) *outStream {
	o := &outStream{Stream: s, gate: g, peer: p, ids: ids, born: time.Now(), early: make(chan struct{}, 1), carrier: &carrier{Stream: s}, topics: make(map[string][]byte)}
	o.box.max, o.box.timeout = g.cfg.MaxPending, g.cfg.StallTimeout
	o.ctx, o.close = context.WithCancel(g.ctx)
	g.tasks.Add(1)
	return o
}

// end ends the stream for pubsub. It is called once and does not block.
func (o *outStream) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.giveUp(o.carrier)
	o.close()
	o.changed()
	if !o.writing {
		o.finish()
	}
}

// giveUp resets a carrier that broke or is not needed, unless that was done.
// It needs mu.
func (o *outStream) giveUp(c *carrier) {
	if c == nil || o.carrier != c {
		return
	}
	o.carrier = nil
	c.kill()
	o.gate.tasks.Go(func() { c.Reset() }) // the stream, a task itself, has not ended
}

// Read returns when the stream has ended.
func (o *outStream) Read([]byte) (int, error) {
	o.mu.Lock()
	c := o.carrier
	o.mu.Unlock()
	var delay time.Duration
	for {
		if c != nil {
			opened := time.Now()
			// Nothing is to come on this stream. So whatever comes means that
			// the other side is done with it.
			_, err := c.Read(make([]byte, 1))
			o.mu.Lock()
			o.giveUp(c)
			o.mu.Unlock()
			if o.ctx.Err() == nil {
				o.gate.log.Debug("a pubsub stream broke", "peer", o.peer, "error", err)
			}
			if time.Since(opened) > soundAfter {
				delay = 0
			}
		}
		if err := o.pause(delay); err != nil {
			return 0, errEnded
		}
		most := maxDelay
		if o.guest.Load() {
			most = maxGuestDelay
		}
		delay = min(max(2*delay, minDelay), most)
		var err error
		if c, err = o.reopen(); err != nil {
			c = nil
			if o.gate.host.Network().Connectedness(o.peer) != network.Connected {
				o.gate.lost(o)
			}
		}
	}
}

// pause waits for d, until hurry, or until the stream ends.
func (o *outStream) pause(d time.Duration) error {
	if d == 0 {
		return o.ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-o.early:
		return nil
	case <-o.ctx.Done():
		return o.ctx.Err()
	}
}

// hurry ends the pause before the next attempt, or leaves out the one to come.
func (o *outStream) hurry() {
	select {
	case o.early <- struct{}{}:
	default:
	}
}

// renew makes the peer hear the announcement of topics anew, on another carrier.
func (o *outStream) renew() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.giveUp(o.carrier)
	o.hurry()
}

// reopen opens a carrier and announces the topics on it.
func (o *outStream) reopen() (*carrier, error) {
	ctx, cancel := context.WithTimeout(o.ctx, openTimeout)
	defer cancel()
	s, err := o.gate.open(ctx, o.peer, o.ids)
	if err != nil {
		return nil, err
	}
	c := &carrier{Stream: s}
	c.SetWriteDeadline(time.Now().Add(openTimeout))
	stop := context.AfterFunc(o.ctx, func() {
		c.kill()
		c.Reset()
	})
	defer stop()
	for announced := -1; ; {
		o.mu.Lock()
		if o.ended {
			o.mu.Unlock()
			return nil, errEnded // and it is being reset
		}
		if announced == o.version {
			o.carrier = c
			o.changed()
			o.mu.Unlock()
			o.gate.reopened.Add(1)
			return c, nil
		}
		announced = o.version
		rpc := announcing(o.topics)
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

// note remembers the topics that an RPC announces. It needs mu.
func (o *outStream) note(rpc []byte) {
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

// SetWriteDeadline sets how long a Write may wait for room.
func (o *outStream) SetWriteDeadline(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timeout = 0
	if !t.IsZero() {
		o.timeout = max(time.Until(t), time.Nanosecond)
	}
	return nil
}

func (o *outStream) SetDeadline(t time.Time) error   { return o.SetWriteDeadline(t) }
func (o *outStream) SetReadDeadline(time.Time) error { return nil }

// Pubsub closes or resets the stream only when it is done with the peer.

func (o *outStream) Close() error      { o.gate.lost(o); return nil }
func (o *outStream) CloseRead() error  { return o.Close() }
func (o *outStream) CloseWrite() error { return o.Close() }
func (o *outStream) Reset() error      { return o.Close() }

func (o *outStream) ResetWithError(network.StreamErrorCode) error { return o.Close() }
