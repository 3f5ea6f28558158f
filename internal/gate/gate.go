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
// The caller of a method whose name ends in Locked holds mu.
type Gate struct {
	// Set once.
	host    corehost.Host
	facade  *facade
	cfg     Config
	log     *slog.Logger
	bus     event.Bus // the event bus of the host that pubsub gets
	emitter event.Emitter

	// Goroutines.
	ctx         context.Context
	cancel      context.CancelFunc
	tasks       sync.WaitGroup // Add only under mu and before closed
	offersReady notify.Signal  // set when an element was added to offers

	mu        sync.Mutex
	closed    bool
	protocols []protocol.ID // the protocols for which pubsub has set a handler
	peers     map[peer.ID]*peerRecord
	offers    []peer.ID // peers of which makeOffers has to notify pubsub

	// earlyStreams is the number of streams kept for peers that are not admitted yet.
	earlyStreams int

	// The counters that Stats returns.
	dropped, stalls, reopened, oversize atomic.Uint64
}

// Config configures a Gate. Its zero value works.
type Config struct {
	// Wait is how long the gate keeps a pubsub stream from a peer that is not admitted
	// yet. 0 means two seconds.
	Wait time.Duration
	// MaxWaiting is the largest number of streams kept for peers that are not admitted
	// yet. 0 means 64. Only the latest stream of each peer is kept.
	MaxWaiting int
	// MaxPending is the number of bytes that may be queued for one peer; one more RPC of
	// pubsub (at most 1 MiB) may exceed it. 0 means 2 MiB.
	MaxPending int
	// StallTimeout is how long a peer may read nothing, while messages are queued for it,
	// before messages for it are dropped. It is exact to an eighth. 0 means five seconds.
	StallTimeout time.Duration
	// Recheck is called for a peer that opens a pubsub stream although the host does not
	// know that the peer speaks this protocol, see identify.Tracker.Recheck. It must not
	// block. May be nil.
	Recheck func(p peer.ID, protocols ...protocol.ID)
	// Log defaults to the logger "smokesignal/host" of go-log.
	Log *slog.Logger
}

// Stats holds counters. They count from New on.
type Stats struct {
	// Dropped is the number of messages that the gate did not deliver to an admitted peer,
	// counted once for each peer, because the peer was stalled, or because the stream ended
	// or broke before the message was written. It does not count messages that were written
	// to a stream which then broke, nor messages that pubsub itself drops.
	Dropped uint64
	// Stalls is the number of times that the gate began to drop messages for a peer,
	// because the peer read nothing or too little.
	Stalls uint64
	// Reopened is the number of broken streams that the gate replaced, unseen by pubsub.
	Reopened uint64
	// Oversize is the number of RPCs of more than 1 MiB that peers sent, and that the gate
	// did not pass to pubsub.
	Oversize uint64
}

const (
	// openTimeout limits how long opening a stream to a peer may take. It is also how long
	// the stream from an admitted peer waits until the node's own stream to the peer is open.
	openTimeout = 10 * time.Second
	// dropTimeout is how long the gate waits for pubsub to forget a peer, after
	// pubsub's stream to the peer has ended. Pubsub normally forgets the peer at once.
	// It never does if the NewStream call of pubsub had not returned the stream yet.
	dropTimeout = 5 * time.Second
	// minDelay and maxDelay are the shortest and the longest pause between two attempts to
	// open a stream to a peer.
	minDelay = 20 * time.Millisecond
	maxDelay = 2 * time.Second
	// maxGuestDelay is the longest pause between two attempts to open a stream to a guest,
	// which may never accept one. When the guest opens a stream itself, the pause ends.
	maxGuestDelay = 30 * time.Second
	// soundAfter is a limit for the age of a stream that broke. If the stream was at
	// least that old, the gate opens the next one without a pause. If it was younger,
	// the next one will probably break soon, too, so the gate pauses first.
	soundAfter = 10 * time.Second
	// closeTimeout limits how long Close waits for stream resets, which block until a
	// connection to a frozen peer times out.
	closeTimeout = 2 * time.Second
)

var (
	errNotAdmitted = errors.New("gate: the peer is not admitted")
	errRelayed     = errors.New("gate: the peer is connected only through a relay")
	errClosed      = errors.New("gate: closed")
	errReplaced    = errors.New("gate: the peer opened another stream")
)

// A peerRecord is the gate's state about one peer. Gate.mu guards it.
//
// The gate offers a peer to pubsub with an event on the facade's event bus. Pubsub then
// calls Connectedness for the peer and opens a stream to it. When this stream ends, pubsub
// drops the peer: it forgets the peer's topics and calls Connectedness again. It calls
// Connectedness at no other time, so each call shows the gate how far pubsub has come.
type peerRecord struct {
	Admission

	// Pubsub's stream to the peer.
	offered bool                // pubsub was notified that the peer is there, and has not called Connectedness since
	opening *context.CancelFunc // cancels the call of NewStream by which pubsub is opening a stream to the peer; nil: no such call is running
	out     *writeStream        // the stream on which pubsub sends to the peer; nil if there is none
	ending  *writeStream        // the stream on which pubsub sent to the peer, and which has ended; set until pubsub has forgotten the peer
	dropped *time.Timer         // when it fires, the gate assumes that pubsub has forgotten the peer
	delay   time.Duration       // the pause before the next offer
	retry   *time.Timer         // makes the next offer

	// The peer's streams to pubsub.
	in      *readStream // the stream that pubsub reads; nil: none
	waiting *readStream // a newer stream of the peer, which pubsub may not read yet; nil if there is none
	hadIn   bool        // pubsub has read a stream of the peer since out, pubsub's stream to the peer, was opened

	changed notify.Cond // broadcast when this record has changed, so that awaitTurn has to look at it again
}

// An Admission says whether pubsub may have streams with a peer, and why. The zero value
// means that it may not.
type Admission struct {
	// Linked means that the node has a link with the peer, or is making one.
	Linked bool
	// Guest means that the peer gets broadcasts without a link.
	Guest bool
	// Plain means that the peer is not a smokesignal node, so it has no gate itself.
	Plain bool
}

func (a Admission) admitted() bool { return a.Linked || a.Guest }

// New returns a gate in front of the host h that admits no peer yet. Close of the gate does
// not close h.
func New(h corehost.Host, cfg Config) *Gate {
	cfg.Wait = cmp.Or(cfg.Wait, 2*time.Second)
	cfg.MaxWaiting = cmp.Or(cfg.MaxWaiting, 64)
	cfg.MaxPending = cmp.Or(cfg.MaxPending, 2<<20)
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, 5*time.Second)
	cfg.Log = cmp.Or(cfg.Log, logging.Package("host", nil))
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
		panic(err) // impossible: Emitter fails only if its argument is not a pointer
	}
	g.emitter = emitter
	g.tasks.Go(g.makeOffers)
	return g
}

// Host returns the libp2p host with which to create pubsub. Close of that host does
// nothing, because pubsub does not own the host of the node.
func (g *Gate) Host() corehost.Host { return g.facade }

// Stats returns the counters.
func (g *Gate) Stats() Stats {
	return Stats{
		Dropped: g.dropped.Load(), Stalls: g.stalls.Load(), Reopened: g.reopened.Load(),
		Oversize: g.oversize.Load(),
	}
}

// SetAdmission sets whether p is admitted, and why. When p becomes admitted, pubsub opens
// its stream to p. When p is no longer admitted, the streams in both directions are reset,
// and further ones are refused.
func (g *Gate) SetAdmission(p peer.ID, a Admission) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// A peer that was not admitted before, and is not admitted now, needs no record.
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
		// The peer may have admitted this node at the same time. So an attempt to
		// open a stream, which it refused before, can succeed now.
		r.retryNowLocked()
	}
	g.removeUnusedLocked(p, r)
}

// Announce sends to p again which topics pubsub has subscribed to, on pubsub's stream to p,
// if there is one. It is needed when the link to p comes back while the old streams are
// still open, since p has forgotten the topics at the end of the old link. Announce does
// not block.
func (g *Gate) Announce(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.peers[p]; r != nil && r.admitted() && r.out != nil {
		r.out.repeatAnnouncement()
	}
}

// Close resets all streams, removes pubsub's handlers from the host, and waits for the
// gate's goroutines. It waits at most two seconds, since a frozen connection can block a
// reset for longer. It may be called again.
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
	// If Wait timed out, a goroutine that still runs may use the emitter, so the
	// emitter stays open.
	if tasks.Wait(&g.tasks, closeTimeout) {
		g.emitter.Close()
	} else {
		g.log.Debug("closed the gate while a frozen connection still blocks a stream reset")
	}
}

// recordLocked returns the record of p. It makes one if there is none.
func (g *Gate) recordLocked(p peer.ID) *peerRecord {
	r := g.peers[p]
	if r == nil {
		r = &peerRecord{}
		g.peers[p] = r
	}
	return r
}

// removeUnusedLocked removes r, the record of p, if it says nothing about p.
func (g *Gate) removeUnusedLocked(p peer.ID, r *peerRecord) {
	if !r.admitted() && !r.offered && r.out == nil && r.ending == nil && r.in == nil && r.waiting == nil && g.peers[p] == r {
		delete(g.peers, p)
	}
}

// retryNowLocked ends the pause before the gate's next attempt to open a stream to the peer
// in place of a broken one, so that the attempt is made now.
func (r *peerRecord) retryNowLocked() {
	if r.out != nil {
		r.out.retryNow.Set()
	}
}
