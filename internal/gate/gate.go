package gate

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/tasks"
)

// A Gate stands between pubsub and the libp2p host, see the package documentation. All
// methods may be called from any goroutine. SetAdmission does not block.
//
// Methods whose names end in Locked need mu.
type Gate struct {
	// Set once.
	host    corehost.Host
	facade  *facade
	cfg     Config
	log     *slog.Logger
	bus     event.Bus // pubsub's
	emitter event.Emitter

	// Goroutines.
	ctx         context.Context
	cancel      context.CancelFunc
	tasks       sync.WaitGroup // Add only under mu and before closed
	offersReady notify.Signal  // offers is not empty

	mu        sync.Mutex
	closed    bool
	protocols []protocol.ID // that pubsub handles
	peers     map[peer.ID]*peerRecord
	offers    []peer.ID // peers that pubsub is to hear of

	// earlyStreams counts the waiting streams of peers that are not admitted.
	earlyStreams int

	// See Stats.
	dropped, stalls, reopened, oversize atomic.Uint64
}

// Config configures a Gate. Its zero value works.
type Config struct {
	// Wait is how long a stream of a peer that is not admitted yet is kept. 0 means two
	// seconds.
	Wait time.Duration
	// MaxWaiting bounds the number of these streams. 0 means 64. Only the latest stream
	// of each peer is kept.
	MaxWaiting int
	// MaxPending is how many bytes may wait to be written to one peer, plus one RPC of
	// pubsub (at most 1 MiB). 0 means 2 MiB.
	MaxPending int
	// StallTimeout is how long a peer may accept nothing of the waiting messages before
	// messages for it are dropped, give or take an eighth. 0 means five seconds.
	StallTimeout time.Duration
	// Recheck is called for a peer that opens a pubsub stream although it is not known
	// to speak that protocol, see identify.Tracker.Recheck. It must not block. May be
	// nil.
	Recheck func(p peer.ID, protocols ...protocol.ID)
	// Log defaults to the logger "smokesignal/host" of go-log.
	Log *slog.Logger
}

// Stats counts since New.
type Stats struct {
	// Dropped is the number of messages that were certainly not delivered to an admitted
	// peer, counted once for each peer: the peer was stalled, or the stream ended or
	// broke before the message was written. Messages that a stream had accepted when it
	// broke may be lost as well, and pubsub drops some itself; the gate knows of neither.
	Dropped uint64
	// Stalls is how often a peer accepted nothing, or too little for pubsub's patience.
	Stalls uint64
	// Reopened is how often a broken stream was replaced, unseen by pubsub.
	Reopened uint64
	// Oversize is the number of RPCs of more than 1 MiB that peers sent. Pubsub has not
	// seen them.
	Oversize uint64
}

const (
	// openTimeout bounds the opening of a stream, and how long the stream of an admitted
	// peer is kept until ours is open.
	openTimeout = 10 * time.Second
	// dropTimeout is how long the gate waits for pubsub to drop a peer after the end of
	// a stream. Pubsub does so at once, or has never known the stream.
	dropTimeout = 5 * time.Second
	// minDelay and maxDelay bound the pauses between attempts to open a stream.
	minDelay = 20 * time.Millisecond
	maxDelay = 2 * time.Second
	// maxGuestDelay is maxDelay for a guest, which may never admit us. If it does, it
	// opens a stream itself, and that ends the pause.
	maxGuestDelay = 30 * time.Second
	// soundAfter is how long a stream must have lived for the next one to be opened
	// without a pause.
	soundAfter = 10 * time.Second
	// closeTimeout bounds how long Close waits. A reset can take as long as the
	// connection to a frozen peer lives.
	closeTimeout = 2 * time.Second
)

var (
	errNotAdmitted = errors.New("gate: the peer is not admitted")
	errRelayed     = errors.New("gate: the peer is connected through a relay only")
	errClosed      = errors.New("gate: closed")
	errReplaced    = errors.New("gate: the peer opened another stream")
)

// A peerRecord is what the gate knows of one peer. Gate.mu guards it.
//
// Pubsub learns of the peer when the gate offers it, by an event on pubsub's bus:
// pubsub asks for the connectedness of the peer, then opens a stream. When that stream
// ends, pubsub drops the peer: it forgets the peer's topics, then asks for the
// connectedness again. It asks at no other time, so each question shows how far pubsub
// has come.
type peerRecord struct {
	Admission

	// Pubsub's stream to the peer.
	offered bool                // pubsub has an offer and has not asked about it yet
	opening *context.CancelFunc // pubsub is opening its stream
	out     *writeStream        // the stream that pubsub has; nil: none
	ending  *writeStream        // the stream that was out; pubsub has not dropped the peer yet
	dropped *time.Timer         // when it fires, pubsub is taken to have dropped the peer
	delay   time.Duration       // before the next offer
	retry   *time.Timer         // makes the next offer

	// The peer's streams to pubsub.
	in      *readStream // pubsub reads it
	waiting *readStream // it waits for its turn
	hadIn   bool        // pubsub has read a stream of the peer since out was opened

	changed notify.Cond // of everything that a waiting stream depends on
}

// An Admission says why pubsub may have streams with a peer. The zero value admits
// nobody.
type Admission struct {
	// Linked is a peer with which the node has a link, or is making one.
	Linked bool
	// Guest is a peer that is served without a link.
	Guest bool
	// Plain is a peer that is not a node, so there is no gate at its end.
	Plain bool
}

func (a Admission) admitted() bool { return a.Linked || a.Guest }

// New returns a gate that admits nobody yet. The host stays the caller's.
func New(h corehost.Host, cfg Config) *Gate {
	cfg.Wait = cmp.Or(cfg.Wait, 2*time.Second)
	cfg.MaxWaiting = cmp.Or(cfg.MaxWaiting, 64)
	cfg.MaxPending = cmp.Or(cfg.MaxPending, 2<<20)
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, 5*time.Second)
	cfg.Log = cmp.Or(cfg.Log, logging.Room("host", nil))
	if cfg.Recheck == nil {
		cfg.Recheck = func(peer.ID, ...protocol.ID) {}
	}
	g := &Gate{
		host:        h,
		cfg:         cfg,
		log:         cfg.Log,
		bus:         eventbus.NewBus(),
		offersReady: notify.NewSignal(),
		peers:       make(map[peer.ID]*peerRecord),
	}
	g.facade = &facade{Host: h, gate: g, network: &facadeNetwork{h.Network(), g}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	emitter, err := g.bus.Emitter(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		panic(err) // it fails only for a type that is not a pointer
	}
	g.emitter = emitter
	g.tasks.Go(g.makeOffers)
	return g
}

// Host returns the host for pubsub. Its Close does nothing, since the host behind it
// does not belong to pubsub.
func (g *Gate) Host() corehost.Host { return g.facade }

// Stats returns the counters.
func (g *Gate) Stats() Stats {
	return Stats{
		Dropped: g.dropped.Load(), Stalls: g.stalls.Load(), Reopened: g.reopened.Load(),
		Oversize: g.oversize.Load(),
	}
}

// SetAdmission changes why p is admitted, and begins or ends pubsub's streams with it.
// When p is no longer admitted, they are reset in both directions, and further ones are
// refused.
func (g *Gate) SetAdmission(p peer.ID, a Admission) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Peers that pubsub has nothing to do with need no record.
	if g.closed || p == g.host.ID() || g.peers[p] == nil && !a.admitted() {
		return
	}
	r := g.recordLocked(p)
	was := r.Admission
	r.Admission = a
	if r.out != nil {
		r.out.guest.Store(!a.Linked)
	}
	switch {
	case a.admitted() && !was.admitted():
		r.delay = 0
		r.changed.Broadcast()
		g.offerLocked(p, r)
	case was.admitted() && !a.admitted():
		g.endStreamsLocked(p, r)
	case a.Linked != was.Linked || a.Guest != was.Guest:
		// The other end may have admitted us at the same time, so an attempt that it
		// refused before can succeed now.
		r.retryNowLocked()
	}
	g.removeUnusedLocked(p, r)
}

// Announce tells p the topics of pubsub once more, on the stream that pubsub has to p, if
// there is one. A peer that forgets announcements with the link needs it when the link
// comes back while the old streams are still open. Announce does not block.
func (g *Gate) Announce(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.peers[p]; r != nil && r.admitted() && r.out != nil {
		r.out.repeatAnnouncement()
	}
}

// Close resets all streams, removes pubsub's handlers from the host, and waits for the
// gate's goroutines, but at most two seconds for a connection that is frozen. It may be
// called again.
func (g *Gate) Close() {
	g.mu.Lock()
	if !g.closed {
		for _, id := range g.protocols {
			g.host.RemoveStreamHandler(id)
		}
		for p, r := range g.peers {
			r.Admission = Admission{}
			g.endStreamsLocked(p, r)
		}
		g.closed = true
		g.cancel()
	}
	g.mu.Unlock()
	// A goroutine that is left behind may still emit.
	if tasks.Wait(&g.tasks, closeTimeout) {
		g.emitter.Close()
	} else {
		g.log.Debug("the gate closes while a connection is frozen")
	}
}

// recordLocked returns the record of p, a new one if there is none.
func (g *Gate) recordLocked(p peer.ID) *peerRecord {
	r := g.peers[p]
	if r == nil {
		r = &peerRecord{}
		g.peers[p] = r
	}
	return r
}

// removeUnusedLocked removes the record of p if there is nothing in it.
func (g *Gate) removeUnusedLocked(p peer.ID, r *peerRecord) {
	if !r.admitted() && !r.offered && r.out == nil && r.ending == nil && r.in == nil && r.waiting == nil && g.peers[p] == r {
		delete(g.peers, p)
	}
}

// retryNowLocked ends the pause before the peer's broken stream is opened again, if
// there is one.
func (r *peerRecord) retryNowLocked() {
	if r.out != nil {
		r.out.retryNow.Set()
	}
}
