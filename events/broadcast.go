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
	"github.com/go-smokesignal/smokesignal/internal/handling"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/payload"
	"github.com/go-smokesignal/smokesignal/internal/pipe"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/subscription"
)

// Defaults of the space and time for broadcasts that neighbors may still lack.
const (
	DefaultStoreAge   = time.Minute
	DefaultStoreBytes = 16 << 20
)

// BroadcastConfig configures a [Broadcast]. Only Topic is required.
type BroadcastConfig struct {
	// Topic is the pubsub topic. The Broadcast has it for itself unless Joined is
	// set.
	Topic string
	// Joined is the topic if the application has joined it on the pubsub already.
	// It stays the application's: Close does not leave it.
	Joined *pubsub.Topic
	// Lent means that the application has made the pubsub. NewBroadcast then checks
	// that it can carry broadcasts, which may take up to five seconds.
	Lent bool
	// Session is eight random bytes that distinguish this run of the node from the
	// next; nil draws them.
	Session []byte
	// Began is the start of the session, which travels in milliseconds since 1970. Of
	// two sessions of one sender, receivers take the one that began later as the
	// current one. Zero means now, but later than every session of this process.
	Began time.Time
	// MaxEventSize bounds an encoded event that is sent, in bytes; 0 is
	// 512 KiB. An event has to fit into a batch.
	MaxEventSize int
	// Codec encodes the arguments that are neither []byte nor proto.Message; the
	// zero value is JSON.
	Codec event.Codec
	// StoreAge is how long events are kept for neighbors that may lack them; 0 is
	// DefaultStoreAge. Events that wait for handlers are kept longer.
	StoreAge time.Duration
	// StoreBytes bounds the memory for events that are kept for neighbors and for
	// handlers; 0 is DefaultStoreBytes. When the bound is reached, the oldest events
	// of the sender that uses the most memory are dropped. Dropped events that were
	// still waiting for a handler are reported as a [Gap].
	StoreBytes int
	// Last is how many earlier events of each sender are handled first, as far as
	// neighbors still have them. The other events of the same batch come with
	// them. 0 begins with the events that are sent from now on.
	Last uint64
	// Links means that the neighbors are the peers given to Link, until Unlink.
	// Otherwise they are all peers on the topic.
	Links bool
	// OnTopic is called when a peer announces the topic (present) and when it leaves
	// it: in order, from one goroutine, from Start on, beginning with the peers that
	// are on the topic already. Events that are sent after the call go to that
	// peer. nil is not called.
	OnTopic func(p peer.ID, present bool)
	// Guest reports whether a peer on the topic stays there without being linked.
	// From the first such peer on, Emit has somebody to send to. It is called with
	// Links only, and must not block; nil reports no.
	Guest func(p peer.ID) bool
	// Admit is called before events of a sender are handled, from the goroutine
	// that handles them. It may block while the sender is being linked; its ctx
	// ends at Close. If it returns an error the events are dropped. nil admits
	// all senders.
	Admit func(ctx context.Context, sender peer.ID) error
	// Log is the logger; nil is the default one.
	Log *slog.Logger
}

func (c *BroadcastConfig) fill() error {
	if c.Topic == "" {
		return errors.New("events: a broadcast needs a topic")
	}
	if c.Session == nil {
		session := protocol.NewSession()
		c.Session = session[:]
	}
	if most := len(protocol.Session{}); len(c.Session) != most {
		return fmt.Errorf("events: a session has %d bytes, not %d", most, len(c.Session))
	}
	c.MaxEventSize = cmp.Or(c.MaxEventSize, event.DefaultMaxSize)
	if most := MaxBatch - maxBatchOverhead; c.MaxEventSize > most {
		return fmt.Errorf("events: a broadcast event has at most %d bytes, so %d as maximum is too much", most, c.MaxEventSize)
	}
	if c.StoreAge < 0 || c.StoreBytes < 0 {
		return fmt.Errorf("events: a store of %d bytes for %v: neither can be negative", c.StoreBytes, c.StoreAge)
	}
	c.StoreAge = cmp.Or(c.StoreAge, DefaultStoreAge)
	c.StoreBytes = cmp.Or(c.StoreBytes, DefaultStoreBytes)
	if c.Log == nil {
		c.Log = logging.Package("events", nil)
	}
	return nil
}

// Broadcast sends events to all nodes on a topic and calls handlers for the
// events of other nodes. The events of each sender are handled once and in the
// order in which it emitted them, whatever pubsub does to them on the way: events
// that pubsub dropped are fetched from neighbors, and events that no neighbor has
// any more are reported as a [Gap]. A node does not hear its own events. All
// methods may be called from any goroutine, also from handlers.
//
// An event on its way out passes publisher, pubsub and engineDriver, where it
// enters the store. An event on its way in passes pubsub, engineDriver,
// deliverer and dispatcher.
type Broadcast struct {
	host    corehost.Host
	cfg     BroadcastConfig
	log     *slog.Logger
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

	// Life. Goroutines are added to tasks only under a mutex that Close locks
	// before it waits.
	ctx      context.Context // ends when Close begins; parent of the handlers' contexts
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	once     sync.Once // of stop
	mu       sync.Mutex
	stage    atomic.Int32 // a broadcastStage; set under mu
	orphaned atomic.Bool  // the pubsub has ended: Emit returns ErrPubSubEnded

	stats broadcastCounters
}

// broadcastStage is how far a Broadcast is in its life.
type broadcastStage int

const (
	broadcastNew broadcastStage = iota
	broadcastStarted
	broadcastDraining // Emit fails, accepted events are still sent and repaired
	broadcastClosed
)

// BroadcastStats is a snapshot of counters since the start. For each session of a
// sender, counted from its first mark or event that arrived here, Delivered, Lost
// and Overrun add up to what the sender has sent.
type BroadcastStats struct {
	Emitted     uint64 // own events
	Delivered   uint64 // events that were handled
	Lost        uint64 // events that no neighbor had any more
	Overrun     uint64 // events dropped because handlers were too slow, the sender was not admitted, or at Close
	Repaired    uint64 // batches fetched from a neighbor
	Repairs     uint64 // batches given to neighbors that asked
	Duplicates  uint64 // batches that had arrived already, or that arrived after they were given up
	OldSessions uint64 // batches of a session before the sender's current one
	Foreign     uint64 // messages on the topic that are not batches, and for which there was no handler of OnRaw
	Raw         uint64 // messages that handlers of OnRaw got
	RawDropped  uint64 // messages for OnRaw dropped because handlers were too slow, or at Close
	Unsigned    uint64 // messages that a lax pubsub let through without a signature
	Undecodable uint64 // events that are malformed, or that a typed handler could not decode
	Unhandled   uint64 // events without a handler
	Panics      uint64 // handlers that panicked or called runtime.Goexit
}

type broadcastCounters struct {
	emitted, delivered, lost, overrun, repaired, repairs, duplicates, oldSessions, foreign, unsigned, malformed atomic.Uint64
}

// lastStart is the start of the latest session of this process. Two sessions made
// within a millisecond, or after the clock was set back, still have different
// and growing starts.
var lastStart atomic.Uint64

func newSession(id []byte, began time.Time) (s order.SessionKey) {
	copy(s.ID[:], id)
	if !began.IsZero() {
		s.Start = uint64(max(began.UnixMilli(), 1)) // zero is not a start
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

// NewBroadcast joins the topic. Nobody else may have joined it on ps, except if
// it is the config's Joined. Events are handled from now on and can be sent from
// Start on. Both ps and h stay the caller's and must outlive the Broadcast; h is
// the host of ps, or a wrapper of that host. NewBroadcast fails for a bad config
// and if the topic is taken. If the config says Lent it also returns
// ErrOtherHost, ErrUnsigned, ErrOtherAuthor or ErrNotPublished.
func NewBroadcast(ps *pubsub.PubSub, h corehost.Host, cfg BroadcastConfig) (*Broadcast, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	b := &Broadcast{
		host:       h,
		cfg:        cfg,
		log:        cfg.Log,
		dispatcher: dispatch.New(cfg.Log),
		session:    newSession(cfg.Session, cfg.Began),
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
	if cfg.Lent {
		if err := b.checkPubSub(); err != nil {
			b.once.Do(b.stop)
			return nil, err
		}
	}
	return b, nil
}

// Start allows Emit, begins to serve marks and repairs, and calls OnTopic of the
// config from now on. It does nothing the second time and after Close.
func (b *Broadcast) Start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stageNow() != broadcastNew {
		return
	}
	b.setStage(broadcastStarted)
	b.tasks.Go(b.watchTopic)
	b.host.SetStreamHandler(protocol.Repair, b.serve)
}

// watchTopic follows the peers on the topic.
func (b *Broadcast) watchTopic() {
	for {
		ev, err := b.sub.Members.NextPeerEvent(b.ctx)
		if err != nil {
			return
		}
		b.topicChanged(ev.Peer, ev.Type == pubsub.PeerJoin)
	}
}

// topicChanged notes that a peer announced the topic or left it.
func (b *Broadcast) topicChanged(p peer.ID, present bool) {
	switch {
	case b.cfg.Links:
		// A guest is never linked, but receives broadcasts, so Emit may begin.
		if present && b.cfg.Guest != nil && b.cfg.Guest(p) {
			b.driver.hadNeighbor.Store(true)
		}
	case present:
		b.driver.addNeighbor(p)
	default:
		b.Unlink(p)
	}
	if b.cfg.OnTopic != nil {
		b.cfg.OnTopic(p, present)
	}
}

// Emit sends an event to all nodes of the network. nil means that it was encoded,
// numbered and queued: every node gets the events of this node in the order of
// these calls. Events that are emitted while there is no neighbor are kept for
// later ones, see [BroadcastConfig]. The arguments belong to the caller again when
// Emit returns.
//
// Emit waits while a neighbor lacks so many events that more could overrun it,
// until the neighbor catches up or ctx ends. It waits at most five seconds for a
// neighbor that makes no progress. ErrNoPeers (there was never a neighbor),
// ErrNotStarted, ErrClosed, ErrBadName, ErrBadArgument, ErrTooLarge and
// ErrPubSubEnded are returned at once. After any error nothing was numbered or
// sent.
func (b *Broadcast) Emit(ctx context.Context, name string, args ...any) error {
	if _, err := b.emit(ctx, waitForSpace, name, args); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// EmitBytes is Emit with data as the only argument. It allocates nothing, and is
// for the typed events of package smokesignal: no other module can make a
// [payload.Raw].
func (b *Broadcast) EmitBytes(ctx context.Context, name string, data payload.Raw) error {
	if err := b.emitBytes(ctx, name, data.Bytes); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// TryEmit is Emit that does not wait: it returns ErrQueueFull instead.
func (b *Broadcast) TryEmit(name string, args ...any) error {
	if _, err := b.emit(context.Background(), failWithoutSpace, name, args); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// EmitConfirmed is Emit that returns when k neighbors have received the event or,
// if k is 0, all that were neighbors when it was sent. Neighbors pass the event on;
// whether it was handled anywhere is not known. With fewer than k neighbors it
// waits for more, so give ctx a deadline. A negative k waits for nobody.
//
// When ctx ends first the error is an [*UnconfirmedError], and the event may
// arrive all the same. Other errors are those of Emit: nothing was sent then.
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

// broadcastError names the event that could not be broadcast.
type broadcastError struct {
	name string
	err  error
}

func (e *broadcastError) Error() string {
	return fmt.Sprintf("events: broadcast %s: %s", event.Quote(e.name), errs.Text(e.err))
}
func (e *broadcastError) Unwrap() error { return e.err }

// emit encodes and queues an event and returns its number.
func (b *Broadcast) emit(ctx context.Context, mode spaceMode, name string, args []any) (number uint64, err error) {
	if ctx.Err() != nil {
		return 0, b.closedOr(ctx)
	}
	size, buf, err := event.Prepare(b.cfg.Codec, name, args, b.cfg.MaxEventSize)
	if err != nil {
		return 0, err
	}
	defer buf.Free()
	return b.publisher.enqueue(ctx, mode, &event.Outgoing{Name: name, Args: args, Size: size, Buf: buf})
}

func (b *Broadcast) emitBytes(ctx context.Context, name string, data []byte) error {
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

// mayEmit returns the error of an Emit that fails whatever the event.
func (b *Broadcast) mayEmit() error {
	switch b.stageNow() {
	case broadcastNew:
		return ErrNotStarted
	case broadcastDraining, broadcastClosed:
		return ErrClosed
	}
	if b.orphaned.Load() {
		return ErrPubSubEnded
	}
	// Without a neighbor ever, an event would wait in the store until it is too
	// old. Later a lonely node may emit, as its neighbors may come back.
	if !b.driver.hadNeighbor.Load() {
		return ErrNoPeers
	}
	return nil
}

// closedOr returns the error of a call whose ctx has ended: ErrClosed if Close may
// have ended it.
func (b *Broadcast) closedOr(ctx context.Context) error {
	if b.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

// awaitChange unlocks mu, waits for a change, the end of ctx or Close, and locks
// mu again.
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

// On calls f for the events of a name from any node, or for every event if the
// name is "*". Events of one sender are handled one after the other, in order,
// also across names; f may run for several senders at once. A slow f delays the
// events of its sender here and nothing at other nodes. Events that have to be
// dropped before f gets to them are reported as a [Gap], see [BroadcastConfig]. The
// ctx of f ends at Close. A panic of f is caught, counted and logged.
func (b *Broadcast) On(name string, f func(context.Context, *event.Event)) (off func()) {
	return b.dispatcher.On(name, f)
}

// OnBorrowed is On for an f that does not keep the event, which is used again when
// f returns. The results of Decode and Bytes may be kept, and keep the message
// alive in which the event came. It is for the typed events of package
// smokesignal: no other module can make a [handling.Borrower].
func (b *Broadcast) OnBorrowed(name string, f handling.Borrower[event.Event]) (off func()) {
	return b.dispatcher.OnBorrowed("", name, f)
}

// OnRaw calls f for messages on the topic that are not batches of events. They may
// come from any program that speaks pubsub; the signature has proven the author,
// and nothing else is known. data belongs to f, and may be empty. The messages of
// one author are handled one after the other in the order of their arrival, which
// need not be that of their publishing, and concurrently with the author's events;
// f may run for several authors at once. The ctx of f ends at Close; a panic of f
// is caught, counted and logged.
//
// Messages that wait for handlers take at most 4 MiB and come from at most 4,096
// authors. Beyond that, messages of the author with the most waiting are dropped
// and counted. Without a handler, messages are counted as Foreign. On a lent
// pubsub they come from NewBroadcast on.
func (b *Broadcast) OnRaw(f func(ctx context.Context, from peer.ID, data []byte)) (off func()) {
	return b.raw.On(f)
}

// OnGap calls f for missing events in their place: after the handlers of the event
// before them have returned, and before those of the next one are called. f may
// run for several senders at once.
func (b *Broadcast) OnGap(f func(context.Context, Gap)) (off func()) { return b.gaps.on(f) }

// Pipe returns a duplex view of the events named [pipe.EventName] to and from all
// nodes. It receives from now on and holds 64 KiB or 256 events. When it is full,
// no handler at this node gets further events of that sender until the pipe is
// read or closed; they wait in the store, and events that are dropped there are
// reported as a [Gap]. So read it or close it. Write blocks and fails as Emit
// does, and splits large writes; Read returns io.EOF after Close.
func (b *Broadcast) Pipe() io.ReadWriteCloser {
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

// Stats returns a snapshot of the counters.
func (b *Broadcast) Stats() BroadcastStats {
	raw, rawDropped := b.raw.Counts()
	return BroadcastStats{
		Emitted:     b.stats.emitted.Load(),
		Delivered:   b.stats.delivered.Load(),
		Lost:        b.stats.lost.Load(),
		Overrun:     b.stats.overrun.Load(),
		Repaired:    b.stats.repaired.Load(),
		Repairs:     b.stats.repairs.Load(),
		Duplicates:  b.stats.duplicates.Load(),
		OldSessions: b.stats.oldSessions.Load(),
		Foreign:     b.stats.foreign.Load(),
		Raw:         raw,
		RawDropped:  rawDropped,
		Unsigned:    b.stats.unsigned.Load(),
		Undecodable: b.stats.malformed.Load() + b.dispatcher.Undecodable(),
		Unhandled:   b.dispatcher.Unhandled(),
		Panics:      b.dispatcher.Panics(),
	}
}

// Done is closed when Close begins.
func (b *Broadcast) Done() <-chan struct{} { return b.ctx.Done() }

// Close refuses new events (ErrClosed), leaves the topic, drops the events that
// wait for handlers, ends the contexts of handlers, and waits for them and for its
// own goroutines until ctx ends, which is its only error. No stream handler and no
// stream stays behind. If a handler calls Close with its own ctx, Close does not
// wait for that handler; of such a ctx only the deadline counts, or five seconds
// if it has none. Close may be called again, and then waits again.
func (b *Broadcast) Close(ctx context.Context) error {
	b.once.Do(b.stop)
	return b.dispatcher.WaitAll(ctx, &b.tasks, "the broadcast is")
}

// stop begins to close everything. It waits for pubsub alone.
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

// Greeting returns, encoded, how far this node is with each sender, itself first,
// for a new neighbor to give to its Link. Call it after the neighbor was seen on
// the topic: everything that this node sends or passes on after that goes to the
// neighbor, so the neighbor will get every event from these marks on. A greeting
// has at most 64 KiB.
func (b *Broadcast) Greeting() []byte {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	return appendMarks(nil, b.driver.engine.Greeting(maxMarks))
}
