package events

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/internal/logging"
)

const (
	// ProtocolDirect is the protocol of direct events.
	ProtocolDirect protocol.ID = "/smokesignal/events/1.0.0"
	// ProtocolRepair is the protocol of sequence marks and repair.
	ProtocolRepair protocol.ID = "/smokesignal/repair/1.0.0"
)

// Service is the name under which libp2p's resource manager accounts the
// streams of this module.
const Service = "smokesignal"

// DefaultMaxEventSize is how many bytes an encoded event may have (its name,
// its arguments, and a few bytes for each).
const DefaultMaxEventSize = 512 << 10

// DirectConfig configures a Direct. Its zero value works. Negative numbers make no sense
// and are not checked.
type DirectConfig struct {
	// Network is the name of the network. A peer that says another name is
	// refused. The empty name is a network like any other.
	Network string
	// Session is eight random bytes that tell this run of the node from the
	// next; nil makes them.
	Session []byte
	// MaxEventSize in bytes bounds an encoded event, sent or received; 0 is
	// DefaultMaxEventSize.
	MaxEventSize int
	// Codec encodes the arguments that are neither []byte nor proto.Message; the
	// zero value is JSON.
	Codec Codec
	// QueueEvents and QueueBytes bound what waits for one peer, 0 is 512
	// events and 1 MiB. As much again may be with the writer. One event that
	// is larger than QueueBytes fits an empty queue.
	QueueEvents int
	QueueBytes  int
	// StallTimeout is how long nothing could be written to a peer before the
	// Emits that wait for room fail; 0 is ten seconds.
	StallTimeout time.Duration
	// CallTimeout is how long a Call waits whose ctx has no deadline; 0 is ten
	// seconds.
	CallTimeout time.Duration
	// MaxCalls bounds the calls to one peer that wait for their answers, 0 is
	// 1,024. Further ones wait until there is room.
	MaxCalls int
	// Admit is asked once for every stream a peer opens, before its first
	// event is read: it may block while the peer is being linked (ctx ends at
	// Close), and refuses the stream with an error. It is called from several
	// goroutines. nil admits everybody.
	Admit func(ctx context.Context, p peer.ID) error
	// Locate is called before a stream is opened to a peer that is not
	// connected. It connects to it, wherever it is, or says why it cannot; ctx
	// is that of the Emit or Call which opens the stream, or ends after the
	// stall timeout. It is called from several goroutines, for one peer from
	// one at a time. nil leaves the peer to what libp2p knows of it.
	Locate func(ctx context.Context, p peer.ID) error
	// Log is the room's logger, nil the default one.
	Log *slog.Logger
}

func (c *DirectConfig) fill() {
	if len(c.Session) == 0 {
		c.Session = make([]byte, sessionLen)
		rand.Read(c.Session) // never fails
	}
	c.MaxEventSize = orDefault(c.MaxEventSize, DefaultMaxEventSize)
	c.QueueEvents = orDefault(c.QueueEvents, 512)
	c.QueueBytes = orDefault(c.QueueBytes, 1<<20)
	c.StallTimeout = orDefault(c.StallTimeout, 10*time.Second)
	c.CallTimeout = orDefault(c.CallTimeout, 10*time.Second)
	c.MaxCalls = orDefault(c.MaxCalls, 1024)
	if c.Admit == nil {
		c.Admit = func(context.Context, peer.ID) error { return nil }
	}
	if c.Log == nil {
		c.Log = logging.Room("events", nil)
	}
}

func orDefault[T ~int | ~int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Direct sends events to single peers and calls handlers for those that come.
// All methods may be called from any goroutine, also from handlers.
type Direct struct {
	host       corehost.Host
	cfg        DirectConfig
	log        *slog.Logger
	dispatcher *dispatcher

	ctx    context.Context // of handlers, Admit, and dials in the background
	cancel context.CancelFunc
	tasks  sync.WaitGroup            // writers and watchers of lanes, closing of streams
	serial atomic.Uint64             // of the last stream opened
	callID atomic.Uint64             // of the last call
	once   sync.Once                 // of stop
	recent atomic.Pointer[sendQueue] // the one used last, which is often the next

	mu      sync.RWMutex
	started bool
	closed  bool
	queues  map[peer.ID]*sendQueue // nil after Close
	inbound map[peer.ID]*peerStreams
	callers map[peer.ID]*callerState // of who called

	refused    atomic.Bool // Refuse was called
	nUnwritten atomic.Uint64
	nMalformed atomic.Uint64
	nRefused   atomic.Uint64
}

// NewDirect returns a Direct on h that is not started: handlers can be
// registered, nothing is sent or received. The host stays the caller's.
func NewDirect(h corehost.Host, cfg DirectConfig) *Direct {
	cfg.fill()
	d := &Direct{
		host:       h,
		cfg:        cfg,
		log:        cfg.Log,
		dispatcher: newDispatcher(cfg.Log),
		queues:     make(map[peer.ID]*sendQueue),
		inbound:    make(map[peer.ID]*peerStreams),
		callers:    make(map[peer.ID]*callerState),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Start begins to take streams of peers and allows Emit. It does nothing the
// second time and after Close.
func (d *Direct) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || d.closed {
		return
	}
	d.started = true
	d.host.SetStreamHandler(ProtocolDirect, d.receive)
}

// Emit sends an event to one peer. nil means that the event was encoded and
// accepted into the peer's queue: events of one caller arrive in the order of
// its calls, each at most once. The arguments belong to the caller again when
// it returns.
//
// Emit waits while the queue is full. It returns ctx's error when ctx ends,
// ErrStalled when nothing could be written to the peer for the stall timeout,
// and ErrNotConnected, with the cause, when the first event for an idle peer
// could not open a stream within ctx (a peer that is not connected is looked for
// with Locate) or the link ended meanwhile. ErrBadName, ErrBadArgument,
// ErrTooLarge, ErrNotStarted and ErrClosed come at once. After any error the
// event was not accepted and is not sent.
func (d *Direct) Emit(ctx context.Context, to peer.ID, name string, args ...any) error {
	if err := d.emit(ctx, to, name, args); err != nil {
		return d.emitFailed(to, name, err)
	}
	return nil
}

func (d *Direct) emit(ctx context.Context, to peer.ID, name string, args []any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.refused.Load() {
		return ErrClosed
	}
	size, buf, err := prepare(d.cfg.Codec, name, args, d.cfg.MaxEventSize)
	if err != nil {
		return err
	}
	if buf != nil {
		defer buf.free()
	}
	_, err = d.enqueue(ctx, to, &outgoingEvent{name: name, args: args, size: size, buf: buf}, nil)
	return err
}

// emitFailed returns what an Emit says that failed because of err.
func (d *Direct) emitFailed(to peer.ID, name string, err error) error {
	if d.refused.Load() || d.ctx.Err() != nil {
		err = ErrClosed // which may be why ctx or the link has ended
	}
	return &emitError{"emit", to, name, err}
}

// EmitBytes is Emit with b as the only argument, and allocates nothing.
func (d *Direct) EmitBytes(ctx context.Context, to peer.ID, name string, b []byte) error {
	if l := d.recent.Load(); l != nil && l.peer == to && !d.refused.Load() && ctx.Err() == nil && l.pushRepeat(name, b) {
		return nil
	}
	if err := d.emitBytes(ctx, to, name, b); err != nil {
		return d.emitFailed(to, name, err)
	}
	return nil
}

func (d *Direct) emitBytes(ctx context.Context, to peer.ID, name string, b []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.refused.Load() {
		return ErrClosed
	}
	size, err := checkRaw(name, b, d.cfg.MaxEventSize)
	if err != nil {
		return err
	}
	_, err = d.enqueue(ctx, to, &outgoingEvent{name: name, raw: b, isRaw: true, size: size}, nil)
	return err
}

// enqueue puts an event, or the call c with it, into the peer's lane, which it
// returns.
func (d *Direct) enqueue(ctx context.Context, to peer.ID, o *outgoingEvent, c *pendingCall) (l *sendQueue, err error) {
	for {
		l = d.recent.Load()
		if l == nil || l.peer != to {
			if l, err = d.queueFor(to); err != nil {
				return nil, err
			}
			d.recent.Store(l)
		}
		err := l.push(ctx, o, c)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, errEnded) {
			d.removeIdle(l) // if it never came to anything
			return nil, err
		}
		d.recent.CompareAndSwap(l, nil)
	}
}

// TryEmit is Emit without waiting: it returns ErrQueueFull when the peer's
// queue has no room. To an idle peer it opens the stream in the background; if
// that fails for the stall timeout, what was accepted counts as unwritten.
func (d *Direct) TryEmit(to peer.ID, name string, args ...any) error {
	if err := d.tryEmit(to, name, args); err != nil {
		return &emitError{"emit", to, name, err}
	}
	return nil
}

func (d *Direct) tryEmit(to peer.ID, name string, args []any) error {
	if d.refused.Load() {
		return ErrClosed
	}
	size, buf, err := prepare(d.cfg.Codec, name, args, d.cfg.MaxEventSize)
	if err != nil {
		return err
	}
	if buf != nil {
		defer buf.free()
	}
	for {
		l, err := d.queueFor(to)
		if err != nil {
			return err
		}
		if err = l.tryPush(&outgoingEvent{name: name, args: args, size: size, buf: buf}); !errors.Is(err, errEnded) {
			return err
		}
	}
}

// queueFor returns the peer's outgoing lane.
func (d *Direct) queueFor(p peer.ID) (*sendQueue, error) {
	d.mu.RLock()
	l, started, closed := d.queues[p], d.started, d.closed
	d.mu.RUnlock()
	switch {
	case closed:
		return nil, ErrClosed
	case !started:
		return nil, ErrNotStarted
	case l != nil:
		return l, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	if l = d.queues[p]; l == nil {
		l = newSendQueue(d, p)
		d.queues[p] = l
	}
	return l, nil
}

// On calls f for the events of a name from any peer, or for every event if the
// name is "*". Events of one peer are handled one after the other, in order,
// also across names; f may run for several peers at once. A slow f holds back
// the peer whose event it handles and no other. f's ctx ends at Close. A panic
// of f is caught, counted and logged.
func (d *Direct) On(name string, f func(context.Context, *Event)) (off func()) {
	return d.dispatcher.on(name, f)
}

// OnBorrowed is On for an f that keeps neither the event nor its bytes, as
// both are used again when it returns: events that all their handlers borrow
// cost no allocation. What Decode puts into other variables than a []byte or
// an any is a copy. [Name.On] borrows by itself.
func (d *Direct) OnBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return d.OnBorrowedFrom("", name, f)
}

// OnBorrowedFrom is OnBorrowed for the events of one peer.
func (d *Direct) OnBorrowedFrom(p peer.ID, name string, f func(context.Context, *Event)) (off func()) {
	return d.dispatcher.register(p, name, &handler{f: f, borrows: true})
}

// OnFrom is On for the events of one peer, however often it comes and goes.
func (d *Direct) OnFrom(p peer.ID, name string, f func(context.Context, *Event)) (off func()) {
	return d.dispatcher.onFrom(p, name, f)
}

// Pipe returns a view of the events named [StreamName] to and from p. It
// takes part from now on and holds 64 KiB or 256 events; beyond that a reader
// that does not read holds back p until the view is closed, so it must be read
// or closed.
func (d *Direct) Pipe(p peer.ID) io.ReadWriteCloser {
	ctx, cancel := context.WithCancel(d.ctx)
	v := newPipe(
		func(b []byte) error { return d.Emit(ctx, p, StreamName, b) },
		func(f func(context.Context, *Event)) func() {
			off := d.OnFrom(p, StreamName, f)
			return func() { off(); cancel() }
		})
	context.AfterFunc(ctx, v.end)
	return v
}

// Release says that the link to p has ended for the reason given. Emits that
// wait for p fail with ErrNotConnected and the reason, what is queued is
// dropped. It returns how many events Emit had accepted, since the last
// Release, that were not written to a stream. A later Emit opens a new stream.
func (d *Direct) Release(p peer.ID, reason error) (unwritten int) {
	d.mu.Lock()
	l := d.queues[p]
	delete(d.queues, p)
	d.mu.Unlock()
	if l == nil {
		return 0
	}
	if reason == nil {
		reason = errors.New("the link ended")
	}
	l.close(&causedError{ErrNotConnected, reason})
	<-l.done
	return l.unwritten()
}

// Flush waits until all events accepted so far have been written to their
// streams. That says nothing about their arrival. Its error counts what was
// not written when ctx ended, or was dropped meanwhile.
func (d *Direct) Flush(ctx context.Context) error {
	var errs []error
	for _, l := range d.allQueues() {
		if err := l.flush(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Direct) allQueues() []*sendQueue {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := make([]*sendQueue, 0, len(d.queues))
	for _, l := range d.queues {
		all = append(all, l)
	}
	return all
}

// Refuse makes Emit return ErrClosed from now on. What was accepted before is
// still written: the first step of a closing that flushes.
func (d *Direct) Refuse() { d.refused.Store(true) }

// drainTime is how long a Drain waits for peers that do not read.
const drainTime = time.Second

// Drain ends the streams on which events were sent and waits until the peers have read
// them to the end, or ctx ends, or for a second: a connection that is closed at once takes
// along what it has not yet sent. It comes after Refuse and Flush. What a peer has not
// read then may still arrive.
func (d *Direct) Drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	var draining sync.WaitGroup
	for _, l := range d.allQueues() {
		draining.Go(func() { l.drain(ctx) })
	}
	draining.Wait()
}

// Done is closed when Close begins.
func (d *Direct) Done() <-chan struct{} { return d.ctx.Done() }

// Close refuses new events (ErrClosed), drops those not written (see Flush),
// stops reading, ends the contexts of handlers, and waits for them and for its
// own goroutines until ctx ends, which is its only error. No stream handler
// and no stream stays behind. A Close to which a handler gives its ctx does
// not wait for that handler; of such a ctx only the deadline counts, or five
// seconds. Close may be called again, then it waits again.
func (d *Direct) Close(ctx context.Context) error {
	d.once.Do(d.stop)
	return d.dispatcher.waitAll(ctx, &d.tasks, "streams are")
}

// stop begins the end of everything and waits for nothing.
func (d *Direct) stop() {
	d.mu.Lock()
	d.closed = true
	if d.started {
		d.host.RemoveStreamHandler(ProtocolDirect)
	}
	lanes := d.queues
	d.queues = nil
	for _, in := range d.inbound {
		for s := range in.streams {
			// A reset may block on a frozen connection.
			d.tasks.Go(func() { s.ResetWithError(network.StreamShutdown) })
		}
	}
	d.mu.Unlock()
	d.cancel()
	for _, l := range lanes {
		l.close(ErrClosed)
	}
}

// DirectStats counts what went wrong since the start.
type DirectStats struct {
	Unwritten   uint64 // events accepted by Emit and then not written to a stream
	Malformed   uint64 // streams of peers reset for what they sent
	Refused     uint64 // streams of peers refused: too many, other network, not admitted
	Undecodable uint64 // events and calls that a typed handler could not read
	Unhandled   uint64 // events that nobody listened to, calls without a handler
	Panics      uint64 // of handlers
}

// Stats returns the counters.
func (d *Direct) Stats() DirectStats {
	return DirectStats{
		Unwritten:   d.nUnwritten.Load(),
		Malformed:   d.nMalformed.Load(),
		Refused:     d.nRefused.Load(),
		Undecodable: d.dispatcher.nUndecodable.Load(),
		Unhandled:   d.dispatcher.nUnhandled.Load(),
		Panics:      d.dispatcher.panics(),
	}
}
