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

// A readStream is the stream on which pubsub receives the RPCs of a peer. It has a read
// buffer, because pubsub reads the length of an RPC byte by byte.
//
// Some peers end their libp2p stream after each RPC and open another. If pubsub saw that, it
// would forget the peer's topics, and the peer does not announce them again. So a readStream
// hides an end between two RPCs, and continues with the peer's next libp2p stream.
type readStream struct {
	network.Stream // the peer's first libp2p stream, for its id, connection, protocol and scope

	gate *Gate
	peer peer.ID

	// Gate.mu guards these.
	early   bool           // the peer was not admitted when it opened the stream
	current network.Stream // the peer's libp2p stream that is read now; nil if it has ended and the next one has not come
	ended   bool

	next   chan network.Stream // passes the peer's next libp2p stream to Read; capacity 1
	ctx    context.Context     // ends when the readStream ends
	cancel context.CancelFunc

	// The state of Read, which only one goroutine uses.
	from network.Stream
	buf  []byte
	r, w int  // buf[r:w] was read from the libp2p stream, and Read has not returned it yet
	full bool // the last read from the libp2p stream filled buf, so buf may be too small
	rpcs rpcFilter
}

const (
	// minReadBuffer is the size of a read buffer at first, and maxReadBuffer its
	// largest size. The size doubles while reads fill the buffer. In measurements, a
	// larger maximum was not faster.
	minReadBuffer = 2 << 10
	maxReadBuffer = 32 << 10
	// handoverTimeout is how long pubsub may continue to read the old stream of a peer
	// after the peer has opened a new stream.
	handoverTimeout = 250 * time.Millisecond
)

func newReadStream(g *Gate, s network.Stream) *readStream {
	in := &readStream{Stream: s, gate: g, peer: s.Conn().RemotePeer(), current: s, from: s, next: make(chan network.Stream, 1)}
	in.ctx, in.cancel = context.WithCancel(g.ctx)
	return in
}

// Read reads from the peer's libp2p streams, one after the other.
func (in *readStream) Read(p []byte) (int, error) {
	for in.r == in.w {
		err := in.fill()
		// A read of the libp2p stream can return bytes together with an error. Then
		// Read returns the bytes first; the next read of the libp2p stream returns
		// the error again.
		if in.w > 0 || err == nil {
			continue
		}
		// Only the end of a libp2p stream between two RPCs, without an error, is
		// hidden from pubsub.
		if !errors.Is(err, io.EOF) || !in.rpcs.atBoundary() || !in.awaitNext() {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	return n, nil
}

// fill reads once from the libp2p stream into the buffer, and removes RPCs of more than 1 MiB.
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
		in.gate.log.Info("dropped an RPC that is larger than pubsub accepts", "peer", in.peer, "max", maxRPC)
	}
	return err
}

// awaitNext waits for the peer's next libp2p stream after the current one has ended. It
// returns false if the readStream ends first.
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

// endLocked ends the readStream, so that pubsub's Read fails. The caller holds Gate.mu.
func (in *readStream) endLocked() {
	if in.ended {
		return
	}
	in.ended = true
	in.cancel()
	if s := in.current; s != nil {
		in.gate.tasks.Go(func() { s.Reset() }) // on a goroutine, because Reset can block and this function holds mu
	}
}

// Close ends the stream. Pubsub calls Close, CloseRead or a similar method only when it
// reads no more from the stream.
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

// accept returns the stream handler to set on the real host. The handler passes the streams
// of admitted peers to handle, the stream handler that pubsub has set.
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

		// A relay limits the data of one connection, and broadcasts need more than
		// that.
		if addr.IsRelayed(s.Conn().RemoteMultiaddr()) {
			s.ResetWithError(network.StreamGated)
			return
		}
		in := newReadStream(g, s)
		defer in.cancel()
		// The peer speaks pubsub, since it opened this stream. If the peerstore
		// lacked pubsub for the peer, the peer would never become a guest.
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

// A readStart says how pubsub starts to read a stream of a peer.
type readStart int

const (
	notYet    readStart = iota
	begins              // pubsub gets a new readStream
	continues           // the stream is the next part of the readStream that pubsub reads already
)

// awaitTurn waits until pubsub may read the stream in, and returns how pubsub starts to
// read it. It returns an error if pubsub must not read the stream.
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
		// The peer is admitted, so in waits only until pubsub's own stream to the
		// peer is open. That may take longer than Config.Wait.
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

// enqueueLocked makes in the stream that waits to be read from its peer, in place of an
// older one. r is the record of the peer. It fails if too many streams of peers that are
// not admitted are waiting.
func (g *Gate) enqueueLocked(r *peerRecord, in *readStream) error {
	if !r.admitted() {
		// Any peer can open streams, so the number of streams that wait is limited.
		if g.earlyStreams >= g.cfg.MaxWaiting {
			g.removeUnusedLocked(in.peer, r)
			return fmt.Errorf("gate: %d streams of peers that are not admitted are waiting already", g.earlyStreams)
		}
		in.early = true
		g.earlyStreams++
	}
	r.waiting = in // if an older stream of the peer was waiting, the awaitTurn of that stream now fails
	r.changed.Broadcast()
	// The peer has opened a stream to this node, so it admits this node, and would
	// accept a stream of this node now.
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

// endPreviousSoonLocked is called when a peer has opened another stream, in. It ends the
// previous stream of the peer, which pubsub still reads, after handoverTimeout: the peer no
// longer uses that stream. Pubsub must have finished with the previous stream before it
// gets in, or it would mistake the end of the one for the end of the other. The delay lets
// pubsub read the rest of the previous stream. A call of stop before that keeps the
// previous stream open. stop is nil if pubsub reads no stream of the peer.
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

// handOverLocked lets pubsub read the stream in if that is possible now, and returns how
// pubsub starts to read it; notYet means that it is not possible yet. r is the record of
// the peer. An error means that pubsub must never read in.
func (g *Gate) handOverLocked(r *peerRecord, in *readStream) (readStart, error) {
	switch {
	case g.closed:
		return notYet, errClosed
	case r.waiting != in:
		return notYet, errReplaced
	// Wait for pubsub's stream to the peer: until it is open, pubsub ignores the topics
	// that the peer announces.
	case !r.admitted() || r.out == nil:
		return notYet, nil
	case r.in == nil:
		r.in = in
		// The peer is plain: it is not a smokesignal node. It has lost its previous
		// stream to this node, and with it the topics that this node announced, so
		// they are announced again. At a smokesignal node, the gate would have
		// hidden the loss from pubsub.
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

// release records that pubsub has stopped reading the stream in.
func (g *Gate) release(in *readStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// If pubsub's context ends at certain moments, pubsub does not close the stream, so
	// it is ended here.
	in.endLocked()
	if r := g.peers[in.peer]; r != nil {
		if r.in == in {
			r.in = nil
			r.changed.Broadcast()
		}
		g.removeUnusedLocked(in.peer, r)
	}
}

// speaks reports whether the peerstore lists one of the protocols for p.
func (g *Gate) speaks(p peer.ID, protocols ...protocol.ID) bool {
	known, err := g.host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(known) > 0
}
