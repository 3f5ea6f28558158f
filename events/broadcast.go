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
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// DefaultBacklog is how many bytes of broadcasts may wait for handlers.
const DefaultBacklog = 16 << 20

// BroadcastConfig configures a [Broadcast]. Only Topic is required.
type BroadcastConfig struct {
	// Topic is the pubsub topic, which the Broadcast has for itself.
	Topic string
	// Session is eight random bytes that tell this run of the node from the
	// next; nil makes them.
	Session []byte
	// MaxEventSize in bytes bounds an encoded event that is sent; 0 is
	// DefaultMaxEventSize. It cannot be more than fits into a batch.
	MaxEventSize int
	// Codec encodes the arguments that are neither []byte nor proto.Message; the
	// zero value is JSON.
	Codec Codec
	// Backlog in bytes bounds what waits for handlers, of all senders together;
	// 0 is DefaultBacklog. Beyond it the newest events of the sender that waits
	// with most are dropped.
	Backlog int
	// Neighbours returns the peers to which broadcasts go first, and from which
	// Flush asks a confirmation. It is called from several goroutines. nil takes
	// those who are on the topic.
	Neighbours func() []peer.ID
	// Serve tells who may ask for our marks. It is called from several
	// goroutines. nil means everybody.
	Serve func(peer.ID) bool
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
	c.Backlog = orDefault(c.Backlog, DefaultBacklog)
	if c.Log == nil {
		c.Log = logging.Room("events", nil)
	}
	return nil
}

// Broadcast sends events to all nodes on a topic and calls handlers for those
// that come. Of each sender they come once, in the order in which it sent
// them, whatever pubsub does to them on the way: an event that is missing is
// waited for while others come in their turn, and ten seconds more, or two when
// its sender has started anew; then it is given up as lost and counted. Own
// events are not heard. All methods may be called from any goroutine, also from
// handlers.
type Broadcast struct {
	host    corehost.Host
	cfg     BroadcastConfig
	log     *slog.Logger
	mux     *mux
	session order.Session
	in      inbox
	backlog backlog

	topic *pubsub.Topic
	sub   *pubsub.Subscription
	seen  *pubsub.TopicEventHandler

	ctx    context.Context // of handlers
	cancel context.CancelFunc
	tasks  sync.WaitGroup // Add only under mu and before closed
	once   sync.Once      // of stop

	mu        sync.Mutex
	stage     broadcastStage
	onTopic   []peer.ID           // who announced the topic
	neighbour func(peer.ID, bool) // may be nil
	watching  bool
	serving   map[peer.ID]int // streams of marks and repair

	// emitting is held, by whoever put something into it, from the numbering of
	// an event until pubsub has it, so that the order of the numbers is that on
	// the wire. It guards next.
	emitting chan struct{}
	next     uint64 // number of the next event

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
	Lost        uint64 // events that did not come although others behind them did
	Overrun     uint64 // events dropped because handlers were too slow, or not admitted, or at Close
	Duplicates  uint64 // batches that came again, or after they were given up
	OldSessions uint64 // batches of a run of their sender before the one that is heard now
	Foreign     uint64 // messages on the topic that are no batch
	Undecodable uint64 // events that are malformed, or that a typed handler could not read
	Unhandled   uint64 // events that nobody listened to
	Panics      uint64 // of handlers
}

type broadcastCounters struct {
	emitted, delivered, lost, overrun, duplicates, oldSessions, foreign, malformed atomic.Uint64
}

// lastStart is the start of the latest session of this process, so that two
// made within a millisecond differ, and a clock that is set back does no harm
// here.
var lastStart atomic.Uint64

func newSession(id []byte) (s order.Session) {
	copy(s.ID[:], id)
	for {
		last := lastStart.Load()
		s.Start = max(uint64(time.Now().UnixMilli()), last+1)
		if lastStart.CompareAndSwap(last, s.Start) {
			return s
		}
	}
}

// NewBroadcast joins the topic, which nobody else may have joined on ps. Events
// are handled from now on and can be sent from Start on. Both ps and h stay the
// caller's and must outlive the Broadcast; h is the host that ps is on, behind
// a facade or not. It fails for a bad config and if the topic is taken.
func NewBroadcast(ps *pubsub.PubSub, h corehost.Host, cfg BroadcastConfig) (*Broadcast, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	b := &Broadcast{
		host:     h,
		cfg:      cfg,
		log:      cfg.Log,
		mux:      newMux(cfg.Log),
		session:  newSession(cfg.Session),
		serving:  make(map[peer.ID]int),
		emitting: make(chan struct{}, 1),
		next:     1,
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.in.init(b)
	b.backlog.init(b)
	var err error
	if b.topic, err = ps.Join(cfg.Topic); err != nil {
		return nil, fmt.Errorf("events: join topic %s: %w", quote(cfg.Topic), err)
	}
	if b.seen, err = b.topic.EventHandler(); err == nil {
		// The filter takes every message in pubsub's event loop, where none can
		// be dropped, and none reaches the subscription behind it.
		if b.sub, err = b.topic.Subscribe(pubsub.WithMessageFilter(b.in.take), pubsub.WithBufferSize(1)); err == nil {
			return b, nil
		}
		b.seen.Cancel()
	}
	b.topic.Close()
	return nil, fmt.Errorf("events: subscribe to topic %s: %w", quote(cfg.Topic), err)
}

// Start allows Emit, and answers the neighbours' questions for marks. It does
// nothing the second time and after Close.
func (b *Broadcast) Start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stage != broadcastNew {
		return
	}
	b.stage = broadcastStarted
	b.watch()
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
	b.watch()
}

// watch begins to follow who is on the topic. It needs mu.
func (b *Broadcast) watch() {
	if b.watching || b.stage == broadcastClosed {
		return
	}
	b.watching = true
	b.tasks.Go(func() {
		for {
			ev, err := b.seen.NextPeerEvent(b.ctx)
			if err != nil {
				return
			}
			b.saw(ev.Peer, ev.Type == pubsub.PeerJoin)
		}
	})
}

// Emit sends an event to all nodes of the network. nil means that it was
// encoded, numbered and handed to pubsub: everybody gets the events of this
// node in the order in which these calls were made. The arguments belong to
// the caller again when it returns.
//
// Emit waits for the calls before it, which pubsub takes some 100 µs each for,
// until ctx ends. ErrNoPeers, ErrNotStarted, ErrClosed, ErrBadName,
// ErrBadArgument and ErrTooLarge come at once. After any error nothing was
// numbered or sent.
func (b *Broadcast) Emit(ctx context.Context, name string, args ...any) error {
	if err := b.emit(ctx, name, args); err != nil {
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
	return fmt.Sprintf("events: broadcast %s: %s", quote(e.name), bare(e.err))
}
func (e *broadcastError) Unwrap() error { return e.err }

func (b *Broadcast) emit(ctx context.Context, name string, args []any) error {
	if ctx.Err() != nil {
		return b.ended(ctx)
	}
	buf := getBuffer()
	defer buf.free()
	var err error
	if buf.b, err = b.cfg.Codec.encodeEvent(buf.b, name, args, b.cfg.MaxEventSize); err != nil {
		return err
	}
	select {
	case b.emitting <- struct{}{}:
		defer func() { <-b.emitting }()
	case <-ctx.Done():
		return b.ended(ctx)
	}
	switch b.stageNow() {
	case broadcastNew:
		return ErrNotStarted
	case broadcastRefusing, broadcastClosed:
		return ErrClosed
	}
	if len(b.neighbours()) == 0 {
		return ErrNoPeers
	}
	// Pubsub keeps the data, so it is not from a pool.
	data := appendBatch(make([]byte, 0, len(buf.b)+maxBatchOverhead), b.session, b.next, buf.b)
	if err := b.topic.Publish(ctx, data); err != nil {
		if b.ctx.Err() != nil {
			err = ErrClosed
		}
		return err
	}
	b.next++
	b.stats.emitted.Add(1)
	return nil
}

// ended is why a call whose ctx has ended fails: Close may be what ended it.
func (b *Broadcast) ended(ctx context.Context) error {
	if b.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

func (b *Broadcast) stageNow() broadcastStage {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stage
}

// nextNumber returns the number of the next event, once no event is between its
// number and pubsub.
func (b *Broadcast) nextNumber() uint64 {
	b.emitting <- struct{}{}
	defer func() { <-b.emitting }()
	return b.next
}

// On calls f for the events of a name from any node, or for every event if the
// name is "*". Events of one sender are handled one after the other, in order,
// also across names; f may run for several senders at once. A slow f delays the
// events of its sender, and nothing at other nodes; what waits is bounded, see
// [BroadcastConfig]. f's ctx ends at Close. A panic of f is caught, counted and
// logged.
func (b *Broadcast) On(name string, f func(context.Context, *Event)) (off func()) {
	return b.mux.on(name, f)
}

// Stream returns a view of the events named [StreamName] to and from all nodes.
// It takes part from now on and holds 64 KiB or 256 events; beyond that the
// events wait in the backlog, so it should be read or closed.
func (b *Broadcast) Stream() io.ReadWriteCloser {
	ctx, cancel := context.WithCancel(b.ctx)
	v := newStreamView(
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
		Duplicates:  b.stats.duplicates.Load(),
		OldSessions: b.stats.oldSessions.Load(),
		Foreign:     b.stats.foreign.Load(),
		Undecodable: b.stats.malformed.Load() + b.mux.nUndecodable.Load(),
		Unhandled:   b.mux.nUnhandled.Load(),
		Panics:      b.mux.panics(),
	}
}

// Refuse makes Emit return ErrClosed from now on. What was sent before can
// still be flushed: the first step of a closing.
func (b *Broadcast) Refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stage = max(b.stage, broadcastRefusing)
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
	return b.mux.waitAll(ctx, &b.tasks, "the broadcast is")
}

// stop begins the end of everything and waits for pubsub alone.
func (b *Broadcast) stop() {
	b.mu.Lock()
	started := b.stage != broadcastNew
	b.stage = broadcastClosed
	b.mu.Unlock()
	if started {
		b.host.RemoveStreamHandler(ProtocolRepair)
	}
	b.cancel()
	b.in.close()
	b.backlog.close()
	b.sub.Cancel()
	b.seen.Cancel()
	if err := b.topic.Close(); err != nil {
		b.log.Debug("the topic stays joined", "error", err)
	}
}

// neighbours returns whom a broadcast goes to first; not to be changed.
func (b *Broadcast) neighbours() []peer.ID {
	if b.cfg.Neighbours != nil {
		return b.cfg.Neighbours()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.onTopic
}

// saw notes that a peer announced the topic or left it.
func (b *Broadcast) saw(p peer.ID, present bool) {
	b.mu.Lock()
	// Replaced, not changed, since neighbours gives it away.
	list := make([]peer.ID, 0, len(b.onTopic)+1)
	for _, q := range b.onTopic {
		if q != p {
			list = append(list, q)
		}
	}
	if present {
		list = append(list, p)
	}
	b.onTopic = list
	f := b.neighbour
	b.mu.Unlock()
	if f != nil {
		f(p, present)
	}
}
