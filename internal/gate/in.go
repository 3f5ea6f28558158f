package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// A readStream is a peer's stream that pubsub reads. It buffers, since pubsub reads the
// length of an RPC byte by byte.
//
// Some peers end their stream after each RPC. If pubsub saw that, it would forget the
// topics of the peer, which are not announced again. So the end of a stream between two
// RPCs is hidden: the next stream of the peer continues where this one ended.
type readStream struct {
	network.Stream // the first one, for its id, connection, protocol and scope

	gate *Gate
	peer peer.ID

	// Gate.mu guards these.
	early   bool           // the peer was not admitted when the stream came
	current network.Stream // nil: between two streams
	ended   bool

	next   chan network.Stream // a stream that has become current; capacity 1
	ctx    context.Context     // ends with the stream
	cancel context.CancelFunc

	// Read state, for the one goroutine that reads.
	from network.Stream
	buf  []byte
	r, w int  // buf[r:w] was read from the stream and is not returned yet
	full bool // the last read has filled buf
	rpcs rpcFilter
}

const (
	// A read buffer begins small and grows while reads fill it. Twice the maximum was
	// measured to be no faster.
	minReadBuffer = 2 << 10
	maxReadBuffer = 32 << 10
	// handoverTimeout is how long pubsub may go on reading from a peer's stream when the
	// peer has opened another.
	handoverTimeout = 250 * time.Millisecond
)

func newReadStream(g *Gate, s network.Stream) *readStream {
	in := &readStream{Stream: s, gate: g, peer: s.Conn().RemotePeer(), current: s, from: s, next: make(chan network.Stream, 1)}
	in.ctx, in.cancel = context.WithCancel(g.ctx)
	return in
}

// Read reads from the peer's streams, one after the other.
func (in *readStream) Read(p []byte) (int, error) {
	for in.r == in.w {
		err := in.fill()
		// With an error there may still be bytes. The next read returns the error again.
		if in.w > 0 || err == nil {
			continue
		}
		// Only a clean end between two RPCs is hidden from pubsub.
		if !errors.Is(err, io.EOF) || !in.rpcs.atBoundary() || !in.awaitNext() {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	return n, nil
}

// fill reads once into the buffer, and leaves oversize RPCs out.
func (in *readStream) fill() error {
	if in.buf == nil || in.full && len(in.buf) < maxReadBuffer {
		in.buf = make([]byte, max(2*len(in.buf), minReadBuffer))
	}
	space := in.buf[maxHeld:]
	n, err := in.from.Read(space)
	in.full = n == len(space)
	passed, oversize := in.rpcs.filter(in.buf[:0], space[:n])
	in.r, in.w = 0, len(passed)
	if oversize > 0 {
		in.gate.oversize.Add(uint64(oversize))
		in.gate.log.Info("an RPC that is larger than pubsub accepts is left out", "peer", in.peer, "most", maxRPC)
	}
	return err
}

// awaitNext waits for the peer's next stream after the current one has ended. It
// returns false if in ends before.
func (in *readStream) awaitNext() bool {
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
		r.changed.Broadcast()
	}
	g.mu.Unlock()
	select {
	case in.from = <-in.next:
		return true
	case <-in.ctx.Done():
		return false
	}
}

// endLocked ends the stream for pubsub. It needs Gate.mu.
func (in *readStream) endLocked() {
	if in.ended {
		return
	}
	in.ended = true
	in.cancel()
	if s := in.current; s != nil {
		in.gate.tasks.Go(func() { s.Reset() }) // not under mu, as it can block
	}
}

// Pubsub closes or resets the stream only when it is done with it.

func (in *readStream) Close() error {
	in.gate.mu.Lock()
	defer in.gate.mu.Unlock()
	in.endLocked()
	return nil
}

func (in *readStream) CloseRead() error  { return in.Close() }
func (in *readStream) CloseWrite() error { return in.Close() }
func (in *readStream) Reset() error      { return in.Close() }

func (in *readStream) ResetWithError(network.StreamErrorCode) error { return in.Close() }

// accept returns the handler for the real host. It passes the streams of admitted peers
// to handle, which is pubsub's.
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

		// A relay carries too little for broadcasts.
		if addr.IsRelayed(s.Conn().RemoteMultiaddr()) {
			s.ResetWithError(network.StreamGated)
			return
		}
		in := newReadStream(g, s)
		defer in.cancel()
		// The peer speaks pubsub, since it opened this stream. If libp2p has missed that,
		// the peer would never become a guest.
		if !g.speaks(in.peer, s.Protocol()) {
			g.cfg.Recheck(in.peer, s.Protocol())
		}
		t, err := g.awaitTurn(in)
		switch {
		case err != nil:
			s.ResetWithError(network.StreamGated)
			g.log.Debug("refused a pubsub stream", "peer", in.peer, "error", err)
		case t == begins:
			handle(in)
			g.release(in)
		}
	}
}

// A readStart says how pubsub starts to read a stream.
type readStart int

const (
	notYet    readStart = iota
	begins              // pubsub reads it as a stream of its own
	continues           // it continues the stream that pubsub reads
)

// awaitTurn waits until pubsub may have the stream. An error means that pubsub shall
// not have it.
func (g *Gate) awaitTurn(in *readStream) (readStart, error) {
	until := time.Now().Add(g.cfg.Wait)
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.recordLocked(in.peer)
	if err := g.enqueueLocked(r, in); err != nil {
		return notYet, err
	}
	defer g.dequeueLocked(r, in)
	if stop := g.endPreviousSoonLocked(r, in); stop != nil {
		defer stop()
	}
	for extended := false; ; {
		if t, err := g.handOverLocked(r, in); t != notYet || err != nil {
			return t, err
		}
		// The peer is admitted now, so only our stream to it is missing.
		if r.admitted() && !extended {
			extended = true
			until = time.Now().Add(openTimeout)
		}
		ctx, cancel := context.WithDeadline(context.Background(), until)
		err := r.changed.Wait(ctx, &g.mu)
		cancel()
		if err != nil {
			return notYet, errNotAdmitted
		}
	}
}

// enqueueLocked makes in the stream of its peer that waits.
func (g *Gate) enqueueLocked(r *peerRecord, in *readStream) error {
	if !r.admitted() {
		// Anybody can open streams, so few of them may wait.
		if g.earlyStreams >= g.cfg.MaxWaiting {
			g.removeUnusedLocked(in.peer, r)
			return fmt.Errorf("gate: %d streams of peers that are not admitted are waiting already", g.earlyStreams)
		}
		in.early = true
		g.earlyStreams++
	}
	r.waiting = in // the stream that waited before sees this, and gives up
	r.changed.Broadcast()
	// The peer has just admitted us, so it accepts our stream now.
	if r.admitted() {
		r.retryNowLocked()
	}
	return nil
}

func (g *Gate) dequeueLocked(r *peerRecord, in *readStream) {
	if r.waiting == in {
		r.waiting = nil
		g.removeUnusedLocked(in.peer, r)
	}
	if in.early {
		g.earlyStreams--
	}
}

// endPreviousSoonLocked ends the stream that pubsub reads from the peer, if there is
// one, shortly after the peer has opened another: with that the peer has given the
// previous one up. Pubsub must be done with the previous stream before it gets the next,
// or it takes the end of the one for the end of the other. The delay lets pubsub read
// the rest. stop ends the waiting.
func (g *Gate) endPreviousSoonLocked(r *peerRecord, in *readStream) (stop func() bool) {
	previous := r.in
	if previous == nil || previous.current == nil {
		return nil
	}
	return time.AfterFunc(handoverTimeout, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if r.waiting == in && r.in == previous {
			previous.endLocked()
		}
	}).Stop
}

// handOverLocked reports whether it is the stream's turn, and makes it the one that pubsub
// reads if so.
func (g *Gate) handOverLocked(r *peerRecord, in *readStream) (readStart, error) {
	switch {
	case g.closed:
		return notYet, errClosed
	case r.waiting != in:
		return notYet, errReplaced
	// Pubsub forgets what a peer announces while it has no stream to the peer.
	case !r.admitted() || r.out == nil:
		return notYet, nil
	case r.in == nil:
		r.in = in
		// The other end's pubsub has lost the stream before, and with it our topics. A
		// node's gate would have hidden that from it.
		if r.hadIn && r.Plain {
			r.out.announceAgain()
		}
		r.hadIn = true
		return begins, nil
	case !r.in.ended && r.in.current == nil:
		r.in.current = in.Stream
		r.in.next <- in.Stream
		return continues, nil
	}
	return notYet, nil
}

// release records that pubsub is done with the stream.
func (g *Gate) release(in *readStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Pubsub leaves a stream open if its context ends while it hands over an RPC.
	in.endLocked()
	if r := g.peers[in.peer]; r != nil {
		if r.in == in {
			r.in = nil
			r.changed.Broadcast()
		}
		g.removeUnusedLocked(in.peer, r)
	}
}

// speaks reports whether p is known to handle one of the protocols.
func (g *Gate) speaks(p peer.ID, protocols ...protocol.ID) bool {
	known, err := g.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(known) > 0
}
