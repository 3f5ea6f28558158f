package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// inStream is a peer's stream for pubsub to read, through a buffer, since pubsub
// reads the length of an RPC byte by byte.
//
// When the peer ends it between two RPCs, as some do after each, pubsub does
// not hear of it: it would forget the peer's topics, which are not announced
// again. The next stream of the peer goes on where this one ended.
type inStream struct {
	network.Stream // the first one, for its id, connection, protocol and scope

	gate *Gate
	peer peer.ID

	// Gate.mu guards these.
	stranger bool           // the peer was not admitted when it came
	current  network.Stream // nil: between two streams
	ended    bool

	next   chan network.Stream // 1: what has become current
	ctx    context.Context     // ends with the stream
	cancel context.CancelFunc

	// The one goroutine that reads has these.
	from network.Stream
	buf  []byte
	r, w int  // what was read and is not returned is buf[r:w]
	full bool // the last read has filled buf
	at   sieve
}

const (
	// A read buffer begins small and grows while it is filled. Twice as large
	// was measured to be no faster.
	minReadBuffer = 2 << 10
	maxReadBuffer = 32 << 10
	// handoverTimeout is how long pubsub may go on reading from a peer's stream
	// when the peer has opened another.
	handoverTimeout = 250 * time.Millisecond
)

func newGateIn(g *Gate, s network.Stream) *inStream {
	in := &inStream{Stream: s, gate: g, peer: s.Conn().RemotePeer(), current: s, from: s, next: make(chan network.Stream, 1)}
	in.ctx, in.cancel = context.WithCancel(g.ctx)
	return in
}

// Read reads from the peer's streams, one after the other.
func (in *inStream) Read(p []byte) (int, error) {
	for in.r == in.w {
		err := in.fill()
		if in.w > 0 || err == nil {
			continue // an error comes again
		}
		if !errors.Is(err, io.EOF) || !in.at.between() || !in.follow() {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	return n, nil
}

// fill reads what there is.
func (in *inStream) fill() error {
	if in.buf == nil || in.full && len(in.buf) < maxReadBuffer {
		in.buf = make([]byte, max(2*len(in.buf), minReadBuffer))
	}
	room := in.buf[maxHeld:]
	n, err := in.from.Read(room)
	in.full = n == len(room)
	passed, oversize := in.at.pass(in.buf[:0], room[:n])
	in.r, in.w = 0, len(passed)
	if oversize > 0 {
		in.gate.oversize.Add(uint64(oversize))
		in.gate.log.Info("a peer sends more at once than pubsub takes, which is left out", "peer", in.peer, "most", maxRPC)
	}
	return err
}

// follow waits for the stream that comes after the one that has ended.
func (in *inStream) follow() bool {
	g := in.gate
	g.mu.Lock()
	if in.ended {
		g.mu.Unlock()
		return false
	}
	over := in.current
	g.tasks.Go(func() { over.Close() })
	in.current = nil
	if r := g.peers[in.peer]; r != nil {
		r.change()
	}
	g.mu.Unlock()
	select {
	case in.from = <-in.next:
		return true
	case <-in.ctx.Done():
		return false
	}
}

// end ends the stream for pubsub. It needs Gate.mu.
func (in *inStream) end() {
	if in.ended {
		return
	}
	in.ended = true
	in.cancel()
	if s := in.current; s != nil {
		in.gate.tasks.Go(func() { s.Reset() }) // not here, as it can block
	}
}

// Pubsub closes or resets the stream only when it is done with it.

func (in *inStream) Close() error {
	in.gate.mu.Lock()
	defer in.gate.mu.Unlock()
	in.end()
	return nil
}

func (in *inStream) CloseRead() error  { return in.Close() }
func (in *inStream) CloseWrite() error { return in.Close() }
func (in *inStream) Reset() error      { return in.Close() }

func (in *inStream) ResetWithError(network.StreamErrorCode) error { return in.Close() }

// accept returns the handler for the real host: it passes to handle, which is
// pubsub's, the streams of admitted peers.
func (g *Gate) accept(handle network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		g.mu.Lock()
		if g.closed {
			g.mu.Unlock()
			s.ResetWithError(network.StreamShutdown)
			return
		}
		g.tasks.Add(1)
		g.mu.Unlock()
		defer g.tasks.Done()

		if addr.IsRelayed(s.Conn().RemoteMultiaddr()) {
			s.ResetWithError(network.StreamGated)
			return
		}
		in := newGateIn(g, s)
		defer in.cancel()
		if !g.speaks(in.peer, s.Protocol()) {
			g.cfg.Doubt(in.peer, s.Protocol())
		}
		whole, err := g.keep(in)
		switch {
		case err != nil:
			s.ResetWithError(network.StreamGated)
			g.log.Debug("refused a pubsub stream", "peer", in.peer, "error", err)
		case whole:
			handle(in)
			g.leave(in)
		}
	}
}

// keep waits until pubsub may have the stream: as a whole, or as what follows
// the one that it reads from.
func (g *Gate) keep(in *inStream) (whole bool, err error) {
	timer := time.NewTimer(g.cfg.Wait)
	defer timer.Stop()
	p := in.peer
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.peer(p)
	if !r.admitted() {
		if g.strangers >= g.cfg.MaxWaiting {
			g.tidy(p, r)
			return false, fmt.Errorf("gate: %d streams of peers that are not admitted wait already", g.strangers)
		}
		in.stranger = true
		g.strangers++
	}
	r.kept = in
	r.change()
	if r.admitted() {
		r.hurry()
	}
	if old := r.in; old != nil && old.current != nil {
		// Whoever opens another stream has given up the last. Pubsub must be
		// done with that, or it may take its end for the new one's. What is
		// still to be read from it is read, if its end comes soon.
		handover := time.AfterFunc(handoverTimeout, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if r.kept == in && r.in == old {
				old.end()
			}
		})
		defer handover.Stop()
	}
	defer func() {
		if r.kept == in {
			r.kept = nil
			g.tidy(p, r)
		}
		if in.stranger {
			g.strangers--
		}
	}()
	for extended := false; ; {
		switch {
		case g.closed:
			return false, errGateClosed
		case r.kept != in:
			return false, fmt.Errorf("gate: the peer opened another stream")
		case r.admitted() && r.out != nil && r.in == nil:
			r.in = in
			if r.heard && r.foreign {
				// Its pubsub has lost the stream before, and with it our topics; with
				// a gate around it, it would not have.
				r.out.renew()
			}
			r.heard = true
			return true, nil
		case r.admitted() && r.out != nil && !r.in.ended && r.in.current == nil:
			r.in.current = in.Stream
			r.in.next <- in.Stream
			return false, nil
		case r.admitted() && !extended:
			extended = true
			timer.Reset(openTimeout)
		}
		changed, timeout := r.changed, false
		g.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			timeout = true
		}
		g.mu.Lock()
		if timeout {
			return false, errNotAdmitted
		}
	}
}

// leave notes that pubsub is done with the stream.
func (g *Gate) leave(in *inStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	in.end() // pubsub leaves it open when its context ends at the wrong moment
	if r := g.peers[in.peer]; r != nil {
		if r.in == in {
			r.in = nil
			r.change()
		}
		g.tidy(in.peer, r)
	}
}
