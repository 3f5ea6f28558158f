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
	// A node without links pauses for 1, 2, 4, 8, 8 ... seconds between two searches:
	// the pause begins with firstInterval and doubles up to aloneInterval. Attempts at
	// seeds have the same pauses.
	firstInterval = time.Second
	aloneInterval = 8 * time.Second
	// fewInterval is the pause between two searches of a node that has links, but fewer
	// than it wants. Such a node also asks its neighbors for nodes, so the pause is
	// longer.
	fewInterval = 30 * time.Second
	// enoughInterval is the pause between two searches of a node with enough links. It
	// searches only to connect two parts of the network that do not know each other.
	enoughInterval = 5 * time.Minute
)

const (
	// searchTimeout and advertiseTimeout bound one call of the Discovery. A DHT uses all the
	// time that it gets.
	searchTimeout    = 30 * time.Second
	advertiseTimeout = time.Minute
	// maxFound bounds the nodes that are accepted from one search.
	maxFound = 32
	// A failed advertisement is tried again after firstRetry; the pause doubles, up to
	// lastRetry. The first advertisement that succeeds is repeated after lastRetry: a DHT
	// that still knew few nodes may have stored it at the wrong ones.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// defaultTTL is the lifetime of an advertisement if the Discovery does not state one.
	defaultTTL = time.Hour
)

// A rendezvous searches a libp2p Discovery, such as a DHT, for the nodes of a network, and keeps
// this node advertised there. Its methods may be called from several goroutines.
//
// Anybody can write to a DHT, so an address from it is dialed only under the rules for addresses
// of unknown peers. The number of dials is limited. A node on the internet accepts only public
// addresses; a node in a local network accepts private and public ones.
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
	found int              // nodes found since start, counted once for each search
	errs  map[string]error // the error of the last call of each method of the Discovery, by the method's name
}

// A rendezvousDriver has the methods of the Driver that a rendezvous needs.
type rendezvousDriver interface {
	linkCount() int
	learnUnvouched(peer.AddrInfo) bool
}

// newRendezvous returns a rendezvous, which does nothing until start is called. The nodes of the
// network advertise themselves in source under namespace. The methods of source must return when
// their context ends. min is the number of links that the node wants. log may be nil.
func newRendezvous(source corediscovery.Discovery, namespace string, min int, log *slog.Logger) *rendezvous {
	if log == nil {
		log = logging.Package("discovery", nil)
	}
	return &rendezvous{
		source: source, namespace: namespace, min: min, log: log,
		changed: notify.NewSignal(), errs: map[string]error{},
	}
}

// start begins to search and to advertise. It must be called at most once, and not after close.
func (r *rendezvous) start(driver rendezvousDriver) {
	r.driver = driver
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.tasks.Go(func() { r.searchLoop(ctx) })
	r.tasks.Go(func() { r.advertiseLoop(ctx) })
}

// linksChanged tells the rendezvous that a link was made or ended. It does not block.
func (r *rendezvous) linksChanged() { r.changed.Set() }

// close ends the goroutines of start and waits for them. An advertisement remains in the
// Discovery until it expires.
func (r *rendezvous) close() {
	if r.cancel != nil { // start was called
		r.cancel()
		r.tasks.Wait()
	}
}

// status returns the number of nodes that were found since start, where a node counts once
// for each search that finds it, and the error of the last search, or nil.
func (r *rendezvous) status() (found int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found, r.errs["search"]
}

// searchLoop searches for nodes again and again. With fewer links, the pauses are shorter.
func (r *rendezvous) searchLoop(ctx context.Context) {
	rounds := 0 // the number of searches since the node lost its last link or got its first one
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
		// A node that has just lost its last link searches again after the shortest pause.
		if alone != (links == 0) {
			alone, rounds = links == 0, 0
		}
		timer.Reset(max(0, jitter(r.pause(links, rounds))-time.Since(last)))
	}
}

// pause returns the time from the last search to the next one. links is the number of
// links, and rounds is the number of searches since the node lost its last link or got its
// first one.
func (r *rendezvous) pause(links, rounds int) time.Duration {
	switch {
	case links == 0:
		return min(firstInterval<<min(max(rounds-1, 0), 10), aloneInterval)
	case links < r.min:
		return fewInterval
	}
	return enoughInterval
}

// jitter returns a random duration within 20 % of d, so that nodes which were started together
// do not always search at the same time.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5+1)
}

// search makes one search, and gives the nodes in its result to the driver.
func (r *rendezvous) search(ctx context.Context) {
	life := ctx
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	list, err := r.source.FindPeers(ctx, r.namespace, corediscovery.Limit(maxFound))
	if life.Err() != nil {
		return // close has ended the search, so its error does not count
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
			if r.driver.learnUnvouched(info) { // nodes that cannot be dialed do not count
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

// advertiseLoop advertises this node again and again, each time before the last advertisement
// expires.
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
		if ttl <= 0 { // the Discovery does not say how long it keeps the advertisement
			ttl = defaultTTL
		}
		// The next advertisement comes when an eighth of the lifetime is left. A very short
		// lifetime must not lead to calls without a pause.
		wait := max(ttl/8*7, firstRetry)
		if first {
			first, wait = false, min(wait, lastRetry)
		}
		timer.Reset(wait)
	}
}

// recordOutcome stores err, the result of a call of the Discovery's method with the name
// call; nil means success. It logs the error unless the last call of that method had the
// same one.
func (r *rendezvous) recordOutcome(call string, err error) {
	r.mu.Lock()
	before := r.errs[call]
	r.errs[call] = err
	r.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		r.log.Warn("a call of the Discovery has failed", "call", call, "namespace", r.namespace, "error", err)
	}
}
