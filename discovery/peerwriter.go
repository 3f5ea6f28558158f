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
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// dialTimeout bounds a dial, and the opening of a stream.
	dialTimeout = 5 * time.Second
	// writeTimeout bounds one write. A write blocks that long only if the process or the
	// network of the peer has stopped; then keepalives stay away as well, and the link is
	// about to end.
	writeTimeout = 5 * time.Second
	// idleTimeout closes an outbound stream on which nothing was sent.
	idleTimeout = 20 * time.Second
	// maxQueue bounds the messages that wait for one peer.
	maxQueue = 512
)

// A peerWriter writes messages to one peer, in order, on a stream of its own. It opens the
// stream when there is something to send.
type peerWriter struct {
	d    *Driver
	peer peer.ID

	mu        sync.Mutex
	queue     []overlay.Message
	addrs     []ma.Multiaddr
	ended     bool // by idleness, failure or the end of the driver
	finishing bool // by finish: end when the queue is empty

	wake notify.Signal // set when queue or finishing has changed
	done chan struct{} // closed when run has returned

	// Owned by run.
	stream network.Stream // nil until something is sent
	buf    []byte

	// Owned by the driver's loop.
	farewell bool // the last message says that this node closes
}

// send queues m for the peer. It runs on the loop.
func (d *Driver) send(to overlay.Contact, m overlay.Message) {
	w := d.writers[to.ID]
	if w == nil || !w.push(to.Addrs, m) {
		w = &peerWriter{d: d, peer: to.ID, wake: notify.NewSignal(), done: make(chan struct{})}
		d.writers[to.ID] = w
		w.push(to.Addrs, m)
		d.tasks.Go(w.run)
	}
}

// push queues m. It reports false when the writer has ended.
func (w *peerWriter) push(addrs []ma.Multiaddr, m overlay.Message) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return false
	}
	// Later messages may know newer addresses, or none.
	if len(addrs) > 0 {
		w.addrs = addrs
	}
	if len(w.queue) >= maxQueue {
		// The peer reads nothing, so missing keepalives will end the link. By the time
		// it reads again, the message would be out of date.
		w.d.log.Debug("a message was dropped, because too many wait for the peer", "peer", w.peer)
		return true
	}
	w.queue = append(w.queue, m)
	w.wake.Set()
	return true
}

// finish asks the writer to end when its queue is empty, and waits for that until ctx
// ends.
func (w *peerWriter) finish(ctx context.Context) {
	w.mu.Lock()
	w.finishing = true
	w.mu.Unlock()
	w.wake.Set()
	select {
	case <-w.done:
	case <-ctx.Done():
	}
}

// run writes the queued messages until the peer cannot be reached, no message was sent
// for idleTimeout, or the driver ends.
func (w *peerWriter) run() {
	defer close(w.done)
	defer w.d.run(func() {
		// send may have replaced this writer already.
		if w.d.writers[w.peer] == w {
			delete(w.d.writers, w.peer)
		}
	})
	defer w.closeStream()
	for {
		batch, addrs := w.next()
		if len(batch) == 0 {
			return
		}
		if err := w.flush(batch, addrs); err != nil {
			w.fail(err)
			return
		}
	}
}

// next waits for messages and takes all of them from the queue. None means that the
// writer has ended.
func (w *peerWriter) next() ([]overlay.Message, []ma.Multiaddr) {
	idle := time.NewTimer(idleTimeout)
	defer idle.Stop()
	for {
		w.mu.Lock()
		batch, addrs := w.queue, w.addrs
		w.queue = nil
		if len(batch) == 0 && w.finishing {
			w.ended = true
		}
		ended := w.ended
		w.mu.Unlock()
		if ended {
			return nil, nil
		}
		if len(batch) > 0 {
			return batch, addrs
		}
		select {
		case <-w.wake:
		case <-idle.C:
			w.mu.Lock()
			w.ended = len(w.queue) == 0 // unless a message came at this very moment
			w.mu.Unlock()
		case <-w.d.ctx.Done():
			w.markEnded()
		}
	}
}

// flush writes the messages in one write. If the stream is broken it tries a second one,
// since a stream can die with one of two connections to the peer.
func (w *peerWriter) flush(batch []overlay.Message, addrs []ma.Multiaddr) error {
	w.buf = w.buf[:0]
	for _, m := range batch {
		w.buf = frame.Append(w.buf, overlay.Append(nil, m))
	}
	if w.stream != nil {
		if w.write() == nil {
			return nil
		}
		w.resetStream()
	}
	// Messages that only answer have dials of their own. Peers that ask and hang up
	// can then not use up the dials with which this node looks for others.
	slots := w.d.dials
	if !slices.ContainsFunc(batch, func(m overlay.Message) bool { return !isAnswer(m) }) {
		slots = w.d.answers
	}
	stream, err := w.openStream(addrs, slots)
	if err != nil {
		return err
	}
	w.stream = stream
	return w.write()
}

// fail ends the writer and tells the state machine that the peer cannot be reached.
func (w *peerWriter) fail(err error) {
	w.markEnded()
	w.resetStream()
	reason := overlay.ReasonUnreachable
	switch {
	case isProtocolError(err): // it answered, and does not speak the overlay's protocol
		reason = overlay.ReasonProtocol
	case errors.Is(err, ErrRelayed):
		reason = overlay.ReasonRelayed
	}
	w.d.log.Debug("cannot send to a peer", "peer", w.peer, "error", err)
	w.d.run(func() { w.d.step(overlay.Unreachable{Peer: w.peer, Reason: reason}) })
}

func (w *peerWriter) markEnded() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
}

// openStream opens a stream to the peer over a direct connection, which it makes if it has to.
func (w *peerWriter) openStream(addrs []ma.Multiaddr, slots slots) (network.Stream, error) {
	if err := w.d.reach(w.d.dialCtx, w.peer, addrs, slots); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(w.d.ctx, dialTimeout)
	defer cancel()
	// The guard has not seen the addresses that libp2p would dial here if the connection
	// has been lost meanwhile.
	ctx = network.WithNoDial(ctx, "smokesignal dials by its own rules")
	stream, err := w.d.host.NewStream(ctx, w.peer, protocol.Overlay)
	if err != nil {
		return nil, err
	}
	// The direct connection may have been lost since reach has returned.
	if addr.IsRelayed(stream.Conn().RemoteMultiaddr()) {
		resetSoon(stream)
		return nil, ErrRelayed
	}
	if err := stream.Scope().SetService(protocol.Service); err != nil {
		resetSoon(stream)
		return nil, err
	}
	return stream, nil
}

// write writes buf to the stream, for writeTimeout at most, and until the driver ends.
// Then it resets the stream: not all streams know deadlines, those of libp2p's mocknet
// among them.
func (w *peerWriter) write() error {
	ctx, cancel := context.WithTimeout(w.d.ctx, writeTimeout)
	defer cancel()
	stream := w.stream
	defer context.AfterFunc(ctx, func() { interrupt(stream) })()
	_, err := stream.Write(w.buf)
	return err
}

func (w *peerWriter) resetStream() {
	if w.stream != nil {
		resetSoon(w.stream)
		w.stream = nil
	}
}

// closeStream closes the stream without waiting, for the same reason as resetSoon. The
// read side goes first: that ends the negotiation for which Close of libp2p would wait.
func (w *peerWriter) closeStream() {
	if s := w.stream; s != nil {
		go func() {
			s.CloseRead()
			s.Close()
		}()
	}
}

// resetSoon resets a stream without waiting: on the connection to a frozen peer that can
// take as long as the connection lives.
func resetSoon(s network.Stream) { go s.Reset() }

// interrupt ends reads and writes that block on the stream. It may block itself, after it
// has ended them.
func interrupt(s network.Stream) {
	s.SetDeadline(time.Now())
	s.Reset() // for streams that ignore deadlines
}

// isAnswer reports whether m does nothing but answer a request.
func isAnswer(m overlay.Message) bool {
	switch m.(type) {
	case overlay.Reject, overlay.Leave, overlay.ShuffleReply:
		return true
	}
	return false
}

func isProtocolError(err error) bool {
	_, ok := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err)
	return ok
}
