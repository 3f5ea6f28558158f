// Package lent puts a node on a libp2p host that belongs to the application: one node
// on each host, and nothing of the application's is changed or closed.
package lent

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// ErrTaken is returned by [Claim] for a host that has a node already.
var ErrTaken = errors.New("host: there is a node on it already")

// claims are the hosts that have a node. Only within this process can two nodes get
// the same one.
var claims = struct {
	mu    sync.Mutex
	taken map[any]bool
}{taken: map[any]bool{}}

// Claim makes h the host of one node until release is called. It returns [ErrTaken]
// if it is another's, also behind a wrapper.
func Claim(h corehost.Host) (release func(), err error) {
	// What wraps a host, as a routed host does, shares its table of protocols, which
	// is where two nodes would collide.
	var key any = h.Mux()
	if !reflect.TypeOf(key).Comparable() {
		key = h.ID()
	}
	claims.mu.Lock()
	defer claims.mu.Unlock()
	// A protocol of ours that nobody claimed is served by another version of this
	// module, which a program can contain as well.
	if claims.taken[key] || slices.ContainsFunc(h.Mux().Protocols(), isOurs) {
		return nil, ErrTaken
	}
	claims.taken[key] = true
	return sync.OnceFunc(func() {
		claims.mu.Lock()
		defer claims.mu.Unlock()
		delete(claims.taken, key)
	}), nil
}

func isOurs(id protocol.ID) bool { return strings.HasPrefix(string(id), "/smokesignal/") }

func isPubSub(id protocol.ID) bool {
	return strings.HasPrefix(string(id), "/floodsub/") || strings.HasPrefix(string(id), "/meshsub/")
}

// PubSubProtocols returns the pubsub protocols that h serves.
func PubSubProtocols(h corehost.Host) []protocol.ID {
	return slices.DeleteFunc(slices.Clone(h.Mux().Protocols()), func(id protocol.ID) bool { return !isPubSub(id) })
}

// Borrowed is a host of an application's in the hands of a node, which neither
// listens on it nor closes it.
type Borrowed struct {
	corehost.Host
	// Shares, if it is not nil, says that pubsub is the application's too, and tells
	// whether it has a topic in common with a peer. Nil: all of pubsub is the node's.
	// It is set before use.
	Shares func(peer.ID) bool

	mu       sync.Mutex
	handlers map[protocol.ID]*handler
}

// A handler is what the host knows of a stream handler of the node. When one is
// removed, the host's table keeps it in memory until another takes its place
// (go-multistream v0.6.1), and would keep the whole node with what it stores.
type handler struct {
	f atomic.Pointer[network.StreamHandler]
}

func (h *handler) handle(s network.Stream) {
	if f := h.f.Load(); f != nil {
		(*f)(s)
	} else {
		s.Reset()
	}
}

// Borrow returns h for a node.
func Borrow(h corehost.Host) *Borrowed {
	return &Borrowed{Host: h, handlers: map[protocol.ID]*handler{}}
}

// SetStreamHandler registers a handler that RemoveStreamHandler takes away for good.
func (b *Borrowed) SetStreamHandler(id protocol.ID, f network.StreamHandler) {
	b.Host.SetStreamHandler(id, b.handler(id, f))
}

// SetStreamHandlerMatch does the same.
func (b *Borrowed) SetStreamHandlerMatch(id protocol.ID, match func(protocol.ID) bool, f network.StreamHandler) {
	b.Host.SetStreamHandlerMatch(id, match, b.handler(id, f))
}

func (b *Borrowed) handler(id protocol.ID, f network.StreamHandler) network.StreamHandler {
	h := new(handler)
	h.f.Store(&f)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handlers[id] = h
	return h.handle
}

// RemoveStreamHandler removes a handler.
func (b *Borrowed) RemoveStreamHandler(id protocol.ID) {
	b.Host.RemoveStreamHandler(id)
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.handlers[id]; h != nil {
		h.f.Store(nil)
		delete(b.handlers, id)
	}
}

// Listen does nothing: the application listens, or has the host dial only.
func (b *Borrowed) Listen() error { return nil }

// Close does nothing: the application closes its host.
func (b *Borrowed) Close() error { return nil }

// Dialable is [Host.Dialable] of the addresses that the host has at present. Those
// of which the application says to others what cannot be dialed are left out.
func (b *Borrowed) Dialable() []ma.Multiaddr {
	var addrs []ma.Multiaddr
	for _, a := range b.Addrs() {
		base, id := peer.SplitAddr(a)
		if len(base) == 0 || id != "" && id != b.ID() || manet.IsIPUnspecified(base) || hasPortZero(base) || ma.Contains(addrs, base) {
			continue
		}
		addrs = append(addrs, base)
	}
	return addr.Dialable(addrs, b.ID())
}

func hasPortZero(a ma.Multiaddr) bool {
	for _, c := range a {
		if code := c.Protocol().Code; (code == ma.P_TCP || code == ma.P_UDP) && c.Value() == "0" {
			return true
		}
	}
	return false
}

// Relayed returns the nodes that are connected through relays only. Whom else the
// application has connected through one is its own affair.
func (b *Borrowed) Relayed() (list []peer.ID) {
	for _, p := range b.Network().Peers() {
		if !addr.HasOnlyRelayed(b.Network(), p) {
			continue
		}
		if ids, err := b.Peerstore().GetProtocols(p); err == nil && slices.ContainsFunc(ids, isOurs) {
			list = append(list, p)
		}
	}
	return list
}

// Spare tells whether a connection serves nobody but the node: no stream of others is
// on it, and nobody has protected the peer from the connection manager.
func (b *Borrowed) Spare(c network.Conn) bool {
	p := c.RemotePeer()
	return !UsedByOthers(c, b.Shares) && !b.ConnManager().IsProtected(p, "")
}

// UsedByOthers tells whether a stream is on the connection that is not the node's.
func UsedByOthers(c network.Conn, shares func(peer.ID) bool) bool {
	pubsub := false
	for _, s := range c.GetStreams() {
		switch id := s.Protocol(); {
		case id == "", isOurs(id), strings.HasPrefix(string(id), "/ipfs/id/"):
			// Ours, or one that is nobody's yet, or libp2p telling the peer our protocols.
		case isPubSub(id):
			pubsub = true
		default:
			return true
		}
	}
	return pubsub && shares != nil && shares(c.RemotePeer())
}
