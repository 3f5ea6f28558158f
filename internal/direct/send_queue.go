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

// A sendQueue sends events to one peer. It collects encoded frames in one buffer. A
// writer, which is a goroutine only while there is something to write, takes the whole
// buffer whenever it has written the one before. So the events that are emitted during
// one write are sent together in the next, a single event is sent at once, and an event
// costs no allocation.
//
// The first Emit opens the stream, within its ctx. When the stream breaks, the writer
// opens a new one and sends the frames that the old stream had not accepted. Calls are
// sent in the same way; call_out.go handles their answers.
type sendQueue struct {
	d    *Direct
	peer peer.ID

	ctx    context.Context // ends when err is set
	cancel context.CancelFunc
	done   chan struct{} // closed when the queue has ended and its writer has returned

	mu             sync.Mutex
	err            error                   // why the queue has ended; nil: it has not
	queue          *event.Buffer           // frames of accepted events that the writer has not taken; nil if empty
	events         int                     // how many events are in queue
	taken          int                     // how many events the writer has taken and not written yet
	accepted       uint64                  // how many events were ever accepted
	writing        bool                    // the writer's goroutine runs
	opening        bool                    // an Emit call is opening the stream
	stalled        bool                    // no byte could be written for the stall timeout
	stream         *outStream              // nil: the writer or the next Emit opens one
	change         notify.Cond             // its waiters wake up when any of these fields changes
	calls          map[uint64]*pendingCall // calls without an answer so far, by id
	lastCall       uint64                  // id of the last call accepted into the queue
	lastTakenCall  uint64                  // id of the last call that the writer took
	drops          int                     // how often all queued events were dropped
	dropReason     error                   // why they were dropped the last time
	lastRaw        frameTemplate           // a template for frames, made from the last event whose only argument was raw bytes
	unwrittenCount int                     // how many accepted events were lost before they were written
	unwrittenCause error                   // why the last event that unwrittenCount counts was lost
	refused        error                   // why the peer has refused this node; nil: it has not
	refusedUntil   time.Time               // after a refusal of the peer, no new stream is opened before this time
}

// outStream is a stream that a sendQueue has opened to its peer.
type outStream struct {
	network.Stream
	opened time.Time
	writer *deadline.Writer // writes the frames after the hello

	// The fields below are guarded by the queue's mu.
	sent     int    // how many events were written to this stream
	lastCall uint64 // all calls with ids up to this one were written to this stream or an earlier one
	broken   error  // why the stream broke; nil: it did not
	ended    bool   // readUntilEnd has returned, so no further answer arrives
	closed   bool   // the queue itself has closed the stream
}

// errQueueEnded is returned by push when the queue has ended, or was removed because it
// was idle. The caller tries again with a new queue.
var errQueueEnded = errors.New("events: the send queue has ended")

// refusedFor is how long no new stream is opened to a peer after it has refused one.
const refusedFor = 5 * time.Second

func newSendQueue(d *Direct, p peer.ID) *sendQueue {
	l := &sendQueue{d: d, peer: p, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// push adds the event o to the queue. If the event is a call, c is that call; otherwise
// c is nil. push waits until the stream is open and the queue has space, or until ctx
// ends.
func (l *sendQueue) push(ctx context.Context, o *event.Outgoing, c *pendingCall) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return errQueueEnded // this event is not queued, so another queue can accept it
	}
	for drops := l.drops; ; {
		var err error
		switch {
		case l.err != nil:
			return l.err
		case l.refused != nil && time.Now().Before(l.refusedUntil):
			return l.refused
		case l.drops != drops:
			return l.dropReason // earlier events were dropped; sending this one would break the order
		case l.opening:
			// Another Emit is opening the stream. Its result counts for this one, too.
			err = l.change.Wait(ctx, &l.mu)
		case l.stream == nil && !l.writing:
			err = l.openFirst(ctx)
		case l.fits(o, c):
			l.appendFrame(o, c)
			return nil
		case l.stalled:
			// The queue is full and the peer reads nothing, so waiting would not help.
			return ErrStalled
		default:
			err = l.change.Wait(ctx, &l.mu)
		}
		if err != nil {
			return err
		}
	}
}

// tryPush adds an event to the queue without waiting. If the queue is full, it returns
// ErrQueueFull. The queue accepts events before there is a stream; the writer then opens one.
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

// appendFrame encodes the event o into the queue and starts the writer. If the event is
// a call, c is that call; otherwise c is nil. The caller must hold mu.
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
		// The name is cloned because otherwise the arguments of every Emit would be
		// allocated on the heap.
		l.lastRaw = frameTemplate{strings.Clone(o.Name), len(o.Raw), append(l.lastRaw.header[:0], header...)}
	}
	l.events++
	l.accepted++
	l.startWriter()
}

// frameTemplate is the part of a frame before its payload, for an event whose only
// argument is raw bytes. The next event often has the same name and size. Then its
// frame is made from the template, without encoding.
type frameTemplate struct {
	name   string
	size   int // size of the payload in bytes
	header []byte
}

// pushRepeat adds an event that has the same name and size as the last one. It returns
// false, and does nothing, if the event differs or would have to wait.
func (l *sendQueue) pushRepeat(name string, raw []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// If the queue contains events, the writer runs already or is about to be started.
	// So this fast path need not start it.
	if l.err != nil || l.opening || l.events == 0 || l.events >= l.d.cfg.QueueEvents ||
		len(l.queue.B)+len(raw) > l.d.cfg.QueueBytes || len(raw) != l.lastRaw.size || name != l.lastRaw.name {
		return false
	}
	l.queue.B = append(append(l.queue.B, l.lastRaw.header...), raw...)
	l.events++
	l.accepted++
	return true
}

// startWriter starts the writer if there is something to write. It does nothing while
// an Emit opens the stream, since that Emit starts the writer afterwards. The caller
// must hold mu.
func (l *sendQueue) startWriter() {
	if l.events > 0 && !l.writing && !l.opening {
		l.writing = true
		l.d.tasks.Go(l.writeLoop)
	}
}

// fits reports whether the queue has space for the event o. If the event is a call, c is
// that call; otherwise c is nil. A single event of any allowed size fits into an empty
// queue. The caller must hold mu.
func (l *sendQueue) fits(o *event.Outgoing, c *pendingCall) bool {
	if c != nil && len(l.calls) >= l.d.cfg.MaxCalls {
		return false
	}
	return l.events == 0 || l.events < l.d.cfg.QueueEvents && len(l.queue.B)+o.Size <= l.d.cfg.QueueBytes
}

// openFirst opens the stream for an Emit. The caller must hold mu, which is released
// while the stream is being opened.
func (l *sendQueue) openFirst(ctx context.Context) error {
	l.opening = true
	l.d.tasks.Add(1) // safe, since Close ends all queues before it waits for tasks
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
		// libp2p may return any error when ctx ends. The caller should see that it was
		// ctx.
		err = errs.Because(ctx.Err(), err)
	}
	return errs.Because(ErrNotConnected, err)
}

// setStream makes out the stream of the queue. If the queue has ended, it resets out
// and returns the reason. The caller must hold mu.
func (l *sendQueue) setStream(out *outStream) error {
	if l.err != nil {
		l.d.tasks.Go(func() { out.Reset() })
		return l.err
	}
	l.stream = out
	l.d.tasks.Go(func() { l.readUntilEnd(out) })
	return nil
}

// dial opens a stream to the peer and sends the hello. If the peer is not connected,
// dial looks it up and connects to it first.
func (l *sendQueue) dial(ctx context.Context) (*outStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	s, lost, err := l.newStream(ctx)
	if lost { // an existing connection turned out to be dead; the second attempt makes a new one
		s, _, err = l.newStream(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &outStream{Stream: s, opened: time.Now(), writer: deadline.NewWriter(s)}, nil
}

// newStream opens a stream to the peer, connecting to the peer first if necessary, and
// sends the hello. lost reports that it failed because a connection ended. That happens
// if the process at its other end has died, which shows only when the connection is
// used. It also happens if both sides connected at once and one of the two connections
// was closed.
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

// sendHello writes the hello, the first frame of a stream. It ends with ctx, or after
// the stall timeout.
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

// readUntilEnd reads the answers that arrive on the stream until the stream ends. If
// the peer has reset the stream, the error code of the reset says why.
func (l *sendQueue) readUntilEnd(out *outStream) {
	err := l.readAnswers(out)
	l.mu.Lock()
	out.ended = true
	l.change.Broadcast()
	if out.closed {
		// The queue has closed the stream itself. So the stream is not broken, and must
		// not be reset.
		l.mu.Unlock()
		return
	}
	if out.broken == nil {
		out.broken = err
	}
	l.failWrittenCalls(out)
	// A running writer notices out.broken by itself and opens the next stream.
	if l.stream == out && !l.writing {
		l.dropStream(out)
	}
	idle := l.idle()
	l.mu.Unlock()
	if idle {
		l.d.removeIdle(l)
	}
	out.Reset() // ends a write of the writer that is blocked
}

// dropStream forgets a broken stream. If the peer has refused the stream for a reason
// that also holds for the next one, dropStream drops all events and returns the reason.
// The caller must hold mu.
func (l *sendQueue) dropStream(out *outStream) error {
	l.stream = nil
	l.stalled = false
	err, unread := refusal(out.broken)
	if err == nil {
		return nil
	}
	more := 0
	if unread { // the peer has read nothing of the stream, so all events that were written to it are lost, too
		more = out.sent
	}
	l.refused = errs.Because(ErrNotConnected, err)
	l.refusedUntil = time.Now().Add(refusedFor)
	l.dropAll(l.refused, more)
	return l.refused
}

// refusal is given the error with which a stream to the peer broke. It returns why the
// peer would not read another stream either, or nil if the peer may read another. unread
// reports that the peer has read nothing of the broken stream.
func refusal(err error) (why error, unread bool) {
	reset, ok := errors.AsType[*network.StreamError](err)
	if !ok || !reset.Remote {
		return nil, false // the connection broke, or this side has reset the stream
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

// dropAll drops all events that are in the queue or with the writer. It fails all calls
// and all waiting pushes with err. It also counts as lost as many further events as more
// says. The caller must hold mu.
func (l *sendQueue) dropAll(err error, more int) {
	n := l.events + l.taken + more
	if l.queue != nil {
		l.queue.Free()
		l.queue = nil
	}
	l.failAllCalls(err)
	l.events, l.taken = 0, 0
	l.drops++
	l.dropReason = err
	l.change.Broadcast()
	l.countUnwritten(n, err)
}

// countUnwritten counts n accepted events that were lost because of err. The caller
// must hold mu.
func (l *sendQueue) countUnwritten(n int, err error) {
	if n > 0 {
		l.unwrittenCount += n
		l.unwrittenCause = err
		l.d.nUnwritten.Add(uint64(n))
		l.d.log.Warn("direct events were lost before they were sent", "peer", l.peer, "events", n, "error", err)
	}
}

// close ends the queue with err as the reason. It does not block. done is closed when
// the writer has returned.
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
		l.stream.writer.Stop() // a blocked writeLoop returns then
	}
	if !l.writing { // a running writer does this itself when it returns
		l.finishClosing()
	}
}

// finishClosing closes the stream of an ended queue whose writer has returned. The
// caller must hold mu.
func (l *sendQueue) finishClosing() {
	l.dropAll(l.err, 0)
	if out := l.stream; out != nil {
		l.stream = nil
		out.closed = true
		// The stream is closed and not reset, since a reset could discard written
		// events on their way. Closing the read side first ends readUntilEnd, and with
		// it the protocol negotiation for which libp2p's Close would wait.
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

// drain ends the stream if everything was written, and waits until the peer has read
// the stream to its end or ctx ends.
func (l *sendQueue) drain(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.stream
	if l.err != nil || out == nil || out.sent == 0 || l.writing || l.events > 0 {
		return // there is nothing to wait for, or not everything was written
	}
	l.d.tasks.Go(func() { out.CloseWrite() })
	for !out.ended && l.err == nil && l.change.Wait(ctx, &l.mu) == nil {
	}
}

// flush waits until the events accepted before the call are written. It returns an
// error if some of them were lost or ctx ends.
func (l *sendQueue) flush(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := l.unwrittenCount
	for goal := l.accepted; ; {
		left := int64(goal-l.accepted) + int64(l.events+l.taken)
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

// idle reports whether the queue can be removed without losing anything. The caller
// must hold mu.
func (l *sendQueue) idle() bool {
	return l.err == nil && l.stream == nil && !l.writing && !l.opening && l.refused == nil && l.unwrittenCount == 0
}

// removeIdle removes a queue if it is idle, so that former peers use no memory.
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
