package events

import (
	"context"
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

// BroadcastConfig configures a [Broadcast]. Topic, Session and Neighbours are
// required.
type BroadcastConfig struct {
	Topic string
	// Session is eight random bytes, new in each process.
	Session []byte
	// MaxEventSize bounds one event, encoded, in bytes; zero means 512 KiB.
	MaxEventSize int
	// Backlog bounds what waits for slow handlers, in bytes; zero means 16 MiB.
	Backlog int
	// Neighbours returns the peers that a broadcast goes to first.
	Neighbours func() []peer.ID
	// Serve tells who may ask for our marks; nil means everybody.
	Serve func(peer.ID) bool
	// Admit is called before events of a sender are handled, and may wait; an error
	// drops them. Nil means everybody at once.
	Admit func(ctx context.Context, sender peer.ID) error
	Log   *slog.Logger
}

// BroadcastStats counts what went wrong since the start.
type BroadcastStats struct {
	Lost        uint64 // events that never arrived although later ones of their sender did
	Overrun     uint64 // events dropped because handlers were too slow
	Foreign     uint64 // messages on the topic that are no batch
	Undecodable uint64 // events that are malformed, or that a typed handler could not read
	Unhandled   uint64 // events that nobody listened to
	Panics      uint64 // of handlers
}

// Broadcast sends events to all nodes on a topic and calls handlers for those
// that come, of each sender in its order and once. All methods may be called from
// any goroutine, also from handlers.
type Broadcast struct {
	cfg     BroadcastConfig
	host    corehost.Host
	log     *slog.Logger
	mux     *mux
	session order.Session

	topic  *pubsub.Topic
	sub    *pubsub.Subscription
	joins  *pubsub.TopicEventHandler
	ctx    context.Context // of handlers
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	once   sync.Once // of stop

	stage atomic.Int32
	in    receiver

	mu   sync.Mutex
	next uint64 // number of the next own event

	nForeign atomic.Uint64
	nLost    atomic.Uint64
	nOverrun atomic.Uint64
}

// Stages of a Broadcast.
const (
	broadcastNew = iota
	broadcastStarted
	broadcastRefusing
)

// NewBroadcast joins the topic of ps. Events arrive from now on; they can be sent
// from Start on. ps and h stay the caller's.
func NewBroadcast(ps *pubsub.PubSub, h corehost.Host, cfg BroadcastConfig) (*Broadcast, error) {
	if cfg.MaxEventSize == 0 {
		cfg.MaxEventSize = DefaultMaxEventSize
	}
	if cfg.Backlog == 0 {
		cfg.Backlog = 16 << 20
	}
	if cfg.Log == nil {
		cfg.Log = logging.Room("events", nil)
	}
	b := &Broadcast{cfg: cfg, host: h, log: cfg.Log, mux: newMux(cfg.Log), next: 1}
	if copy(b.session.ID[:], cfg.Session) != len(b.session.ID) {
		return nil, fmt.Errorf("events: a session has %d bytes, not %d", len(b.session.ID), len(cfg.Session))
	}
	b.session.Start = uint64(time.Now().UnixMilli())
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.in.init(b)
	var err error
	if b.topic, err = ps.Join(cfg.Topic); err != nil {
		return nil, fmt.Errorf("events: join topic %s: %w", cfg.Topic, err)
	}
	if b.joins, err = b.topic.EventHandler(); err != nil {
		b.topic.Close()
		return nil, fmt.Errorf("events: watch topic %s: %w", cfg.Topic, err)
	}
	// The filter runs in pubsub's event loop and takes every message, so nothing is
	// dropped by the queue of the subscription behind it.
	if b.sub, err = b.topic.Subscribe(pubsub.WithMessageFilter(b.in.take), pubsub.WithBufferSize(1)); err != nil {
		b.joins.Cancel()
		b.topic.Close()
		return nil, fmt.Errorf("events: subscribe to topic %s: %w", cfg.Topic, err)
	}
	b.tasks.Go(b.in.loop)
	h.SetStreamHandler(ProtocolRepair, b.serve)
	return b, nil
}

// Start allows Emit.
func (b *Broadcast) Start() {
	b.stage.CompareAndSwap(broadcastNew, broadcastStarted)
}

// Refuse makes Emit return ErrClosed from now on; Flush still works.
func (b *Broadcast) Refuse() { b.stage.Store(broadcastRefusing) }

// Emit sends an event to all nodes of the network. Nil means that it was encoded,
// numbered and handed to pubsub: events of one caller go out in the order of its
// calls. The arguments belong to the caller again when it returns. ErrNoPeers,
// ErrNotStarted, ErrClosed, ErrBadName, ErrBadArgument and ErrTooLarge come at
// once; after any error nothing was sent.
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
	if err := ctx.Err(); err != nil {
		return err
	}
	ev, err := encodeEvent(nil, name, args, b.cfg.MaxEventSize)
	if err != nil {
		return err
	}
	switch b.stage.Load() {
	case broadcastNew:
		return ErrNotStarted
	case broadcastRefusing:
		return ErrClosed
	}
	if len(b.cfg.Neighbours()) == 0 {
		return ErrNoPeers
	}
	// Numbering and publishing under one lock, so that the order on the wire is the
	// order of the numbers.
	b.mu.Lock()
	defer b.mu.Unlock()
	data := appendBatch(make([]byte, 0, len(ev)+48), b.session, b.next, ev)
	if err := b.topic.Publish(b.ctx, data); err != nil {
		if b.ctx.Err() != nil {
			return ErrClosed
		}
		return err
	}
	b.next++
	return nil
}

// On calls f for the events of a name from any node, or for every event if the
// name is "*". Events of one sender are handled one after the other, in order,
// also across names; f may run for several senders at once. f's ctx ends at
// Close. A panic of f is caught, counted and logged. off removes f.
func (b *Broadcast) On(name string, f func(context.Context, *Event)) (off func()) {
	return b.mux.on(name, f)
}

// Stream returns a view of the events named [StreamName] to and from all nodes:
// one Write is one event, a Read never mixes senders. It must be read or closed:
// while it is not read, the senders' events wait, at this node alone.
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

// Marks returns how far this node is with each sender, itself first, as a new
// neighbour is told: all events from its mark on that this node sends or passes
// on go to peers which were on the topic when Marks was called.
func (b *Broadcast) Marks() []byte {
	return appendMarks(nil, b.marks())
}

func (b *Broadcast) marks() []order.Mark {
	b.mu.Lock()
	own := order.Mark{Sender: b.host.ID(), Session: b.session, Next: b.next, Above: b.next}
	b.mu.Unlock()
	return append([]order.Mark{own}, b.in.marks(maxMarks-1)...)
}

// Learn takes the marks a neighbour told: where to begin with senders that were
// never heard, and what the neighbour itself has sent.
func (b *Broadcast) Learn(from peer.ID, marks []byte) error {
	list, err := decodeMarks(marks)
	if err != nil {
		return err
	}
	b.in.learn(from, list)
	return nil
}

// OnNeighbour calls f when a peer announces or leaves the topic, in order and from
// one goroutine, beginning with those that are there. It may be called once.
func (b *Broadcast) OnNeighbour(f func(p peer.ID, present bool)) {
	b.tasks.Go(func() {
		for {
			ev, err := b.joins.NextPeerEvent(b.ctx)
			if err != nil {
				return
			}
			f(ev.Peer, ev.Type == pubsub.PeerJoin)
		}
	})
}

// Stats returns the counters.
func (b *Broadcast) Stats() BroadcastStats {
	return BroadcastStats{
		Lost:        b.nLost.Load(),
		Overrun:     b.nOverrun.Load(),
		Foreign:     b.nForeign.Load(),
		Undecodable: b.mux.nUndecodable.Load(),
		Unhandled:   b.mux.nUnhandled.Load(),
		Panics:      b.mux.panics(),
	}
}

// Close refuses new events, leaves the topic, ends the contexts of handlers and
// waits for them until ctx ends, which is its only error. A Close to which a
// handler gives its ctx does not wait for that handler. It may be called again,
// then it waits again.
func (b *Broadcast) Close(ctx context.Context) error {
	ctx, cancel := waitContext(ctx)
	defer cancel()
	b.once.Do(func() {
		b.Refuse()
		b.host.RemoveStreamHandler(ProtocolRepair)
		b.cancel()
		b.in.close()
		b.sub.Cancel()
		b.joins.Cancel()
		// The subscription has to be gone before the topic can be left; pubsub works
		// in order, so it is.
		if err := b.topic.Close(); err != nil {
			b.log.Debug("leaving the topic", "err", err)
		}
	})
	if err := b.mux.wait(ctx); err != nil {
		return err
	}
	idle := make(chan struct{})
	go func() {
		b.tasks.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("events: broadcasts are still being handled: %w", ctx.Err())
	}
}
