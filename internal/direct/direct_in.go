package direct

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	maxInbound = 4        // streams of one peer at a time
	readBuffer = 32 << 10 // bytes for each stream with much traffic
)

// Variables only for the tests.
var (
	helloTimeout = 5 * time.Second  // from a stream's beginning to its hello
	frameTimeout = 10 * time.Second // from a frame's first byte to its last
	drainTimeout = time.Second      // silence on a stream that has a successor
)

// peerStreams is the streams that a peer has opened.
type peerStreams struct {
	streams map[*inStream]struct{}
	last    *inStream // the newest that said hello
}

// inStream is a stream that a peer has opened. A peer's streams are read one after the other, in
// the order in which it opened them, as a stream that broke may still hold
// events that come before those of its successor.
type inStream struct {
	network.Stream
	from   peer.ID
	hello  hello
	caller *callerState  // the reader's
	done   chan struct{} // closed when it was read to its end

	answer []byte           // the reader's, for the frame of an answer
	writer *deadline.Writer // of answers

	retired atomic.Bool // a newer stream of the peer waits for its end
}

// SetReadDeadline is what the frame reader sets.
func (s *inStream) SetReadDeadline(t time.Time) error {
	if s.retired.Load() {
		t = time.Now().Add(drainTimeout)
	}
	return s.Stream.SetReadDeadline(t)
}

func (s *inStream) Read(p []byte) (int, error) {
	if s.retired.Load() {
		// Anew at each Read, so that only silence ends the stream, and not a slow handler.
		s.Stream.SetReadDeadline(time.Now().Add(drainTimeout))
	}
	return s.Stream.Read(p)
}

func (s *inStream) retire() {
	s.retired.Store(true)
	s.Stream.SetReadDeadline(time.Now().Add(drainTimeout))
}

// receive is the stream handler.
func (d *Direct) receive(stream network.Stream) {
	s := &inStream{
		Stream: stream,
		from:   stream.Conn().RemotePeer(),
		writer: deadline.NewWriter(stream),
		done:   make(chan struct{}),
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		s.ResetWithError(network.StreamShutdown)
		return
	}
	in := d.inbound[s.from]
	if in == nil {
		in = &peerStreams{streams: make(map[*inStream]struct{})}
		d.inbound[s.from] = in
	}
	if len(in.streams) == maxInbound {
		d.mu.Unlock()
		d.refuse(s, network.StreamResourceLimitExceeded, "too many streams", nil)
		return
	}
	in.streams[s] = struct{}{}
	ctx, leave := d.dispatcher.Enter(d.ctx)
	d.mu.Unlock()
	// Not on libp2p's goroutine: a handler may end the one it is called on
	// (runtime.Goexit), and libp2p has something left to do on its own.
	go func() {
		defer leave()
		defer func() {
			close(s.done)
			d.mu.Lock()
			defer d.mu.Unlock()
			if delete(in.streams, s); len(in.streams) == 0 {
				delete(d.inbound, s.from)
			}
		}()
		defer s.Reset()
		d.serve(ctx, s)
	}()
}

// serve reads a stream from its beginning to its end.
func (d *Direct) serve(ctx context.Context, s *inStream) {
	r := frame.NewReader(s, maxHello)
	if d.handshake(s, r) {
		d.readEvents(ctx, s, r)
	}
}

// handshake reads the hello and reports whether the stream's events may be read.
// It waits for that moment.
func (d *Direct) handshake(s *inStream, r *frame.Reader) bool {
	// The streams' windows are accounted by libp2p. Our own buffers are not
	// reserved in its resource manager: a reservation large enough for any
	// event would be refused for honest peers long before it is used, and
	// frame.Reader allocates no more than what has come.
	if err := s.Scope().SetService(protocol.Service); err != nil {
		d.refuse(s, network.StreamResourceLimitExceeded, "resource limit", err)
		return false
	}
	s.Stream.SetReadDeadline(time.Now().Add(helloTimeout))
	b, err := r.Next()
	if err == nil {
		s.hello, err = parseHello(b)
	}
	if err != nil {
		d.closeFailed(s, err)
		return false
	}
	if s.hello.network != d.cfg.Network {
		d.refuse(s, codeOtherNetwork, "other network", errors.New(event.Quote(s.hello.network)))
		return false
	}
	older, ok := d.lineUp(s)
	if !ok {
		d.refuse(s, network.StreamSupplanted, "older than another of its streams", nil)
		return false
	}
	if older != nil {
		// Before Admit: if a refused stream ended earlier than its predecessor, its
		// successor would not wait for that one.
		older.retire()
		select {
		case <-older.done:
		case <-d.ctx.Done():
		}
	}
	if err := d.cfg.Admit(d.ctx, s.from); err != nil {
		d.refuse(s, codeRefused, "not admitted", err)
		return false
	}
	s.SetReadDeadline(time.Time{})
	r.SetLimit(d.cfg.MaxEventSize + envelope)
	r.SetTimeout(s, frameTimeout)
	r.SetBuffer(readBuffer)
	return true
}

// lineUp makes s the newest stream of its peer and returns the one before it.
// It refuses a stream that was overtaken by one which its sender opened later.
func (d *Direct) lineUp(s *inStream) (older *inStream, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.inbound[s.from]
	older = in.last
	if older != nil && older.hello.session == s.hello.session && older.hello.serial > s.hello.serial && s.hello.serial != 0 {
		return nil, false
	}
	in.last = s
	s.caller = d.callerOf(s)
	return older, true
}

// readEvents calls the handlers for the stream's events and calls until it ends.
func (d *Direct) readEvents(ctx context.Context, s *inStream, r *frame.Reader) {
	events := event.Arena{From: s.from}
	run := dispatch.TurnOf(ctx)
	for {
		b, err := r.Next()
		var call uint64
		if err == nil {
			b, call, err = parseDirectFrame(b)
		}
		if err != nil {
			d.closeFailed(s, err)
			return
		}
		if b == nil {
			continue // an abandoned call, or a frame of a later version
		}
		ev, err := events.Borrowed(b)
		if err != nil {
			d.closeFailed(s, err)
			return
		}
		if d.ctx.Err() != nil { // Close was called: no handler may begin now
			s.ResetWithError(network.StreamShutdown)
			return
		}
		if keeps := run.Find(ev); keeps || call != 0 {
			body := ev.Args
			if !r.Take() {
				body = run.Copy(body)
			}
			ev = events.Kept(body)
		}
		if call == 0 {
			run.Run(ev)
		} else if err := d.serveCall(run, s, call, ev); err != nil {
			d.closeFailed(s, err)
			return
		}
	}
}

// closeFailed ends a stream on which a read failed.
func (d *Direct) closeFailed(s *inStream, err error) {
	switch {
	case errors.Is(err, io.EOF):
		s.Close()
	case d.ctx.Err() != nil:
		s.ResetWithError(network.StreamShutdown)
	case errors.Is(err, event.ErrMalformed), errors.Is(err, frame.ErrMalformed), errors.Is(err, frame.ErrTooLarge):
		d.nMalformed.Add(1)
		d.log.Debug("malformed direct events", "peer", s.from, "error", event.Cut(err.Error(), 256))
		s.ResetWithError(network.StreamProtocolViolation)
	case s.retired.Load():
		s.ResetWithError(network.StreamSupplanted)
	case deadline.IsTimeout(err):
		d.nMalformed.Add(1)
		d.log.Debug("slow direct events: a frame was begun and not ended in time", "peer", s.from)
		s.ResetWithError(network.StreamProtocolViolation)
	default:
		d.log.Debug("stream of direct events lost", "peer", s.from, "error", err)
		s.Reset()
	}
}

// refuse resets a stream before its events were read.
func (d *Direct) refuse(s *inStream, code network.StreamErrorCode, why string, err error) {
	d.nRefused.Add(1)
	d.log.Debug("stream of direct events refused", "peer", s.from, "reason", why, "error", err)
	s.ResetWithError(code)
}
