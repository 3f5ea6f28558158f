package smokesignal

import (
	"context"
	"io"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// A Peer is a handle on another node, which need not be linked to this one. Node.Peer and
// Peers return it. It stays valid when the link ends and is made again. All methods may be
// called from several goroutines, and from handlers.
type Peer struct {
	node *Node
	id   ID
	bad  error // why id cannot be the id of a node; nil if it can

	onClose listeners[error]
}

// ID returns the peer's identity.
func (p *Peer) ID() ID { return p.id }

// Linked reports whether the peer is in the peer list.
func (p *Peer) Linked() bool { return p.node.records.Has(p.id) }

// RTT returns the round trip time that was last measured on the link. It is zero before the
// first measurement, before Start, and after Close.
func (p *Peer) RTT() time.Duration {
	if p.node.running() != nil {
		return 0
	}
	return p.node.driver.RTT(p.id)
}

// Addr returns the address of the peer, or nil if the peer is not connected. If this node
// dialed the peer, it is the address that was dialed. Otherwise it is an address on which the
// peer says that it listens or, if there is none, the remote address of the connection.
func (p *Peer) Addr() ma.Multiaddr {
	conns := slices.DeleteFunc(p.node.host.Network().ConnsToPeer(p.id), func(c network.Conn) bool {
		return addr.IsRelayed(c.RemoteMultiaddr()) // the relay's address is not the peer's
	})
	for _, c := range conns {
		if c.Stat().Direction == network.DirOutbound {
			return c.RemoteMultiaddr()
		}
	}
	for _, c := range conns {
		ip, err := manet.ToIP(c.RemoteMultiaddr())
		if err != nil {
			continue
		}
		for _, a := range p.node.host.Peerstore().Addrs(p.id) {
			if x, err := manet.ToIP(a); err == nil && x.Equal(ip) {
				return a
			}
		}
		return c.RemoteMultiaddr()
	}
	return nil
}

// AddrPort returns the IP address and port of Addr. It is the zero value if the peer is not
// connected. The Node.js library calls the two remoteAddress and remotePort.
func (p *Peer) AddrPort() netip.AddrPort {
	a := p.Addr()
	if a == nil {
		return netip.AddrPort{}
	}
	at, _, _ := addr.Split(a) // with its zone, if it has one
	return at
}

// Emit sends an event to the peer alone. Events of one caller arrive in the order of the
// calls, at most once. Nil means that the event is in the peer's queue. The arguments belong
// to the caller again when Emit returns.
//
// Emit blocks while the queue is full, until ctx ends; it returns ErrStalled when nothing could
// be written to the peer for ten seconds. If there is no connection to the peer, Emit looks for
// the peer in the network and dials it, until ctx ends. If that fails, the error is
// ErrNotConnected and wraps the cause: ErrUnknownPeer (nobody knows where the peer is),
// ErrUnreachable (it does not answer at its addresses), ErrOtherNetwork, or ErrRefused (it does
// not accept events from this node).
// These errors come at once: ErrNotStarted, ErrClosed, ErrBadID, ErrBadName, ErrTooLarge and
// ErrBadArgument. After an error the event is not sent.
func (p *Peer) Emit(ctx context.Context, name string, args ...any) error {
	if p.bad != nil {
		return p.bad
	}
	return p.node.direct.Emit(ctx, p.id, name, args...)
}

// TryEmit is Emit without waiting: it returns ErrQueueFull when the peer's queue is full. If
// there is no stream to the peer yet, the peer is found and the stream opened in the
// background.
func (p *Peer) TryEmit(name string, args ...any) error {
	if p.bad != nil {
		return p.bad
	}
	return p.node.direct.TryEmit(p.id, name, args...)
}

// Call calls the handler of that name at the peer and waits for its answer, whose arguments are
// the results. It waits until ctx ends, or ten seconds if ctx has no deadline. A peer that is
// not connected is found as by Emit. A nil error means that the handler has finished,
// ErrUnknownOutcome that it may have run; it never runs twice. Call.Do is the same with types,
// and names all errors.
func (p *Peer) Call(ctx context.Context, name string, args ...any) (*Event, error) {
	if p.bad != nil {
		return nil, p.bad
	}
	answer, err := p.node.direct.Call(ctx, p.id, name, args...)
	return (*Event)(answer), err
}

// Handle registers f to answer the calls of that name that the peer makes; with the name "*",
// f answers the peer's calls that no other handler answers. The results of f are the arguments
// of the answer, and its error goes to the peer as text. f takes precedence over a handler of
// Direct.Handle, which is for the calls of any peer. It stays registered when the link ends.
// off removes f.
func (p *Peer) Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return p.node.direct.HandleFrom(p.id, name, callHandler(f))
}

// On calls f for each event of that name that the peer sends to this node alone, or for each
// such event of any name if the name is "*". The rules are those of Direct.On. f stays
// registered when the link ends. off removes f.
func (p *Peer) On(name string, f func(context.Context, *Event)) (off func()) {
	return p.node.direct.OnFrom(p.id, name, handler(f))
}

// OnClose calls f each time the link to the peer ends. reason is a *CloseError, which says why
// the link ended and how many accepted events were not sent. If the peer is not linked now, f
// is called at the end of its next link. off removes f.
func (p *Peer) OnClose(f func(ctx context.Context, reason error)) (off func()) {
	return p.node.peers.register(p).onClose.on(f)
}

// Pipe returns a reader and writer of the direct events named "data" between this node and
// the peer, as the Node.js library smokesignal has it. Each Write emits one event, and blocks
// and fails as Emit does. Each Read returns bytes of one event of the peer, never of two. Close
// closes the Pipe, not the link; Read returns io.EOF then.
//
// A Pipe receives the events that arrive after this call, and buffers up to 64 KiB or 256
// events. While the buffer is full, all direct events and calls of the peer wait, so read
// the Pipe or close it.
func (p *Peer) Pipe() io.ReadWriteCloser { return p.node.direct.Pipe(p.id) }

// The methods below exist for Name, whose events are typed: with them it makes one allocation
// less per event.

func (p *Peer) emitBytes(ctx context.Context, name string, b []byte) error {
	if p.bad != nil {
		return p.bad
	}
	return p.node.direct.EmitBytes(ctx, p.id, name, b)
}

func (p *Peer) onBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return p.node.direct.OnBorrowed(p.id, name, handler(f))
}

func (p *Peer) closing() <-chan struct{} { return p.node.direct.Done() }

// Disconnect ends the link to the peer, and returns before the link has ended. It does nothing
// if the peer is not linked. For thirty seconds the node does not link to the peer again by
// itself, unless it has no other peer. The connection stays open, since other libp2p code may
// use it. The error is ErrNotStarted or ErrClosed. The Node.js library calls this method close.
func (p *Peer) Disconnect() error {
	if err := p.node.running(); err != nil {
		return err
	}
	return p.node.driver.Remove(context.Background(), p.id)
}

// Peers is the list of the peers that a node is linked to. Node.Peers returns it. All methods
// may be called from several goroutines, and from handlers.
type Peers struct {
	node *Node

	mu      sync.Mutex
	handles map[ID]*Peer // the handles of peers that are linked or that have OnClose handlers

	onAdd    listeners[*Peer]
	onRemove listeners[*Peer]
}

// All iterates over the peers that are in the list when the loop begins, in the order in
// which they were added.
func (l *Peers) All() iter.Seq[*Peer] {
	return func(yield func(*Peer) bool) {
		for _, id := range l.node.records.Neighbors() {
			if !yield(l.handle(id)) {
				return
			}
		}
	}
}

// Get returns the peer with that id, or nil if it is not in the list. For a Peer that you
// have, Peer.Linked reports whether it is in the list.
func (l *Peers) Get(id ID) *Peer {
	if !l.node.records.Has(id) {
		return nil
	}
	return l.handle(id)
}

// Len returns the number of peers.
func (l *Peers) Len() int { return l.node.records.Len() }

// Full reports whether the list has reached the maximum of PeerLimits.
func (l *Peers) Full() bool { return l.node.records.Full() }

// Sufficient reports whether the list has reached the minimum of PeerLimits.
func (l *Peers) Sufficient() bool { return l.node.records.Sufficient() }

// OnAdd calls f when a peer was added. The peer's direct events are read only after all OnAdd
// handlers have returned, so an event handler that f registers misses none of them. off
// removes f.
func (l *Peers) OnAdd(f func(context.Context, *Peer)) (off func()) { return l.onAdd.on(f) }

// OnRemove calls f when a peer was removed. off removes f.
func (l *Peers) OnRemove(f func(context.Context, *Peer)) (off func()) { return l.onRemove.on(f) }

// handle returns the registered Peer for id, or a new one. It registers the new one only if the
// peer is linked.
func (l *Peers) handle(id ID) *Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.handles[id]; p != nil {
		return p
	}
	p := &Peer{node: l.node, id: id, bad: checkID(id)}
	if p.bad != nil {
		// Handlers that the application registers with this handle will never be called.
		l.node.log.Error("a peer that cannot exist", "error", p.bad)
	}
	if l.node.records.Has(id) {
		l.handles[id] = p
	}
	return p
}

// register makes p the Peer that handle returns for its id, unless one is registered already,
// and returns the registered Peer.
func (l *Peers) register(p *Peer) *Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if kept := l.handles[p.id]; kept != nil {
		return kept
	}
	l.handles[p.id] = p
	return p
}

// unregister forgets the Peer of a node that was removed from the list, unless the Peer has
// OnClose handlers, which are called again when the next link ends.
func (l *Peers) unregister(p *Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.node.records.Has(p.id) && p.onClose.empty() {
		delete(l.handles, p.id)
	}
}
