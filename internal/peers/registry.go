package peers

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// warnInterval is how often it is logged that guests are turned away.
const warnInterval = time.Minute

// Config is what a Registry needs.
type Config struct {
	Host corehost.Host
	// Min and Max are the limits that Sufficient and Full report. They are not enforced.
	// A negative Max means no limit.
	Min, Max int
	// MaxGuests bounds the guests and leaves that have a place on pubsub at a time. 0 is
	// 64, a negative number means none.
	MaxGuests int
	Log       *slog.Logger
}

// Followers are the parts of a node that follow the changes. Each gets every change, in
// the order of the fields, on the goroutine that brought the fact. A follower must not
// wait, nor feed the registry. It may ask the registry, which answers with the
// standing after the change, except that the list of neighbors changes after Direct.
type Followers struct {
	Gate      func(*Transition)
	Overlay   func(*Transition)
	Broadcast func(*Transition)
	Direct    func(*Transition)
	// The list of neighbors changes here.
	Watchdog  func(*Transition)
	Callbacks func(*Transition)
	// Identified is told of each connection whose peer has said what it speaks, also
	// if that changes nothing.
	Identified func(p peer.ID, is Standing)
}

// A Registry keeps the records of the peers of one node. All methods may be called from
// several goroutines; a follower must not call those that record a fact.
type Registry struct {
	cfg   Config
	sub   event.Subscription
	tasks sync.WaitGroup

	// facts is held from a fact until its changes are delivered, so that all followers
	// see the same order. It is locked before mu.
	facts     sync.Mutex
	followers Followers
	pubsub    []protocol.ID
	following bool
	missed    []Transition // before Follow
	warned    time.Time
	timer     *time.Timer

	mu        sync.Mutex
	core      *core
	neighbors []peer.ID   // in the order in which they were added
	admitted  notify.Cond // direct events of a peer are no longer held
	closed    bool
}

// New returns a Registry that takes facts. Changes wait for Follow.
func New(cfg Config) *Registry {
	cfg.MaxGuests = cmp.Or(cfg.MaxGuests, maxGuests)
	return &Registry{cfg: cfg, core: newCore(cfg.MaxGuests)}
}

// Follow begins to deliver changes to the followers, first those from before. From now on
// the registry learns from the host what its peers speak, which of them are connected,
// and by pubsub which protocols make a peer a guest. It must be called once.
func (r *Registry) Follow(followers Followers, pubsub ...protocol.ID) error {
	// The bus waits for its subscribers, so the buffer covers the time in which the
	// followers are at work.
	sub, err := r.cfg.Host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated), new(event.EvtPeerConnectednessChanged),
	}, eventbus.BufSize(256), eventbus.Name("smokesignal peers"))
	if err != nil {
		return fmt.Errorf("peers: subscribe to the host's event bus: %w", err)
	}
	r.facts.Lock()
	r.sub, r.followers, r.pubsub, r.following = sub, followers, pubsub, true
	r.deliver(r.missed)
	r.missed = nil
	r.facts.Unlock()
	r.tasks.Go(func() { r.watch(sub) })
	return nil
}

// Close ends all records, tells the followers, and ends the registry's goroutine. It may
// be called again, and without Follow.
func (r *Registry) Close() {
	r.facts.Lock()
	sub := r.sub
	r.sub = nil
	r.facts.Unlock()
	if sub != nil {
		sub.Close()
		r.tasks.Wait()
	}
	r.change(func(c *core) []Transition {
		r.closed = true
		r.admitted.Broadcast() // nothing is held any more
		return c.close()
	})
}

// watch records what the host says of its peers. It is the only goroutine that does, so
// the fact that is recorded last was also read last.
func (r *Registry) watch(sub event.Subscription) {
	for _, p := range r.cfg.Host.Network().Peers() { // connected before Follow
		r.identify(p)
	}
	for ev := range sub.Out() {
		switch ev := ev.(type) {
		case event.EvtPeerIdentificationCompleted:
			r.identified(ev.Peer)
		case event.EvtPeerProtocolsUpdated:
			r.identified(ev.Peer)
		case event.EvtPeerConnectednessChanged:
			// A new connection says nothing until identify is done.
			if ev.Connectedness != network.Connected {
				r.identify(ev.Peer)
			}
		}
	}
}

// identified reads what p has just said that it speaks, and tells the follower.
func (r *Registry) identified(p peer.ID) {
	r.identify(p)
	r.facts.Lock()
	defer r.facts.Unlock()
	if f := r.followers.Identified; f != nil {
		f(p, r.Standing(p))
	}
}

// identify reads from the host what p speaks and how it is connected.
func (r *Registry) identify(p peer.ID) {
	host := r.cfg.Host
	// The news of the protocols can come after that of the end of the connection.
	if host.Network().Connectedness(p) == network.NotConnected {
		r.change(func(c *core) []Transition { return c.disconnected(p) })
		return
	}
	r.Spoke(p, Abilities{
		Overlay: r.speaks(p, protocol.Overlay),
		Repair:  r.speaks(p, protocol.Repair),
		PubSub:  addr.HasDirect(host.Network(), p) && r.speaks(p, r.pubsub...),
	})
}

// Spoke records the protocols that p says it speaks. After Follow the registry learns them
// from the host.
func (r *Registry) Spoke(p peer.ID, abilities Abilities) {
	r.change(func(c *core) []Transition { return c.spoke(p, abilities) })
}

// speaks reports whether p has said that it speaks one of the protocols.
func (r *Registry) speaks(p peer.ID, protocols ...protocol.ID) bool {
	known, err := r.cfg.Host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(known) > 0
}

// Pending records that a handshake with p begins. From now on Admit(p) waits.
func (r *Registry) Pending(p peer.ID) {
	r.change(func(c *core) []Transition { return c.pending(p) })
}

// Linked records that the link to p stands.
func (r *Registry) Linked(p peer.ID, greeting []byte) {
	r.change(func(c *core) []Transition { return c.linked(p, greeting) })
}

// Unlinked records that the handshake with p has failed or its link has ended.
func (r *Registry) Unlinked(p peer.ID, reason error, how Ending) {
	r.change(func(c *core) []Transition {
		r.admitted.Broadcast()
		return c.unlinked(time.Now(), p, reason, how)
	})
}

// TopicChanged records that p has come to the topic, or left it.
func (r *Registry) TopicChanged(p peer.ID, present bool) {
	r.change(func(c *core) []Transition {
		if present {
			return c.joined(p)
		}
		return c.left(p)
	})
}

// OpenPubSub makes pubsub serve every peer that speaks it, from now on. It cannot be
// taken back.
func (r *Registry) OpenPubSub() { r.change((*core).openPubSub) }

// change gives a fact to the core and delivers the changes that follow.
func (r *Registry) change(fact func(*core) []Transition) {
	r.facts.Lock()
	defer r.facts.Unlock()
	r.mu.Lock()
	turnedAway := r.core.guests.turnedAway
	changes := fact(r.core)
	turnedAway = r.core.guests.turnedAway - turnedAway
	next := r.core.next()
	r.mu.Unlock()
	if r.following {
		r.deliver(changes)
	} else {
		// The parts of a node that follow are made one after the other.
		r.missed = append(r.missed, changes...)
	}
	if now := time.Now(); turnedAway > 0 && now.Sub(r.warned) >= warnInterval {
		r.warned = now
		r.cfg.Log.Warn("guests are turned away from pubsub, since there are as many as allowed", "max", r.cfg.MaxGuests)
	}
	r.schedule(next)
}

// schedule sets the timer for the next change that time brings. It needs facts.
func (r *Registry) schedule(next time.Time) {
	switch {
	case next.IsZero():
		if r.timer != nil {
			r.timer.Stop()
		}
	case r.timer == nil:
		r.timer = time.AfterFunc(time.Until(next), r.advance)
	default:
		r.timer.Reset(time.Until(next))
	}
}

func (r *Registry) advance() {
	r.change(func(c *core) []Transition { return c.advance(time.Now()) })
}

// deliver tells the followers. It needs facts.
func (r *Registry) deliver(changes []Transition) {
	f := &r.followers
	for i := range changes {
		for _, follow := range []func(*Transition){f.Gate, f.Overlay, f.Broadcast, f.Direct, r.list, f.Watchdog, f.Callbacks} {
			if follow != nil {
				follow(&changes[i])
			}
		}
	}
}

// Standing returns the standing of p.
func (r *Registry) Standing(p peer.ID) Standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.standing(p)
}

// TurnedAway returns how many guests found no place.
func (r *Registry) TurnedAway() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.guests.turnedAway
}

// Nodes returns the connected nodes, linked or not.
func (r *Registry) Nodes() (nodes []peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.core.known() {
		if r.core.standing(p).Role == Node {
			nodes = append(nodes, p)
		}
	}
	return nodes
}

// Admit waits while the direct events of p are held: from the beginning of a handshake
// until the callbacks of its adding have run, or the handshake fails. It returns the
// cause of ctx if that ends first.
func (r *Registry) Admit(ctx context.Context, p peer.ID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.core.held(p) && !r.closed {
		if r.admitted.Wait(ctx, &r.mu) != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// Release ends the waiting of Admit for an added peer. Call it when the callbacks of the
// change that added the peer have run.
func (r *Registry) Release(added *Transition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.core.release(added.Peer, added.Admission)
	r.admitted.Broadcast()
}
