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
	// dialTimeout bounds a dial, and also the opening of a stream.
	dialTimeout = 5 * time.Second
	// writeTimeout bounds one write. A write blocks that long only if the process or the
	// network of the peer has stopped. Then its keepalives do not arrive either, and the
	// link is about to end.
	writeTimeout = 5 * time.Second
	// A stream that this node has opened is closed after idleTimeout without a message.
	idleTimeout = 20 * time.Second
	// maxQueue bounds the messages that wait for one peer.
	maxQueue = 512
)

// A peerWriter sends messages to one peer, in order, over a stream that it opens when there is
// a message.
type peerWriter struct {
	d    *Driver
	peer peer.ID

	mu        sync.Mutex
	queue     []overlay.Message
	addrs     []ma.Multiaddr
	ended     bool // the writer takes no more messages
	finishing bool // the writer will end when the queue is empty

	wake notify.Signal // set when queue or finishing has changed
	done chan struct{} // closed when run has returned

	// Used only by run.
	stream network.Stream // nil before the first message
	buf    []byte

	// Used only by the driver's loop.
	farewell bool // this node is closing, and the last message tells the peer so
}

// send queues the message m for the peer to, which it dials if necessary. It runs on the
// loop.
func (d *Driver) send(to overlay.Contact, m overlay.Message) {
	w := d.writers[to.ID]
	// There is no writer for the peer, or it has ended at this moment. So make a new
	// one.
	if w == nil || !w.push(to.Addrs, m) {
		w = &peerWriter{d: d, peer: to.ID, wake: notify.NewSignal(), done: make(chan struct{})}
		d.writers[to.ID] = w
		w.push(to.Addrs, m)
		d.tasks.Go(w.run)
	}
}

// push queues the message m for the peer. addrs are the newest addresses of the peer, or
// empty. push reports false if the writer has ended.
func (w *peerWriter) push(addrs []ma.Multiaddr, m overlay.Message) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return false
	}
	// The message m may come with newer addresses of the peer. If it comes with none,
	// the earlier addresses stay.
	if len(addrs) > 0 {
		w.addrs = addrs
	}
	if len(w.queue) >= maxQueue {
		// The peer reads nothing, so its link will end soon for lack of keepalives. If it
		// reads again later, this message will be out of date.
		w.d.log.Debug("a message was dropped, because too many wait for the peer", "peer", w.peer)
		return true
	}
	w.queue = append(w.queue, m)
	w.wake.Set()
	return true
}

// finish makes the writer end when its queue is empty, and waits for that, at most until ctx
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

// run sends the queued messages. It ends when the peer cannot be reached, when there was no
// message for idleTimeout, when finish was called, or when the driver closes.
func (w *peerWriter) run() {
	defer close(w.done)
	defer w.d.run(func() {
		// send may have replaced this writer with a new one already.
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

// next waits for messages, and removes and returns all messages that are in the queue, with
// the addresses of the peer. It returns no messages if the writer has ended.
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
			w.ended = len(w.queue) == 0 // a message may have arrived just now
			w.mu.Unlock()
		case <-w.d.ctx.Done():
			w.markEnded()
		}
	}
}

// flush sends the messages in batch to the peer with one write. If the stream is broken, it
// opens a new one, for which it may dial addrs.
func (w *peerWriter) flush(batch []overlay.Message, addrs []ma.Multiaddr) error {
	w.buf = w.buf[:0]
	for _, m := range batch {
		w.buf = frame.Append(w.buf, overlay.Append(nil, m))
	}
	if w.stream != nil { // try the stream of the last messages first
		if w.write() == nil {
			return nil
		}
		w.resetStream()
	}
	// A dial for messages that only answer uses slots of its own. So peers that ask and
	// disconnect cannot use up the slots for the dials by which this node looks for others.
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

// fail ends the writer, and tells the state machine that the peer cannot be reached.
func (w *peerWriter) fail(err error) {
	w.markEnded()
	w.resetStream()
	reason := overlay.ReasonUnreachable
	switch {
	case isProtocolError(err): // the peer answered, but does not speak the overlay's protocol
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

// openStream opens a stream to the peer over a direct connection. If there is none, it
// dials those of addrs that the guard allows. slots bounds such dials.
func (w *peerWriter) openStream(addrs []ma.Multiaddr, slots slots) (network.Stream, error) {
	if err := w.d.reach(w.d.dialCtx, w.peer, addrs, slots); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(w.d.ctx, dialTimeout)
	defer cancel()
	// If the connection was lost after reach returned, NewStream would dial addresses
	// that the guard has not allowed. So it must not dial.
	ctx = network.WithNoDial(ctx, "smokesignal dials by its own rules")
	stream, err := w.d.host.NewStream(ctx, w.peer, protocol.Overlay)
	if err != nil {
		return nil, err
	}
	// If the direct connection was lost after reach returned, libp2p may have used one
	// through a relay.
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

// write writes buf to the stream. After writeTimeout, or when the driver closes, it resets the
// stream, which ends the write. A deadline would not be enough, since some streams ignore it,
// such as those of libp2p's mocknet.
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

// closeStream closes the stream in the background, since that can block for long if the peer
// does not answer. It closes the read side first, since the Close of libp2p would otherwise
// wait for the end of the protocol negotiation.
func (w *peerWriter) closeStream() {
	if s := w.stream; s != nil {
		go func() {
			s.CloseRead()
			s.Close()
		}()
	}
}

// resetSoon resets a stream in the background. If the peer does not answer, a reset can block
// until the connection ends.
func resetSoon(s network.Stream) { go s.Reset() }

// interrupt ends the reads and writes that block on a stream. After that it may block itself,
// while it resets the stream.
func interrupt(s network.Stream) {
	s.SetDeadline(time.Now())
	s.Reset() // for streams that ignore deadlines
}

// isAnswer reports whether m only answers a message of the peer, or ends a link.
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
