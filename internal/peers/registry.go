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

// warnInterval is how often it is logged that there is no place for guests.
const warnInterval = time.Minute

// Config configures a Registry.
type Config struct {
	Host corehost.Host
	// Min and Max are the limits on which Sufficient and Full report. The Registry does
	// not enforce them. A negative Max means no limit.
	Min, Max int
	// MaxGuests is how many guests and leaves may have a place on pubsub at a time. 0
	// means 64, and a negative number means none.
	MaxGuests int
	Log       *slog.Logger
}

// Followers are functions of the parts of a node that follow the changes. Each is
// called with every change, in the order of the fields, on the goroutine that recorded
// the fact. A follower must not wait, and must not call methods that record a fact. It
// may ask the Registry, whose answers take account of the change, except that the list
// of neighbors changes only after Direct was called.
type Followers struct {
	Gate      func(*Transition)
	Overlay   func(*Transition)
	Broadcast func(*Transition)
	Direct    func(*Transition)
	// The list of neighbors changes at this point.
	Watchdog  func(*Transition)
	Callbacks func(*Transition)
	// Identified is called each time a connected peer has said which protocols it
	// speaks, even if no record changes.
	Identified func(p peer.ID, is Standing)
}

// A Registry keeps the records of the peers of one node. All methods may be called from
// several goroutines, but followers must not call those that record a fact.
type Registry struct {
	cfg   Config
	sub   event.Subscription
	tasks sync.WaitGroup

	// facts is locked while a fact is recorded and its changes are delivered, so that
	// all followers get the changes in the same order. It is locked before mu.
	facts     sync.Mutex
	followers Followers
	pubsub    []protocol.ID
	following bool
	missed    []Transition // changes from before Follow was called
	warned    time.Time
	timer     *time.Timer

	mu        sync.Mutex
	core      *core
	neighbors []peer.ID   // in the order in which they were added
	admitted  notify.Cond // broadcast when direct events of a peer are no longer held back
	closed    bool
}

// New returns a Registry to which facts can be given. It delivers no changes until
// Follow is called.
func New(cfg Config) *Registry {
	cfg.MaxGuests = cmp.Or(cfg.MaxGuests, maxGuests)
	return &Registry{cfg: cfg, core: newCore(cfg.MaxGuests)}
}

// Follow begins to deliver changes to the followers, beginning with the changes from
// before. It must be called once. From then on the Registry learns from the host which
// peers are connected and what they speak. pubsub lists the protocols that make a peer
// a guest.
func (r *Registry) Follow(followers Followers, pubsub ...protocol.ID) error {
	// The event bus waits for a slow subscriber. The buffer is large enough for the
	// time in which followers are at work.
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

// Close removes all records, informs the followers, and ends the Registry's goroutine.
// It may be called again, and without Follow.
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
		r.admitted.Broadcast() // direct events are not held back any more
		return c.close()
	})
}

// watch records the protocols and connections of the host's peers. No other goroutine
// does that, so the state that was read last from the host is also recorded last.
func (r *Registry) watch(sub event.Subscription) {
	for _, p := range r.cfg.Host.Network().Peers() { // these were connected before Follow was called
		r.identify(p)
	}
	for ev := range sub.Out() {
		switch ev := ev.(type) {
		case event.EvtPeerIdentificationCompleted:
			r.identified(ev.Peer)
		case event.EvtPeerProtocolsUpdated:
			r.identified(ev.Peer)
		case event.EvtPeerConnectednessChanged:
			// When a peer connects, nothing is known about it until it was identified.
			if ev.Connectedness != network.Connected {
				r.identify(ev.Peer)
			}
		}
	}
}

// identified records what p has just said that it speaks, and then calls the follower
// Identified.
func (r *Registry) identified(p peer.ID) {
	r.identify(p)
	r.facts.Lock()
	defer r.facts.Unlock()
	if f := r.followers.Identified; f != nil {
		f(p, r.Standing(p))
	}
}

// identify reads from the host what p speaks and how it is connected, and records it.
func (r *Registry) identify(p peer.ID) {
	host := r.cfg.Host
	// The event with the protocols can arrive after the one with the end of the
	// connection.
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

// Spoke records which protocols p says it speaks. After Follow was called, the Registry
// learns this from the host.
func (r *Registry) Spoke(p peer.ID, abilities Abilities) {
	r.change(func(c *core) []Transition { return c.spoke(p, abilities) })
}

// speaks reports whether p has said that it speaks at least one of the protocols.
func (r *Registry) speaks(p peer.ID, protocols ...protocol.ID) bool {
	known, err := r.cfg.Host.Peerstore().SupportsProtocols(p, protocols...)
	return err == nil && len(known) > 0
}

// Pending records that a handshake with p begins. From then on Admit waits for p.
func (r *Registry) Pending(p peer.ID) {
	r.change(func(c *core) []Transition { return c.pending(p) })
}

// Linked records that the link to p is complete. greeting is what p said in the
// handshake.
func (r *Registry) Linked(p peer.ID, greeting []byte) {
	r.change(func(c *core) []Transition { return c.linked(p, greeting) })
}

// Unlinked records that the handshake with p has failed or that its link has ended, and
// why.
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

// OpenPubSub makes pubsub serve every peer that speaks it, from now on. This cannot be
// undone.
func (r *Registry) OpenPubSub() { r.change((*core).openPubSub) }

// change passes a fact to the core and delivers the changes that follow from it.
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
		// Keep the changes for Follow. The parts of the node that follow them may not
		// exist yet.
		r.missed = append(r.missed, changes...)
	}
	if now := time.Now(); turnedAway > 0 && now.Sub(r.warned) >= warnInterval {
		r.warned = now
		r.cfg.Log.Warn("no place on pubsub for another guest; allow more guests to serve it", "max", r.cfg.MaxGuests)
	}
	r.schedule(next)
}

// schedule sets the timer for the next call of advance. The caller must hold facts.
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

// deliver passes the changes to the followers. The caller must hold facts.
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

// Standing returns what the record of p says; the zero value if there is none.
func (r *Registry) Standing(p peer.ID) Standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.standing(p)
}

// TurnedAway returns how often a guest or leaf found no place on pubsub.
func (r *Registry) TurnedAway() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.guests.turnedAway
}

// Nodes returns the connected nodes, whether they are linked or not.
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

// Admit waits while the direct events of p are held back. They are held from the
// beginning of a handshake until the callbacks for the added peer have run, or until
// the handshake fails. It returns the cause of ctx if ctx ends first.
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

// Release ends the holding of direct events of an added peer. It must be called when
// the callbacks for the change that added the peer have run.
func (r *Registry) Release(added *Transition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.core.release(added.Peer, added.Admission)
	r.admitted.Broadcast()
}
