package smokesignal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/health"
	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/direct"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/gate"
	"github.com/go-smokesignal/smokesignal/internal/guard"
	"github.com/go-smokesignal/smokesignal/internal/identify"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// A Node takes part in one network: it keeps links to a few peers, and sends and receives
// events. Make it with New. All methods may be called from several goroutines, and from
// handlers.
type Node struct {
	// What New was given or drew.
	cfg     config
	log     *slog.Logger
	session protocol.Session // random bytes that distinguish this run of the node from its other runs
	topic   string

	// The libp2p host.
	identity *host.Identity // nil without a file
	host     endpoint
	face     corehost.Host // what Host returns
	unclaim  func()        // lets another node have the host

	// What the node knows of each peer (its records), and the parts of the node that follow the
	// changes of these records.
	protocols *identify.Tracker
	records   *peers.Registry
	gate      *gate.Gate // nil on a pubsub that is lent
	pubsub    *pubsub.PubSub
	direct    *direct.Direct
	broadcast *events.Broadcast
	driver    *discovery.Driver
	overlay   wiring.Overlay // the functions that discovery and the other parts of the node call of each other
	watchdog  *health.Watchdog
	// pubsubCounters counts the messages that pubsub drops. Stats.PubSub shows them.
	pubsubCounters guard.Counters

	// What the methods return.
	peers    Peers
	topics   topics
	channels struct {
		broadcast Broadcast
		direct    Direct
	}

	// What calls the user.
	on           occasions
	callbacks    *callbacks
	endCallbacks context.CancelFunc // ends the contexts of callbacks
	bus          *busEvents

	// The state that Start and Close change.
	life   life
	ctx    context.Context // of pubsub
	cancel context.CancelFunc
}

// occasions holds the functions that a user registered with OnConnect and the other On
// methods of a Node.
type occasions struct {
	connect, disconnect        listeners[struct{}]
	peerAdded, peerRemoved     listeners[*Peer]
	netsplit, netsplitResolved listeners[Seed]
	gap                        listeners[Gap]
	seedError                  listeners[*SeedError]
}

// life is the state of a node that Start and Close change.
type life struct {
	mu        sync.Mutex
	stage     stage
	startedAt time.Time
	changed   notify.Cond   // wakes Ready when the node gets its first peer or loses its last
	closing   atomic.Bool   // Close has begun
	begun     chan struct{} // closed by Start
	done      chan struct{} // closed when Close has ended
	err       error         // of Close; read it after done
}

// A stage of a node's life.
type stage int

const (
	stageNew stage = iota
	stageStarted
	stageClosed
)

// New makes a node. The node joins the network when Start is called, so handlers that are
// registered before Start miss no event. The error has one sentence for each option that is
// wrong. Close the node in the end, even if it was never started. New does not listen or
// dial, and does not block.
func New(opts ...Option) (*Node, error) {
	cfg := defaultConfig()
	for _, opt := range opts {
		opt(&cfg)
	}
	seeds, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: logging.Package("node", cfg.logger),
		topic: protocol.Topic(cfg.network),
		life:  life{begun: make(chan struct{}), done: make(chan struct{})},
	}
	n.peers.node = n
	n.peers.handles = map[ID]*Peer{}
	if err := n.build(seeds); err != nil {
		if n.broadcast != nil {
			// The application goes on using a lent pubsub, so the node leaves its topic there.
			n.broadcast.Close(context.Background())
		}
		n.release()
		return nil, fmt.Errorf("smokesignal: %w", err)
	}
	n.channels.broadcast.channel, n.channels.direct.channel = n.broadcast, n.direct
	return n, nil
}

// build makes the parts of the node and connects them. Each part is made after the parts
// that it uses. Last, the parts begin to follow the records of the peers.
func (n *Node) build(seeds []*seed.Seed) (err error) {
	cfg := n.cfg
	n.ctx, n.cancel = context.WithCancel(context.Background())
	handlers, end := context.WithCancel(context.Background())
	n.endCallbacks = end
	n.callbacks = newCallbacks(handlers, n.log)

	key, err := n.openHost()
	if err != nil {
		return err
	}
	n.bus = &busEvents{bus: n.host.EventBus(), queue: newCallbacks(handlers, n.log), log: n.log}
	n.records = peers.New(peers.Config{Host: n.host, Min: cfg.minPeers, Max: cfg.maxPeers, Log: logging.Package("host", cfg.logger)})
	// A peer's protocols show whether it is a node, a leaf or a guest.
	n.protocols, err = identify.Track(n.host, logging.Package("host", cfg.logger), protocol.Overlay, protocol.Repair, pubsub.FloodSubID)
	if err != nil {
		return err
	}

	rand.Read(n.session[:]) // never fails
	eventsLog := logging.Package("events", cfg.logger)
	n.direct = direct.New(n.host, direct.Config{
		Network: cfg.network, Session: n.session[:], MaxEventSize: cfg.maxEvent, Codec: event.CodecFor(cfg.cbor),
		Admit: n.records.Admit, Locate: n.locate, Log: eventsLog,
	})
	if err := n.openPubSub(); err != nil {
		return err
	}
	var began time.Time // the start of the session; zero means now
	if cfg.now != nil {
		began = cfg.now()
	}
	n.channels.broadcast.wiring = wiring.Broadcasts{
		Session: n.session, Began: began, OwnPubSub: cfg.lentPubSub == nil,
		OnTopic: n.records.TopicChanged, Guest: n.isGuest, Admit: n.admitBroadcast,
	}
	n.broadcast, err = events.New(n.pubsub, n.host, events.Config{
		Topic: n.topic, Joined: cfg.topics[n.topic], MaxEventSize: cfg.maxEvent, CBOR: cfg.cbor,
		StoreAge: max(cfg.storeAge, 1), StoreBytes: cfg.storeBytes, Last: uint64(cfg.last), Log: eventsLog, Node: &n.channels.broadcast.wiring,
	})
	if err != nil {
		return n.explainPubSub(err)
	}
	if err := n.openOverlay(seeds); err != nil {
		return err
	}
	n.broadcast.OnGap(gapHandler(n.gap))
	n.watchdog, err = health.New(health.Config{
		Key: key, Session: n.session, PingInterval: cfg.pingInterval, PingTimeout: max(cfg.pingTimeout, 1), // zero means zero here
		Seeds: watchedSeeds(seeds), Addrs: n.host.Dialable, Neighbors: n.records.Neighbors, Flood: n.driver.Flood,
		OnNetsplit: n.netsplit, OnResolved: n.resolved, Log: logging.Package("health", cfg.logger),
	})
	if err != nil {
		return err
	}
	return n.follow()
}

// openOverlay makes the part of the node that finds other nodes, at first through the seeds,
// and links to them.
func (n *Node) openOverlay(seeds []*seed.Seed) error {
	cfg := n.cfg
	rendezvous, err := n.openRendezvous()
	if err != nil {
		return err
	}
	n.overlay = wiring.Overlay{
		Session: n.session, Seeds: seeds, Addrs: n.host.Dialable, Connected: n.records.Nodes,
		Lent: cfg.lentHost != nil, Spare: n.host.Spare,
		Pending: n.records.Pending, Linked: n.records.Linked, Unlinked: n.records.Unlinked,
		OnTopic:    n.onTopic,
		Greeting:   n.channels.broadcast.wiring.Greeting,
		Heard:      func(from peer.ID) { n.watchdog.Heard(from) },
		SeedFound:  func(seed string, info peer.AddrInfo) { n.watchdog.SeedFound(seed, info.ID, info.Addrs) },
		SeedIsSelf: func(seed string) { n.watchdog.SeedFound(seed, n.host.ID(), nil) },
	}
	book := ""
	if cfg.book != nil {
		book = *cfg.book
	}
	n.driver, err = discovery.New(discovery.Config{
		Host: n.host, Network: cfg.network, Min: cfg.minPeers, Max: cfg.maxPeers,
		LAN: cfg.lan, PeerBook: book, Rendezvous: rendezvous,
		OnSignal:    func(from peer.ID, b []byte) { n.watchdog.Receive(from, b) },
		OnSeedError: n.seedError,
		Log:         logging.Package("discovery", cfg.logger),
		Node:        &n.overlay,
	})
	return err
}

// watchedSeeds returns seeds in the form that package health needs.
func watchedSeeds(seeds []*seed.Seed) (list []health.WatchedSeed) {
	for _, s := range seeds {
		list = append(list, health.WatchedSeed{Text: s.String(), ID: s.ID(), Addrs: s.AddrPorts()})
	}
	return list
}

// Start listens, begins to look for peers and returns. It blocks only to look up names
// given to Listen, for at most five seconds each. It fails if ctx has ended already; the end
// of ctx has no effect later. If an address cannot be listened on, the error is a
// *ListenError that names it, and the node can be started again. With WithHost, Start
// fails if the application has made a pubsub on the host since New. Start returns
// ErrStarted when it is called twice, and ErrClosed after Close.
func (n *Node) Start(ctx context.Context) error {
	n.life.mu.Lock()
	defer n.life.mu.Unlock()
	switch {
	case n.life.closing.Load() || n.life.stage == stageClosed:
		return ErrClosed
	case n.life.stage == stageStarted:
		return ErrStarted
	case ctx.Err() != nil:
		return fmt.Errorf("smokesignal: start: %w", context.Cause(ctx))
	}
	if err := n.servesAnother(); err != nil {
		return err
	}
	// The protocol handlers are set before the host listens. Otherwise a peer could connect
	// in between and conclude that this host is not a node.
	n.overlay.Serve()
	if err := n.host.Listen(); err != nil {
		return fmt.Errorf("smokesignal: %w", err)
	}
	n.life.stage, n.life.startedAt = stageStarted, time.Now()
	n.direct.Start()
	n.channels.broadcast.wiring.Start()
	n.watchdog.Start()
	n.driver.Start()
	close(n.life.begun)
	return nil
}

// Run starts the node, waits until ctx ends or the node is closed, and closes it. It
// returns the error of Start or Close. If Start fails, Run closes the node, except after
// ErrStarted.
func (n *Node) Run(ctx context.Context) error {
	if err := n.Start(ctx); err != nil {
		if !errors.Is(err, ErrStarted) {
			n.Close()
		}
		return err
	}
	select {
	case <-ctx.Done():
	case <-n.life.done:
	}
	return n.Close()
}

// Ready returns nil as soon as the node has a peer, so that a broadcast reaches somebody.
// It returns ErrNotStarted at once before Start, and ErrClosed after Close. If ctx ends
// first, the error is ErrNotConnected, not the error of ctx. Its text says why there is no
// peer; it wraps the error of each seed, and ErrRelayed if a node was reached only through
// a relay.
func (n *Node) Ready(ctx context.Context) error {
	for {
		n.life.mu.Lock()
		stage, changed := n.life.stage, n.life.changed.Changed()
		n.life.mu.Unlock()
		switch {
		case n.life.closing.Load() || stage == stageClosed:
			return ErrClosed
		case stage == stageNew:
			return ErrNotStarted
		case n.Connected():
			return nil
		}
		select {
		case <-changed:
		case <-n.life.done:
		case <-ctx.Done():
			return n.notConnectedError()
		}
	}
}

// notConnected is the error that Ready returns when its ctx ends before there is a peer.
type notConnected struct {
	text   string
	causes []error
}

func (e *notConnected) Error() string   { return e.text }
func (e *notConnected) Unwrap() []error { return append([]error{ErrNotConnected}, e.causes...) }

// notConnectedError says in one line why the node has no peer.
func (n *Node) notConnectedError() error {
	e := &notConnected{}
	var parts []string
	for _, s := range n.driver.Seeds() {
		seed := &SeedError{Seed: s.Seed, Err: s.Err, Next: s.Next}
		if s.Err == nil {
			seed.Err = errors.New("no answer yet")
		}
		parts = append(parts, seed.Error())
		e.causes = append(e.causes, seed)
	}
	for _, err := range n.overlay.Sources() {
		parts = append(parts, err.Error())
		e.causes = append(e.causes, err)
	}
	if n.cfg.lan {
		parts = append(parts, "no node was found on the local network")
	}
	if len(parts) == 0 {
		why := "no seeds were given, so it waits to be joined"
		if addrs := n.Addrs(); len(addrs) > 0 {
			why += " at " + addrs[0].String()
		}
		parts = append(parts, why)
	}
	relayed, causes := n.whyRelayed(e.causes)
	parts, e.causes = append(parts, relayed...), append(e.causes, causes...)
	after := time.Since(n.life.startedAt).Round(100 * time.Millisecond)
	e.text = fmt.Sprintf("smokesignal: not connected after %v: %s", after, strings.Join(parts, "; "))
	return e
}

// Flush returns when the accepted direct events have been written to their peers and the
// accepted broadcasts have reached every neighbor, or when ctx ends. The error says how
// many direct events were not written. If neighbors have not confirmed the broadcasts, it
// is or wraps an *UnconfirmedError that names them.
func (n *Node) Flush(ctx context.Context) error {
	direct, broadcast := n.direct.Flush(ctx), n.broadcast.Flush(ctx)
	switch {
	case direct == nil:
		return broadcast
	case broadcast == nil:
		return direct
	}
	return fmt.Errorf("%w; %w", direct, broadcast)
}

// Done is closed when the node has been closed.
func (n *Node) Done() <-chan struct{} { return n.life.done }

// Err returns nil until Done is closed, and then the error of Close.
func (n *Node) Err() error {
	select {
	case <-n.life.done:
		return n.life.err
	default:
		return nil
	}
}

// ID returns the node's identity, which is bound to its key.
func (n *Node) ID() ID { return n.host.ID() }

// Session returns random bytes that name this run of the node. The next run may have the
// same ID, but has another session. A Gap names the session of its sender.
func (n *Node) Session() [8]byte { return n.session }

// Addrs returns the addresses at which others can reach the node, with its id, the most
// reachable first. There are none before Start, except on a lent host that listens already
// (WithHost). The slice is the caller's.
func (n *Node) Addrs() []ma.Multiaddr { return n.host.Dialable() }

// Connected reports whether the node has a peer.
func (n *Node) Connected() bool { return n.records.Len() > 0 }

// Host returns the libp2p host, for use with other libp2p code. The node closes it, unless
// it was lent by WithHost.
func (n *Node) Host() corehost.Host { return n.face }

// Peers returns the peer list.
func (n *Node) Peers() *Peers { return &n.peers }

// Peer returns a handle on the node with that id, linked or not. It does not block and is
// never nil. If there is no connection to that node, the first Emit or Call looks for it
// until its ctx ends: it asks the neighbors, which ask theirs, for the node's signed
// addresses, and dials them. If id cannot be the id of a node, for example because it is
// text, every Emit and Call returns ErrBadID at once, and an error is logged.
func (n *Node) Peer(id ID) *Peer { return n.peers.handle(id) }

// running returns nil between Start and Close, ErrNotStarted before and ErrClosed after.
func (n *Node) running() error {
	n.life.mu.Lock()
	stage := n.life.stage
	n.life.mu.Unlock()
	switch {
	case n.life.closing.Load() || stage == stageClosed:
		return ErrClosed
	case stage == stageNew:
		return ErrNotStarted
	}
	return nil
}
