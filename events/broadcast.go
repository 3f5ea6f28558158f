package events

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/pipe"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/subscription"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// Config configures a [Broadcast]. Only Topic is required.
type Config struct {
	// Topic is the name of the pubsub topic. Nothing else may join the topic on the
	// same pubsub, unless Joined is set.
	Topic string
	// Joined is the topic if the application has joined it on the pubsub already. Close
	// does not leave it.
	Joined *pubsub.Topic
	// MaxEventSize is the largest size of an event that is sent, in bytes: its name,
	// its encoded arguments, and a few bytes for each. 0 means 512 KiB. The greatest
	// value is 768 KiB less 64 bytes.
	MaxEventSize int
	// CBOR encodes arguments that are neither []byte nor proto.Message as CBOR (RFC 8949),
	// which is smaller and faster than JSON. Receivers understand both.
	CBOR bool
	// StoreAge is how long events are stored for neighbors that may lack them; 0 means
	// one minute. Events that wait for handlers are stored for longer.
	StoreAge time.Duration
	// StoreBytes is the most memory, in bytes, for events that are stored for neighbors
	// and for handlers; 0 means 16 MiB. At the limit, the oldest events of the sender
	// that uses the most memory are dropped. Dropped events that no handler has seen
	// yet are reported as a [Gap].
	StoreBytes int
	// Last is how many of the events that each sender sent before this node joined are
	// handled here, as far as neighbors still store them. If the first of them is in the
	// middle of a batch, the events before it in that batch are handled, too. 0 means
	// that only events sent from now on are handled.
	Last uint64
	// Log is the logger; nil means the go-log logger "smokesignal/events".
	Log *slog.Logger
	// Node is set by package smokesignal; nil for everybody else. With Node, the
	// neighbors are the peers that the node links. With nil, all peers on the topic are
	// neighbors.
	Node *wiring.Broadcasts
}

func (c *Config) fill() error {
	if c.Topic == "" {
		return errors.New("events: a broadcast needs the name of a topic: set Topic")
	}
	c.MaxEventSize = cmp.Or(c.MaxEventSize, event.DefaultMaxSize)
	// Even the largest event must fit into a batch that contains only this event.
	if most := maxBatch - maxBatchOverhead; c.MaxEventSize > most {
		return fmt.Errorf("events: MaxEventSize is %d bytes and can be at most %d, because an event must fit into a batch", c.MaxEventSize, most)
	}
	if c.StoreAge < 0 || c.StoreBytes < 0 {
		return fmt.Errorf("events: StoreBytes is %d and StoreAge %v; neither can be negative", c.StoreBytes, c.StoreAge)
	}
	c.StoreAge = cmp.Or(c.StoreAge, time.Minute)
	c.StoreBytes = cmp.Or(c.StoreBytes, 16<<20)
	if c.Log == nil {
		c.Log = logging.Package("events", nil)
	}
	return nil
}

// Broadcast sends events to all nodes on a topic and calls handlers for the events of
// other nodes. The events of each sender are handled once and in the order in which the
// sender emitted them, whatever happens to them in pubsub: events that pubsub dropped
// are fetched from neighbors, and events that no neighbor has any more are reported as
// a [Gap]. A node does not receive its own events. All methods may be called from any
// goroutine, and from handlers.
type Broadcast struct {
	// An outgoing event passes through publisher and pubsub to engineDriver, which stores
	// it. An arriving event passes through pubsub, engineDriver, deliverer and dispatcher.

	host    corehost.Host
	cfg     Config
	links   bool               // the neighbors are the peers that the node links, not all peers on the topic
	node    *wiring.Broadcasts // never nil
	log     *slog.Logger
	codec   event.Codec
	session order.SessionKey
	sub     *subscription.Subscription

	// Sending.
	publisher publisher

	// Order, repair and the links to neighbors.
	driver engineDriver

	// Handling.
	dispatcher *dispatch.Dispatcher
	deliverer  deliverer
	raw        dispatch.RawDeliverer
	gaps       gapHandlers

	// A goroutine is added to tasks only while one of the mutexes is held that Close
	// locks before it waits for tasks. So Close misses no goroutine.
	ctx      context.Context // ends when Close begins; parent of the contexts given to handlers
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	once     sync.Once // runs stop
	mu       sync.Mutex
	stage    atomic.Int32 // a broadcastStage; set only under mu
	orphaned atomic.Bool  // the application has ended the pubsub or closed its topic, so Emit returns ErrPubSubEnded

	stats broadcastCounters
}

// broadcastStage says how far a Broadcast is in its life.
type broadcastStage int

const (
	broadcastNew broadcastStage = iota
	broadcastStarted
	broadcastDraining // Drain was called: Emit fails; events accepted before are still sent, and fetched by neighbors that lack them
	broadcastClosed
)

type broadcastCounters struct {
	emitted, delivered, lost, overrun, repaired, repairs, duplicates, oldSessions, foreign, unsigned, malformed atomic.Uint64
}

// lastStart is the start of the latest session of this process. It makes the start of
// each session later than the one before, even if both begin within the same
// millisecond, or if the clock was set back in between.
var lastStart atomic.Uint64

// newSession returns the key of a session with the given id that began at the time
// began. If id is zero, it draws a random one. If began is zero, the session begins now.
func newSession(id protocol.Session, began time.Time) (s order.SessionKey) {
	if id.IsZero() {
		id = protocol.NewSession()
	}
	s.ID = id
	if !began.IsZero() {
		s.Start = uint64(max(began.UnixMilli(), 1)) // a start of zero is invalid
		return s
	}
	for {
		last := lastStart.Load()
		s.Start = max(uint64(time.Now().UnixMilli()), last+1)
		if lastStart.CompareAndSwap(last, s.Start) {
			return s
		}
	}
}

// New joins the topic and begins to send and receive. For up to five seconds it blocks
// while it checks that the pubsub can carry broadcasts. h is the host of ps, or a
// wrapper of that host. Both ps and h remain the caller's and must outlive the
// Broadcast.
//
// New fails if the config is invalid or the topic is joined already, and with
// ErrOtherHost, ErrUnsigned, ErrOtherAuthor or ErrNotPublished if the pubsub cannot
// carry broadcasts.
func New(ps *pubsub.PubSub, h corehost.Host, cfg Config) (*Broadcast, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	node := cfg.Node
	if node == nil {
		node = new(wiring.Broadcasts)
	}
	b := &Broadcast{
		links:      cfg.Node != nil,
		node:       node,
		host:       h,
		cfg:        cfg,
		log:        cfg.Log,
		dispatcher: dispatch.New(cfg.Log),
		codec:      event.CodecFor(cfg.CBOR),
		session:    newSession(node.Session, node.Began),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.driver.init(b)
	b.publisher = publisher{b: b, nextEvent: 1, full: notify.NewSignal()}
	b.deliverer.init(b)
	b.raw.Init(b.ctx, b.dispatcher)
	var err error
	if b.sub, err = subscription.Join(ps, cfg.Topic, cfg.Joined, b.driver.receiveMessage); err != nil {
		b.cancel()
		return nil, err
	}
	// A pubsub that the application has made may leave messages unsigned, or may refuse
	// to publish them.
	if !node.OwnPubSub {
		if err := b.checkPubSub(); err != nil {
			b.once.Do(b.stop)
			return nil, err
		}
	}
	node.Start, node.Link, node.Unlink, node.Greeting = b.start, b.link, b.unlink, b.greeting
	node.EmitBytes, node.OnBorrowed, node.Pipe = b.emitBytes, b.onBorrowed, b.pipe
	// If no smokesignal node makes the links, the Broadcast need not wait for one to call
	// start.
	if !b.links {
		b.start()
	}
	return b, nil
}

// start allows Emit, begins to serve marks and repairs to neighbors, and begins to
// follow the peers on the topic. It does nothing if it was called before, or after
// Close.
func (b *Broadcast) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stageNow() != broadcastNew {
		return
	}
	b.setStage(broadcastStarted)
	b.tasks.Go(b.watchTopic)
	b.host.SetStreamHandler(protocol.Repair, b.serve)
}

// watchTopic follows which peers come to the topic and leave it.
func (b *Broadcast) watchTopic() {
	for {
		ev, err := b.sub.Members.NextPeerEvent(b.ctx)
		if err != nil {
			return
		}
		b.topicChanged(ev.Peer, ev.Type == pubsub.PeerJoin)
	}
}

// topicChanged notes that the peer p has announced the topic (present is true) or has
// left it (present is false).
func (b *Broadcast) topicChanged(p peer.ID, present bool) {
	switch {
	case b.links:
		// A guest is never linked. But it receives broadcasts, so from now on Emit need
		// not return ErrNoPeers.
		if present && b.node.Guest != nil && b.node.Guest(p) {
			b.driver.hadNeighbor.Store(true)
		}
	case present:
		b.driver.addNeighbor(p)
	default:
		b.unlink(p)
	}
	if b.node.OnTopic != nil {
		b.node.OnTopic(p, present)
	}
}

// Emit sends an event to all nodes of the network. A nil error means that the event was
// encoded, numbered and queued. Every node gets the events of this node in the order of
// the calls of Emit. Events that are emitted while there is no neighbor are stored for
// later neighbors: see StoreAge in [Config]. After Emit has returned, the caller may
// change the arguments.
//
// Emit waits while a neighbor lacks so many events that pubsub might drop more of them.
// The wait ends when the neighbor catches up or ctx ends, and after five seconds if the
// neighbor makes no progress. Emit returns ErrNoPeers (there was never a neighbor),
// ErrClosed, ErrBadName, ErrBadArgument, ErrTooLarge and ErrPubSubEnded at once. After
// any error the event was not numbered and is not sent.
func (b *Broadcast) Emit(ctx context.Context, name string, args ...any) error {
	if _, err := b.emit(ctx, waitForSpace, name, args); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// TryEmit is like Emit but never waits: where Emit would wait, TryEmit returns
// ErrQueueFull.
func (b *Broadcast) TryEmit(name string, args ...any) error {
	if _, err := b.emit(context.Background(), failWithoutSpace, name, args); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// EmitConfirmed is like Emit, but returns only when k neighbors have received the event.
// If k is 0, it waits for all peers that were neighbors when the event was sent.
// Neighbors forward the event; whether any node has handled it is not known. If there
// are fewer than k neighbors, it waits for more, so give ctx a deadline. A negative k
// waits for nobody.
//
// If ctx ends first, the error is an [*UnconfirmedError], and the event may still
// arrive. Other errors are those of Emit: then nothing was sent.
func (b *Broadcast) EmitConfirmed(ctx context.Context, k int, name string, args ...any) error {
	number, err := b.emit(ctx, waitForSpace, name, args)
	if err == nil {
		err = b.confirm(ctx, number+1, k)
	}
	if err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// broadcastError adds the name of the event to an error.
type broadcastError struct {
	name string
	err  error
}

func (e *broadcastError) Error() string {
	return fmt.Sprintf("events: broadcast %s: %s", event.Quote(e.name), errs.Text(e.err))
}
func (e *broadcastError) Unwrap() error { return e.err }

// emit encodes the event with the given name and arguments, adds it to the batch that is
// published next, and returns the event's number. mode says what emit does if that batch
// is full.
func (b *Broadcast) emit(ctx context.Context, mode spaceMode, name string, args []any) (number uint64, err error) {
	if ctx.Err() != nil {
		return 0, b.closedOr(ctx)
	}
	size, buf, err := event.Prepare(b.codec, name, args, b.cfg.MaxEventSize)
	if err != nil {
		return 0, err
	}
	defer buf.Free()
	return b.publisher.enqueue(ctx, mode, &event.Outgoing{Name: name, Args: args, Size: size, Buf: buf})
}

// emitBytes is Emit with data as the only argument. It allocates no memory.
func (b *Broadcast) emitBytes(ctx context.Context, name string, data []byte) error {
	if err := b.enqueueBytes(ctx, name, data); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// enqueueBytes encodes an event whose only argument is data, and adds it to the batch
// that is published next. It waits until ctx ends if that batch is full.
func (b *Broadcast) enqueueBytes(ctx context.Context, name string, data []byte) error {
	if ctx.Err() != nil {
		return b.closedOr(ctx)
	}
	size, err := event.CheckRaw(name, data, b.cfg.MaxEventSize)
	if err != nil {
		return err
	}
	_, err = b.publisher.enqueue(ctx, waitForSpace, &event.Outgoing{Name: name, Raw: data, IsRaw: true, Size: size})
	return err
}

// mayEmit returns an error if no event can be emitted at present.
func (b *Broadcast) mayEmit() error {
	switch b.stageNow() {
	case broadcastNew:
		return errs.ErrNotStarted
	case broadcastDraining, broadcastClosed:
		return ErrClosed
	}
	if b.orphaned.Load() {
		return ErrPubSubEnded
	}
	// If there was never a neighbor, an event would wait in the store until it is too
	// old. A node that has lost its neighbors may emit, as they may come back.
	if !b.driver.hadNeighbor.Load() {
		return ErrNoPeers
	}
	return nil
}

// closedOr returns the error for a call whose ctx has ended: ErrClosed if Close has
// begun, since that may be why the ctx has ended.
func (b *Broadcast) closedOr(ctx context.Context) error {
	if b.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

// awaitChange unlocks mu, waits until changed.Broadcast is called, ctx ends or Close
// begins, and locks mu again. It returns nil in the first case, and otherwise the error
// of ctx or ErrClosed.
func (b *Broadcast) awaitChange(ctx context.Context, changed *notify.Cond, mu *sync.Mutex) error {
	change := changed.Changed()
	mu.Unlock()
	defer mu.Lock()
	select {
	case <-change:
		return nil
	case <-ctx.Done():
		return b.closedOr(ctx)
	case <-b.ctx.Done():
		return ErrClosed
	}
}

func (b *Broadcast) setStage(s broadcastStage) { b.stage.Store(int32(s)) }

func (b *Broadcast) stageNow() broadcastStage { return broadcastStage(b.stage.Load()) }

// On calls f for the events with the given name from any node, or for all events if the
// name is "*". The events of one sender are handled one after the other, in order,
// whatever their names. f may run for several senders at once. A slow f delays only its
// sender's events at this node. Events that are dropped before f could handle them are
// reported as a [Gap]: see StoreBytes in [Config]. The ctx of f ends at Close. A panic
// of f is caught, counted and logged.
func (b *Broadcast) On(name string, f func(context.Context, *Event)) (off func()) {
	return b.dispatcher.On(name, f)
}

// onBorrowed is On for an f that must not keep the event, which is reused when f
// returns. The bytes of the event may be kept; they keep the whole batch in memory.
func (b *Broadcast) onBorrowed(name string, f func(context.Context, *event.Event)) (off func()) {
	return b.dispatcher.OnBorrowed("", name, f)
}

// OnRaw calls f for messages on the topic that are not batches of events. They may come
// from any program that speaks pubsub. The signature proves the author; nothing else is
// known. data belongs to f, and may be empty. The messages of one author are handled
// one after the other in the order of their arrival, which may differ from the order of
// publishing. They are handled concurrently with the author's events. f may run for
// several authors at once. The ctx of f ends at Close. A panic of f is caught, counted
// and logged.
//
// Messages that wait for handlers take at most 4 MiB and come from at most 4,096
// authors. At the limit, messages of the author with the most waiting are dropped and
// counted. Without a handler, messages are only counted (see Stats). If the application
// has made the pubsub, these messages arrive from the call of New on.
func (b *Broadcast) OnRaw(f func(ctx context.Context, from peer.ID, data []byte)) (off func()) {
	return b.raw.On(f)
}

// OnGap calls f for missing events in their place: after the handlers of the event
// before them have returned, and before those of the next event are called. f may run
// for several senders at once.
func (b *Broadcast) OnGap(f func(context.Context, Gap)) (off func()) { return b.gaps.on(f) }

// pipe returns a two-way stream of bytes to and from all nodes, made of the events
// named [pipe.EventName]. It receives from now on and holds 64 KiB or 256 events. When
// it is full, no handler at this node gets further events of that sender until the pipe
// is read or closed. These events wait in the store, and if they are dropped there they
// are reported as a [Gap]. Write blocks and fails as Emit does, and splits large
// writes. Read returns io.EOF after Close.
func (b *Broadcast) pipe() io.ReadWriteCloser {
	ctx, cancel := context.WithCancel(b.ctx)
	p := pipe.New(b.cfg.MaxEventSize,
		func(data []byte) error { return b.Emit(ctx, pipe.EventName, data) },
		func(f func(context.Context, *event.Event)) func() {
			off := b.On(pipe.EventName, f)
			return func() { off(); cancel() }
		})
	context.AfterFunc(ctx, p.Finish)
	return p
}

// Stats returns counters since New. For each session of a sender, counted from its first event
// that this node learned of, delivered, lost and overrun add up to what the sender has sent.
//
//	emitted      events that this node sent
//	delivered    events that were handled
//	lost         events that no neighbor had any more
//	overrun      events dropped because handlers were too slow, or at Close
//	repaired     batches that neighbors gave to this node on request
//	repairs      batches that this node gave to neighbors on request
//	duplicates   batches that arrived again, or after they were given up
//	old_sessions batches of a session before the current one of their sender
//	foreign      messages that were not events, while there was no handler of OnRaw
//	raw          messages that handlers of OnRaw got
//	raw_dropped  messages for OnRaw dropped because handlers were too slow, or at Close
//	unsigned     messages without a signature, which were dropped
//	undecodable  events that are malformed, or that a typed handler could not decode
//	unhandled    events without a handler
//	panics       handlers that panicked or called runtime.Goexit
func (b *Broadcast) Stats() map[string]uint64 {
	raw, rawDropped := b.raw.Counts()
	return map[string]uint64{
		"emitted":      b.stats.emitted.Load(),
		"delivered":    b.stats.delivered.Load(),
		"lost":         b.stats.lost.Load(),
		"overrun":      b.stats.overrun.Load(),
		"repaired":     b.stats.repaired.Load(),
		"repairs":      b.stats.repairs.Load(),
		"duplicates":   b.stats.duplicates.Load(),
		"old_sessions": b.stats.oldSessions.Load(),
		"foreign":      b.stats.foreign.Load(),
		"raw":          raw,
		"raw_dropped":  rawDropped,
		"unsigned":     b.stats.unsigned.Load(),
		"undecodable":  b.stats.malformed.Load() + b.dispatcher.Undecodable(),
		"unhandled":    b.dispatcher.Unhandled(),
		"panics":       b.dispatcher.Panics(),
	}
}

// Done returns a channel that is closed when Close begins.
func (b *Broadcast) Done() <-chan struct{} { return b.ctx.Done() }

// Close refuses new events (ErrClosed), leaves the topic, drops the events that wait
// for handlers, and ends the contexts of handlers. It waits for the handlers and for
// its own goroutines until ctx ends, which is its only error. No stream and no stream
// handler is left.
//
// If a handler calls Close with its own ctx, Close does not wait for that handler. Since
// closing cancels the ctx of every handler, only the deadline of that ctx counts;
// without a deadline Close waits five seconds. Close may be called again, and then waits
// again.
func (b *Broadcast) Close(ctx context.Context) error {
	b.once.Do(b.stop)
	return b.dispatcher.WaitAll(ctx, &b.tasks, "the broadcast is")
}

// stop begins to close all parts of the Broadcast, and leaves the topic. It waits for
// pubsub to leave the topic, but not for handlers or goroutines.
func (b *Broadcast) stop() {
	b.mu.Lock()
	started := b.stageNow() != broadcastNew
	b.setStage(broadcastClosed)
	b.mu.Unlock()
	if started {
		b.host.RemoveStreamHandler(protocol.Repair)
	}
	b.cancel()
	b.driver.close()
	b.publisher.close()
	b.deliverer.close()
	b.raw.Close()
	if err := b.sub.Close(); err != nil {
		b.log.Debug("cannot leave the topic", "error", err)
	}
}

// greeting returns this node's greeting for a new neighbor: its encoded marks, which say
// how far this node has received the events of each sender, beginning with its own. The
// neighbor's node passes the greeting to its method link. greeting must be called after
// the neighbor was seen on the topic. Everything that this node sends or forwards after
// that goes to the neighbor, so the neighbor gets every event from these marks on. A
// greeting has at most 64 KiB.
func (b *Broadcast) greeting() []byte {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	return appendMarks(nil, b.driver.engine.Greeting(maxMarks))
}
