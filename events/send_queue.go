package events

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
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A lane carries events to one peer: a queue of encoded frames in one buffer,
// and a writer that takes the whole buffer whenever it is free. So what
// gathers while a write is in progress goes out as one write, a lone event
// leaves at once, and an event costs no allocation. The writer is a goroutine
// only while there is something to write.
//
// The stream is opened by the first Emit, within its ctx. When it breaks, what
// was not handed to it goes to a fresh one, which the writer opens. Calls go
// the same way; see call_out.go for what comes back.
type sendQueue struct {
	d    *Direct
	peer peer.ID

	ctx    context.Context // ends when err is set
	cancel context.CancelFunc
	done   chan struct{} // closed when the lane has ended and its writer has left

	mu             sync.Mutex
	err            error                   // why the lane has ended
	queue          *buffer                 // accepted, not yet the writer's; nil if empty
	events         int                     // in queue
	flight         int                     // events with the writer
	accepted       uint64                  // events, ever
	writing        bool                    // there is a writer
	opening        bool                    // an Emit opens the stream
	stalled        bool                    // nothing could be written for the stall timeout
	stream         *outStream              // nil: the next Emit opens one, or the writer does
	change         notify.Cond             // of any of these fields
	calls          map[uint64]*pendingCall // whose answers are awaited, by id
	lastCall       uint64                  // accepted
	lastTakenCall  uint64                  // that a writer took from the queue
	drops          int                     // how often the queue was dropped ...
	dropReason     error                   // ... and the reason of the last time
	lastRaw        frameTemplate           // of the last event with one raw argument
	unwrittenCount int                     // events accepted and not written ...
	unwrittenCause error                   // ... and why the last of them was not
	refused        error                   // the peer takes nothing from us, and is not asked
	refusedUntil   time.Time               // again before this
}

// outStream is a stream of a lane.
type outStream struct {
	network.Stream
	opened time.Time
	writer *deadline.Writer // for the frames after the hello

	// Under the lane's lock:
	sent     int    // events written
	lastCall uint64 // written, or before those written
	broken   error  // what the watcher saw
	ended    bool   // the watcher has left, no answer comes any more
	closed   bool   // the lane closes it
}

// errQueueEnded is returned by put if the lane had already ended, or was removed
// for being idle; the event needs another one.
var errQueueEnded = errors.New("events: lane ended")

// refusedFor is how long a peer that refused us is not asked again.
const refusedFor = 5 * time.Second

func newSendQueue(d *Direct, p peer.ID) *sendQueue {
	l := &sendQueue{d: d, peer: p, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// push accepts an event, or the call c with it unless c is nil, or waits.
func (l *sendQueue) push(ctx context.Context, o *outgoingEvent, c *pendingCall) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return errQueueEnded // before this call
	}
	for drops := l.drops; ; {
		var err error
		switch {
		case l.err != nil:
			return l.err
		case l.refused != nil && time.Now().Before(l.refusedUntil):
			return l.refused
		case l.drops != drops:
			return l.dropReason // those before us in the queue were dropped
		case l.opening:
			err = l.change.Wait(ctx, &l.mu)
		case l.stream == nil && !l.writing:
			err = l.openFirst(ctx)
		case l.fits(o, c):
			l.appendFrame(o, c)
			return nil
		case l.stalled:
			return ErrStalled
		default:
			err = l.change.Wait(ctx, &l.mu)
		}
		if err != nil {
			return err
		}
	}
}

// tryPush accepts an event if it need not wait for that.
func (l *sendQueue) tryPush(o *outgoingEvent) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return errQueueEnded
	case l.refused != nil && time.Now().Before(l.refusedUntil):
		return l.refused
	case !l.fits(o, nil):
		return ErrQueueFull
	}
	l.appendFrame(o, nil)
	return nil
}

func (l *sendQueue) appendFrame(o *outgoingEvent, c *pendingCall) {
	if l.queue == nil {
		l.queue = getBuffer()
	}
	if c != nil {
		l.addCall(c)
	}
	at := len(l.queue.b)
	l.queue.b = o.appendFrame(l.queue.b, c)
	if o.isRaw && (o.name != l.lastRaw.name || len(o.raw) != l.lastRaw.size) {
		header := l.queue.b[at : len(l.queue.b)-len(o.raw)]
		// Cloned, as otherwise the arguments of every Emit would escape.
		l.lastRaw = frameTemplate{strings.Clone(o.name), len(o.raw), append(l.lastRaw.header[:0], header...)}
	}
	l.events++
	l.accepted++
	l.startWriter()
}

// frameTemplate is all of a frame before its payload, an event's only argument of
// raw bytes. The next event is often like the last one.
type frameTemplate struct {
	name   string
	size   int // of the payload
	header []byte
}

// pushRepeat is put for an event with the name and size of the last one, if it
// need not wait. It reports whether it was that.
func (l *sendQueue) pushRepeat(name string, raw []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// While something is in the queue there is a writer, unless there is no
	// stream yet.
	if l.err != nil || l.opening || l.events == 0 || l.events >= l.d.cfg.QueueEvents ||
		len(l.queue.b)+len(raw) > l.d.cfg.QueueBytes || len(raw) != l.lastRaw.size || name != l.lastRaw.name {
		return false
	}
	l.queue.b = append(append(l.queue.b, l.lastRaw.header...), raw...)
	l.events++
	l.accepted++
	return true
}

// startWriter starts the writer if there is something for it to do; not while
// an Emit opens the stream, which starts it then.
func (l *sendQueue) startWriter() {
	if l.events > 0 && !l.writing && !l.opening {
		l.writing = true
		l.d.tasks.Go(l.writeLoop)
	}
}

// fits reports whether an event or a call may be queued.
func (l *sendQueue) fits(o *outgoingEvent, c *pendingCall) bool {
	if c != nil && len(l.calls) >= l.d.cfg.MaxCalls {
		return false
	}
	return l.events == 0 || l.events < l.d.cfg.QueueEvents && len(l.queue.b)+o.size <= l.d.cfg.QueueBytes
}

// openFirst opens the stream for an Emit. The lock is held, but not meanwhile.
func (l *sendQueue) openFirst(ctx context.Context) error {
	l.opening = true
	l.d.tasks.Add(1) // as the lane has not ended, nobody waits yet
	defer l.d.tasks.Done()
	l.mu.Unlock()
	out, err := l.dial(ctx)
	l.mu.Lock()
	l.opening = false
	l.refused = nil
	l.change.Broadcast()
	if l.err == nil {
		defer l.startWriter() // for a TryEmit meanwhile
	}
	switch {
	case err == nil:
		return l.setStream(out)
	case l.err != nil:
		return l.err
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		err = &causedError{ctx.Err(), err}
	}
	return &causedError{ErrNotConnected, err}
}

// setStream makes out the lane's stream, unless the lane has ended. The lock is held.
func (l *sendQueue) setStream(out *outStream) error {
	if l.err != nil {
		l.d.tasks.Go(func() { out.Reset() })
		return l.err
	}
	l.stream = out
	l.d.tasks.Go(func() { l.readUntilEnd(out) })
	return nil
}

// dial opens a stream to the peer, wherever it is, and says hello.
func (l *sendQueue) dial(ctx context.Context) (*outStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	s, lost, err := l.newStream(ctx)
	if lost {
		s, _, err = l.newStream(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &outStream{Stream: s, opened: time.Now(), writer: deadline.NewWriter(s)}, nil
}

// newStream opens a stream to the peer, which is connected first if it is not, and says
// hello. lost tells that a connection came to its end: one to a process that is no more,
// as only its use has shown, or one of two that both sides made at once.
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
	if addr.HasOnlyRelayed(n, l.peer) { // libp2p waited for a direct connection
		err = &causedError{errs.ErrRelayed, err}
	}
	return nil, connectionEnded(ctx, n, before, err) && ctx.Err() == nil, err
}

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

// readUntilEnd takes the answers that come back on the stream, until its end. Why it
// ended is found in the code of its reset.
func (l *sendQueue) readUntilEnd(out *outStream) {
	err := l.readAnswers(out)
	l.mu.Lock()
	out.ended = true
	l.change.Broadcast()
	if out.closed {
		l.mu.Unlock()
		return
	}
	if out.broken == nil {
		out.broken = err
	}
	l.failWrittenCalls(out)
	if l.stream == out && !l.writing {
		l.dropStream(out)
	}
	idle := l.idle()
	l.mu.Unlock()
	if idle {
		l.d.removeIdle(l)
	}
	out.Reset() // the writer notices, too
}

// dropStream gives up a broken stream. If the peer said that it would not read
// another one either, everything is dropped and lose returns why. The lock is
// held.
func (l *sendQueue) dropStream(out *outStream) error {
	l.stream = nil
	l.stalled = false
	err, unread := refusal(out.broken)
	if err == nil {
		return nil
	}
	more := 0
	if unread {
		more = out.sent
	}
	l.refused = &causedError{ErrNotConnected, err}
	l.refusedUntil = time.Now().Add(refusedFor)
	l.dropAll(l.refused, more)
	return l.refused
}

// refusal returns why a peer whose stream broke with err reads no other one,
// nil if it may; and whether it has read nothing of this one either.
func refusal(err error) (why error, unread bool) {
	reset, ok := errors.AsType[*network.StreamError](err)
	if !ok || !reset.Remote {
		return nil, false
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

// dropAll drops what is queued and what the writer has, and fails who waits, for
// err. Besides, more events were lost. The lock is held.
func (l *sendQueue) dropAll(err error, more int) {
	n := l.events + l.flight + more
	if l.queue != nil {
		l.queue.free()
		l.queue = nil
	}
	l.failAllCalls(err)
	l.events, l.flight = 0, 0
	l.drops++
	l.dropReason = err
	l.change.Broadcast()
	l.countUnwritten(n, err)
}

// countUnwritten notes that n accepted events were not written. The lock is held.
func (l *sendQueue) countUnwritten(n int, err error) {
	if n > 0 {
		l.unwrittenCount += n
		l.unwrittenCause = err
		l.d.nUnwritten.Add(uint64(n))
		l.d.log.Warn("direct events were not delivered", "peer", l.peer, "events", n, "error", err)
	}
}

// close ends the lane for the reason err and waits for nothing; done is closed
// when the writer has left.
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
	if !l.writing {
		l.finishClosing()
	}
}

// finishClosing closes an ended lane that has no writer. The lock is held.
func (l *sendQueue) finishClosing() {
	l.dropAll(l.err, 0)
	if out := l.stream; out != nil {
		l.stream = nil
		out.closed = true
		// What was written may still arrive: close and do not reset. Closing
		// the read side first ends the watcher, and with it the negotiation
		// that libp2p's Close would wait for.
		l.d.tasks.Go(func() {
			out.CloseRead()
			out.Close()
		})
	}
	close(l.done)
}

// unwritten returns how many accepted events were not written.
func (l *sendQueue) unwritten() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unwrittenCount
}

// drain ends a stream on which everything was written, and waits until the peer has
// read it to the end.
func (l *sendQueue) drain(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.stream
	if l.err != nil || out == nil || out.sent == 0 || l.writing || l.events > 0 {
		return
	}
	l.d.tasks.Go(func() { out.CloseWrite() })
	for !out.ended && l.err == nil && l.change.Wait(ctx, &l.mu) == nil {
	}
}

// flush waits until what has been accepted is written.
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
			cause = &causedError{ErrNotConnected, cause}
		}
		return fmt.Errorf("events: flush to %s: %d events were dropped: %w", l.peer, n, cause)
	}
	return nil
}

// idle reports whether there is nothing to remember. The lock is held.
func (l *sendQueue) idle() bool {
	return l.err == nil && l.stream == nil && !l.writing && !l.opening && l.refused == nil && l.unwrittenCount == 0
}

// removeIdle removes a lane if it is idle, so that peers of old cost no memory.
func (d *Direct) removeIdle(l *sendQueue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle() && d.queues[l.peer] == l {
		delete(d.queues, l.peer)
		l.err = errQueueEnded
		l.cancel()
		l.change.Broadcast()
	}
}

// buffer is a pooled byte slice. Whoever got it frees it, once.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 1<<10)} }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

// maxBuffer is more than a queue of the default size takes.
const maxBuffer = 2 << 20

func (b *buffer) free() {
	if b == nil {
		return // the event was not encoded in advance
	}
	if cap(b.b) <= maxBuffer {
		b.b = b.b[:0]
		buffers.Put(b)
	}
}
