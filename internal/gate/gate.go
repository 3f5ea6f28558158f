// Package gate shows pubsub the links of a node in place of all its connections.
package gate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/tasks"
)

// A Gate stands between pubsub and the libp2p host. Floodsub sends to every
// connected peer that announced the topic, and asks no filter; so it is given
// [Gate.Host], on which only the admitted peers exist:
//
//	gate := host.New(h, gate.Config{})
//	ps, err := pubsub.NewFloodSub(ctx, gate.Host())
//	gate.Admit(p) // pubsub opens its stream to p and takes the one of p
//	gate.Evict(p) // both are reset, p is gone for pubsub
//
// Besides those, the gate admits guests by itself: peers that speak pubsub and are
// no nodes of ours, see [Config.NodeProtocol], and from [Gate.Open] on everybody
// who speaks pubsub, for as long as they are connected.
//
// Both ends have to admit each other. Whoever is first waits: a stream of a
// peer that is not yet admitted is kept for two seconds, and one that was
// refused or broke is opened again for as long as its peer is admitted and
// connected.
//
// A peer that is connected through a relay only does not exist for pubsub, admitted
// or not, until there is a direct connection to it.
//
// What pubsub itself would get wrong, the gate takes care of:
//
//   - An announcement of topics travels once per stream, and pubsub forgets it
//     when its own stream in the other direction ends. So the gate hands over a
//     peer's stream only while pubsub holds one to that peer (which also means:
//     once a peer is seen on a topic, what is published goes to it), and resets
//     it when that one ends.
//   - Pubsub gives up on a peer after four streams that ended within ten
//     minutes. To pubsub a peer therefore does not exist between two streams,
//     and when a stream breaks while the peer stays admitted, the gate opens
//     another, repeats the announcement on it, and pubsub hears nothing of it.
//     A peer that ends its stream between two RPCs may go on with another.
//   - Pubsub writes each message by itself, queues without bound for a peer that
//     takes nothing, and after thirty seconds loses it all. The gate gathers
//     what comes fast, holds at most [Config.MaxPending], and drops and
//     counts the messages for a peer that has taken nothing for
//     [Config.StallTimeout], until it takes something again. For a guest,
//     which nobody has asked to keep up, it does so as soon as so much is held.
//   - Pubsub resets the stream on which an RPC of more than 1 MiB comes, which some
//     peers send and few recover from. The gate leaves the RPC out.
//
// All methods may be called from any goroutine; none of Admit and Evict blocks.
type Gate struct {
	host    corehost.Host
	facade  *facade
	cfg     Config
	log     *slog.Logger
	bus     event.Bus
	emitter event.Emitter

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // Add only under mu and before closed
	wake   chan struct{}  // offers is not empty

	mu        sync.Mutex
	closed    bool
	peers     map[peer.ID]*peerRecord
	protocols []protocol.ID        // that pubsub handles
	offers    []peer.ID            // peers that pubsub is to be told of
	strangers int                  // streams kept for peers that are not admitted
	toAll     bool                 // see Open
	guests    int                  // see peerRecord.guest
	turned    map[peer.ID]struct{} // foreign peers that found no place and are still here

	rescan chan struct{} // all connected peers are to be judged anew

	dropped, stalls, reopened, oversize, turnedAway atomic.Uint64 // see Stats
}

// Config configures a Gate. Its zero value works.
type Config struct {
	// Wait is how long a stream of a peer that is not yet admitted is kept; 0
	// is two seconds.
	Wait time.Duration
	// MaxWaiting bounds these streams, 0 is 64. Of one peer only the latest is
	// kept.
	MaxWaiting int
	// MaxPending is how many bytes may wait to be written to one peer, and one
	// RPC of pubsub's more (1 MiB at most); 0 is 2 MiB.
	MaxPending int
	// StallTimeout is how long a peer may take nothing of what waits until
	// messages for it are dropped, an eighth more at most; 0 is five seconds.
	StallTimeout time.Duration
	// NodeProtocol is what nodes of ours speak, which are admitted by Admit. A peer
	// that speaks pubsub and not this is foreign, and admitted as a guest. If it is
	// empty nobody is foreign.
	NodeProtocol protocol.ID
	// MaxForeign bounds the foreign peers that are admitted at a time, until Open; 0
	// is 64, a negative number means none.
	MaxForeign int
	// Doubt is told of who opens a stream of pubsub and has not said that it speaks it,
	// see identify.Tracker.Doubt. It must not block; nil is nobody.
	Doubt func(p peer.ID, protocols ...protocol.ID)
	// Log is the room's logger, nil the default one.
	Log *slog.Logger
}

// Stats counts what happened since New.
type Stats struct {
	// Dropped is the number of messages that were certainly not delivered to
	// an admitted peer, once for each peer: it was stalled, or the stream ended
	// or broke before the message was written. What a stream had taken when it
	// broke may be lost as well, and what pubsub itself drops; both are unknown
	// here.
	Dropped uint64
	// Stalls is how often a peer was found to take nothing, or too little for
	// pubsub's patience.
	Stalls uint64
	// Reopened is how often a stream that broke was replaced unseen by pubsub.
	Reopened uint64
	// Oversize is the number of RPCs of more than 1 MiB that peers sent, none of
	// which pubsub has seen.
	Oversize uint64
	// TurnedAway is how often a foreign peer came while there were as many as
	// MaxForeign allows.
	TurnedAway uint64
}

const (
	// openTimeout bounds the opening of a stream, and how long the stream of
	// an admitted peer is kept until ours is open.
	openTimeout = 10 * time.Second
	// drainTimeout is how long the gate waits for pubsub to notice the end of
	// a stream. It notices at once, or has never known the stream.
	drainTimeout = 5 * time.Second
	// minDelay and maxDelay bound the pauses between attempts to open a stream.
	minDelay = 20 * time.Millisecond
	maxDelay = 2 * time.Second
	// maxGuestDelay is maxDelay for a guest, which may never admit us. When it does,
	// it opens a stream, and is not waited for any longer.
	maxGuestDelay = 30 * time.Second
	// soundAfter is how long a stream must have lived for the next to be
	// opened without a pause.
	soundAfter = 10 * time.Second
	// closeTimeout bounds how long Close waits. A reset can take as long as
	// the connection to a frozen peer lives.
	closeTimeout = 2 * time.Second
)

var (
	errNotAdmitted = errors.New("gate: the peer is not admitted")
	errRelayed     = errors.New("gate: the peer is connected through a relay only")
	errGateClosed  = errors.New("gate: closed")
)

// peerRecord is what the gate knows of one peer; Gate.mu guards it.
//
// Pubsub takes a peer up when the gate offers it, which it does by an event on
// its bus: pubsub asks for the peer's connectedness, then opens a stream. It
// drops the peer when that stream ends: it forgets the peer's topics, then asks
// again. No other question is ever asked, so answers can depend on them.
type peerRecord struct {
	linked  bool                // by Admit
	guest   bool                // see Gate.judge
	foreign bool                // no node of ours, so no gate is at the other end
	heard   bool                // pubsub has read a stream of the peer since it has out
	offered bool                // an offer is out that pubsub has not asked about
	opening *context.CancelFunc // pubsub is opening its stream
	out     *outStream          // the stream pubsub has; nil: none
	dying   *outStream          // out has ended and pubsub has not yet dropped the peer
	in      *inStream           // the peer's stream that pubsub reads
	kept    *inStream           // the peer's stream that waits
	delay   time.Duration       // before the next offer
	retry   *time.Timer         // makes it
	drain   *time.Timer         // for dying
	changed chan struct{}       // closed when what a kept stream waits for may have come
}

// admitted tells whether pubsub may have streams with the peer.
func (r *peerRecord) admitted() bool { return r.linked || r.guest }

// New returns a gate that admits nobody yet. The host stays the caller's.
func New(h corehost.Host, cfg Config) *Gate {
	if cfg.Wait == 0 {
		cfg.Wait = 2 * time.Second
	}
	if cfg.MaxWaiting == 0 {
		cfg.MaxWaiting = 64
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = 2 << 20
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = 5 * time.Second
	}
	if cfg.MaxForeign == 0 {
		cfg.MaxForeign = 64
	}
	if cfg.Doubt == nil {
		cfg.Doubt = func(peer.ID, ...protocol.ID) {}
	}
	if cfg.Log == nil {
		cfg.Log = logging.Room("host", nil)
	}
	g := &Gate{
		host:   h,
		cfg:    cfg,
		log:    cfg.Log,
		bus:    eventbus.NewBus(),
		wake:   make(chan struct{}, 1),
		rescan: make(chan struct{}, 1),
		peers:  make(map[peer.ID]*peerRecord),
		turned: make(map[peer.ID]struct{}),
	}
	g.facade = &facade{Host: h, gate: g, network: &facadeNetwork{h.Network(), g}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	emitter, err := g.bus.Emitter(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		panic(err) // it fails for what is no pointer
	}
	g.emitter = emitter
	g.tasks.Go(g.makeOffers)
	g.watch()
	return g
}

// Host returns the host for pubsub. Its Close does nothing, since the host
// behind it is not pubsub's.
func (g *Gate) Host() corehost.Host { return g.facade }

// Stats returns what was counted.
func (g *Gate) Stats() Stats {
	return Stats{
		Dropped: g.dropped.Load(), Stalls: g.stalls.Load(), Reopened: g.reopened.Load(),
		Oversize: g.oversize.Load(), TurnedAway: g.turnedAway.Load(),
	}
}

// Admit lets pubsub exchange streams with p from now on. It does nothing if p
// was admitted in this way already.
func (g *Gate) Admit(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || p == g.host.ID() {
		return
	}
	r := g.peer(p)
	g.admit(p, r, true, r.guest)
}

// Evict resets pubsub's streams with p in both directions and refuses further
// ones, unless p is a guest. It does nothing if p was not admitted by Admit.
func (g *Gate) Evict(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.peers[p]; r != nil && r.linked {
		g.admit(p, r, false, r.guest)
	}
}

// admit changes why p is admitted, and begins or ends what depends on it.
func (g *Gate) admit(p peer.ID, r *peerRecord, linked, guest bool) {
	was := r.admitted()
	if guest && !r.guest {
		g.guests++
	} else if !guest && r.guest {
		g.guests--
	}
	r.linked, r.guest = linked, guest
	if r.out != nil {
		r.out.guest.Store(!linked)
	}
	switch is := r.admitted(); {
	case is && !was:
		r.delay = 0
		r.change()
		g.offer(p, r)
	case is:
		r.hurry()
	case was:
		g.end(p, r)
	}
	g.tidy(p, r)
}

// Close resets all streams, removes pubsub's handlers from the host, and waits
// for its goroutines, though not longer than two seconds for a connection that
// is frozen. It may be called again.
func (g *Gate) Close() {
	g.mu.Lock()
	if !g.closed {
		for _, id := range g.protocols {
			g.host.RemoveStreamHandler(id)
		}
		for p, r := range g.peers {
			r.linked, r.guest = false, false
			g.end(p, r)
		}
		g.closed = true
		g.cancel()
	}
	g.mu.Unlock()
	if tasks.Wait(&g.tasks, closeTimeout) {
		g.emitter.Close()
	} else {
		g.log.Debug("the gate closes while a connection is frozen")
	}
}

// peer returns the record of p. As all below, it needs mu.
func (g *Gate) peer(p peer.ID) *peerRecord {
	r := g.peers[p]
	if r == nil {
		r = &peerRecord{changed: make(chan struct{})}
		g.peers[p] = r
	}
	return r
}

// tidy forgets a peer of which nothing is left.
func (g *Gate) tidy(p peer.ID, r *peerRecord) {
	if !r.admitted() && !r.offered && r.out == nil && r.dying == nil && r.in == nil && r.kept == nil && g.peers[p] == r {
		delete(g.peers, p)
	}
}

func (r *peerRecord) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// hurry ends the pause before the peer's broken stream is opened again, if there is
// one: the peer may be ready for it now.
func (r *peerRecord) hurry() {
	if r.out != nil {
		r.out.hurry()
	}
}

// offer tells pubsub of p, if it should open a stream and does not do so yet.
func (g *Gate) offer(p peer.ID, r *peerRecord) {
	if r.retry != nil {
		r.retry.Stop()
		r.retry = nil
	}
	if g.closed || !r.admitted() || r.offered || r.opening != nil || r.out != nil || r.dying != nil {
		return
	}
	r.offered = true
	g.offers = append(g.offers, p)
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// offerLater makes an offer after a pause, in case nothing comes of the last.
func (g *Gate) offerLater(p peer.ID, r *peerRecord) {
	if g.closed || !r.admitted() || r.retry != nil {
		return
	}
	r.delay = min(max(2*r.delay, minDelay), maxDelay)
	r.retry = time.AfterFunc(r.delay, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.peers[p] == r {
			g.offer(p, r)
		}
	})
}

// makeOffers emits the events by which pubsub learns of peers. An event that
// was emitted is asked about, once.
func (g *Gate) makeOffers() {
	for {
		select {
		case <-g.wake:
		case <-g.ctx.Done():
			return
		}
		g.mu.Lock()
		offers, protocols := g.offers, g.protocols
		g.offers = nil
		g.mu.Unlock()
		for _, p := range offers {
			g.mu.Lock()
			r := g.peers[p]
			stands := r != nil && r.admitted() && len(protocols) > 0
			if r != nil && !stands {
				r.offered = false
				g.tidy(p, r)
			}
			g.mu.Unlock()
			if stands {
				g.emitter.Emit(event.EvtPeerIdentificationCompleted{Peer: p, Protocols: protocols})
			}
		}
	}
}

// connectedness is pubsub asking whether it should have a stream to p.
func (g *Gate) connectedness(p peer.ID) network.Connectedness {
	c := network.NotConnected
	if n := g.host.Network(); addr.HasDirect(n, p) {
		c = n.Connectedness(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.peers[p]
	if r == nil {
		return network.NotConnected
	}
	if r.dying != nil && !r.offered {
		g.drained(p, r)
		g.tidy(p, r)
		return network.NotConnected
	}
	r.offered = false
	defer g.tidy(p, r)
	switch {
	case !r.admitted() || r.dying != nil:
		return network.NotConnected
	case r.out == nil:
		// Pubsub opens a stream now, unless it is not yet done with the last.
		g.offerLater(p, r)
	}
	return c
}

// drained says that pubsub has dropped the peer, so that it can be offered
// anew and its announcements will last.
func (g *Gate) drained(p peer.ID, r *peerRecord) {
	r.dying = nil
	r.drain.Stop()
	r.change()
	if r.admitted() && r.delay > 0 {
		g.offerLater(p, r)
	} else {
		g.offer(p, r)
	}
}

// end ends pubsub's streams with p, also the one being opened.
func (g *Gate) end(p peer.ID, r *peerRecord) {
	if r.opening != nil {
		(*r.opening)()
		r.opening = nil
	}
	if r.retry != nil {
		r.retry.Stop()
		r.retry = nil
	}
	if o := r.out; o != nil {
		r.out, r.dying = nil, o
		o.end()
		r.drain = time.AfterFunc(drainTimeout, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if r.dying == o {
				r.offered = false
				g.drained(p, r)
				g.tidy(p, r)
			}
		})
	}
	if r.in != nil {
		r.in.end()
	}
	r.change()
}

// lost is an out stream saying that it cannot go on.
func (g *Gate) lost(o *outStream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := o.peer
	if r := g.peers[p]; r != nil && r.out == o {
		if time.Since(o.born) > soundAfter {
			r.delay = 0
		} else {
			r.delay = max(r.delay, minDelay)
		}
		g.end(p, r)
	}
}
