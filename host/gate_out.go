package host

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// gateOut is the stream to which pubsub writes. It outlives the streams that
// carry it: when one breaks, it opens another and repeats the announcement of
// topics there. What the broken one had not delivered is lost.
//
// Pubsub writes one whole RPC at a time, from one goroutine, and reads from
// another until the stream ends; the latter is where it is opened again.
type gateOut struct {
	network.Stream // the first carrier, for its id, connection, protocol and scope

	gate  *Gate
	peer  peer.ID
	ids   []protocol.ID
	born  time.Time
	ctx   context.Context // ends with the stream
	close context.CancelFunc

	mu      sync.Mutex
	change  sync.Cond      // of carrier and ended
	carrier network.Stream // nil while another is being opened
	ended   bool
	timeout time.Duration     // of a write; 0: none
	topics  map[string][]byte // what is announced: the RPC's SubOpts
	version int               // of topics
}

var errEnded = errors.New("host: gate: the stream has ended")

func newGateOut(g *Gate, p peer.ID, ids []protocol.ID, s network.Stream) *gateOut {
	o := &gateOut{Stream: s, gate: g, peer: p, ids: ids, born: time.Now(), carrier: s, topics: make(map[string][]byte)}
	o.change.L = &o.mu
	o.ctx, o.close = context.WithCancel(g.ctx)
	return o
}

// end ends the stream for pubsub. It returns the carrier, to be reset.
func (o *gateOut) end() network.Stream {
	o.mu.Lock()
	defer o.mu.Unlock()
	carrier := o.carrier
	o.carrier, o.ended = nil, true
	o.close()
	o.change.Broadcast()
	return carrier
}

// drop gives up a carrier that broke, unless that is known.
func (o *gateOut) drop(s network.Stream) {
	o.mu.Lock()
	if o.carrier == s {
		o.carrier = nil
	}
	o.mu.Unlock()
	s.Reset()
}

// current waits for a carrier.
func (o *gateOut) current() (network.Stream, time.Duration, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.carrier == nil && !o.ended {
		o.change.Wait()
	}
	if o.ended {
		return nil, 0, errEnded
	}
	return o.carrier, o.timeout, nil
}

// Read returns when the stream has ended.
func (o *gateOut) Read([]byte) (int, error) {
	o.mu.Lock()
	carrier := o.carrier
	o.mu.Unlock()
	var delay time.Duration
	for {
		if carrier != nil {
			opened := time.Now()
			// Nothing is to come on this stream. So whatever comes means that
			// the other side is done with it.
			_, err := carrier.Read(make([]byte, 1))
			o.drop(carrier)
			if o.ctx.Err() == nil {
				o.gate.log.Debug("a pubsub stream broke", "peer", o.peer, "error", err)
			}
			if time.Since(opened) > soundAfter {
				delay = 0
			}
		}
		if err := sleep(o.ctx, delay); err != nil {
			return 0, errEnded
		}
		delay = min(max(2*delay, minDelay), maxDelay)
		var err error
		if carrier, err = o.reopen(); err != nil {
			carrier = nil
			if o.gate.host.Network().Connectedness(o.peer) != network.Connected {
				o.gate.lost(o)
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reopen opens a carrier and announces the topics on it.
func (o *gateOut) reopen() (network.Stream, error) {
	ctx, cancel := context.WithTimeout(o.ctx, openTimeout)
	defer cancel()
	s, err := o.gate.open(ctx, o.peer, o.ids)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(o.ctx, func() { s.Reset() })
	defer stop()
	s.SetWriteDeadline(time.Now().Add(openTimeout))
	for announced := -1; ; {
		o.mu.Lock()
		if o.ended {
			o.mu.Unlock()
			s.Reset()
			return nil, errEnded
		}
		if announced == o.version {
			s.SetWriteDeadline(time.Time{})
			o.carrier = s
			o.change.Broadcast()
			o.mu.Unlock()
			return s, nil
		}
		announced = o.version
		rpc := o.announcement()
		o.mu.Unlock()
		if len(rpc) == 0 {
			continue
		}
		if _, err := s.Write(rpc); err != nil {
			s.Reset()
			return nil, err
		}
	}
}

// Write writes one RPC, on whichever carrier there is. What a carrier lost is
// not the caller's business, just as what it had taken and not delivered. Only
// a peer that takes nothing for as long as pubsub is willing to wait is
// dropped, with all that pubsub has queued for it.
func (o *gateOut) Write(rpc []byte) (int, error) {
	o.note(rpc)
	carrier, timeout, err := o.current()
	if err != nil {
		return 0, err
	}
	if timeout > 0 {
		carrier.SetWriteDeadline(time.Now().Add(timeout))
	}
	if _, err = carrier.Write(rpc); err != nil {
		if isTimeout(err) {
			o.gate.lost(o)
			return 0, err
		}
		o.drop(carrier)
	}
	return len(rpc), nil
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return errors.Is(err, os.ErrDeadlineExceeded) || ok && t.Timeout()
}

// The fields of floodsub's messages that the gate has to know.
const (
	fieldSubscriptions = 1 // of RPC: SubOpts
	fieldSubscribe     = 1 // of SubOpts: bool
	fieldTopic         = 2 // of SubOpts: string
)

// note remembers the topics that an RPC announces.
func (o *gateOut) note(rpc []byte) {
	_, n := protowire.ConsumeVarint(rpc)
	if n < 0 {
		return
	}
	for f, err := range frame.Fields(rpc[n:]) {
		if err != nil {
			return
		}
		if f.Num != fieldSubscriptions || f.Type != protowire.BytesType {
			continue
		}
		subscribe, topic := false, ""
		for sub, err := range frame.Fields(f.Bytes) {
			switch {
			case err != nil:
				return
			case sub.Num == fieldSubscribe:
				subscribe = sub.Uint != 0
			case sub.Num == fieldTopic:
				topic = string(sub.Bytes)
			}
		}
		o.mu.Lock()
		o.version++
		if subscribe {
			o.topics[topic] = append([]byte(nil), f.Bytes...)
		} else {
			delete(o.topics, topic)
		}
		o.mu.Unlock()
	}
}

// announcement returns the RPC that announces all topics; it is empty if there
// are none. It needs mu.
func (o *gateOut) announcement() []byte {
	var rpc []byte
	for _, sub := range o.topics {
		rpc = frame.AppendMessage(rpc, fieldSubscriptions, sub)
	}
	if len(rpc) == 0 {
		return nil
	}
	return frame.Append(nil, rpc)
}

// SetWriteDeadline sets how long a Write may take.
func (o *gateOut) SetWriteDeadline(t time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timeout = 0
	if !t.IsZero() {
		o.timeout = max(time.Until(t), time.Nanosecond)
	}
	return nil
}

func (o *gateOut) SetDeadline(t time.Time) error   { return o.SetWriteDeadline(t) }
func (o *gateOut) SetReadDeadline(time.Time) error { return nil }

// Pubsub closes or resets the stream only when it is done with the peer.

func (o *gateOut) Close() error      { o.gate.lost(o); return nil }
func (o *gateOut) CloseRead() error  { return o.Close() }
func (o *gateOut) CloseWrite() error { return o.Close() }
func (o *gateOut) Reset() error      { return o.Close() }

func (o *gateOut) ResetWithError(network.StreamErrorCode) error { return o.Close() }
