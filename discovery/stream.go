package discovery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

const (
	// dialTimeout bounds a dial (promise 5), and the opening of the stream.
	dialTimeout = 5 * time.Second
	// writeTimeout bounds one write; a peer that reads nothing for that long has
	// also sent nothing and is about to be dropped.
	writeTimeout = 5 * time.Second
	// firstTimeout bounds the silence before the first frame, since a stream is opened
	// to send one.
	firstTimeout = 10 * time.Second
	// readTimeout bounds the silence on an inbound stream; links speak each 5 s.
	readTimeout = 30 * time.Second
	// idleTimeout closes an outbound stream on which nothing was sent.
	idleTimeout = 20 * time.Second
	// maxQueue bounds the messages that wait for one peer.
	maxQueue = 512
	// maxInbound bounds the streams one peer may have us read: the present one, and
	// some that it has given up.
	maxInbound = 4
)

// A sender writes messages to one peer, in order, on a stream of its own which
// it opens when there is something to send.
type sender struct {
	d    *Driver
	peer peer.ID

	mu     sync.Mutex
	queue  []overlay.Message
	addrs  []ma.Multiaddr
	ended  bool // by idleness, failure or the driver's end
	closed bool // by finish: end when the queue is empty

	wake chan struct{} // a token when there is something to do
	done chan struct{}

	farewell bool // the last message ends a link; the loop's
}

// send queues m for the peer. It runs on the loop.
func (d *Driver) send(to overlay.Contact, m overlay.Message) {
	s := d.senders[to.ID]
	if s == nil || !s.push(to.Addrs, m) {
		s = &sender{d: d, peer: to.ID, wake: make(chan struct{}, 1), done: make(chan struct{})}
		d.senders[to.ID] = s
		s.push(to.Addrs, m)
		d.tasks.Go(s.loop)
	}
}

// push reports false when the sender has ended.
func (s *sender) push(addrs []ma.Multiaddr, m overlay.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	if len(addrs) > 0 {
		s.addrs = addrs
	}
	if len(s.queue) >= maxQueue {
		// The peer takes nothing: its keepalives will end the link. What is dropped
		// here would be stale by then.
		s.d.log.Debug("queue full", "peer", s.peer)
		return true
	}
	s.queue = append(s.queue, m)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

// finish asks the sender to end when its queue is empty and waits for that until
// ctx ends.
func (s *sender) finish(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case <-s.done:
	case <-ctx.Done():
	}
}

func (s *sender) loop() {
	defer close(s.done)
	defer s.d.run(func() {
		if s.d.senders[s.peer] == s {
			delete(s.d.senders, s.peer)
		}
	})
	var stream network.Stream
	defer func() { part(stream) }()
	idle := time.NewTimer(idleTimeout)
	defer idle.Stop()
	var buf []byte
	for {
		s.mu.Lock()
		batch, addrs := s.queue, s.addrs
		s.queue = nil
		if len(batch) == 0 && s.closed {
			s.ended = true
		}
		ended := s.ended
		s.mu.Unlock()
		if ended {
			return
		}
		if len(batch) == 0 {
			idle.Reset(idleTimeout)
			select {
			case <-s.wake:
			case <-idle.C:
				s.mu.Lock()
				s.ended = len(s.queue) == 0
				s.mu.Unlock()
			case <-s.d.ctx.Done():
				s.end()
			}
			continue
		}
		buf = buf[:0]
		for _, m := range batch {
			buf = frame.Append(buf, overlay.Append(nil, m))
		}
		var err error
		if stream != nil {
			if err = s.write(stream, buf); err != nil {
				reset(stream)
				stream = nil
			}
		}
		// A stream can die with one of two connections, so a second try is due.
		if stream == nil {
			slots := s.d.dials
			if !slices.ContainsFunc(batch, func(m overlay.Message) bool { return !isAnswer(m) }) {
				slots = s.d.answers
			}
			if stream, err = s.open(addrs, slots); err == nil {
				err = s.write(stream, buf)
			}
		}
		if err != nil {
			s.end()
			if stream != nil {
				reset(stream)
				stream = nil
			}
			reason := overlay.ReasonUnreachable
			switch {
			case isProtocolError(err):
				reason = overlay.ReasonProtocol
			case errors.Is(err, ErrRelayed):
				reason = overlay.ReasonRelayed
			}
			s.d.log.Debug("cannot send", "peer", s.peer, "err", err)
			s.d.run(func() { s.d.step(overlay.Unreachable{Peer: s.peer, Reason: reason}) })
			return
		}
	}
}

func (s *sender) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
}

// reset and part end a stream without waiting: on the connection to a frozen peer
// either can take as long as the connection lives. Closing the read side first
// ends the negotiation for which libp2p's Close would wait.
func reset(s network.Stream) { go s.Reset() }

func part(s network.Stream) {
	if s != nil {
		go func() {
			s.CloseRead()
			s.Close()
		}()
	}
}

// isAnswer tells whether all that m is for is to answer who asked.
func isAnswer(m overlay.Message) bool {
	switch m.(type) {
	case overlay.Reject, overlay.Leave, overlay.ShuffleReply:
		return true
	}
	return false
}

func (s *sender) open(addrs []ma.Multiaddr, slots slots) (network.Stream, error) {
	if err := s.d.reach(s.d.ctx, s.peer, addrs, slots); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.d.ctx, dialTimeout)
	defer cancel()
	stream, err := s.d.host.NewStream(ctx, s.peer, Protocol)
	if err != nil {
		return nil, err
	}
	if addr.IsRelayed(stream.Conn().RemoteMultiaddr()) { // the direct connection was lost again
		stream.Reset()
		return nil, ErrRelayed
	}
	if err := stream.Scope().SetService(protectTag); err != nil {
		stream.Reset()
		return nil, err
	}
	return stream, nil
}

func (s *sender) write(stream network.Stream, b []byte) error {
	if err := stream.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(s.d.ctx, func() { stream.SetWriteDeadline(time.Now()) })
	defer stop()
	_, err := stream.Write(b)
	return err
}

func isProtocolError(err error) bool {
	_, ok := errors.AsType[multistream.ErrNotSupported[protocolID]](err)
	return ok
}

// serve reads what a peer sends. libp2p gives it a goroutine per stream.
func (d *Driver) serve(stream network.Stream) {
	p := stream.Conn().RemotePeer()
	if addr.IsRelayed(stream.Conn().RemoteMultiaddr()) || !d.enter(p) {
		stream.Reset()
		return
	}
	defer d.exit(p)
	defer reset(stream) // whatever ends the reading, nothing is left to be said
	if err := stream.Scope().SetService(protectTag); err != nil {
		return
	}
	stop := context.AfterFunc(d.ctx, func() { stream.SetReadDeadline(time.Now()) })
	defer stop()
	timeout := firstTimeout
	r := frame.NewReader(stream, overlay.MaxFrame)
	for {
		if err := stream.SetReadDeadline(time.Now().Add(timeout)); err != nil || d.ctx.Err() != nil {
			return
		}
		timeout = readTimeout
		b, err := r.Next()
		if err != nil {
			if errors.Is(err, frame.ErrTooLarge) || errors.Is(err, frame.ErrMalformed) {
				d.log.Debug("bad frame", "peer", p, "err", err)
			}
			return
		}
		m, err := overlay.Decode(b)
		if err != nil {
			d.log.Debug("bad message", "peer", p, "err", err)
			return
		}
		if d.cfg.Hooks.Heard != nil && d.linked(p) {
			d.cfg.Hooks.Heard(p)
		}
		if m == nil {
			continue // of a later version
		}
		from, m, ok := d.accept(p, stream.Conn().RemoteMultiaddr(), m)
		if !ok {
			d.log.Debug("bad record", "peer", p)
			return
		}
		if signal, ok := m.(overlay.Signal); ok {
			if d.cfg.Hooks.Signal != nil && d.linked(p) {
				d.cfg.Hooks.Signal(p, signal.Payload)
			}
			continue
		}
		// Waiting until it is done keeps a peer from getting ahead of the loop.
		if err := d.ask(d.ctx, func() { d.step(overlay.Received{From: from, Message: m}) }); err != nil {
			return
		}
	}
}

// enter counts an inbound stream of p and reports whether it may be read.
func (d *Driver) enter(p peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil || d.inbound[p] >= maxInbound {
		return false
	}
	d.inbound[p]++
	d.tasks.Add(1)
	return true
}

func (d *Driver) exit(p peer.ID) {
	d.mu.Lock()
	if d.inbound[p]--; d.inbound[p] == 0 {
		delete(d.inbound, p)
	}
	d.mu.Unlock()
	d.tasks.Done()
}

// accept verifies the records in m, which came from p over the address via, and
// keeps of them what may be dialled. It reports false when p's own record is not
// its own.
func (d *Driver) accept(p peer.ID, via ma.Multiaddr, m overlay.Message) (overlay.Contact, overlay.Message, bool) {
	relays := dialsRelays(d.host)
	open := func(record []byte) (overlay.Contact, bool) {
		c, err := openContact(record)
		if err != nil {
			return overlay.Contact{}, false
		}
		claimed := c.Addrs
		c.Addrs = FilterAddrs(claimed, via)
		if relays {
			c.Addrs = append(c.Addrs, filterRelayed(claimed, via)...)
		}
		return c, true
	}
	m, ok := overlay.OpenRecords(m, open)
	if !ok {
		return overlay.Contact{}, nil, false
	}
	from := overlay.Contact{ID: p}
	var own []byte // empty for a node that cannot be dialled
	switch v := m.(type) {
	case overlay.Request:
		own = v.Record
	case overlay.Accept:
		own = v.Record
	case overlay.Shuffle:
		if v.Origin.ID == p {
			from = v.Origin
		}
	}
	if len(own) > 0 {
		if from, ok = open(own); !ok || from.ID != p {
			return overlay.Contact{}, nil, false
		}
	}
	return from, m, true
}
