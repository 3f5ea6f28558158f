package discovery

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/lan"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/discovery/internal/peerrecord"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/directdial"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// protectTag keeps the connection manager from closing the connections of links.
const protectTag = "smokesignal"

// leaveTimeout is how long Close waits at most until the farewells are written.
const leaveTimeout = time.Second

// Config is the configuration of a Driver. Host and Network are required.
type Config struct {
	// Host is the host to keep linked. Its peerstore must hold its private key. The driver
	// closes the host's connections to neighbors that do not answer.
	Host corehost.Host
	// Network is the name that all nodes of the network have in common.
	Network string
	// Min is the number of links that the node wants. While it has fewer, it looks for
	// nodes. Max is the number that it may have; a negative Max means no limit.
	Min, Max int
	// Seeds say where the network can be found, each as host:port, as a multiaddr, or as
	// the ticket of a node.
	Seeds []string
	// LAN also looks for nodes by mDNS.
	LAN bool
	// PeerBook is the path of a file in which the driver keeps the nodes of the network, so
	// that a node that is started again finds the network even if all seeds are gone. Nodes
	// of one network may share the file. Empty means none.
	PeerBook string
	// Rendezvous are services, such as a DHT, in which the driver advertises this node and
	// finds others. Their methods must return when their context ends.
	Rendezvous []corediscovery.Discovery

	// The functions below may be nil. They are called one at a time on the driver's
	// goroutine, except for OnSignal, which is called on the goroutine of a stream. They must
	// not block, nor call a method that waits for the driver: Connect, Remove, Nodes, RTT,
	// Seeds, Status and Close.

	// OnLinked is called when the link to p is complete on both sides.
	OnLinked func(p peer.ID)
	// OnUnlinked is called when the link to p has ended.
	OnUnlinked func(p peer.ID, reason error)
	// OnSignal is called with a payload that a neighbor has given to Flood.
	OnSignal func(from peer.ID, payload []byte)
	// OnSeedError is called when the reason why a seed cannot be used has changed.
	OnSeedError func(*SeedError)

	// Log is where the driver logs. Nil means the logger "smokesignal/discovery" of go-log.
	Log *slog.Logger

	// Node is set by package smokesignal, and nil for everybody else.
	Node *wiring.Overlay
}

// A Driver keeps a libp2p host linked to nodes of its network: it runs the membership
// protocol, finds nodes, and dials them. Its methods may be called from several goroutines.
type Driver struct {
	cfg   Config
	node  wiring.Overlay // a copy of Config.Node, without nil functions
	key   crypto.PrivKey // of the host
	host  *dialHost
	log   *slog.Logger
	state *overlay.State // owned by the loop

	// The loop and other goroutines.
	queue  callQueue
	tasks  sync.WaitGroup
	done   chan struct{} // closed when the loop has ended
	ctx    context.Context
	cancel context.CancelCauseFunc
	// dialCtx ends before ctx does: once the node leaves, no message is worth a dial.
	dialCtx     context.Context
	stopDialing context.CancelCauseFunc

	// Dials.
	guard   dialguard.Guard
	dials   slots // for dials in search of others
	answers slots // for dials that are made to answer
	dialing dialing
	// seedDials counts the dials to seeds and to the addresses given to dial and Connect.
	seedDials *directdial.Guard

	// Owned by the loop.
	seeds     []*seedProgress
	writers   map[peer.ID]*peerWriter
	adds      map[uint64]chan overlay.Added // calls of Connect, by token
	finds     map[uint64]*peerLookup        // searches that the state machine runs, by token
	token     uint64                        // the last one
	callbacks int                           // dials under way to nodes that look for this one
	leaving   bool                          // leave or Close has begun
	sealed    string                        // the addresses in the own record
	seq       uint64                        // the sequence number of the own record

	lookups lookups
	sources sources
	lan     io.Closer // nil if it was not started

	mu      sync.Mutex
	started bool
	inbound map[peer.ID]int // streams that are being read
	links   map[peer.ID]bool
}

const (
	// maxCallbacks bounds the dials at once to nodes that look for this one.
	maxCallbacks = 8
	// maxWait is how long the loop waits at most, so that it notices a sleep of the
	// machine. sleepDrift is how far the clocks are apart after one.
	maxWait    = 10 * time.Second
	sleepDrift = 6 * time.Second
)

// New returns a Driver that does nothing until Start. The error says which field of the
// configuration is wrong, or why the peer book cannot be used.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = logging.Package("discovery", nil)
	}
	if err := check(&cfg); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log, node: withDefaults(cfg), key: cfg.Host.Peerstore().PrivKey(cfg.Host.ID()),
		queue:     callQueue{wake: notify.NewSignal()},
		done:      make(chan struct{}),
		dials:     make(slots, overlay.MaxDials),
		answers:   make(slots, maxAnswerDials),
		dialing:   dialing{byPeer: map[peer.ID]int{}},
		seedDials: directdial.New(),
		writers:   map[peer.ID]*peerWriter{},
		adds:      map[uint64]chan overlay.Added{},
		inbound:   map[peer.ID]int{},
		links:     map[peer.ID]bool{},
		finds:     map[uint64]*peerLookup{},
		lookups:   lookups{byTarget: map[peer.ID]*peerLookup{}},
	}
	for _, text := range cfg.Seeds {
		s, err := seed.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("discovery: %w", err)
		}
		d.node.Seeds = append(d.node.Seeds, s)
	}
	if err := d.openSources(); err != nil {
		return nil, err
	}
	d.host = &dialHost{Host: cfg.Host, isSpare: d.node.Spare, making: map[peer.ID]int{}, made: map[network.Conn]struct{}{}}
	d.state = overlay.New(overlay.Config{
		Self: cfg.Host.ID(), Session: d.node.Session, Network: cfg.Network, Min: cfg.Min, Max: cfg.Max, Seeds: len(d.node.Seeds),
		Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	})
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	d.dialCtx, d.stopDialing = context.WithCancelCause(d.ctx)
	for _, s := range d.node.Seeds {
		d.seeds = append(d.seeds, &seedProgress{seed: s})
	}
	if cfg.Node != nil {
		d.connectTo(cfg.Node)
	}
	return d, nil
}

// Start begins to serve and to look for nodes. It must be called once.
func (d *Driver) Start() {
	if d.cfg.LAN {
		search, err := lan.Start(d.host, d.cfg.Network, func(info peer.AddrInfo) {
			d.learn(overlay.Contact{ID: info.ID, Addrs: info.Addrs})
		}, d.log)
		d.lan = search
		if err != nil {
			// A machine without multicast can still join by its seeds.
			d.log.Warn("not looking for peers on the local network", "error", err)
		}
	}
	d.mu.Lock()
	d.started = true
	d.mu.Unlock()
	d.host.Network().Notify((*notifiee)(d))
	d.acceptStreams()
	d.tasks.Go(d.loop)
	for _, p := range d.node.Connected() {
		d.nodeConnected(p)
	}
	d.sources.start(d)
}

// acceptStreams accepts streams, which are answered from Start on.
func (d *Driver) acceptStreams() { d.host.SetStreamHandler(protocol.Overlay, d.serve) }

// A callQueue holds the functions that wait for the loop. It has no bound, because hooks run
// on the loop and may add to it. Strangers cannot fill it: the reader of a stream waits
// until its function has run.
type callQueue struct {
	mu    sync.Mutex
	calls []func()
	wake  notify.Signal // set when a function was added
}

func (q *callQueue) push(f func()) {
	q.mu.Lock()
	q.calls = append(q.calls, f)
	q.mu.Unlock()
	q.wake.Set()
}

func (q *callQueue) popAll() []func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	calls := q.calls
	q.calls = nil
	return calls
}

// run hands f to the loop and returns at once. It reports false when the driver is closed.
func (d *Driver) run(f func()) bool {
	select {
	case <-d.done:
		return false
	default:
	}
	d.queue.push(f)
	return true
}

// ask runs f on the loop and waits until it has run.
func (d *Driver) ask(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	if !d.run(func() { f(); close(ran) }) {
		return ErrClosed
	}
	select {
	case <-ran:
		return nil
	case <-d.done: // the loop ended before it came to f
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Driver) loop() {
	defer close(d.done)
	d.tick()
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := time.Now()
	for {
		now := time.Now()
		// The monotonic clock stands still while a machine sleeps. The wall clock, which is
		// what Round(0) leaves, does not.
		if drift := now.Round(0).Sub(last.Round(0)) - now.Sub(last); drift > sleepDrift {
			d.log.Info("this machine has slept", "duration", drift)
			d.step(overlay.Woke{})
		}
		last = now
		wait := maxWait
		// A state machine that always asks for now must not turn this into a busy loop.
		if t := d.state.Next(now); !t.IsZero() {
			wait = min(wait, max(t.Sub(now), time.Millisecond))
		}
		timer.Reset(wait)
		select {
		case <-d.queue.wake:
			for _, f := range d.queue.popAll() {
				f()
			}
		case <-timer.C:
			d.tick()
		case <-d.ctx.Done():
			return
		}
	}
}

// step feeds one input to the state machine and carries out the outputs.
func (d *Driver) step(in overlay.Input) {
	// An output may lead to another input at once. That one has to wait, so that no
	// output overtakes another.
	inputs := []overlay.Input{in}
	for len(inputs) > 0 {
		now := time.Now()
		for _, o := range d.state.Step(now, inputs[0]) {
			if more := d.perform(now, o); more != nil {
				inputs = append(inputs, more)
			}
		}
		inputs = inputs[1:]
	}
}

// perform carries out one output, and returns the input that it leads to, or nil.
func (d *Driver) perform(now time.Time, o overlay.Output) overlay.Input {
	switch o := o.(type) {
	case overlay.Send:
		// The greeting has to be as of now: broadcasts are repaired from it on.
		if ready, ok := o.Message.(overlay.Ready); ok {
			ready.Greeting = d.node.Greeting()
			o.Message = ready
		}
		d.send(o.To, o.Message)
	case overlay.Pending:
		d.host.ConnManager().Protect(o.Peer, protectTag)
		d.node.Pending(o.Peer)
	case overlay.Probe:
		// Pubsub does not report a peer that left the topic and came back at once, so the
		// state machine asks. If the peer is not there yet, TopicChanged will come.
		if d.node.OnTopic(o.Peer) {
			return overlay.OnTopic{Peer: o.Peer, Present: true}
		}
	case overlay.Linked:
		d.addLink(o.Peer)
		d.recordClaims(o.Peer, o.Addrs)
		d.log.Info("linked", "peer", o.Peer)
		d.node.Linked(o.Peer, o.Greeting)
		if d.cfg.OnLinked != nil {
			d.cfg.OnLinked(o.Peer)
		}
		d.sources.linksChanged()
		d.seedLinked(o.Peer)
	case overlay.Unlinked:
		// Close waits for the last messages of this node's own farewell only. A peer that
		// said farewell itself may be gone.
		if w := d.writers[o.Peer]; w != nil {
			w.farewell = d.leaving
		}
		d.host.ConnManager().Unprotect(o.Peer, protectTag)
		d.removeLink(o.Peer)
		// Other reasons come over a connection that works, or from libp2p, which has closed
		// it.
		if o.Reason == overlay.ReasonSilent {
			d.closeConns(o.Peer)
		}
		if o.WasLinked { // a link that was never completed is not news
			d.log.Info("unlinked", "peer", o.Peer, "reason", o.Reason)
		}
		d.reportEnd(o)
	case overlay.Refused:
		d.log.Debug("refused", "peer", o.Peer, "reason", o.Reason)
		// The peer took the connection, and said nothing on it.
		if o.Reason == overlay.ReasonTimeout {
			d.closeConns(o.Peer)
		}
		d.seedRefused(o)
	case overlay.AskSeed:
		d.askSeed(o)
	case overlay.RenewRecord:
		return d.seal(d.node.Addrs())
	case overlay.Located:
		d.located(o)
	case overlay.DialBack:
		d.callBack(o.To)
	case overlay.Added:
		if ch := d.adds[o.Token]; ch != nil {
			delete(d.adds, o.Token)
			ch <- o // buffered
		}
	}
	return nil
}

// reportEnd reports the end of a link, or of a handshake.
func (d *Driver) reportEnd(o overlay.Unlinked) {
	err := &linkError{Peer: o.Peer, Reason: o.Reason}
	d.node.Unlinked(o.Peer, err, err.ending())
	if !o.WasLinked {
		return // the user has not heard of a link
	}
	if d.cfg.OnUnlinked != nil {
		d.cfg.OnUnlinked(o.Peer, err)
	}
	d.sources.linksChanged()
}

// closeConns closes the connections to a peer that does not answer, except those that others
// use. A QUIC connection outlives the peer's process by half a minute, and messages to a new
// process at the same place would go over the dead one's connection. When closeConns returns,
// after a tenth of a second at most, the next message dials.
func (d *Driver) closeConns(p peer.ID) {
	closeSpare(d.host, slices.Values(d.host.Network().ConnsToPeer(p)))
}

func (d *Driver) addLink(p peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.links[p] = true
}

func (d *Driver) removeLink(p peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.links, p)
}

// sealIfChanged signs a new record if the addresses have changed since the last one. It
// returns nil if the record stays as it is.
func (d *Driver) sealIfChanged() overlay.Input {
	if addrs := d.node.Addrs(); fmt.Sprint(addrs) != d.sealed {
		return d.seal(addrs)
	}
	return nil
}

// seal signs a new record of the node's own addresses. It returns nil if that fails.
func (d *Driver) seal(addrs []ma.Multiaddr) overlay.Input {
	d.seq = max(d.seq+1, uint64(time.Now().UnixNano())) // it grows even if the clock goes back
	record, err := peerrecord.Seal(d.key, addrs, d.seq)
	if err != nil {
		d.log.Error("cannot sign the own addresses", "addrs", addrs, "error", err)
		return nil
	}
	d.sealed = fmt.Sprint(addrs)
	return overlay.RecordRenewed{Record: record, Seq: d.seq}
}

// tick lets the time of the state machine pass.
func (d *Driver) tick() {
	// Addresses change without notice, so they are compared now and then.
	if in := d.sealIfChanged(); in != nil {
		d.step(in)
	}
	d.step(overlay.Tick{})
}

// topicChanged reports that a peer joined or left the pubsub topic.
func (d *Driver) topicChanged(p peer.ID, present bool) {
	d.run(func() { d.step(overlay.OnTopic{Peer: p, Present: present}) })
}

// Flood sends payload to all neighbors except one, where OnSignal gets it. It does not
// block.
func (d *Driver) Flood(payload []byte, except peer.ID) {
	d.mu.Lock()
	to := make([]peer.ID, 0, len(d.links))
	for p := range d.links {
		if p != except {
			to = append(to, p)
		}
	}
	d.mu.Unlock()
	d.run(func() {
		for _, p := range to {
			d.send(overlay.Contact{ID: p}, overlay.Signal{Payload: payload})
		}
	})
}

// Connect makes a link to the node at addr, which is written like a seed. It returns when the
// link stands. The error is ErrFull (this node or the other), ErrSelf, ErrOtherNetwork,
// ErrUnreachable, ErrUnresolvable, ErrRelayed, ErrNotSmokesignal, a *WrongIDError, ErrClosed,
// or says what is wrong with addr.
func (d *Driver) Connect(ctx context.Context, addr string) (peer.ID, error) {
	s, err := seed.Parse(addr)
	if err != nil {
		return "", err
	}
	info, err := d.findSeed(ctx, s)
	if err != nil {
		return "", err
	}
	result := make(chan overlay.Added, 1)
	if err := d.ask(ctx, func() {
		d.token++
		d.adds[d.token] = result
		d.step(overlay.Add{Contact: overlay.Contact{ID: info.ID, Addrs: info.Addrs}, Token: d.token})
	}); err != nil {
		return "", err
	}
	select {
	case r := <-result:
		if r.Reason != overlay.ReasonNone {
			return "", refusal(info.ID, r.Reason, d.cfg.Network, r.Network)
		}
		return info.ID, nil
	case <-ctx.Done():
		err := context.Cause(ctx)
		return "", &failure{kind: ErrUnreachable, err: err, text: "no answer to the request for a link: " + err.Error()}
	case <-d.done:
		return "", ErrClosed
	}
}

// Remove ends the link to p. It returns once the farewell to the peer is queued.
func (d *Driver) Remove(ctx context.Context, p peer.ID) error {
	return d.ask(ctx, func() { d.step(overlay.Drop{Peer: p}) })
}

// leave writes the peer book, ends all links and tells the peers. The driver makes no new
// links. The error is that of the peer book.
func (d *Driver) leave(ctx context.Context) error {
	err := d.sources.close() // before the links end, so that the book has the neighbors
	d.ask(ctx, d.leaveAll)
	return err
}

// leaveAll ends all links. It runs on the loop.
func (d *Driver) leaveAll() {
	d.leaving = true
	// A peer that is not connected any more has noticed that the link is gone. A dial
	// to it would only delay Close, which waits for the farewells.
	d.stopDialing(ErrClosed)
	d.step(overlay.Close{})
}

// Close ends all links and leaves no goroutine, handler or stream behind. It waits until the
// farewells to the connected neighbors are written, for a second at most. The error says that
// the peer book could not be written. Close must not be called twice.
func (d *Driver) Close() error {
	d.mu.Lock()
	started := d.started
	d.mu.Unlock()
	written := d.sources.close()
	d.host.RemoveStreamHandler(protocol.Overlay)
	if started {
		d.host.Network().StopNotify((*notifiee)(d))
		if d.lan != nil {
			d.lan.Close()
		}
		var farewells []*peerWriter
		d.ask(context.Background(), func() {
			d.leaveAll()
			for _, w := range d.writers {
				// Links only: a peer that was merely asked something waits for nothing.
				if w.farewell {
					farewells = append(farewells, w)
				}
			}
		})
		ctx, cancel := context.WithTimeout(d.ctx, leaveTimeout)
		defer cancel()
		for _, w := range farewells {
			w.finish(ctx)
		}
	} else {
		close(d.done) // nobody else does, as the loop was not started
	}
	d.mu.Lock() // under which countStream checks ctx and adds to tasks
	d.cancel(ErrClosed)
	d.mu.Unlock()
	d.seedDials.Close(ErrClosed)
	d.tasks.Wait()
	if d.node.Lent { // an own host closes all connections itself
		d.host.closeSpareConns()
	}
	return written
}

// A notifiee hears of closed connections, which is how a killed process is noticed at once.
type notifiee Driver

func (n *notifiee) Connected(network.Network, network.Conn)   {}
func (n *notifiee) Listen(network.Network, ma.Multiaddr)      {}
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr) {}
func (n *notifiee) Disconnected(net network.Network, c network.Conn) {
	p := c.RemotePeer()
	if !addr.HasDirect(net, p) {
		d := (*Driver)(n)
		d.run(func() {
			// The peer may be back over another connection meanwhile.
			if !addr.HasDirect(net, p) {
				d.step(overlay.Disconnected{Peer: p})
			}
		})
	}
}
