package health

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/logging"
)

const (
	defaultTimeout = 3 * time.Second
	// maxWaiting bounds the signals received and not yet looked at (2 KiB each).
	maxWaiting = 1024
)

// Config is what a Watchdog needs. Key, Neighbors and Flood are required.
type Config struct {
	// Key signs what this node sends. Its public half must be inside the peer id,
	// as that of an Ed25519 key is.
	Key crypto.PrivKey
	// Session tells this run of the node from others; eight random bytes.
	Session [8]byte
	// PingInterval is how long a seed may go unheard before it is asked for through
	// the overlay. Zero turns the watchdog off: this node then reports nothing, but
	// passes on and answers the questions of others.
	PingInterval time.Duration
	// PingTimeout is how long an answer may take; zero means three seconds.
	PingTimeout time.Duration
	// Seeds are the seeds to watch.
	Seeds []Seed
	// Addrs returns this node's own addresses, where it listens and what it
	// advertises. Who watches a seed at one of them is answered. May be nil.
	Addrs func() []ma.Multiaddr
	// Neighbors returns the peers linked in the overlay.
	Neighbors func() []peer.ID
	// Flood sends msg to all neighbors but one (none if except is empty), to their
	// Receive. It must not keep the watchdog waiting: drop rather than block. It may
	// keep msg but not change it.
	Flood func(msg []byte, except peer.ID)
	// OnNetsplit and OnResolved are called in order on the watchdog's goroutine.
	// They must return soon and must not call Close. May be nil.
	OnNetsplit, OnResolved func(seed string)
	// Log defaults to the logger of the room.
	Log *slog.Logger
}

// A Seed is one of the addresses at which the network can be joined.
type Seed struct {
	// Text is the seed as the user wrote it. The callbacks and Status name it so.
	Text string
	// ID is the only node that is accepted at the seed's address. Empty means any.
	ID peer.ID
	// Addrs holds the addresses that the text itself gives. It is empty for a name,
	// which stands for the addresses that SeedFound reports.
	Addrs []netip.AddrPort
}

// Status is what is known of one seed.
type Status struct {
	Seed      string    // as the user wrote it
	ID        peer.ID   // who it is; empty as long as nobody has reached it
	LastHeard time.Time // zero: never
	Netsplit  bool      // it was heard once and is lost
}

// Stats counts signals since New.
type Stats struct {
	Received  uint64 // all, bad ones too
	Malformed uint64 // too large, or not in the form of a signal
	Forged    uint64 // not signed by whom they name
	Replayed  uint64 // old answers of a seed
	Duplicate uint64 // arrived before on another way, as floods do
	Spared    uint64 // pings not passed on, as one for the same seed just was
	Dropped   uint64 // of a neighbor who sent too many, or while too many waited
	Unsigned  uint64 // own signals that could not be signed
}

// A Watchdog watches the seeds of one node. All methods may be called from
// several goroutines, and none blocks but Close.
type Watchdog struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	core    *watch
	waiting []received
	budgets budgets
	out     []output // of what did not happen in the loop
	dropped uint64
	state   int

	wake  chan struct{} // a token when there is something to do
	done  chan struct{}
	tasks sync.WaitGroup
}

const (
	idle = iota
	running
	closed
)

type received struct {
	from peer.ID
	msg  []byte
}

// New returns a Watchdog, which does nothing until Start.
func New(cfg Config) (*Watchdog, error) {
	switch {
	case cfg.Key == nil:
		return nil, errors.New("health: Config.Key is missing")
	case cfg.Neighbors == nil:
		return nil, errors.New("health: Config.Neighbors is missing")
	case cfg.Flood == nil:
		return nil, errors.New("health: Config.Flood is missing")
	case cfg.PingInterval < 0 || cfg.PingInterval > MaxInterval:
		return nil, fmt.Errorf("health: Config.PingInterval is %v; it must be between 0 (off) and %v", cfg.PingInterval, MaxInterval)
	case cfg.PingTimeout < 0 || cfg.PingTimeout > MaxInterval:
		return nil, fmt.Errorf("health: Config.PingTimeout is %v; it must be between 0 (%v) and %v", cfg.PingTimeout, defaultTimeout, MaxInterval)
	}
	id, err := peer.IDFromPrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("health: Config.Key: %w", err)
	}
	if _, err := id.ExtractPublicKey(); err != nil {
		return nil, fmt.Errorf("health: Config.Key is of type %s; others cannot verify it by the peer id alone, use Ed25519", cfg.Key.Type())
	}
	if cfg.PingTimeout == 0 {
		cfg.PingTimeout = defaultTimeout
	}
	if cfg.Log == nil {
		cfg.Log = logging.Room("health", nil)
	}
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	counter := uint64(max(time.Now().UnixMilli(), 1))
	core := newWatch(cfg.Key, id, cfg.Session, counter, cfg.PingInterval, cfg.PingTimeout, cfg.Seeds, random)
	return &Watchdog{
		cfg:     cfg,
		log:     cfg.Log,
		core:    core,
		budgets: budgets{},
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
	}, nil
}

// Start begins to watch, to pass on and to answer. The second call does
// nothing, nor does one after Close.
func (w *Watchdog) Start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != idle {
		return
	}
	w.state = running
	w.tasks.Go(w.loop)
}

// Close ends the watchdog and waits for a callback that is running. It may be
// called more than once and before Start, but not from a callback.
func (w *Watchdog) Close() {
	w.mu.Lock()
	if w.state != closed {
		w.state = closed
		close(w.done)
	}
	w.mu.Unlock()
	w.tasks.Wait()
}

// Receive takes a signal that came from a linked peer, and copies it. It
// returns at once; bad signals are counted, see Stats. From one neighbor it
// takes a hundred a second and drops the rest.
func (w *Watchdog) Receive(from peer.ID, msg []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.state != running:
	case !w.budgets.take(from, time.Now()), len(w.waiting) >= maxWaiting:
		w.dropped++
	default:
		// One byte over the limit tells as much as all of them.
		w.waiting = append(w.waiting, received{from, bytes.Clone(msg[:min(len(msg), maxSignalBytes+1)])})
		w.signal()
	}
}

// Heard says that something came over the link to a peer, whatever it was: if the
// peer is a seed, it is there. It does not block.
func (w *Watchdog) Heard(from peer.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if out := w.core.heardFrom(time.Now(), from); len(out) > 0 {
		w.out = append(w.out, out...)
		w.signal()
	}
}

// SeedFound says that the seed was reached directly, who it is, and at which
// addresses. It then counts as heard. What a pinned id contradicts is ignored.
func (w *Watchdog) SeedFound(seed string, id peer.ID, addrs []ma.Multiaddr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, w.core.found(time.Now(), seed, id, addrs)...)
	w.signal()
}

// SeedIsSelf says that the seed is this node, which is never watched.
func (w *Watchdog) SeedIsSelf(seed string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, w.core.foundSelf(seed)...)
	w.signal()
}

// NeighborsChanged says that Neighbors returns something else now.
func (w *Watchdog) NeighborsChanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signal()
}

// Status returns what is known of the seeds, in the order they were given and
// without those which are this node.
func (w *Watchdog) Status() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Status, 0, len(w.core.seeds))
	for _, s := range w.core.seeds {
		if !w.core.isSelf(s) {
			list = append(list, Status{Seed: s.text, ID: s.id, LastHeard: s.lastHeard, Netsplit: s.lost})
		}
	}
	return list
}

// Stats returns the counters.
func (w *Watchdog) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.core.stats
	s.Received += w.dropped
	s.Dropped = w.dropped
	return s
}

// signal wakes the loop.
func (w *Watchdog) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Watchdog) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	last := time.Now()
	for {
		// Asked without our lock held, as they have locks of their own.
		neighbors := w.cfg.Neighbors()
		var own []ma.Multiaddr
		if w.cfg.Addrs != nil {
			own = w.cfg.Addrs()
		}
		now := time.Now()
		// Round(0) leaves the wall clock alone to be compared.
		drift := now.Round(0).Sub(last.Round(0)) - now.Sub(last)
		last = now
		out, next := w.step(now, drift, neighbors, own)
		w.carryOut(out)
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-w.wake:
		case <-timer.C:
		case <-w.done:
			return
		}
	}
}

// step hands the core all that has come, then lets it decide.
func (w *Watchdog) step(now time.Time, drift time.Duration, neighbors []peer.ID, own []ma.Multiaddr) ([]output, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.out
	w.out = nil
	w.core.setOwn(endpoints(own))
	out = append(out, w.core.setNeighbors(now, neighbors)...)
	for _, r := range w.waiting {
		out = append(out, w.core.receive(now, r.from, r.msg)...)
	}
	w.waiting = nil
	more, next := w.core.advance(now, drift)
	return append(out, more...), next
}

func (w *Watchdog) carryOut(out []output) {
	for _, o := range out {
		select {
		case <-w.done:
			return
		default:
		}
		switch o := o.(type) {
		case flood:
			w.cfg.Flood(o.msg, o.except)
		case change:
			f := w.cfg.OnResolved
			if o.lost {
				w.log.Warn("netsplit: seed lost", "seed", o.seed, "silent", o.silent.Round(time.Millisecond))
				f = w.cfg.OnNetsplit
			} else {
				w.log.Info("netsplit resolved", "seed", o.seed)
			}
			if f != nil {
				f(o.seed)
			}
		}
	}
}
