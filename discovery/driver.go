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
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/lan"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/discovery/internal/peerrecord"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// Protocol is the stream protocol of links and membership.
const Protocol protocol.ID = "/smokesignal/overlay/1.0.0"

// protectTag keeps the connection manager from closing connections of links.
const protectTag = "smokesignal"

// leaveTimeout bounds how long Close waits for the farewells to be written.
const leaveTimeout = time.Second

// Config is what a Driver needs. Host, Key, Addrs and the hooks but Heard, Signal,
// SeedError, SeedFound and SeedIsSelf are required.
type Config struct {
	Host    corehost.Host
	Key     crypto.PrivKey
	Network string
	Session overlay.Session
	// Min and Max are the limits of the peer list. A negative Max means no limit.
	Min, Max int
	Seeds    []*Seed
	// LAN looks for nodes by mDNS.
	LAN bool
	// Addrs returns the node's own addresses, as others can dial them.
	Addrs func() []ma.Multiaddr
	// Spare tells whether nobody but the node uses a connection, so that it may be
	// closed. Nil: all are the node's.
	Spare func(network.Conn) bool
	// Lent: the host is an application's. The nodes among those that it connects to are
	// asked for links, and Close closes the spare connections that the driver has made.
	Lent  bool
	Hooks Hooks
	Log   *slog.Logger
}

// Hooks tell the rest of the node what happens. They are called one at a time
// on the driver's goroutine, Heard and Signal on that of the stream it came by. They
// must not wait, nor call methods that wait for the driver (AddPeer, Seeds, RTT).
type Hooks struct {
	// Pending: a link to p is being set up. Linked or Unlinked follows.
	Pending func(p peer.ID)
	// Linked: the link stands on both sides. greeting is what the peer's Greeting
	// returned.
	Linked func(p peer.ID, greeting []byte)
	// Unlinked: the link ended, or was not completed (was is false).
	Unlinked func(p peer.ID, reason error, was bool)
	// OnTopic tells whether p is seen on the pubsub topic.
	OnTopic func(p peer.ID) bool
	// Greeting returns what a new neighbour is told, once it is seen on the topic.
	Greeting func() []byte
	// Heard: a linked peer sent a frame, of whatever kind.
	Heard func(from peer.ID)
	// Signal: a linked peer sent what Flood was given there.
	Signal func(from peer.ID, payload []byte)
	// SeedError: the reason why a seed cannot be used changed.
	SeedError func(*SeedError)
	// SeedFound: the seed was reached and is info.
	SeedFound func(seed string, info peer.AddrInfo)
	// SeedIsSelf: the seed is this node.
	SeedIsSelf func(seed string)
}

// LinkError says why a link ended or could not be made.
type LinkError struct {
	Peer   peer.ID
	Reason overlay.Reason
}

func (e *LinkError) Error() string { return fmt.Sprintf("peer %s: %s", e.Peer, e.Reason) }

// Unwrap returns the matching variable of this package, if there is one.
func (e *LinkError) Unwrap() error {
	switch e.Reason {
	case overlay.ReasonFull:
		return ErrFull
	case overlay.ReasonNetwork:
		return ErrOtherNetwork
	case overlay.ReasonSelf:
		return ErrSelf
	case overlay.ReasonProtocol:
		return ErrNotSmokesignal
	case overlay.ReasonUnreachable, overlay.ReasonTimeout:
		return ErrUnreachable
	case overlay.ReasonRelayed:
		return ErrRelayed
	case overlay.ReasonClosed:
		return ErrClosed
	}
	return nil
}

// OnPurpose tells whether the link was ended to reorder, and not because of a fault
// or because one of the nodes is closing.
func (e *LinkError) OnPurpose() bool {
	switch e.Reason {
	case overlay.ReasonMoved, overlay.ReasonSwapped, overlay.ReasonFull, overlay.ReasonEnough, overlay.ReasonDropped:
		return true
	}
	return false
}

// ErrClosed is returned for what is asked of a closed Driver.
var ErrClosed = errs.ErrClosed

// A Driver runs the membership protocol on a libp2p host. Its methods may be
// called from several goroutines.
type Driver struct {
	cfg   Config
	host  *dialHost
	log   *slog.Logger
	state *overlay.State

	inbox       inbox
	ctx         context.Context
	cancel      context.CancelCauseFunc
	dialCtx     context.Context // ends before ctx, when no message is worth a dial any more
	stopDialing context.CancelCauseFunc
	tasks       sync.WaitGroup
	done        chan struct{} // closed when the loop has ended
	dials       slots
	answers     slots // for dials that are made to answer
	dialling    dialling

	// Owned by the loop.
	seeds   []*seedState
	writers map[peer.ID]*peerWriter
	leaving bool // Leave or Close has begun
	adds    map[uint64]chan overlay.Added
	finds   map[uint64]*lookup
	calling int // back, nodes that look for this one
	token   uint64
	sealed  string // the addresses in the own record
	seq     uint64 // of the own record
	lan     io.Closer

	guard   dialguard.Guard
	lookups lookups

	mu      sync.Mutex
	inbound map[peer.ID]int // streams being read
	links   map[peer.ID]bool
	started bool
}

const (
	// maxCalls bounds the nodes called back at once.
	maxCalls = 8
	// maxWait is how long the loop waits at most, so that a sleep of the machine is
	// noticed, and sleepDrift by how much the clocks differ after one.
	maxWait    = 10 * time.Second
	sleepDrift = 6 * time.Second
)

// New returns a Driver which does nothing until Start.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = logging.Room("discovery", nil)
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log,
		host:     &dialHost{Host: cfg.Host, isSpare: cfg.Spare, making: map[peer.ID]int{}, made: map[network.Conn]struct{}{}},
		inbox:    inbox{wake: make(chan struct{}, 1)},
		done:     make(chan struct{}),
		dials:    make(slots, overlay.MaxDials),
		answers:  make(slots, maxAnswerDials),
		dialling: dialling{to: map[peer.ID]int{}},
		writers:  map[peer.ID]*peerWriter{},
		adds:     map[uint64]chan overlay.Added{},
		inbound:  map[peer.ID]int{},
		links:    map[peer.ID]bool{},
		finds:    map[uint64]*lookup{},
		lookups:  lookups{byTarget: map[peer.ID]*lookup{}},
		state: overlay.New(overlay.Config{
			Self: cfg.Host.ID(), Session: cfg.Session, Network: cfg.Network, Min: cfg.Min, Max: cfg.Max, Seeds: len(cfg.Seeds),
			Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		}),
	}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	d.dialCtx, d.stopDialing = context.WithCancelCause(d.ctx)
	for _, s := range cfg.Seeds {
		d.seeds = append(d.seeds, &seedState{seed: s})
	}
	return d
}

// Start begins to serve and to look for peers. It must be called once.
func (d *Driver) Start() {
	if d.cfg.LAN {
		search, err := lan.Start(d.host, d.cfg.Network, func(info peer.AddrInfo) {
			d.Learn(overlay.Contact{ID: info.ID, Addrs: info.Addrs})
		}, d.log)
		d.lan = search
		if err != nil {
			// A machine without multicast can still join by its seeds.
			d.log.Warn("not looking for peers on the local network", "err", err)
		}
	}
	d.mu.Lock()
	d.started = true
	d.mu.Unlock()
	d.host.Network().Notify((*notifiee)(d))
	d.Serve()
	d.tasks.Go(d.loop)
}

// Serve lets others open streams, which are answered from Start on. Who calls it
// before the host listens is never taken for somebody who does not speak the protocol.
func (d *Driver) Serve() { d.host.SetStreamHandler(Protocol, d.serve) }

// inbox holds the functions that wait for the loop. It has no bound, so that a
// hook, which runs on the loop, may add to it; readers of streams wait until
// theirs has run, so a stranger cannot fill it.
type inbox struct {
	mu   sync.Mutex
	list []func()
	wake chan struct{} // a token when list is not empty
}

func (in *inbox) take() []func() {
	in.mu.Lock()
	defer in.mu.Unlock()
	list := in.list
	in.list = nil
	return list
}

// run hands f to the loop and returns at once. It reports false when the driver
// is closed.
func (d *Driver) run(f func()) bool {
	select {
	case <-d.done:
		return false
	default:
	}
	d.inbox.mu.Lock()
	d.inbox.list = append(d.inbox.list, f)
	d.inbox.mu.Unlock()
	select {
	case d.inbox.wake <- struct{}{}:
	default:
	}
	return true
}

// ask runs f on the loop and waits for it.
func (d *Driver) ask(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	if !d.run(func() { f(); close(ran) }) {
		return ErrClosed
	}
	select {
	case <-ran:
		return nil
	case <-d.done:
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
		// The monotonic clock stands still while a machine sleeps, the wall clock,
		// which Round(0) leaves alone, does not.
		if drift := now.Round(0).Sub(last.Round(0)) - now.Sub(last); drift > sleepDrift {
			d.log.Info("this machine has slept", "for", drift)
			d.step(overlay.Woke{})
		}
		last = now
		wait := maxWait
		if t := d.state.Next(now); !t.IsZero() {
			wait = min(wait, max(t.Sub(now), time.Millisecond))
		}
		timer.Reset(wait)
		select {
		case <-d.inbox.wake:
			for _, f := range d.inbox.take() {
				f()
			}
		case <-timer.C:
			d.tick()
		case <-d.ctx.Done():
			return
		}
	}
}

// step feeds the state machine and carries out what it wants done.
func (d *Driver) step(in overlay.Input) {
	// An output may lead to the next input at once; collect, so that no output is
	// overtaken.
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

func (d *Driver) perform(now time.Time, o overlay.Output) overlay.Input {
	switch o := o.(type) {
	case overlay.Send:
		if ready, ok := o.Message.(overlay.Ready); ok {
			ready.Greeting = d.cfg.Hooks.Greeting()
			o.Message = ready
		}
		d.send(o.To, o.Message)
	case overlay.Pending:
		d.host.ConnManager().Protect(o.Peer, protectTag)
		d.cfg.Hooks.Pending(o.Peer)
	case overlay.Probe:
		if d.cfg.Hooks.OnTopic(o.Peer) {
			return overlay.OnTopic{Peer: o.Peer, Present: true}
		}
	case overlay.Linked:
		d.mark(o.Peer, true)
		d.claimed(o.Peer, o.Addrs)
		d.log.Info("linked", "peer", o.Peer)
		d.cfg.Hooks.Linked(o.Peer, o.Greeting)
		d.seedLinked(o.Peer)
	case overlay.Unlinked:
		if w := d.writers[o.Peer]; w != nil {
			w.farewell = d.leaving
		}
		d.host.ConnManager().Unprotect(o.Peer, protectTag)
		d.mark(o.Peer, false)
		if o.Reason == overlay.ReasonSilent {
			d.abandon(o.Peer)
		}
		if o.WasLinked {
			d.log.Info("unlinked", "peer", o.Peer, "reason", o.Reason)
		}
		d.cfg.Hooks.Unlinked(o.Peer, &LinkError{Peer: o.Peer, Reason: o.Reason}, o.WasLinked)
	case overlay.Refused:
		d.log.Debug("refused", "peer", o.Peer, "reason", o.Reason)
		if o.Reason == overlay.ReasonTimeout {
			d.abandon(o.Peer)
		}
		d.seedRefused(now, o)
	case overlay.AskSeed:
		d.askSeed(now, o)
	case overlay.RenewRecord:
		return d.seal(true)
	case overlay.Located:
		d.located(o)
	case overlay.DialBack:
		d.call(o.To)
	case overlay.Added:
		if ch := d.adds[o.Token]; ch != nil {
			delete(d.adds, o.Token)
			ch <- o // buffered
		}
	}
	return nil
}

// abandon closes the connections to a peer that answers nothing, except those that
// others use. Over QUIC they outlive the peer's process by half a minute, and a new
// process at the same place would be spoken to over the dead one's connection. It is
// done when abandon returns, at most a tenth of a second later, so that the next
// message dials.
func (d *Driver) abandon(p peer.ID) {
	closeSpare(d.host, slices.Values(d.host.Network().ConnsToPeer(p)))
}

func (d *Driver) mark(p peer.ID, linked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if linked {
		d.links[p] = true
	} else {
		delete(d.links, p)
	}
}

func (d *Driver) linked(p peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.links[p]
}

// seal renews the own signed record when the addresses have changed, or anyway. It
// returns nil if the record stays as it is.
func (d *Driver) seal(anyway bool) overlay.Input {
	addrs := d.cfg.Addrs()
	text := fmt.Sprint(addrs)
	if text == d.sealed && !anyway {
		return nil
	}
	now := time.Now()
	d.seq = max(d.seq+1, uint64(now.UnixNano())) // also if the clock goes back
	record, err := peerrecord.Seal(d.cfg.Key, addrs, d.seq)
	if err != nil {
		d.log.Error("cannot sign the own addresses", "addrs", addrs, "err", err)
		return nil
	}
	d.sealed = text
	return overlay.RecordRenewed{Record: record, Seq: d.seq}
}

// tick lets the time pass, with the addresses of now.
func (d *Driver) tick() {
	if in := d.seal(false); in != nil {
		d.step(in)
	}
	d.step(overlay.Tick{})
}

// Network returns what is known of the part of the network this node is in.
func (d *Driver) Network() (n overlay.NetworkView) {
	d.ask(context.Background(), func() { n = d.state.View() })
	return n
}

// TopicChanged says that a peer was seen joining or leaving the pubsub topic.
func (d *Driver) TopicChanged(p peer.ID, present bool) {
	d.run(func() { d.step(overlay.OnTopic{Peer: p, Present: present}) })
}

// Flood sends payload to all linked peers but one. It does not wait.
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

// AddPeer links to the node at addr, a text as for a seed. It returns when the
// link stands, or with an error: ErrFull (ours or theirs), ErrSelf,
// ErrOtherNetwork, ErrUnreachable and what else ParseSeed and Seed.Find return.
func (d *Driver) AddPeer(ctx context.Context, addr string) (peer.ID, error) {
	seed, err := ParseSeed(addr)
	if err != nil {
		return "", err
	}
	info, err := seed.Find(ctx, d.host)
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
		return "", fmt.Errorf("%w: no answer to the request for a link: %w", ErrUnreachable, context.Cause(ctx))
	case <-d.done:
		return "", ErrClosed
	}
}

// DropPeer ends the link to p. It returns when that has begun.
func (d *Driver) DropPeer(ctx context.Context, p peer.ID) error {
	return d.ask(ctx, func() { d.step(overlay.Drop{Peer: p}) })
}

// RTT returns the round trip time last measured on the link to p, or zero.
func (d *Driver) RTT(p peer.ID) (rtt time.Duration) {
	d.ask(context.Background(), func() { rtt = d.state.RTT(p) })
	return rtt
}

// Leave ends all links and tells the peers. The driver looks for no others.
func (d *Driver) Leave(ctx context.Context) error {
	return d.ask(ctx, d.leave)
}

// leave ends all links. It runs on the loop.
func (d *Driver) leave() {
	d.leaving = true
	// A peer that is not connected any more has noticed that the link is gone. A dial
	// to it would only delay Close, which waits for the farewells.
	d.stopDialing(ErrClosed)
	d.step(overlay.Close{})
}

// Close ends all links, waits a second at most until the peers have been told,
// and leaves no goroutine, handler or stream behind. It must not be called
// twice.
func (d *Driver) Close() {
	d.mu.Lock()
	started := d.started
	d.mu.Unlock()
	d.host.RemoveStreamHandler(Protocol)
	if started {
		d.host.Network().StopNotify((*notifiee)(d))
		if d.lan != nil {
			d.lan.Close()
		}
		var farewells []*peerWriter
		d.ask(context.Background(), func() {
			d.leave()
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
		close(d.done)
	}
	d.mu.Lock() // enter looks whether it has ended, and adds to tasks, under it
	d.cancel(ErrClosed)
	d.mu.Unlock()
	d.tasks.Wait()
	if d.cfg.Lent {
		d.host.tidy()
	}
}

// notifiee hears of connections; it is how a killed process is noticed at once.
type notifiee Driver

func (n *notifiee) Connected(network.Network, network.Conn)   {}
func (n *notifiee) Listen(network.Network, ma.Multiaddr)      {}
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr) {}
func (n *notifiee) Disconnected(net network.Network, c network.Conn) {
	p := c.RemotePeer()
	if !addr.HasDirect(net, p) {
		d := (*Driver)(n)
		d.run(func() {
			// It may be back meanwhile, by another connection.
			if !addr.HasDirect(net, p) {
				d.step(overlay.Disconnected{Peer: p})
			}
		})
	}
}
