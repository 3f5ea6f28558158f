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
	maxInbound = 4        // streams that one peer may have open at a time
	readBuffer = 32 << 10 // size in bytes of the buffer of a stream with much traffic
)

const (
	helloTimeout = 5 * time.Second  // from the beginning of a stream until its first frame, the hello, has arrived
	frameTimeout = 10 * time.Second // from the first byte of a frame until the last has arrived
	drainTimeout = time.Second      // how long an old stream may be silent while a newer stream waits for it to end
)

// timeouts are the times that a Direct allows a peer; zero means the constant of that name.
type timeouts struct{ hello, frame, drain time.Duration }

// peerStreams are the streams that one peer has opened.
type peerStreams struct {
	streams map[*inStream]struct{}
	last    *inStream // the newest one whose hello has arrived
}

// inStream is a stream that a peer has opened. The streams of one peer are read one
// after the other, in the order in which the peer opened them, because a stream that
// broke may still contain events that were sent before those of the next stream.
type inStream struct {
	network.Stream
	from   peer.ID
	hello  hello
	drain  time.Duration // how long the stream may be silent when it is retired
	caller *callerState  // used only by the goroutine that reads the stream
	done   chan struct{} // closed when the stream was read to its end

	answer []byte           // buffer for the frame of an answer; used only by the reading goroutine
	writer *deadline.Writer // writes the answers to calls

	retired atomic.Bool // a newer stream of the peer waits until this one ends
}

// SetReadDeadline is called by the frame reader. On a retired stream it sets the
// shorter drainTimeout instead.
func (s *inStream) SetReadDeadline(t time.Time) error {
	if s.retired.Load() {
		t = time.Now().Add(s.drain)
	}
	return s.Stream.SetReadDeadline(t)
}

// Read reads from the stream, as its embedded type does, but on a retired stream for at
// most drainTimeout.
func (s *inStream) Read(p []byte) (int, error) {
	if s.retired.Load() {
		// The deadline is set at each Read, so that only silence of the peer ends the
		// stream, and not a slow handler.
		s.Stream.SetReadDeadline(time.Now().Add(s.drain))
	}
	return s.Stream.Read(p)
}

// retire gives the stream only drainTimeout of silence, because a newer stream waits
// for its end.
func (s *inStream) retire() {
	s.retired.Store(true)
	s.Stream.SetReadDeadline(time.Now().Add(s.drain))
}

// receive is the stream handler: it starts to read a stream that a peer has opened.
func (d *Direct) receive(stream network.Stream) {
	s := &inStream{
		drain:  d.cfg.timeouts.drain,
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
	// libp2p's own goroutine is not used, because a handler may end its goroutine with
	// runtime.Goexit, and libp2p still has work to do on its own.
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

// handshake reads the hello and then waits until it is this stream's turn. It reports
// whether the stream's events may be read.
func (d *Direct) handshake(s *inStream, r *frame.Reader) bool {
	// libp2p's resource manager counts the receive windows of streams. It does not count
	// the buffers of this package: if each stream claimed the memory for an event of the
	// largest size, the resource manager would refuse honest peers, which rarely send
	// such events. frame.Reader allocates only as much as has arrived.
	if err := s.Scope().SetService(protocol.Service); err != nil {
		d.refuse(s, network.StreamResourceLimitExceeded, "resource limit", err)
		return false
	}
	s.Stream.SetReadDeadline(time.Now().Add(d.cfg.timeouts.hello))
	b, err := r.Next()
	if err == nil {
		s.hello, err = parseHello(b)
	}
	if err != nil {
		d.closeFailed(s, err)
		return false
	}
	// Nodes of different networks on one libp2p network must not mix their events.
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
		// This wait comes before Admit. If a refused stream ended before an older
		// stream, a newer one would no longer wait for the older one.
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
	r.SetTimeout(s, d.cfg.timeouts.frame)
	r.SetBuffer(readBuffer)
	return true
}

// lineUp makes s the newest stream of its peer and returns the one before it. It
// returns false if a stream that the peer opened later was accepted before s.
func (d *Direct) lineUp(s *inStream) (older *inStream, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.inbound[s.from]
	older = in.last
	// This stream was opened before the newest stream of the peer, but arrives after it.
	// Its events come too late to be handled in order.
	if older != nil && older.hello.session == s.hello.session && older.hello.serial > s.hello.serial && s.hello.serial != 0 {
		return nil, false
	}
	in.last = s
	s.caller = d.callerOf(s)
	return older, true
}

// readEvents calls the handlers for the events and calls on the stream until it ends.
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
			continue // the frame is an abandoned call, or of a later version
		}
		ev, err := events.Borrowed(b)
		if err != nil {
			d.closeFailed(s, err)
			return
		}
		if d.ctx.Err() != nil { // Close was called, so no further handler may begin
			s.ResetWithError(network.StreamShutdown)
			return
		}
		if keeps := run.Find(ev); keeps || call != 0 {
			body := ev.Args
			if !r.Detach() {
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

// closeFailed ends a stream on which reading failed with err.
func (d *Direct) closeFailed(s *inStream, err error) {
	switch {
	case errors.Is(err, io.EOF):
		s.Close()
	case d.ctx.Err() != nil:
		s.ResetWithError(network.StreamShutdown)
	case errors.Is(err, event.ErrMalformed), errors.Is(err, frame.ErrMalformed), errors.Is(err, frame.ErrTooLarge):
		d.nMalformed.Add(1)
		d.log.Debug("a peer sent malformed direct events", "peer", s.from, "error", event.Cut(err.Error(), 256))
		s.ResetWithError(network.StreamProtocolViolation)
	case s.retired.Load():
		s.ResetWithError(network.StreamSupplanted)
	case deadline.IsTimeout(err):
		d.nMalformed.Add(1)
		d.log.Debug("a peer began a frame of direct events and did not complete it in time", "peer", s.from)
		s.ResetWithError(network.StreamProtocolViolation)
	default:
		d.log.Debug("a stream of direct events broke", "peer", s.from, "error", err)
		s.Reset()
	}
}

// refuse resets with the error code a stream of which no event was read yet, and counts
// it. why and err are the reason for the log.
func (d *Direct) refuse(s *inStream, code network.StreamErrorCode, why string, err error) {
	d.nRefused.Add(1)
	d.log.Debug("a stream of direct events was refused", "peer", s.from, "reason", why, "error", err)
	s.ResetWithError(code)
}
