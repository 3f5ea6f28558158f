package events

import (
	"context"
	"crypto/rand"
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
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// Defaults of what a node keeps of broadcasts.
const (
	DefaultStoreAge   = time.Minute
	DefaultStoreBytes = 16 << 20
)

// BroadcastConfig configures a [Broadcast]. Only Topic is required.
type BroadcastConfig struct {
	// Topic is the pubsub topic, which the Broadcast has for itself, or Joined.
	Topic string
	// Joined is the topic if somebody has joined it on the pubsub already. It stays
	// theirs: Close does not close it.
	Joined *pubsub.Topic
	// Session is eight random bytes that tell this run of the node from the
	// next; nil makes them.
	Session []byte
	// Began is when the session began, in milliseconds since 1970 on the wire. Of two
	// sessions of one sender, receivers take the one that began later for the present
	// one. Zero means now, but later than every session of this process.
	Began time.Time
	// MaxEventSize in bytes bounds an encoded event that is sent; 0 is
	// DefaultMaxEventSize. It cannot be more than fits into a batch.
	MaxEventSize int
	// Codec encodes the arguments that are neither []byte nor proto.Message; the
	// zero value is JSON.
	Codec Codec
	// StoreAge is how long events are kept for neighbours that may lack them; 0 is
	// DefaultStoreAge. What handlers have not yet come to is kept longer.
	StoreAge time.Duration
	// StoreBytes bounds what is kept, for neighbours and for handlers; 0 is
	// DefaultStoreBytes. Beyond it the oldest events of the sender of whom most is
	// kept go; what of them no handler has come to is a [Gap].
	StoreBytes int
	// Last is how many of the events of each sender from before our time are
	// handled first, as far as neighbours keep them, and those that went out
	// together with the first of these. 0 begins with what is sent from now on.
	Last uint64
	// Links says that Link and Unlink tell who our neighbours are; else they are
	// those who are on the topic.
	Links bool
	// Guest tells whether somebody who was seen on the topic stays there without being
	// linked: from the first one on there is somebody to send to. It is asked with
	// Links only, and must not block; nil says no.
	Guest func(p peer.ID) bool
	// Admit is called before events of a sender are handled, from the goroutine
	// that handles them: it may block while the sender is being linked (ctx ends
	// at Close), and drops the events with an error. nil admits everybody.
	Admit func(ctx context.Context, sender peer.ID) error
	// Log is the room's logger, nil the default one.
	Log *slog.Logger
}

func (c *BroadcastConfig) fill() error {
	if c.Topic == "" {
		return errors.New("events: a broadcast needs a topic")
	}
	if c.Session == nil {
		c.Session = make([]byte, sessionLen)
		rand.Read(c.Session) // never fails
	}
	if len(c.Session) != sessionLen {
		return fmt.Errorf("events: a session has %d bytes, not %d", sessionLen, len(c.Session))
	}
	c.MaxEventSize = orDefault(c.MaxEventSize, DefaultMaxEventSize)
	if most := MaxBatch - maxBatchOverhead; c.MaxEventSize > most {
		return fmt.Errorf("events: a broadcast event has at most %d bytes, so %d as maximum is too much", most, c.MaxEventSize)
	}
	if c.StoreAge < 0 || c.StoreBytes < 0 {
		return fmt.Errorf("events: a store of %d bytes for %v: neither can be negative", c.StoreBytes, c.StoreAge)
	}
	c.StoreAge = orDefault(c.StoreAge, DefaultStoreAge)
	c.StoreBytes = orDefault(c.StoreBytes, DefaultStoreBytes)
	if c.Log == nil {
		c.Log = logging.Room("events", nil)
	}
	return nil
}

// Broadcast sends events to all nodes on a topic and calls handlers for those
// that come. Of each sender they come once, in the order in which it sent
// them, whatever pubsub does to them on the way: what it dropped is fetched from
// neighbours, and what none of them has any more is reported as a [Gap]. Own
// events are not heard. All methods may be called from any goroutine, also from
// handlers.
type Broadcast struct {
	host       corehost.Host
	cfg        BroadcastConfig
	log        *slog.Logger
	dispatcher *dispatcher
	session    order.SessionKey
	driver     engineDriver
	publisher  publisher
	deliverer  deliverer
	raw        rawDeliverer

	topic *pubsub.Topic
	sub   *pubsub.Subscription
	seen  *pubsub.TopicEventHandler

	ctx    context.Context // of handlers
	cancel context.CancelFunc
	tasks  sync.WaitGroup // Go only under a lock that Close takes before it waits
	once   sync.Once      // of stop

	mu        sync.Mutex
	stage     atomic.Int32        // broadcastStage; set under mu
	neighbour func(peer.ID, bool) // may be nil
	watching  bool
	orphaned  atomic.Bool // ErrPubSubEnded

	stats broadcastCounters
}

// broadcastStage is how far a Broadcast is in its life.
type broadcastStage int

const (
	broadcastNew broadcastStage = iota
	broadcastStarted
	broadcastRefusing // what was sent may still be flushed
	broadcastClosed
)

// BroadcastStats counts since the start. Of one sender's session, from where
// its first mark or event was, Delivered, Lost and Overrun add up to what it
// sent.
type BroadcastStats struct {
	Emitted     uint64 // events of our own
	Delivered   uint64 // events that were handled
	Lost        uint64 // events that no neighbour had any more
	Overrun     uint64 // events dropped because handlers were too slow, or not admitted, or at Close
	Repaired    uint64 // batches that a neighbour was asked for and gave
	Repairs     uint64 // batches that we gave to neighbours who asked
	Duplicates  uint64 // batches that came again, or after they were given up
	OldSessions uint64 // batches of a run of their sender before the one that is heard now
	Foreign     uint64 // messages on the topic that are no batch, and for which there was no handler of OnRaw
	Raw         uint64 // messages that handlers of OnRaw were given
	RawDropped  uint64 // messages for OnRaw dropped because handlers were too slow, or at Close
	Unsigned    uint64 // messages that a lax pubsub let through without a signature
	Undecodable uint64 // events that are malformed, or that a typed handler could not read
	Unhandled   uint64 // events that nobody listened to
	Panics      uint64 // of handlers
}

type broadcastCounters struct {
	emitted, delivered, lost, overrun, repaired, repairs, duplicates, oldSessions, foreign, unsigned, malformed atomic.Uint64
}

// lastStart is the start of the latest session of this process, so that two
// made within a millisecond differ, and a clock that is set back does no harm
// here.
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

// NewBroadcast joins the topic, which nobody else may have joined on ps unless it is
// the config's Joined. Events
// are handled from now on and can be sent from Start on. Both ps and h stay the
// caller's and must outlive the Broadcast; h is the host that ps is on, behind
// a facade or not. It fails for a bad config and if the topic is taken.
func NewBroadcast(ps *pubsub.PubSub, h corehost.Host, cfg BroadcastConfig) (*Broadcast, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	b := &Broadcast{
		host:       h,
		cfg:        cfg,
		log:        cfg.Log,
		dispatcher: newDispatcher(cfg.Log),
		session:    newSession(cfg.Session, cfg.Began),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.driver.init(b)
	b.publisher = publisher{b: b, nextEvent: 1, full: make(chan struct{}, 1)}
	b.deliverer.init(b)
	b.raw.init(b.ctx, b.dispatcher)
	var err error
	if b.topic = cfg.Joined; b.topic == nil {
		if b.topic, err = ps.Join(cfg.Topic); err != nil {
			return nil, fmt.Errorf("events: join topic %s: %w", quote(cfg.Topic), err)
		}
	}
	if b.seen, err = b.topic.EventHandler(); err == nil {
		// The filter takes every message in pubsub's event loop, where none can
		// be dropped, and none reaches the subscription behind it.
		if b.sub, err = b.topic.Subscribe(pubsub.WithMessageFilter(b.driver.receiveMessage), pubsub.WithBufferSize(1)); err == nil {
			return b, nil
		}
		b.seen.Cancel()
	}
	b.leaveTopic()
	return nil, fmt.Errorf("events: subscribe to topic %s: %w", quote(cfg.Topic), err)
}

// Start allows Emit, and listens to what neighbours tell and ask. It does nothing
// the second time and after Close.
func (b *Broadcast) Start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stageNow() != broadcastNew {
		return
	}
	b.setStage(broadcastStarted)
	b.watchTopic()
	b.host.SetStreamHandler(ProtocolRepair, b.serve)
}

// OnNeighbour calls f when a peer announces the topic and when it leaves it, in
// order and from one goroutine, beginning with those that are there. When f is
// told of a peer, what is sent goes to it. OnNeighbour may be called once,
// before Start.
func (b *Broadcast) OnNeighbour(f func(p peer.ID, present bool)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.neighbour = f
	b.watchTopic()
}

// watchTopic begins to follow who is on the topic. It needs mu.
func (b *Broadcast) watchTopic() {
	if b.watching || b.stageNow() == broadcastClosed {
		return
	}
	b.watching = true
	b.tasks.Go(func() {
		for {
			ev, err := b.seen.NextPeerEvent(b.ctx)
			if err != nil {
				return
			}
			b.topicChanged(ev.Peer, ev.Type == pubsub.PeerJoin)
		}
	})
}

// Emit sends an event to all nodes of the network. nil means that it was
// encoded, numbered and queued: everybody gets the events of this node in the
// order in which these calls were made. What is emitted while there is no
// neighbour is kept, see [BroadcastConfig], for those that come. The arguments
// belong to the caller again when it returns.
//
// Emit waits while a neighbour lacks so much that more could overrun it, until it
// gets on, or ctx ends; a neighbour that does not get on at all is not waited for
// longer than five seconds. ErrNoPeers (there was never a neighbour),
// ErrNotStarted, ErrClosed, ErrBadName, ErrBadArgument and ErrTooLarge come at
// once, and ErrPubSubEnded once that has shown. After any error nothing was numbered or sent.
func (b *Broadcast) Emit(ctx context.Context, name string, args ...any) error {
	if _, err := b.emit(ctx, false, name, args); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// EmitBytes is Emit with data as the only argument, and leaves no garbage.
func (b *Broadcast) EmitBytes(ctx context.Context, name string, data []byte) error {
	err := ctx.Err()
	if err != nil {
		err = b.closedOr(ctx)
	}
	size := 0
	if err == nil {
		size, err = checkRaw(name, data, b.cfg.MaxEventSize)
	}
	if err == nil {
		_, err = b.publisher.enqueue(ctx, false, &outgoingEvent{name: name, raw: data, isRaw: true, size: size})
	}
	if err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// TryEmit is Emit that does not wait: it returns ErrQueueFull instead.
func (b *Broadcast) TryEmit(name string, args ...any) error {
	if _, err := b.emit(context.Background(), true, name, args); err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// EmitConfirmed is Emit that returns when k neighbours have received the event,
// or, if k is 0, all that there were when it was sent. They pass it on; whether
// it has been handled anywhere is not known. When ctx ends first the event may
// arrive all the same, and the error is an [*UnconfirmedError]. With fewer than k
// neighbours it waits for more to come, so give ctx a deadline; a negative k waits for
// nobody. Other errors are those of Emit: nothing was sent then.
func (b *Broadcast) EmitConfirmed(ctx context.Context, k int, name string, args ...any) error {
	number, err := b.emit(ctx, false, name, args)
	if err == nil {
		err = b.confirm(ctx, number+1, k)
	}
	if err != nil {
		return &broadcastError{name, err}
	}
	return nil
}

// broadcastError says which event could not be broadcast.
type broadcastError struct {
	name string
	err  error
}

func (e *broadcastError) Error() string {
	return fmt.Sprintf("events: broadcast %s: %s", quote(e.name), errs.Text(e.err))
}
func (e *broadcastError) Unwrap() error { return e.err }

// emit is Emit, or TryEmit, and returns the number of the event.
func (b *Broadcast) emit(ctx context.Context, try bool, name string, args []any) (number uint64, err error) {
	if ctx.Err() != nil {
		return 0, b.closedOr(ctx)
	}
	size, buf, err := prepare(b.cfg.Codec, name, args, b.cfg.MaxEventSize)
	if err != nil {
		return 0, err
	}
	if buf != nil {
		defer buf.free()
	}
	return b.publisher.enqueue(ctx, try, &outgoingEvent{name: name, args: args, size: size, buf: buf})
}

// mayEmit returns why Emit fails whatever the event.
func (b *Broadcast) mayEmit() error {
	switch b.stageNow() {
	case broadcastNew:
		return ErrNotStarted
	case broadcastRefusing, broadcastClosed:
		return ErrClosed
	}
	if b.orphaned.Load() {
		return ErrPubSubEnded
	}
	if !b.driver.hadNeighbor.Load() {
		return ErrNoPeers
	}
	return nil
}

// closedOr is why a call whose ctx has ended fails: Close may be what ended it.
func (b *Broadcast) closedOr(ctx context.Context) error {
	if b.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

func (b *Broadcast) setStage(s broadcastStage) { b.stage.Store(int32(s)) }

func (b *Broadcast) stageNow() broadcastStage { return broadcastStage(b.stage.Load()) }

// On calls f for the events of a name from any node, or for every event if the
// name is "*". Events of one sender are handled one after the other, in order,
// also across names; f may run for several senders at once. A slow f delays the
// events of its sender here, and nothing at other nodes; what it does not come to
// before it has to make room is a [Gap], see [BroadcastConfig]. f's ctx ends at Close. A
// panic of f is caught, counted and logged.
func (b *Broadcast) On(name string, f func(context.Context, *Event)) (off func()) {
	return b.dispatcher.on(name, f)
}

// OnBorrowed is On for an f that does not keep the event, which is used again when f
// returns. What Decode and Bytes return may be kept, as with On, but keeps the
// message alive in which it came.
func (b *Broadcast) OnBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return b.dispatcher.register("", name, &handler{f: f, borrows: true})
}

// OnRaw calls f for what others publish on the topic that is no batch of events: they
// may be of any program that speaks pubsub. The signature has proven who the author
// is, and nothing else is known. data belongs to f, and may be empty. Of one author
// they are handled one after the other as they came, which need not be the order of
// their publishing, and beside the author's events; of several f may be called at once.
// f's ctx ends at Close; a panic of f is caught, counted and logged.
//
// What waits for handlers has a bound of 4 MiB and of 4,096 authors; beyond it messages
// are lost and counted, those of the author of whom most waits first. Without a handler
// they are counted as Foreign: on a pubsub that was lent they come from New on.
func (b *Broadcast) OnRaw(f func(ctx context.Context, from peer.ID, data []byte)) (off func()) {
	return b.raw.on(f)
}

// OnGap calls f for events that are missing: in their place, after the handlers of
// the event before them have returned and before those of the next are called.
// Of several senders f may be called at once.
func (b *Broadcast) OnGap(f func(context.Context, Gap)) (off func()) { return b.dispatcher.gaps.on(f) }

// Pipe returns a view of the events named [StreamName] to and from all nodes.
// It takes part from now on and holds 64 KiB or 256 events. Beyond that nothing more of
// that sender is handled at this node, by any handler, until the view is read or closed;
// it waits in the store, and what finds no room there is a [Gap]. So read it or close it.
// Write blocks and fails as Emit does; Read returns io.EOF after Close.
func (b *Broadcast) Pipe() io.ReadWriteCloser {
	ctx, cancel := context.WithCancel(b.ctx)
	v := newPipe(
		func(p []byte) error { return b.Emit(ctx, StreamName, p) },
		func(f func(context.Context, *Event)) func() {
			off := b.On(StreamName, f)
			return func() { off(); cancel() }
		})
	context.AfterFunc(ctx, v.end)
	return v
}

// Stats returns the counters.
func (b *Broadcast) Stats() BroadcastStats {
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
		Raw:         b.raw.delivered.Load(),
		RawDropped:  b.raw.dropped.Load(),
		Unsigned:    b.stats.unsigned.Load(),
		Undecodable: b.stats.malformed.Load() + b.dispatcher.nUndecodable.Load(),
		Unhandled:   b.dispatcher.nUnhandled.Load(),
		Panics:      b.dispatcher.panics(),
	}
}

// Refuse makes Emit return ErrClosed from now on. What was sent before can
// still be flushed: the first step of a closing.
func (b *Broadcast) Refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stageNow() < broadcastRefusing {
		b.setStage(broadcastRefusing)
	}
}

// Done is closed when Close begins.
func (b *Broadcast) Done() <-chan struct{} { return b.ctx.Done() }

// Close refuses new events (ErrClosed), leaves the topic, drops what waits for
// handlers, ends the contexts of handlers, and waits for them and for its own
// goroutines until ctx ends, which is its only error. No stream handler and no
// stream stays behind. A Close to which a handler gives its ctx does not wait
// for that handler; of such a ctx only the deadline counts, or five seconds.
// Close may be called again, then it waits again.
func (b *Broadcast) Close(ctx context.Context) error {
	b.once.Do(b.stop)
	return b.dispatcher.waitAll(ctx, &b.tasks, "the broadcast is")
}

// stop begins the end of everything and waits for pubsub alone.
func (b *Broadcast) stop() {
	b.mu.Lock()
	started := b.stageNow() != broadcastNew
	b.setStage(broadcastClosed)
	b.mu.Unlock()
	if started {
		b.host.RemoveStreamHandler(ProtocolRepair)
	}
	b.cancel()
	b.driver.close()
	b.publisher.close()
	b.deliverer.close()
	b.raw.close()
	b.sub.Cancel()
	b.seen.Cancel()
	b.leaveTopic()
}

// leaveTopic closes the topic, if it is ours.
func (b *Broadcast) leaveTopic() {
	if b.cfg.Joined != nil {
		return
	}
	if err := b.topic.Close(); err != nil {
		b.log.Debug("the topic stays joined", "error", err)
	}
}

// topicChanged notes that a peer announced the topic or left it.
func (b *Broadcast) topicChanged(p peer.ID, present bool) {
	switch {
	case b.cfg.Links:
		if present && b.cfg.Guest != nil && b.cfg.Guest(p) {
			b.driver.hadNeighbor.Store(true)
		}
	case present:
		b.Link(p, nil)
	default:
		b.Unlink(p)
	}
	b.mu.Lock()
	f := b.neighbour
	b.mu.Unlock()
	if f != nil {
		f(p, present)
	}
}

// Greeting returns, encoded, how far this node is with each sender, itself first,
// as a new neighbour is to be told. It is to be called when the neighbour was
// seen on the topic: what this node sends or passes on after that goes to the
// neighbour too, and that is everything from the marks on. It has at most 64
// KiB.
func (b *Broadcast) Greeting() []byte {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	return appendMarks(nil, b.driver.engine.Greeting(maxMarks))
}
