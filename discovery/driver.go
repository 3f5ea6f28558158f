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
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// protectTag is the tag with which the connections to neighbors are protected from the
// connection manager of the host.
const protectTag = "smokesignal"

// leaveTimeout bounds the time for which Close waits until the neighbors have been told that
// this node closes.
const leaveTimeout = time.Second

// Config is the configuration of a Driver. Host and Network are required.
type Config struct {
	// Host is the host to keep linked. Its peerstore must hold its private key. The driver
	// closes the host's connections to neighbors that do not answer.
	Host corehost.Host
	// Network is the name of the network. Only nodes with the same name link to each other.
	Network string
	// Min is the number of links that the node wants. While it has fewer, it looks for
	// nodes. Max is the number that it may have; a negative Max means no limit.
	Min, Max int
	// Seeds are texts that say where the network can be found. Each is a host:port, a
	// multiaddr, or a ticket: one string with the id, the addresses and the network of
	// a node of package smokesignal, which Node.Ticket returns.
	Seeds []string
	// LAN makes the driver look for nodes on the local network as well, by mDNS.
	LAN bool
	// PeerBook is the path of a file in which the driver stores the nodes of the network. A
	// node that is started again then finds the network even if all seeds are gone. Nodes
	// of one network may share the file. Empty means that there is no file.
	PeerBook string
	// Rendezvous are services, such as a DHT, in which the driver advertises this node and
	// finds others. Their methods must return when their context ends.
	Rendezvous []corediscovery.Discovery

	// The functions below may be nil. They are called one at a time on the driver's
	// goroutine, except for OnSignal, which is called on the goroutine of a stream. They must
	// not block, and they must not call a method that waits for that goroutine: Connect,
	// Remove, Nodes, RTT, Seeds, Status and Close.

	// OnLinked is called when p has become a neighbor.
	OnLinked func(p peer.ID)
	// OnUnlinked is called when the link to p has ended.
	OnUnlinked func(p peer.ID, reason error)
	// OnSignal is called for each payload that a neighbor, from, has sent with its
	// Driver.Flood.
	OnSignal func(from peer.ID, payload []byte)
	// OnSeedError is called when a seed cannot be used, and again when the reason changes.
	OnSeedError func(*SeedError)

	// Log receives the log lines of the driver. Nil means the logger
	// "smokesignal/discovery" of go-log.
	Log *slog.Logger

	// Node connects the driver to the other parts of a node. Package smokesignal sets
	// it; every other program leaves it nil.
	Node *wiring.Overlay
}

// A Driver keeps a libp2p host linked to nodes of its network: it runs the membership
// protocol, finds nodes, and dials them. Its methods may be called from several goroutines.
type Driver struct {
	cfg   Config
	node  wiring.Overlay // a copy of Config.Node, without nil functions
	key   crypto.PrivKey // the private key of the host
	host  *dialHost
	log   *slog.Logger
	state *overlay.State // used only by the loop

	// These fields belong to the loop, which is the goroutine that runs the state
	// machine, and to the other goroutines of the driver.
	queue  callQueue
	tasks  sync.WaitGroup // all goroutines
	done   chan struct{}  // closed when the loop has ended
	ctx    context.Context
	cancel context.CancelCauseFunc
	// dialCtx is the context of the dials. It ends when the node begins to leave the
	// network, and ctx ends only later. In between, the node tells its neighbors that
	// it leaves, but only over existing connections.
	dialCtx     context.Context
	stopDialing context.CancelCauseFunc

	// Dials.
	guard   dialguard.Guard
	dials   slots // bounds the dials by which this node looks for others
	answers slots // bounds the dials that only serve to answer a peer
	dialing dialing

	// Used only by the loop.
	seeds     []*seedProgress
	writers   map[peer.ID]*peerWriter
	adds      map[uint64]chan overlay.Added // the running calls of Connect, by token
	finds     map[uint64]*peerLookup        // the searches for peers that the state machine makes, by the token that identifies a search
	token     uint64                        // the token that was used last
	callbacks int                           // dials under way to nodes that look for this one
	leaving   bool                          // leave or Close has begun
	sealed    string                        // the addresses in this node's newest record
	seq       uint64                        // the sequence number of this node's newest signed peer record

	lookups lookups
	sources sources
	lan     io.Closer // the search of the local network, or nil

	mu      sync.Mutex
	started bool
	inbound map[peer.ID]int // the number of streams that are read from each peer
	links   map[peer.ID]bool
}

const (
	// maxCallbacks bounds the dials under way to nodes that look for this one.
	maxCallbacks = 8
	// maxWait is the longest time for which the loop waits, so that it soon notices that
	// this machine was asleep.
	maxWait = 10 * time.Second
	// The wall clock runs while a machine sleeps, and the monotonic clock does not. A
	// difference of more than sleepDrift means that the machine was asleep.
	sleepDrift = 6 * time.Second
)

// New returns a Driver, which does nothing until Start is called. The error says which field
// of the configuration is wrong, or why the peer book cannot be used.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = logging.Package("discovery", nil)
	}
	if err := check(&cfg); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log, node: withDefaults(cfg), key: cfg.Host.Peerstore().PrivKey(cfg.Host.ID()),
		queue:   callQueue{wake: notify.NewSignal()},
		done:    make(chan struct{}),
		dials:   make(slots, overlay.MaxDials),
		answers: make(slots, maxAnswerDials),
		dialing: dialing{byPeer: map[peer.ID]int{}},
		writers: map[peer.ID]*peerWriter{},
		adds:    map[uint64]chan overlay.Added{},
		inbound: map[peer.ID]int{},
		links:   map[peer.ID]bool{},
		finds:   map[uint64]*peerLookup{},
		lookups: lookups{byTarget: map[peer.ID]*peerLookup{}},
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

// Start makes the driver accept streams of other nodes and look for nodes. It must be called
// once.
func (d *Driver) Start() {
	if d.cfg.LAN {
		search, err := lan.Start(d.host, d.cfg.Network, func(info peer.AddrInfo) {
			d.learn(overlay.Contact{ID: info.ID, Addrs: info.Addrs})
		}, d.log)
		d.lan = search
		if err != nil {
			// Without multicast, the node can still find the network by its seeds.
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

// acceptStreams makes the host accept streams of the overlay. Until Start is called, the
// driver does not answer the messages on them.
func (d *Driver) acceptStreams() { d.host.SetStreamHandler(protocol.Overlay, d.serve) }

// A callQueue holds functions that the loop will run. It has no bound, because the loop
// itself may add functions, and must not block. Other peers cannot fill it: the goroutine
// that reads a stream waits after each message until the loop has handled it.
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

// run makes the loop run f, and returns at once. It reports false if the driver is closed.
func (d *Driver) run(f func()) bool {
	select {
	case <-d.done:
		return false
	default:
	}
	d.queue.push(f)
	return true
}

// ask makes the loop run f, and waits until f has returned, ctx ends or the driver is closed.
func (d *Driver) ask(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	if !d.run(func() { f(); close(ran) }) {
		return ErrClosed
	}
	select {
	case <-ran:
		return nil
	case <-d.done: // the loop has ended without f
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
		// Round(0) leaves the reading of the wall clock only, which goes on while a machine
		// sleeps. The monotonic clock does not.
		if drift := now.Round(0).Sub(last.Round(0)) - now.Sub(last); drift > sleepDrift {
			d.log.Info("this machine has slept", "duration", drift)
			d.step(overlay.Woke{})
		}
		last = now
		wait := maxWait
		// If the state machine asked for the present time again and again, this would be a
		// busy loop, so the loop waits at least a millisecond.
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

// step feeds one input to the state machine, and performs its outputs.
func (d *Driver) step(in overlay.Input) {
	// An output may lead to another input at once. That input waits until all outputs of
	// this step are performed, so that outputs stay in order.
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

// perform performs one output of the state machine. It returns the input that answers the
// output, or nil.
func (d *Driver) perform(now time.Time, o overlay.Output) overlay.Input {
	switch o := o.(type) {
	case overlay.Send:
		// The greeting holds this node's marks. The peer gets every broadcast from
		// these marks on, so the marks must be as new as possible.
		if ready, ok := o.Message.(overlay.Ready); ok {
			ready.Greeting = d.node.Greeting()
			o.Message = ready
		}
		d.send(o.To, o.Message)
	case overlay.Pending:
		d.host.ConnManager().Protect(o.Peer, protectTag)
		d.node.Pending(o.Peer)
	case overlay.Probe:
		// The state machine asks by Probe whether the peer is on the topic, since
		// pubsub does not report a peer that left the topic and came back at once.
		// If the peer is not on the topic yet, topicChanged will be called when it
		// joins.
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
		// If this node is leaving, the last message to the peer says that the link
		// ends, and Close waits until that message is sent. If it is the peer that
		// leaves, Close does not wait, since the peer may be gone.
		if w := d.writers[o.Peer]; w != nil {
			w.farewell = d.leaving
		}
		d.host.ConnManager().Unprotect(o.Peer, protectTag)
		d.removeLink(o.Peer)
		// If the link ended because the peer was silent, its connection is probably
		// dead. If it ended for another reason, the connection works, or libp2p has
		// closed it already.
		if o.Reason == overlay.ReasonSilent {
			d.closeConns(o.Peer)
		}
		if o.WasLinked { // a handshake that failed is not worth a line in the log
			d.log.Info("unlinked", "peer", o.Peer, "reason", o.Reason)
		}
		d.reportEnd(o)
	case overlay.Refused:
		d.log.Debug("refused", "peer", o.Peer, "reason", o.Reason)
		// If the link was refused because the peer did not answer in time, its
		// connection is probably dead.
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
			ch <- o // does not block, since Connect gives the channel a buffer of one
		}
	}
	return nil
}

// reportEnd tells the node and the user that a link has ended. It tells only the node if the
// handshake of the link had not been completed.
func (d *Driver) reportEnd(o overlay.Unlinked) {
	err := &linkError{Peer: o.Peer, Reason: o.Reason}
	d.node.Unlinked(o.Peer, err, err.ending())
	if !o.WasLinked {
		return // the user was never told of this link
	}
	if d.cfg.OnUnlinked != nil {
		d.cfg.OnUnlinked(o.Peer, err)
	}
	d.sources.linksChanged()
}

// closeConns closes the connections to a peer that does not answer, except connections that
// other parts of the program use. A QUIC connection lives on for half a minute after the
// process of the peer has died, and messages to a new process of the peer would be sent over
// it. closeConns takes at most a tenth of a second; after it, the next message dials.
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

// sealIfChanged signs a new record if this node's addresses have changed since the last one.
// It returns the input for the state machine, or nil if the addresses are the same.
func (d *Driver) sealIfChanged() overlay.Input {
	if addrs := d.node.Addrs(); fmt.Sprint(addrs) != d.sealed {
		return d.seal(addrs)
	}
	return nil
}

// seal signs a new record of this node's addresses, and returns the input that gives it to
// the state machine, or nil if signing fails.
func (d *Driver) seal(addrs []ma.Multiaddr) overlay.Input {
	d.seq = max(d.seq+1, uint64(time.Now().UnixNano())) // grows even if the clock goes back
	record, err := peerrecord.Seal(d.key, addrs, d.seq)
	if err != nil {
		d.log.Error("cannot sign the own addresses", "addrs", addrs, "error", err)
		return nil
	}
	d.sealed = fmt.Sprint(addrs)
	return overlay.RecordRenewed{Record: record, Seq: d.seq}
}

// tick tells the state machine that time has passed.
func (d *Driver) tick() {
	// Nothing reports a change of this node's addresses, so they are compared at each tick.
	if in := d.sealIfChanged(); in != nil {
		d.step(in)
	}
	d.step(overlay.Tick{})
}

// topicChanged tells the state machine that p has joined or left the pubsub topic.
func (d *Driver) topicChanged(p peer.ID, present bool) {
	d.run(func() { d.step(overlay.OnTopic{Peer: p, Present: present}) })
}

// Flood sends payload to all neighbors except the one with the id except. Each of them
// calls its Config.OnSignal. Flood does not block.
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

// Connect makes a link to the node at addr, which has the form of a seed. It returns the id of
// that node once it is a neighbor. The error is ErrFull (this node or the other one has Max
// links), ErrSelf, ErrOtherNetwork, ErrUnreachable, ErrUnresolvable, ErrRelayed,
// ErrNotSmokesignal, a *WrongIDError, ErrClosed, or says what is wrong with addr.
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

// Remove ends the link to p. It returns when the message that tells p so is queued. The
// error is ErrClosed, or that of ctx if ctx ended first.
func (d *Driver) Remove(ctx context.Context, p peer.ID) error {
	return d.ask(ctx, func() { d.step(overlay.Drop{Peer: p}) })
}

// leave writes the peer book, ends all links and tells the neighbors so. After it, the driver
// makes no new links. An error means that the peer book could not be written.
func (d *Driver) leave(ctx context.Context) error {
	err := d.sources.close() // the book is written before the links end, so that it has the neighbors
	d.ask(ctx, d.leaveAll)
	return err
}

// leaveAll ends all links. It runs on the loop.
func (d *Driver) leaveAll() {
	d.leaving = true
	// A neighbor that is no longer connected has noticed that the link is gone. A dial to it
	// would only delay Close, which waits until the last messages are sent.
	d.stopDialing(ErrClosed)
	d.step(overlay.Close{})
}

// Close ends all links, all goroutines and all streams of the driver. It tells the connected
// neighbors that this node closes, and waits at most one second for that. An error means that
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
				// Only neighbors have to be told that this node closes.
				// Other peers expect nothing.
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
		close(d.done) // close done here, since the loop, which closes it otherwise, was not started
	}
	d.mu.Lock() // countStream and findSeed hold mu while they check ctx and add to tasks
	d.cancel(ErrClosed)
	d.mu.Unlock()
	d.tasks.Wait()
	if d.node.Lent { // the host of an application stays open
		d.host.closeSpareConns()
	}
	return written
}

// A notifiee is told by libp2p when a connection was closed. So the driver notices at once
// that the process of a neighbor was killed.
type notifiee Driver

func (n *notifiee) Connected(network.Network, network.Conn)   {}
func (n *notifiee) Listen(network.Network, ma.Multiaddr)      {}
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr) {}
func (n *notifiee) Disconnected(net network.Network, c network.Conn) {
	p := c.RemotePeer()
	if !addr.HasDirect(net, p) {
		d := (*Driver)(n)
		d.run(func() {
			// Before the loop runs this function, the peer may have made
			// another connection.
			if !addr.HasDirect(net, p) {
				d.step(overlay.Disconnected{Peer: p})
			}
		})
	}
}
