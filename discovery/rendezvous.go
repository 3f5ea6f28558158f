package discovery

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// How often others are looked for: while alone after 1, 2, 4, 8, 8 ... seconds, as
// with seeds; rarely with fewer links than wanted, since then the neighbours are
// asked, too; and with enough links only so that two networks which do not know of
// each other become one.
const (
	firstLook  = time.Second
	aloneLook  = 8 * time.Second
	fewLook    = 30 * time.Second
	enoughLook = 5 * time.Minute
)

const (
	// lookTimeout and advertTimeout bound one call; a DHT takes as long as it is
	// given.
	lookTimeout   = 30 * time.Second
	advertTimeout = time.Minute
	// maxLook bounds the nodes taken of one call.
	maxLook = 32
	// An advertisement that failed is tried again after firstAdvert, twice that, and
	// so on to lastAdvert. The first that succeeds is repeated after lastAdvert,
	// since a DHT in which few nodes were known has put it at the wrong ones.
	firstAdvert = time.Second
	lastAdvert  = time.Minute
	// defaultAdvert is the time to live where none is told.
	defaultAdvert = time.Hour
)

// RendezvousConfig is what a Rendezvous needs. Discovery and Namespace are
// required.
type RendezvousConfig struct {
	// Discovery is where others look for this node, too. Its calls get a context
	// with which they have to end.
	Discovery corediscovery.Discovery
	// Namespace is what is advertised and looked for.
	Namespace string
	// Min is how many links the node wants.
	Min int
	// Log is the room's logger, nil the default one.
	Log *slog.Logger
}

// A Rendezvous looks for the nodes of a network where the user says that they
// meet, in any libp2p Discovery such as a DHT, and advertises this node there
// before the last advertisement ends. Its methods may be called from several
// goroutines.
//
// What it finds is dialled like an address that a stranger told, although the user
// chose the source: anybody can write into a DHT. So the guard limits the dials,
// and the addresses must reach as far as this node's own do: one that others reach
// in a local network looks there and on the internet, one on the internet there
// only.
type Rendezvous struct {
	cfg     RendezvousConfig
	source  rendezvousSource
	changed chan struct{} // a token when the links have changed
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu    sync.Mutex
	found int              // nodes, ever, this one aside
	errs  map[string]error // by what was tried; why it failed the last time
}

// A rendezvousSource is the Driver.
type rendezvousSource interface {
	linkCount() int
	learnTold(peer.AddrInfo) bool
}

// NewRendezvous returns a Rendezvous that does nothing until Start.
func NewRendezvous(cfg RendezvousConfig) *Rendezvous {
	if cfg.Log == nil {
		cfg.Log = logging.Room("discovery", nil)
	}
	return &Rendezvous{cfg: cfg, changed: make(chan struct{}, 1), errs: map[string]error{}}
}

// Start begins to look for others and to advertise. It must be called once at
// most, after d has been started, and not after Close.
func (r *Rendezvous) Start(d *Driver) { r.start(d) }

func (r *Rendezvous) start(source rendezvousSource) {
	r.source = source
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.tasks.Go(func() { r.look(ctx) })
	r.tasks.Go(func() { r.advertise(ctx) })
}

// LinksChanged says that a link was made or ended. It does not wait.
func (r *Rendezvous) LinksChanged() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Close ends what Start began and waits for it. What was advertised stays until
// its time is over.
func (r *Rendezvous) Close() {
	if r.cancel != nil {
		r.cancel()
		r.tasks.Wait()
	}
}

// Status returns how many other nodes have been found so far, and why the last
// search failed, if it did.
func (r *Rendezvous) Status() (found int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found, r.errs["look"]
}

// look looks for others, the more often the fewer links there are.
func (r *Rendezvous) look(ctx context.Context) {
	rounds := 0 // since the last link ended
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := time.Now()
	alone := true
	for {
		select {
		case <-timer.C:
			last = time.Now()
			r.round(ctx)
			rounds++
		case <-r.changed:
		case <-ctx.Done():
			return
		}
		links := r.source.linkCount()
		if alone != (links == 0) {
			alone, rounds = links == 0, 0
		}
		timer.Reset(max(0, jitter(r.pause(links, rounds))-time.Since(last)))
	}
}

// pause returns how long after the last round the next one is.
func (r *Rendezvous) pause(links, rounds int) time.Duration {
	switch {
	case links == 0:
		return min(firstLook<<min(max(rounds-1, 0), 10), aloneLook)
	case links < r.cfg.Min:
		return fewLook
	}
	return enoughLook
}

// jitter returns d give or take a fifth, so that nodes which were started together
// do not stay together.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5+1)
}

// round asks once who is there.
func (r *Rendezvous) round(ctx context.Context) {
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	list, err := r.cfg.Discovery.FindPeers(ctx, r.cfg.Namespace, corediscovery.Limit(maxLook))
	if asked.Err() != nil {
		return
	}
	r.outcome("look", err)
	if err != nil || list == nil {
		return
	}
	for n := 0; n < maxLook; {
		select {
		case info, ok := <-list:
			if !ok {
				return
			}
			if r.source.learnTold(info) {
				n++
				r.mu.Lock()
				r.found++
				r.mu.Unlock()
			}
		case <-ctx.Done():
			return
		}
	}
}

// advertise keeps this node advertised.
func (r *Rendezvous) advertise(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed, first := 0, true
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		limited, cancel := context.WithTimeout(ctx, advertTimeout)
		ttl, err := r.cfg.Discovery.Advertise(limited, r.cfg.Namespace)
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.outcome("advertise", err)
		if err != nil {
			timer.Reset(jitter(min(firstAdvert<<min(failed, 10), lastAdvert)))
			failed++
			continue
		}
		failed = 0
		if ttl <= 0 {
			ttl = defaultAdvert
		}
		wait := max(ttl/8*7, firstAdvert)
		if first {
			first, wait = false, min(wait, lastAdvert)
		}
		timer.Reset(wait)
	}
}

// outcome notes what came of a call and logs why it failed, when that changes.
func (r *Rendezvous) outcome(what string, err error) {
	r.mu.Lock()
	before := r.errs[what]
	r.errs[what] = err
	r.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		r.cfg.Log.Warn("rendezvous", "cannot", what, "namespace", r.cfg.Namespace, "err", err)
	}
}

// linkCount returns the number of links.
func (d *Driver) linkCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.links)
}

// learnTold tells the overlay of a node for which nobody vouches, and reports
// whether it was one that can be dialled. It does not wait.
func (d *Driver) learnTold(info peer.AddrInfo) bool {
	addrs := d.told(info)
	if len(addrs) > 0 {
		d.Learn(overlay.Contact{ID: info.ID, Addrs: addrs})
	}
	return len(addrs) > 0
}

// told returns at which of the addresses another node may be dialled.
func (d *Driver) told(info peer.AddrInfo) []ma.Multiaddr {
	if info.ID == d.host.ID() || info.ID.Validate() != nil {
		return nil
	}
	var own ma.Multiaddr
	if addrs := d.cfg.Addrs(); len(addrs) > 0 {
		own = addrs[0] // the one that reaches farthest
	}
	return dialguard.Filter(info.Addrs, own)
}
