package health

import (
	"cmp"

	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"

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
	// maxWaiting is the number of received signals that may wait for the loop. Each has at
	// most 2 KiB. Further signals are dropped and counted.
	maxWaiting = 1024
)

// Config is what a Watchdog needs. Key, Neighbors and Flood are required.
type Config struct {
	// Key is the private key of this node, with which it signs its signals. The public
	// key must be contained in the peer id, as an Ed25519 key is.
	Key crypto.PrivKey
	// Session identifies the session of this node: a new start of the program is a new
	// session. The zero value means eight random bytes.
	Session [8]byte
	// PingInterval is how long a seed may go unheard before a ping asks for it through
	// the overlay. Zero turns the watchdog off: this node then reports nothing, but
	// forwards and answers the pings of others. It is at most 24 hours.
	PingInterval time.Duration
	// PingTimeout is how long the answer to a ping may take. Zero means three seconds.
	// It is at most 24 hours.
	PingTimeout time.Duration
	// Seeds are the seeds to watch.
	Seeds []WatchedSeed
	// Addrs returns the addresses of this node, those where it listens and those that
	// it advertises. The node answers a ping for any of them. May be nil.
	Addrs func() []ma.Multiaddr
	// Neighbors returns the peers linked in the overlay.
	Neighbors func() []peer.ID
	// Flood sends msg to all neighbors but the peer except, which may be empty. At each
	// neighbor, msg has to be given to Receive. Flood must drop msg rather than block.
	// It may keep msg, but must not change it.
	Flood func(msg []byte, except peer.ID)
	// OnNetsplit and OnResolved are called when a seed is lost and when it is heard
	// again, in order and on the goroutine of the watchdog. They must return soon and
	// must not call Close. May be nil.
	OnNetsplit, OnResolved func(seed string)
	// Log defaults to the logger "smokesignal/health" of go-log.
	Log *slog.Logger
}

// A WatchedSeed is one of the addresses at which the network can be joined.
type WatchedSeed struct {
	// Text is the seed as the user wrote it. The callbacks and Status name it so.
	Text string
	// ID is the id of the only node that is accepted as the seed. Empty means that any
	// node at the seed's address is.
	ID peer.ID
	// Addrs holds the addresses that the text itself gives. It is empty for a name,
	// which stands for the addresses that SeedFound reports.
	Addrs []netip.AddrPort
}

// Status is the state of one seed.
type Status struct {
	Seed      string    // as the user wrote it
	LastHeard time.Time // zero: never
	Netsplit  bool      // it was heard once and is lost
}

// A Watchdog watches the seeds of one node. All methods may be called from several
// goroutines, and only Close blocks.
type Watchdog struct {
	cfg Config
	log *slog.Logger

	// mu guards these.
	mu      sync.Mutex
	state   lifecycle
	core    *watchCore
	limits  neighborLimits
	waiting []receivedSignal
	outputs []effect // effects of calls on other goroutines, which the goroutine loop has to perform
	dropped uint64   // signals that Receive has dropped

	// The loop.
	wake  notify.Signal // something is waiting
	done  chan struct{} // closed by Close
	tasks sync.WaitGroup
}

// A lifecycle says whether a Watchdog has been started and closed.
type lifecycle int

const (
	idle lifecycle = iota
	running
	closed
)

type receivedSignal struct {
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
	case cfg.PingInterval < 0 || cfg.PingInterval > protocol.MaxPingInterval:
		return nil, fmt.Errorf("health: Config.PingInterval is %v; it must be between 0 (off) and %v", cfg.PingInterval, protocol.MaxPingInterval)
	case cfg.PingTimeout < 0 || cfg.PingTimeout > protocol.MaxPingInterval:
		return nil, fmt.Errorf("health: Config.PingTimeout is %v; it must be between 0 (%v) and %v", cfg.PingTimeout, defaultTimeout, protocol.MaxPingInterval)
	}
	id, err := peer.IDFromPrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("health: Config.Key: %w", err)
	}
	if _, err := id.ExtractPublicKey(); err != nil {
		return nil, fmt.Errorf("health: Config.Key is of type %s; others cannot verify it by the peer id alone, use Ed25519", cfg.Key.Type())
	}
	cfg.PingTimeout = cmp.Or(cfg.PingTimeout, defaultTimeout)
	cfg.Log = cmp.Or(cfg.Log, logging.Package("health", nil))
	session := protocol.Session(cfg.Session)
	if session.IsZero() {
		session = protocol.NewSession()
	}
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	counter := uint64(max(time.Now().UnixMilli(), 1))
	core := newWatchCore(cfg.Key, id, session, counter, cfg.PingInterval, cfg.PingTimeout, cfg.Seeds, random)
	return &Watchdog{
		cfg:    cfg,
		log:    cfg.Log,
		core:   core,
		limits: neighborLimits{},
		wake:   notify.NewSignal(),
		done:   make(chan struct{}),
	}, nil
}

// Start begins to watch, and to forward and answer signals. A second call does nothing,
// nor does one after Close.
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

// Receive gives the watchdog a signal that arrived from a linked peer. It copies the signal
// and returns at once. Bad signals are dropped and counted, see Stats. Of one neighbor, at
// most a hundred signals per second are accepted.
func (w *Watchdog) Receive(from peer.ID, msg []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.state != running:
	case !w.limits.allow(from, time.Now()), len(w.waiting) >= maxWaiting:
		w.dropped++
	default:
		// One byte over the limit is enough to see that the signal is too large.
		w.waiting = append(w.waiting, receivedSignal{from, bytes.Clone(msg[:min(len(msg), maxSignalBytes+1)])})
		w.wake.Set()
	}
}

// Heard tells the watchdog that a message of any kind arrived over the link to a peer. If
// the peer is a seed, the seed counts as heard. Heard does not block.
func (w *Watchdog) Heard(from peer.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if out := w.core.heardPeer(time.Now(), from); len(out) > 0 {
		w.outputs = append(w.outputs, out...)
		w.wake.Set()
	}
}

// SeedFound tells the watchdog that discovery reached the seed: the node there has this id
// and these addresses. The seed then counts as heard. If the id is this node's own, the seed is no
// longer watched. A call with another id than the one in [WatchedSeed] is ignored.
func (w *Watchdog) SeedFound(seed string, id peer.ID, addrs []ma.Multiaddr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outputs = append(w.outputs, w.core.seedFound(time.Now(), seed, id, addrs)...)
	w.wake.Set()
}

// NeighborsChanged tells the watchdog to call Config.Neighbors again, because its result has
// changed.
func (w *Watchdog) NeighborsChanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake.Set()
}

// Status returns the state of each seed in the order of [Config], without the seeds that
// are this node itself.
func (w *Watchdog) Status() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Status, 0, len(w.core.seeds))
	for _, s := range w.core.seeds {
		if !w.core.isSelf(s) {
			list = append(list, Status{Seed: s.text, LastHeard: s.lastHeard, Netsplit: s.lost})
		}
	}
	return list
}

// Stats returns how many signals were counted since New. The field Watchdog of
// smokesignal.Stats says what each key counts. The map is the caller's.
func (w *Watchdog) Stats() map[string]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.core.counts
	return map[string]uint64{
		"received": c.received + w.dropped, "malformed": c.malformed, "forged": c.forged, "replayed": c.replayed,
		"duplicate": c.duplicate, "spared": c.spared, "dropped": w.dropped, "unsigned": c.unsigned,
	}
}

// loop passes the time, the neighbors and received signals to the core, and performs the
// effects, until Close.
func (w *Watchdog) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	last := time.Now()
	for {
		// These functions of the user may take locks, so they are called while mu
		// is not locked.
		neighbors := w.cfg.Neighbors()
		var own []ma.Multiaddr
		if w.cfg.Addrs != nil {
			own = w.cfg.Addrs()
		}
		now := time.Now()
		// Round(0) removes the reading of the monotonic clock, so the first difference is
		// that of the wall clock and the second that of the monotonic clock.
		drift := now.Round(0).Sub(last.Round(0)) - now.Sub(last)
		last = now
		out, next := w.step(now, drift, neighbors, own)
		w.perform(out)
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

// step gives the core everything that has arrived: the time, the drift, the neighbors, this
// node's own addresses, and the received signals. It returns the effects to perform and the
// time of the next step; the zero time means that none is planned.
func (w *Watchdog) step(now time.Time, drift time.Duration, neighbors []peer.ID, own []ma.Multiaddr) ([]effect, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.outputs
	w.outputs = nil
	w.core.setOwnAddrs(endpoints(own))
	out = append(out, w.core.setNeighbors(now, neighbors)...)
	for _, r := range w.waiting {
		out = append(out, w.core.receive(now, r.from, r.msg)...)
	}
	w.waiting = nil
	more, next := w.core.advance(now, drift)
	return append(out, more...), next
}

// perform performs the effects in out: it floods the signals and calls the callbacks.
func (w *Watchdog) perform(out []effect) {
	for _, o := range out {
		select {
		case <-w.done: // no callback begins after Close
			return
		default:
		}
		switch o := o.(type) {
		case flood:
			w.cfg.Flood(o.msg, o.except)
		case netsplitChange:
			callback := w.cfg.OnResolved
			if o.lost {
				w.log.Warn("netsplit: a seed is lost", "seed", o.seed, "silent", o.silent.Round(time.Millisecond))
				callback = w.cfg.OnNetsplit
			} else {
				w.log.Info("netsplit resolved: a seed is heard again", "seed", o.seed)
			}
			if callback != nil {
				callback(o.seed)
			}
		}
	}
}
