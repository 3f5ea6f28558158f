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

// warnInterval is the least time between two log lines which say that there is no place for
// another guest.
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

// Followers holds the functions by which the parts of a node follow the changes of records.
// Each function is called with every change, in the order of the fields, on the goroutine
// that called the Registry. The functions must not block, and must not call methods of the
// Registry that change a record. They may ask the Registry, whose answers include the
// change already, except that the list of neighbors changes only after Direct was called.
type Followers struct {
	Gate      func(*Transition)
	Overlay   func(*Transition)
	Broadcast func(*Transition)
	Direct    func(*Transition)
	// After Direct and before Watchdog, the Registry changes its list of neighbors.
	Watchdog  func(*Transition)
	Callbacks func(*Transition)
	// Identified is called each time a connected peer has said which protocols it
	// speaks, even if no record changes.
	Identified func(p peer.ID, is Standing)
}

// A Registry keeps one record for each peer of one node. All methods may be called from
// several goroutines. But a function in Followers must not call the methods that change a
// record.
type Registry struct {
	cfg   Config
	sub   event.Subscription
	tasks sync.WaitGroup

	// facts is locked while a method changes records and passes the changes to the
	// followers, so that all followers get the changes in the same order. It is locked
	// before mu.
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

// New returns a Registry, which accepts facts about peers at once, but passes no changes of
// records to the parts of the node until Follow is called.
func New(cfg Config) *Registry {
	cfg.MaxGuests = cmp.Or(cfg.MaxGuests, maxGuests)
	return &Registry{cfg: cfg, core: newCore(cfg.MaxGuests)}
}

// Follow begins to pass changes of records to followers, first the changes that were made
// before this call. It must be called once. From then on the Registry learns from the host
// which peers are connected and which protocols they speak. A peer that speaks one of the
// protocols in pubsub is a guest, unless it is a node or a leaf. The error says why the
// Registry cannot subscribe to the event bus of the host.
func (r *Registry) Follow(followers Followers, pubsub ...protocol.ID) error {
	// The event bus of the libp2p host waits for a subscriber whose buffer is full.
	// This buffer is large enough for the time for which the followers keep watch busy.
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

// Close removes all records, passes these changes to the followers, and ends the Registry's
// goroutine. It may be called again, and even if Follow was not called.
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

// watch records which protocols the host's peers speak and whether they are connected, as
// the events of sub report it. No other goroutine does that, so of two states of a peer
// that were read from the host, the later one is recorded last.
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
			// A peer that has just connected has not said yet which protocols
			// it speaks. It will, in another event.
			if ev.Connectedness != network.Connected {
				r.identify(ev.Peer)
			}
		}
	}
}

// identified records which protocols p speaks, after p has said so, and then calls the
// function Identified of the followers.
func (r *Registry) identified(p peer.ID) {
	r.identify(p)
	r.facts.Lock()
	defer r.facts.Unlock()
	if f := r.followers.Identified; f != nil {
		f(p, r.Standing(p))
	}
}

// identify reads from the host which protocols p speaks and whether it is connected
// directly, and records both.
func (r *Registry) identify(p peer.ID) {
	host := r.cfg.Host
	// The event that reports the protocols of p can arrive after the event that reports
	// the end of the connection to p.
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

// Pending records that a handshake with p begins. From then on Admit waits for p: the
// direct events of p are held back.
func (r *Registry) Pending(p peer.ID) {
	r.change(func(c *core) []Transition { return c.pending(p) })
}

// Linked records that the link to p is complete. greeting is what p said in the
// handshake.
func (r *Registry) Linked(p peer.ID, greeting []byte) {
	r.change(func(c *core) []Transition { return c.linked(p, greeting) })
}

// Unlinked records that the handshake with p has failed or that its link has ended. reason
// is the error, and how says whether the link was ended on purpose.
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

// change calls fact, which records a fact in the core, and passes the changes of records
// that fact returns to the followers.
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
		// Keep the changes for Follow. The parts of the node that will follow the
		// changes may not exist yet.
		r.missed = append(r.missed, changes...)
	}
	if now := time.Now(); turnedAway > 0 && now.Sub(r.warned) >= warnInterval {
		r.warned = now
		r.cfg.Log.Warn("no place on pubsub for another guest; allow more guests to serve it", "max", r.cfg.MaxGuests)
	}
	r.schedule(next)
}

// schedule sets the timer that calls advance to the time next; the zero time stops the
// timer. The caller must hold facts.
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

// deliver passes the changes to the followers, one change after the other. The caller must
// hold facts.
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

// Standing returns the Standing in the record of p, or the zero value if p has no record.
func (r *Registry) Standing(p peer.ID) Standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.standing(p)
}

// TurnedAway returns how many times a guest or leaf found all places taken that pubsub has
// for guests and leaves.
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

// Admit waits while the direct events of p are held back: from the beginning of a handshake
// with p until the callbacks which report p as a new neighbor have run, or until the
// handshake fails. If ctx ends first, Admit returns the cause of ctx.
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

// Release lets the direct events of a new neighbor pass, which were held back. added is the
// change by which the peer became a neighbor. Release must be called when the callbacks for
// that change have run.
func (r *Registry) Release(added *Transition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.core.release(added.Peer, added.Admission)
	r.admitted.Broadcast()
}
