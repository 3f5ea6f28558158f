package direct

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A sendQueue carries events to one peer: a queue of encoded frames in one buffer,
// and a writer that takes the whole buffer whenever it is free. So the events
// that gather during a write leave in the next one together, a single event leaves
// at once, and an event costs no allocation. The writer is a goroutine only while
// there is something to write.
//
// The first Emit opens the stream, within its ctx. When the stream breaks, the
// writer opens a new one and sends the frames on it that the old one did not
// accept. Calls go the same way; call_out.go handles their answers.
type sendQueue struct {
	d    *Direct
	peer peer.ID

	ctx    context.Context // ends when err is set
	cancel context.CancelFunc
	done   chan struct{} // closed when the queue has ended and its writer has returned

	mu             sync.Mutex
	err            error                   // why the queue has ended; nil before
	queue          *event.Buffer           // accepted, not taken by the writer; nil if empty
	events         int                     // in queue
	flight         int                     // events with the writer
	accepted       uint64                  // events, ever
	writing        bool                    // the writer runs
	opening        bool                    // an Emit is opening the stream
	stalled        bool                    // nothing could be written for the stall timeout
	stream         *outStream              // nil: the next Emit opens one, or the writer does
	change         notify.Cond             // of any of these fields
	calls          map[uint64]*pendingCall // without an answer so far, by id
	lastCall       uint64                  // id of the last call accepted
	lastTakenCall  uint64                  // id of the last call that the writer took
	drops          int                     // how often the queue was dropped ...
	dropReason     error                   // ... and the reason of the last time
	lastRaw        frameTemplate           // of the last event with one raw argument
	unwrittenCount int                     // events accepted and not written ...
	unwrittenCause error                   // ... and why the last of them was not
	refused        error                   // why the peer refused us; it is not asked
	refusedUntil   time.Time               // again before this
}

// outStream is a stream of a sendQueue.
type outStream struct {
	network.Stream
	opened time.Time
	writer *deadline.Writer // for the frames after the hello

	// Guarded by the lock of the queue:
	sent     int    // events written
	lastCall uint64 // all calls up to this id have left the queue
	broken   error  // why it broke; nil if it did not
	ended    bool   // readUntilEnd has returned, so no further answer comes
	closed   bool   // by the queue itself
}

// errQueueEnded is returned by push when the queue had ended before, or was removed
// because it was idle. The caller tries again with a new queue.
var errQueueEnded = errors.New("events: the send queue has ended")

// refusedFor is how long no new stream is opened to a peer after it refused one.
const refusedFor = 5 * time.Second

func newSendQueue(d *Direct, p peer.ID) *sendQueue {
	l := &sendQueue{d: d, peer: p, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// push queues an event, as the call c unless c is nil. It waits for the stream to be
// opened and for room in the queue, until ctx ends.
func (l *sendQueue) push(ctx context.Context, o *event.Outgoing, c *pendingCall) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return errQueueEnded // nothing of this event was queued, so another queue can have it
	}
	for drops := l.drops; ; {
		var err error
		switch {
		case l.err != nil:
			return l.err
		case l.refused != nil && time.Now().Before(l.refusedUntil):
			return l.refused
		case l.drops != drops:
			return l.dropReason // earlier events were dropped, and order would break without them
		case l.opening:
			// Another Emit opens the stream; its result decides.
			err = l.change.Wait(ctx, &l.mu)
		case l.stream == nil && !l.writing:
			err = l.openFirst(ctx)
		case l.fits(o, c):
			l.appendFrame(o, c)
			return nil
		case l.stalled:
			// The queue is full and the peer reads nothing: waiting would not help.
			return ErrStalled
		default:
			err = l.change.Wait(ctx, &l.mu)
		}
		if err != nil {
			return err
		}
	}
}

// tryPush queues an event, or fails at once where push would wait. It also queues an event
// before there is a stream.
func (l *sendQueue) tryPush(o *event.Outgoing) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return errQueueEnded
	case l.refused != nil && time.Now().Before(l.refusedUntil):
		return l.refused
	case !l.fits(o, nil):
		return errs.ErrQueueFull
	}
	l.appendFrame(o, nil)
	return nil
}

func (l *sendQueue) appendFrame(o *event.Outgoing, c *pendingCall) {
	if l.queue == nil {
		l.queue = event.GetBuffer()
	}
	if c != nil {
		l.addCall(c)
	}
	at := len(l.queue.B)
	l.queue.B = appendFrame(l.queue.B, o, c)
	if o.IsRaw && (o.Name != l.lastRaw.name || len(o.Raw) != l.lastRaw.size) {
		header := l.queue.B[at : len(l.queue.B)-len(o.Raw)]
		// Without the clone, the arguments of every Emit would escape to the heap.
		l.lastRaw = frameTemplate{strings.Clone(o.Name), len(o.Raw), append(l.lastRaw.header[:0], header...)}
	}
	l.events++
	l.accepted++
	l.startWriter()
}

// frameTemplate is the part of a frame before its payload, for an event whose only
// argument is raw bytes. The next event often has the same name and size as the last
// one, and then needs no encoding.
type frameTemplate struct {
	name   string
	size   int // of the payload
	header []byte
}

// pushRepeat queues an event that has the name and size of the last one, if it need not
// wait for that. It reports whether it has done so.
func (l *sendQueue) pushRepeat(name string, raw []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// With events in the queue, a writer runs already (or opening is set), so this
	// fast path need not start one.
	if l.err != nil || l.opening || l.events == 0 || l.events >= l.d.cfg.QueueEvents ||
		len(l.queue.B)+len(raw) > l.d.cfg.QueueBytes || len(raw) != l.lastRaw.size || name != l.lastRaw.name {
		return false
	}
	l.queue.B = append(append(l.queue.B, l.lastRaw.header...), raw...)
	l.events++
	l.accepted++
	return true
}

// startWriter starts the writer if there is something to write. While an Emit opens the
// stream it does nothing, as that Emit starts the writer afterwards. The lock is held.
func (l *sendQueue) startWriter() {
	if l.events > 0 && !l.writing && !l.opening {
		l.writing = true
		l.d.tasks.Go(l.writeLoop)
	}
}

// fits reports whether there is room for an event, or for the call c unless c is nil. A
// single event of any allowed size fits an empty queue. The lock is held.
func (l *sendQueue) fits(o *event.Outgoing, c *pendingCall) bool {
	if c != nil && len(l.calls) >= l.d.cfg.MaxCalls {
		return false
	}
	return l.events == 0 || l.events < l.d.cfg.QueueEvents && len(l.queue.B)+o.Size <= l.d.cfg.QueueBytes
}

// openFirst opens the stream for an Emit. The lock is held before and after, but not while
// the stream is opened.
func (l *sendQueue) openFirst(ctx context.Context) error {
	l.opening = true
	l.d.tasks.Add(1) // Close waits for the tasks only after it has ended all queues
	defer l.d.tasks.Done()
	l.mu.Unlock()
	out, err := l.dial(ctx)
	l.mu.Lock()
	l.opening = false
	l.refused = nil
	l.change.Broadcast()
	if l.err == nil {
		defer l.startWriter() // a TryEmit may have queued events meanwhile
	}
	switch {
	case err == nil:
		return l.setStream(out)
	case l.err != nil:
		return l.err
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		// The caller should see that its ctx has ended, whatever libp2p returns then.
		err = errs.Because(ctx.Err(), err)
	}
	return errs.Because(ErrNotConnected, err)
}

// setStream makes out the stream of the queue. If the queue has ended it resets out and
// returns why. The lock is held.
func (l *sendQueue) setStream(out *outStream) error {
	if l.err != nil {
		l.d.tasks.Go(func() { out.Reset() })
		return l.err
	}
	l.stream = out
	l.d.tasks.Go(func() { l.readUntilEnd(out) })
	return nil
}

// dial opens a stream to the peer, which it looks up and connects to if necessary, and sends
// the hello.
func (l *sendQueue) dial(ctx context.Context) (*outStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	s, lost, err := l.newStream(ctx)
	if lost { // a connection of before had ended, and a second attempt makes a new one
		s, _, err = l.newStream(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &outStream{Stream: s, opened: time.Now(), writer: deadline.NewWriter(s)}, nil
}

// newStream opens a stream to the peer, connects to the peer first if necessary, and sends
// the hello. lost reports that the stream failed because a connection ended: the process at
// its other end had died, which only its use has shown, or both sides had connected at once
// and one of the two connections was closed.
func (l *sendQueue) newStream(ctx context.Context) (s network.Stream, lost bool, err error) {
	n := l.d.host.Network()
	if find := l.d.cfg.Locate; find != nil && n.Connectedness(l.peer) != network.Connected {
		if err := find(ctx, l.peer); err != nil {
			return nil, false, err
		}
	}
	before := n.ConnsToPeer(l.peer)
	if s, err = l.d.host.NewStream(ctx, l.peer, protocol.Events); err == nil {
		if err = l.sendHello(ctx, s); err == nil {
			return s, false, nil
		}
		s.Reset()
	}
	if addr.HasOnlyRelayed(n, l.peer) { // libp2p has waited in vain for a direct connection
		err = errs.Because(errs.ErrRelayed, err)
	}
	return nil, connectionEnded(ctx, n, before, err) && ctx.Err() == nil, err
}

// sendHello writes the first frame of a stream, within ctx and the stall timeout.
func (l *sendQueue) sendHello(ctx context.Context, s network.Stream) error {
	if err := s.Scope().SetService(protocol.Service); err != nil {
		return err
	}
	if err := s.SetWriteDeadline(time.Now().Add(l.d.cfg.StallTimeout)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { s.SetWriteDeadline(time.Now()) })()
	h := hello{string(l.d.cfg.Session), l.d.cfg.Network, l.d.serial.Add(1)}
	_, err := s.Write(h.append(nil))
	return err
}

// readUntilEnd reads the answers that come back on the stream until the stream ends. The
// code of a reset says why the peer ended it.
func (l *sendQueue) readUntilEnd(out *outStream) {
	err := l.readAnswers(out)
	l.mu.Lock()
	out.ended = true
	l.change.Broadcast()
	if out.closed {
		// The queue has ended the stream itself: it is not broken, and close resets nothing.
		l.mu.Unlock()
		return
	}
	if out.broken == nil {
		out.broken = err
	}
	l.failWrittenCalls(out)
	// A running writer finds out.broken itself and opens the next stream.
	if l.stream == out && !l.writing {
		l.dropStream(out)
	}
	idle := l.idle()
	l.mu.Unlock()
	if idle {
		l.d.removeIdle(l)
	}
	out.Reset() // ends a blocked write of the writer
}

// dropStream gives up a broken stream. If the peer has refused it in a way that holds for
// the next stream too, dropStream drops all events and returns the reason. The lock is
// held.
func (l *sendQueue) dropStream(out *outStream) error {
	l.stream = nil
	l.stalled = false
	err, unread := refusal(out.broken)
	if err == nil {
		return nil
	}
	more := 0
	if unread { // so the events that were written are lost as well
		more = out.sent
	}
	l.refused = errs.Because(ErrNotConnected, err)
	l.refusedUntil = time.Now().Add(refusedFor)
	l.dropAll(l.refused, more)
	return l.refused
}

// refusal returns the reason for which the peer would not read another stream after one
// that broke with err, or nil if it may read another. unread reports that the peer has
// read nothing of the broken stream either.
func refusal(err error) (why error, unread bool) {
	reset, ok := errors.AsType[*network.StreamError](err)
	if !ok || !reset.Remote {
		return nil, false // the connection broke, or this side reset the stream
	}
	switch reset.ErrorCode {
	case codeOtherNetwork:
		return ErrOtherNetwork, true
	case codeRefused:
		return ErrRefused, true
	case network.StreamShutdown:
		return errors.New("the peer is closing"), false
	}
	return nil, false
}

// dropAll drops the queued events and those with the writer, and fails all calls and all
// waiting pushes with err. It counts more events as lost in addition. The lock is held.
func (l *sendQueue) dropAll(err error, more int) {
	n := l.events + l.flight + more
	if l.queue != nil {
		l.queue.Free()
		l.queue = nil
	}
	l.failAllCalls(err)
	l.events, l.flight = 0, 0
	l.drops++
	l.dropReason = err
	l.change.Broadcast()
	l.countUnwritten(n, err)
}

// countUnwritten counts n accepted events that were lost because of err. The lock is held.
func (l *sendQueue) countUnwritten(n int, err error) {
	if n > 0 {
		l.unwrittenCount += n
		l.unwrittenCause = err
		l.d.nUnwritten.Add(uint64(n))
		l.d.log.Warn("direct events were lost before they were sent", "peer", l.peer, "events", n, "error", err)
	}
}

// close ends the queue with err as the reason. It does not block; done is closed when the
// writer has returned.
func (l *sendQueue) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	l.cancel()
	l.change.Broadcast()
	if l.stream != nil {
		l.stream.writer.Stop() // a blocked writeLoop returns
	}
	if !l.writing { // a running writer does it when it returns
		l.finishClosing()
	}
}

// finishClosing closes the stream of an ended queue whose writer does not run. The lock is
// held.
func (l *sendQueue) finishClosing() {
	l.dropAll(l.err, 0)
	if out := l.stream; out != nil {
		l.stream = nil
		out.closed = true
		// A reset could discard written events on their way, so the stream is
		// closed. Closing the read side first ends readUntilEnd, and with it the
		// protocol negotiation that libp2p's Close would wait for.
		l.d.tasks.Go(func() {
			out.CloseRead()
			out.Close()
		})
	}
	close(l.done)
}

// unwritten returns how many accepted events were lost before they were written.
func (l *sendQueue) unwritten() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unwrittenCount
}

// drain ends the stream, if everything was written, and waits until the peer has read it
// to the end or ctx ends.
func (l *sendQueue) drain(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.stream
	if l.err != nil || out == nil || out.sent == 0 || l.writing || l.events > 0 {
		return // there is nothing to wait for, or too much is left to write
	}
	l.d.tasks.Go(func() { out.CloseWrite() })
	for !out.ended && l.err == nil && l.change.Wait(ctx, &l.mu) == nil {
	}
}

// flush waits until the events accepted so far are written, and returns an error if some
// of them were lost or ctx ends.
func (l *sendQueue) flush(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := l.unwrittenCount
	for goal := l.accepted; ; {
		left := int64(goal-l.accepted) + int64(l.events+l.flight)
		if left <= 0 {
			break
		}
		if err := l.change.Wait(ctx, &l.mu); err != nil {
			return fmt.Errorf("events: flush to %s: %d events not written: %w", l.peer, left, err)
		}
	}
	if n := l.unwrittenCount - lost; n > 0 {
		cause := l.unwrittenCause
		if !errors.Is(cause, ErrNotConnected) {
			cause = errs.Because(ErrNotConnected, cause)
		}
		return fmt.Errorf("events: flush to %s: %d events were dropped: %w", l.peer, n, cause)
	}
	return nil
}

// idle reports whether the queue holds nothing that is worth keeping. The lock is held.
func (l *sendQueue) idle() bool {
	return l.err == nil && l.stream == nil && !l.writing && !l.opening && l.refused == nil && l.unwrittenCount == 0
}

// removeIdle removes a queue if it is idle, so that former peers take no memory.
func (d *Direct) removeIdle(l *sendQueue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	// An Emit may have used or replaced the queue while no lock was held.
	if l.idle() && d.queues[l.peer] == l {
		delete(d.queues, l.peer)
		l.err = errQueueEnded
		l.cancel()
		l.change.Broadcast()
	}
}
