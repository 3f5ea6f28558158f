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
	current network.Stream // the peer's libp2p stream that is read; nil: it ended, and the next has not come
	ended   bool

	next   chan network.Stream // passes a new current stream to Read; capacity 1
	ctx    context.Context     // ends when the readStream ends
	cancel context.CancelFunc

	// Read state, for the one goroutine that reads.
	from network.Stream
	buf  []byte
	r, w int  // buf[r:w] was read from the libp2p stream, and Read has not returned it yet
	full bool // the last read from the libp2p stream filled buf
	rpcs rpcFilter
}

const (
	// The size of a read buffer at first, and at most: it doubles while reads fill it. In
	// measurements, a maximum of twice that was not faster.
	minReadBuffer = 2 << 10
	maxReadBuffer = 32 << 10
	// handoverTimeout is how long pubsub may continue to read from a peer's old stream
	// after the peer has opened a new one.
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
		// The read may have returned bytes and an error. Then the bytes are returned first,
		// and the next read returns the error again.
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
		in.gate.tasks.Go(func() { s.Reset() }) // in a goroutine, because it can block and mu is held
	}
}

// Close ends the stream. Pubsub calls it, or one of the methods below, only when it reads no
// more from the stream.
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

// accept returns the stream handler that is set on the real host. It passes the streams of
// admitted peers to handle, the stream handler of pubsub.
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

		// Relays limit the data of a connection to less than broadcasts need.
		if addr.IsRelayed(s.Conn().RemoteMultiaddr()) {
			s.ResetWithError(network.StreamGated)
			return
		}
		in := newReadStream(g, s)
		defer in.cancel()
		// The peer speaks pubsub, since it opened this stream. If libp2p's records lack
		// this protocol of the peer, the peer would never become a guest.
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
	continues           // the readStream that pubsub reads continues with this stream
)

// awaitTurn waits until pubsub may read the stream. It returns an error if pubsub must not
// read it.
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
		// The peer is admitted, so the stream waits only until this node's own stream to the
		// peer is open, which may take longer.
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

// enqueueLocked makes in the waiting stream of its peer, in place of an older one. It fails
// if too many streams of peers that are not admitted are waiting.
func (g *Gate) enqueueLocked(r *peerRecord, in *readStream) error {
	if !r.admitted() {
		// Any peer can open streams, so the number of waiting ones is limited.
		if g.earlyStreams >= g.cfg.MaxWaiting {
			g.removeUnusedLocked(in.peer, r)
			return fmt.Errorf("gate: %d streams of peers that are not admitted are waiting already", g.earlyStreams)
		}
		in.early = true
		g.earlyStreams++
	}
	r.waiting = in // if another stream of the peer was waiting, its awaitTurn now fails
	r.changed.Broadcast()
	// The peer opened a stream, so it admits this node and accepts this node's stream now.
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

// endPreviousSoonLocked ends the stream that pubsub reads from the peer, if there is one,
// handoverTimeout after the peer has opened another stream: the peer no longer uses the
// previous one. Pubsub must have finished with the previous stream before it gets the next,
// or it would mistake the end of the one for the end of the other. The delay lets pubsub
// read the rest of the previous stream. A call of stop keeps that stream open.
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

// handOverLocked makes in the stream that pubsub reads if that is possible now, and returns
// how. It returns an error if in must never be read.
func (g *Gate) handOverLocked(r *peerRecord, in *readStream) (readStart, error) {
	switch {
	case g.closed:
		return notYet, errClosed
	case r.waiting != in:
		return notYet, errReplaced
	// Pubsub ignores topics that a peer announces while pubsub has no stream to the peer.
	case !r.admitted() || r.out == nil:
		return notYet, nil
	case r.in == nil:
		r.in = in
		// A plain peer has lost its previous stream to this node, and with it the topics that
		// this node announced, so they are announced again. At the other end of a link, the
		// gate would have hidden the loss from pubsub.
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

// release records that pubsub has stopped reading the stream.
func (g *Gate) release(in *readStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Pubsub does not close the stream itself if pubsub's context ends at certain moments.
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
