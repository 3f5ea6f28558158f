package direct

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/pipe"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// Config configures a [Direct]. Its zero value works. Negative numbers are not allowed,
// and not checked.
type Config struct {
	// Network is the name of this node's network. Peers of a network with another name
	// are refused. The empty name is a network like any other.
	Network string
	// Session is eight random bytes that identify this run of the node's program; nil
	// lets New draw them.
	Session []byte
	// MaxEventSize is the largest size in bytes of an encoded event, sent or received;
	// 0 means event.DefaultMaxSize.
	MaxEventSize int
	// Codec encodes the arguments that are neither []byte nor proto.Message; the zero
	// value is JSON.
	Codec event.Codec
	// QueueEvents and QueueBytes limit the queue of events for one peer; 0 means 512
	// events and 1 MiB. In addition to the events in the queue, as many may be with the
	// goroutine that writes them to the stream. A single event larger than QueueBytes
	// fits into an empty queue.
	QueueEvents int
	QueueBytes  int
	// StallTimeout is how long a peer may read nothing before the Emit calls that wait
	// for space in its queue fail; 0 means ten seconds.
	StallTimeout time.Duration
	// CallTimeout is how long a Call waits for its answer if its ctx has no deadline; 0
	// means ten seconds.
	CallTimeout time.Duration
	// MaxCalls is how many calls to one peer may be without an answer; 0 means 1,024.
	// Further calls wait.
	MaxCalls int
	// Admit is called once for each stream that a peer opens, before the first event is
	// read from it. If it returns an error, the stream is refused. It may block while
	// the link to the peer is being made; its ctx ends at Close. It is called from
	// several goroutines. nil admits every peer.
	Admit func(ctx context.Context, p peer.ID) error
	// Locate is called before a stream is opened to a peer that is not connected. It
	// finds and connects to the peer, or returns an error. Its ctx is that of the Emit
	// or Call that opens the stream, or ends after StallTimeout. It is called from
	// several goroutines, but from only one at a time for each peer. If it is nil,
	// libp2p dials the addresses that it knows.
	Locate func(ctx context.Context, p peer.ID) error
	// Log is the logger; nil is the default one.
	Log *slog.Logger

	timeouts timeouts // shorter in tests
}

func (c *Config) fill() {
	if len(c.Session) == 0 {
		session := protocol.NewSession()
		c.Session = session[:]
	}
	c.MaxEventSize = cmp.Or(c.MaxEventSize, event.DefaultMaxSize)
	c.QueueEvents = cmp.Or(c.QueueEvents, 512)
	c.QueueBytes = cmp.Or(c.QueueBytes, 1<<20)
	c.StallTimeout = cmp.Or(c.StallTimeout, 10*time.Second)
	c.CallTimeout = cmp.Or(c.CallTimeout, 10*time.Second)
	c.timeouts.hello = cmp.Or(c.timeouts.hello, helloTimeout)
	c.timeouts.frame = cmp.Or(c.timeouts.frame, frameTimeout)
	c.timeouts.drain = cmp.Or(c.timeouts.drain, drainTimeout)
	c.MaxCalls = cmp.Or(c.MaxCalls, 1024)
	if c.Admit == nil {
		c.Admit = func(context.Context, peer.ID) error { return nil }
	}
	if c.Log == nil {
		c.Log = logging.Package("events", nil)
	}
}

// Direct sends events to single peers and calls handlers for the events of peers. All
// methods may be called from any goroutine, and from handlers.
type Direct struct {
	host       corehost.Host
	cfg        Config
	log        *slog.Logger
	dispatcher *dispatch.Dispatcher
	calls      callHandlers

	// Goroutines are added to tasks only while the Direct is not closed.
	ctx     context.Context // ends when Close begins; parent of the handlers' contexts
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	once    sync.Once   // runs stop
	refused atomic.Bool // Drain was called: Emit fails, but events accepted before are still written

	mu      sync.RWMutex
	started bool
	closed  bool

	// Sending. mu guards queues.
	queues map[peer.ID]*sendQueue    // nil after Close
	recent atomic.Pointer[sendQueue] // the queue that was used last, which is often the next one
	serial atomic.Uint64             // number of the last stream that this node opened
	callID atomic.Uint64             // id of the last call that this node made

	// Receiving. mu guards both.
	inbound map[peer.ID]*peerStreams
	callers map[peer.ID]*callerState

	nUnwritten atomic.Uint64
	nMalformed atomic.Uint64
	nRefused   atomic.Uint64
}

// New returns a Direct on h that is not started yet: handlers can be registered, but no
// event is sent or received. The host remains the caller's.
func New(h corehost.Host, cfg Config) *Direct {
	cfg.fill()
	d := &Direct{
		host:       h,
		cfg:        cfg,
		log:        cfg.Log,
		dispatcher: dispatch.New(cfg.Log),
		queues:     make(map[peer.ID]*sendQueue),
		inbound:    make(map[peer.ID]*peerStreams),
		callers:    make(map[peer.ID]*callerState),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Start begins to accept streams from peers and allows Emit. It does nothing if it was
// called before, or after Close.
func (d *Direct) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || d.closed {
		return
	}
	d.started = true
	d.host.SetStreamHandler(protocol.Events, d.receive)
}

// Emit sends an event to one peer. A nil error means that the event was encoded and
// accepted into the queue for the peer. The events of one caller arrive in the order of
// its calls, each at most once. After Emit has returned, the caller may change the
// arguments.
//
// Emit waits while the queue is full. It returns the error of ctx when ctx ends, and
// ErrStalled when no byte could be written to the peer for StallTimeout. It returns
// ErrNotConnected, with the cause, when no stream to the peer could be opened within
// ctx (for a peer that is not connected, Config.Locate finds it), or when the link
// ended meanwhile. It returns ErrBadName, ErrBadArgument, ErrTooLarge, ErrNotStarted
// and ErrClosed at once. After any error the event was not accepted and is not sent.
func (d *Direct) Emit(ctx context.Context, to peer.ID, name string, args ...any) error {
	size, buf, err := d.prepare(ctx, name, args)
	if err == nil {
		defer buf.Free()
		_, err = d.enqueue(ctx, to, &event.Outgoing{Name: name, Args: args, Size: size, Buf: buf}, nil)
	}
	if err != nil {
		return d.emitFailed(to, name, err)
	}
	return nil
}

// prepare checks an event for an Emit or Call with the context ctx, and encodes it
// unless all its arguments are raw bytes. size is the event's encoded size, and buf has
// the encoded event, or is nil if it was not encoded.
func (d *Direct) prepare(ctx context.Context, name string, args []any) (size int, buf *event.Buffer, err error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if d.refused.Load() {
		return 0, nil, errs.ErrClosed
	}
	return event.Prepare(d.cfg.Codec, name, args, d.cfg.MaxEventSize)
}

// emitFailed returns the error for an Emit that failed because of err.
func (d *Direct) emitFailed(to peer.ID, name string, err error) error {
	if d.refused.Load() || d.ctx.Err() != nil {
		err = errs.ErrClosed // the closing of this Direct may be what ended the ctx or the link
	}
	return &emitError{"emit", to, name, err}
}

// EmitBytes is Emit with data as the only argument, for typed events. It allocates no memory.
func (d *Direct) EmitBytes(ctx context.Context, to peer.ID, name string, data []byte) error {
	// A program that emits many events mostly emits similar ones to the same peer, so
	// the queue that was used last is tried first.
	if q := d.recent.Load(); q != nil && q.peer == to && !d.refused.Load() && ctx.Err() == nil && q.pushRepeat(name, data) {
		return nil
	}
	if err := d.emitBytes(ctx, to, name, data); err != nil {
		return d.emitFailed(to, name, err)
	}
	return nil
}

func (d *Direct) emitBytes(ctx context.Context, to peer.ID, name string, b []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.refused.Load() {
		return errs.ErrClosed
	}
	size, err := event.CheckRaw(name, b, d.cfg.MaxEventSize)
	if err != nil {
		return err
	}
	_, err = d.enqueue(ctx, to, &event.Outgoing{Name: name, Raw: b, IsRaw: true, Size: size}, nil)
	return err
}

// enqueue adds the event o to the queue for the peer and returns the queue. If the event
// is a call, c is that call; otherwise c is nil.
func (d *Direct) enqueue(ctx context.Context, to peer.ID, o *event.Outgoing, c *pendingCall) (q *sendQueue, err error) {
	for {
		q = d.recent.Load()
		if q == nil || q.peer != to {
			if q, err = d.queueFor(to); err != nil {
				return nil, err
			}
			d.recent.Store(q)
		}
		err := q.push(ctx, o, c)
		if err == nil {
			return q, nil
		}
		if !errors.Is(err, errQueueEnded) {
			d.removeIdle(q) // if the queue was made for this push, it was never used and is removed
			return nil, err
		}
		// The queue was removed after it was looked up and before the push. The next
		// look-up makes a new one.
		d.recent.CompareAndSwap(q, nil)
	}
}

// TryEmit is like Emit but never waits: it returns ErrQueueFull if the queue for the
// peer is full. If no stream to the peer is open, one is opened in the background. If
// that fails for StallTimeout, the accepted events count as unwritten.
func (d *Direct) TryEmit(to peer.ID, name string, args ...any) error {
	if err := d.tryEmit(to, name, args); err != nil {
		return &emitError{"emit", to, name, err}
	}
	return nil
}

func (d *Direct) tryEmit(to peer.ID, name string, args []any) error {
	size, buf, err := d.prepare(context.Background(), name, args)
	if err != nil {
		return err
	}
	defer buf.Free()
	for {
		q, err := d.queueFor(to)
		if err != nil {
			return err
		}
		if err = q.tryPush(&event.Outgoing{Name: name, Args: args, Size: size, Buf: buf}); !errors.Is(err, errQueueEnded) {
			return err
		}
	}
}

// queueFor returns the queue for a peer, which it makes if there is none.
func (d *Direct) queueFor(p peer.ID) (*sendQueue, error) {
	d.mu.RLock()
	q, started, closed := d.queues[p], d.started, d.closed
	d.mu.RUnlock()
	switch {
	case closed:
		return nil, errs.ErrClosed
	case !started:
		return nil, errs.ErrNotStarted
	case q != nil:
		return q, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errs.ErrClosed
	}
	// Another goroutine may have made the queue between RUnlock and Lock.
	if q = d.queues[p]; q == nil {
		q = newSendQueue(d, p)
		d.queues[p] = q
	}
	return q, nil
}

// On calls f for the events with the given name from any peer, or for all events if the
// name is "*". The events of one peer are handled one after the other, in order,
// whatever their names. f may run for several peers at once. A slow f holds back only
// the peer whose event it handles. The ctx of f ends at Close. A panic of f is caught,
// counted and logged.
func (d *Direct) On(name string, f func(context.Context, *event.Event)) (off func()) {
	return d.dispatcher.On(name, f)
}

// OnFrom is On for the events of one peer. It stays registered when the peer
// disconnects.
func (d *Direct) OnFrom(p peer.ID, name string, f func(context.Context, *event.Event)) (off func()) {
	return d.dispatcher.OnFrom(p, name, f)
}

// OnBorrowed is OnFrom, or On if p is empty, for an f that must not keep the event or
// its bytes: both are reused when f returns. An event whose handlers are all of this
// kind costs no allocation. Decode copies the values that it stores, except into a
// []byte or an any. It is for typed events.
func (d *Direct) OnBorrowed(p peer.ID, name string, f func(context.Context, *event.Event)) (off func()) {
	return d.dispatcher.OnBorrowed(p, name, f)
}

// Pipe returns a two-way stream of bytes to and from p, made of the events named
// [pipe.EventName]. It receives from now on and holds 64 KiB or 256 events. When it is
// full, p is held back until the pipe is read or closed. Write blocks and fails as Emit
// does, and splits large writes. Read returns io.EOF after Close.
func (d *Direct) Pipe(p peer.ID) io.ReadWriteCloser {
	ctx, cancel := context.WithCancel(d.ctx)
	v := pipe.New(d.cfg.MaxEventSize,
		func(b []byte) error { return d.Emit(ctx, p, pipe.EventName, b) },
		func(f func(context.Context, *event.Event)) func() {
			off := d.OnFrom(p, pipe.EventName, f)
			return func() { off(); cancel() }
		})
	context.AfterFunc(ctx, v.Finish)
	return v
}

// Release ends the sending to p for the given reason. Emit calls that wait for p fail
// with ErrNotConnected and the reason, and queued events are dropped. Release returns
// how many events were accepted since the last Release and not written to a stream. A
// later Emit opens a new stream.
func (d *Direct) Release(p peer.ID, reason error) (unwritten int) {
	d.mu.Lock()
	q := d.queues[p]
	delete(d.queues, p)
	d.mu.Unlock()
	if q == nil {
		return 0
	}
	if reason == nil {
		reason = errors.New("the link ended")
	}
	q.close(errs.Because(ErrNotConnected, reason))
	<-q.done
	return q.unwritten()
}

// Flush waits until all events that were accepted before the call were written to their
// streams. That does not mean that they have arrived. Its error says how many events
// were not written when ctx ended, or were dropped meanwhile.
func (d *Direct) Flush(ctx context.Context) error {
	var errs []error
	for _, q := range d.allQueues() {
		if err := q.flush(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Direct) allQueues() []*sendQueue {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := make([]*sendQueue, 0, len(d.queues))
	for _, q := range d.queues {
		all = append(all, q)
	}
	return all
}

// readToEndTimeout is how long Drain waits for peers that do not read.
const readToEndTimeout = time.Second

// Drain refuses new events from now on (ErrClosed) and writes the accepted ones, as
// [Direct.Flush] does, whose error it returns. Then it ends the streams and waits until
// the peers have read them to the end, for one second or until ctx ends: if a
// connection is closed at once, bytes on their way are lost. Drain is the first step of
// closing without loss.
func (d *Direct) Drain(ctx context.Context) error {
	d.refused.Store(true)
	err := d.Flush(ctx)
	ctx, cancel := context.WithTimeout(ctx, readToEndTimeout)
	defer cancel()
	var draining sync.WaitGroup
	for _, q := range d.allQueues() {
		draining.Go(func() { q.drain(ctx) })
	}
	draining.Wait()
	return err
}

// Done returns a channel that is closed when Close begins.
func (d *Direct) Done() <-chan struct{} { return d.ctx.Done() }

// Close refuses new events (ErrClosed), drops events that were not written (see Drain),
// stops reading, and ends the contexts of handlers. It waits for the handlers and for
// its own goroutines until ctx ends, which is its only error. No stream and no stream
// handler is left.
//
// If a handler calls Close with its own ctx, Close does not wait for that handler. Since
// closing cancels the ctx of every handler, only the deadline of that ctx counts;
// without a deadline Close waits five seconds. Close may be called again, and then waits
// again.
func (d *Direct) Close(ctx context.Context) error {
	d.once.Do(d.stop)
	return d.dispatcher.WaitAll(ctx, &d.tasks, "streams are")
}

// stop begins to close everything. It does not wait.
func (d *Direct) stop() {
	d.mu.Lock()
	d.closed = true
	if d.started {
		d.host.RemoveStreamHandler(protocol.Events)
	}
	queues := d.queues
	d.queues = nil
	for _, in := range d.inbound {
		for s := range in.streams {
			// A reset may block if the connection hangs.
			d.tasks.Go(func() { s.ResetWithError(network.StreamShutdown) })
		}
	}
	d.mu.Unlock()
	d.cancel()
	for _, q := range queues {
		q.close(errs.ErrClosed)
	}
}

// Stats returns counters of faults since New.
//
//	unwritten    events that Emit accepted and that were not written to a stream
//	malformed    streams that were reset because a peer sent bytes that are not events
//	refused      streams that were refused: too many, another network, not admitted
//	undecodable  events and calls that a typed handler could not decode
//	unhandled    events and calls without a handler
//	panics       handlers that panicked or called runtime.Goexit
func (d *Direct) Stats() map[string]uint64 {
	return map[string]uint64{
		"unwritten":   d.nUnwritten.Load(),
		"malformed":   d.nMalformed.Load(),
		"refused":     d.nRefused.Load(),
		"undecodable": d.dispatcher.Undecodable(),
		"unhandled":   d.dispatcher.Unhandled(),
		"panics":      d.dispatcher.Panics(),
	}
}
