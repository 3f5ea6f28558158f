package discovery

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// The pauses between two searches.
const (
	// Without links the pauses are 1, 2, 4, 8, 8 ... seconds, as with seeds.
	firstInterval = time.Second
	aloneInterval = 8 * time.Second
	// With fewer links than wanted the neighbors are asked as well, so this source is not
	// urgent.
	fewInterval = 30 * time.Second
	// With enough links a search serves only to join two networks that do not know of
	// each other.
	enoughInterval = 5 * time.Minute
)

const (
	// searchTimeout and advertiseTimeout bound one call. A DHT takes as much time as it
	// gets.
	searchTimeout    = 30 * time.Second
	advertiseTimeout = time.Minute
	// maxFound bounds the nodes that are accepted from one search.
	maxFound = 32
	// A failed advertisement is tried again after firstRetry, twice that, and so on up to
	// lastRetry. The first advertisement that succeeds is repeated after lastRetry, since
	// a DHT that knew few nodes has stored it at the wrong ones.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// defaultTTL is the life of an advertisement whose life the Discovery does not tell.
	defaultTTL = time.Hour
)

// A rendezvous finds the nodes of a network in a libp2p Discovery, such as a DHT, and keeps this
// node advertised there. Its methods may be called from several goroutines.
//
// Anybody can write into a DHT, so the addresses found are treated like those that strangers
// tell, although the user chose the source. The number of dials is limited, and an address has
// to reach as far as this node's own ones: a node that is reached in a local network accepts
// addresses there and on the internet, a node on the internet accepts only those there.
type rendezvous struct {
	source    corediscovery.Discovery
	namespace string
	min       int
	log       *slog.Logger
	driver    rendezvousDriver // nil before start

	changed notify.Signal // set when the links have changed
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu    sync.Mutex
	found int              // other nodes, since start
	errs  map[string]error // the outcome of the last call, by its name
}

// A rendezvousDriver is what a rendezvous needs of the Driver.
type rendezvousDriver interface {
	linkCount() int
	learnUnvouched(peer.AddrInfo) bool
}

// newRendezvous returns a rendezvous that does nothing until start. The nodes of the network
// advertise themselves in source under namespace. The methods of source must end when the
// context that they get ends. min is how many links the node wants. log may be nil.
func newRendezvous(source corediscovery.Discovery, namespace string, min int, log *slog.Logger) *rendezvous {
	if log == nil {
		log = logging.Package("discovery", nil)
	}
	return &rendezvous{
		source: source, namespace: namespace, min: min, log: log,
		changed: notify.NewSignal(), errs: map[string]error{},
	}
}

// start begins to search and to advertise. It must be called once at most, and not after
// close.
func (r *rendezvous) start(driver rendezvousDriver) {
	r.driver = driver
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.tasks.Go(func() { r.searchLoop(ctx) })
	r.tasks.Go(func() { r.advertiseLoop(ctx) })
}

// linksChanged reports that a link was made or ended. It does not block.
func (r *rendezvous) linksChanged() { r.changed.Set() }

// close ends the goroutines of start and waits for them. An advertisement stays until its time
// is over.
func (r *rendezvous) close() {
	if r.cancel != nil { // it was started
		r.cancel()
		r.tasks.Wait()
	}
}

// status returns how many other nodes have been found so far, and why the last search failed, or
// nil.
func (r *rendezvous) status() (found int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found, r.errs["search"]
}

// searchLoop searches for others, the more often the fewer links there are.
func (r *rendezvous) searchLoop(ctx context.Context) {
	rounds := 0 // since the node lost its last link, or got its first
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := time.Now()
	alone := true
	for {
		select {
		case <-timer.C:
			last = time.Now()
			r.search(ctx)
			rounds++
		case <-r.changed:
		case <-ctx.Done():
			return
		}
		links := r.driver.linkCount()
		if alone != (links == 0) {
			alone, rounds = links == 0, 0
		}
		timer.Reset(max(0, jitter(r.pause(links, rounds))-time.Since(last)))
	}
}

// pause returns the time from the last search to the next one.
func (r *rendezvous) pause(links, rounds int) time.Duration {
	switch {
	case links == 0:
		return min(firstInterval<<min(max(rounds-1, 0), 10), aloneInterval)
	case links < r.min:
		return fewInterval
	}
	return enoughInterval
}

// jitter returns d ± 20 %, so that nodes that were started together do not keep searching at the
// same moments.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5+1)
}

// search searches once.
func (r *rendezvous) search(ctx context.Context) {
	life := ctx
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	list, err := r.source.FindPeers(ctx, r.namespace, corediscovery.Limit(maxFound))
	if life.Err() != nil {
		return // the error is that of close
	}
	r.recordOutcome("search", err)
	if err != nil || list == nil {
		return
	}
	for n := 0; n < maxFound; {
		select {
		case info, ok := <-list:
			if !ok {
				return
			}
			if r.driver.learnUnvouched(info) {
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

// advertiseLoop keeps this node advertised.
func (r *rendezvous) advertiseLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed, first := 0, true
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		limited, cancel := context.WithTimeout(ctx, advertiseTimeout)
		ttl, err := r.source.Advertise(limited, r.namespace)
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.recordOutcome("advertise", err)
		if err != nil {
			timer.Reset(jitter(min(firstRetry<<min(failed, 10), lastRetry)))
			failed++
			continue
		}
		failed = 0
		if ttl <= 0 {
			ttl = defaultTTL
		}
		// Before the advertisement ends. A source that forgets at once is not asked all
		// the time.
		wait := max(ttl/8*7, firstRetry)
		if first {
			first, wait = false, min(wait, lastRetry)
		}
		timer.Reset(wait)
	}
}

// recordOutcome records the outcome of a call. It logs an error if it is not the same as last
// time.
func (r *rendezvous) recordOutcome(call string, err error) {
	r.mu.Lock()
	before := r.errs[call]
	r.errs[call] = err
	r.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		r.log.Warn("a call of the Discovery has failed", "call", call, "namespace", r.namespace, "error", err)
	}
}
