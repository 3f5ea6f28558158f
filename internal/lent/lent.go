// Package lent puts a node on a libp2p host that belongs to the application: one node
// per host, without changing or closing anything that is the application's.
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
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// ErrClaimed is returned by [Claim] for a host that has a node already.
var ErrClaimed = errors.New("lent: another node is on the host already")

// claims holds the hosts of this process that have a node. Hosts of two processes are
// never the same.
var claims = struct {
	mu      sync.Mutex
	claimed map[any]bool
}{claimed: map[any]bool{}}

// Claim makes h the host of one node until release is called. It returns [ErrClaimed] if
// another node has claimed it, directly or behind a wrapper.
func Claim(h corehost.Host) (release func(), err error) {
	// A wrapper, such as a routed host, shares the table of protocols with its host. That
	// table is where two nodes would collide.
	var key any = h.Mux()
	if !reflect.TypeOf(key).Comparable() {
		key = h.ID()
	}
	claims.mu.Lock()
	defer claims.mu.Unlock()
	// If a protocol of ours is served and nobody has claimed the host here, the program
	// contains another version of this module.
	if claims.claimed[key] || slices.ContainsFunc(h.Mux().Protocols(), protocol.IsOurs) {
		return nil, ErrClaimed
	}
	claims.claimed[key] = true
	return sync.OnceFunc(func() {
		claims.mu.Lock()
		defer claims.mu.Unlock()
		delete(claims.claimed, key)
	}), nil
}

func isPubSub(id protocol.ID) bool {
	return strings.HasPrefix(string(id), "/floodsub/") || strings.HasPrefix(string(id), "/meshsub/")
}

// PubSubProtocols returns the pubsub protocols that h serves.
func PubSubProtocols(h corehost.Host) []protocol.ID {
	return slices.DeleteFunc(slices.Clone(h.Mux().Protocols()), func(id protocol.ID) bool { return !isPubSub(id) })
}

// A Wrapper is a host of the application, as a node uses it. The node neither listens on it
// nor closes it.
type Wrapper struct {
	corehost.Host

	sharesTopic func(peer.ID) bool // see New

	mu       sync.Mutex
	handlers map[protocol.ID]*releasableHandler
}

// A handler is the part of a node's stream handler that the host keeps. The host's table
// does not release a removed handler until another takes its place (go-multistream
// v0.6.1). Without this indirection it would keep a closed node in memory, with all that
// the node stores.
type releasableHandler struct {
	f atomic.Pointer[network.StreamHandler]
}

func (h *releasableHandler) handle(s network.Stream) {
	if f := h.f.Load(); f != nil {
		(*f)(s)
	} else {
		s.Reset()
	}
}

// Wrap returns h for a node. If the pubsub belongs to the application as well, then
// sharesTopic reports whether the application has a topic in common with a peer. It is
// nil if the pubsub is the node's.
func Wrap(h corehost.Host, sharesTopic func(peer.ID) bool) *Wrapper {
	return &Wrapper{Host: h, sharesTopic: sharesTopic, handlers: map[protocol.ID]*releasableHandler{}}
}

// SetStreamHandler registers a handler, which RemoveStreamHandler releases.
func (h *Wrapper) SetStreamHandler(id protocol.ID, f network.StreamHandler) {
	h.Host.SetStreamHandler(id, h.newHandler(id, f))
}

// SetStreamHandlerMatch registers a handler, which RemoveStreamHandler releases.
func (h *Wrapper) SetStreamHandlerMatch(id protocol.ID, match func(protocol.ID) bool, f network.StreamHandler) {
	h.Host.SetStreamHandlerMatch(id, match, h.newHandler(id, f))
}

func (h *Wrapper) newHandler(id protocol.ID, f network.StreamHandler) network.StreamHandler {
	wrapped := new(releasableHandler)
	wrapped.f.Store(&f)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handlers[id] = wrapped
	return wrapped.handle
}

// RemoveStreamHandler removes a handler and releases it.
func (h *Wrapper) RemoveStreamHandler(id protocol.ID) {
	h.Host.RemoveStreamHandler(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	if wrapped := h.handlers[id]; wrapped != nil {
		wrapped.f.Store(nil)
		delete(h.handlers, id)
	}
}

// Listen does nothing: the application decides whether its host listens.
func (h *Wrapper) Listen() error { return nil }

// Close does nothing: the application closes its host.
func (h *Wrapper) Close() error { return nil }

// Dialable returns the present addresses of the host, each with /p2p/ID, the most
// reachable first. Addresses that cannot be dialed are skipped, even if the application
// advertises them.
func (h *Wrapper) Dialable() []ma.Multiaddr {
	var addrs []ma.Multiaddr
	for _, a := range h.Addrs() {
		base, id := peer.SplitAddr(a)
		if len(base) == 0 || id != "" && id != h.ID() || manet.IsIPUnspecified(base) || hasPortZero(base) || ma.Contains(addrs, base) {
			continue
		}
		addrs = append(addrs, base)
	}
	return addr.Dialable(addrs, h.ID())
}

func hasPortZero(a ma.Multiaddr) bool {
	for _, c := range a {
		if code := c.Protocol().Code; (code == ma.P_TCP || code == ma.P_UDP) && c.Value() == "0" {
			return true
		}
	}
	return false
}

// Relayed returns the nodes that are connected through relays only. Other peers that the
// application has connected through relays are not returned.
func (h *Wrapper) Relayed() (list []peer.ID) {
	for _, p := range addr.RelayedPeers(h.Network()) {
		if ids, err := h.Peerstore().GetProtocols(p); err == nil && slices.ContainsFunc(ids, protocol.IsOurs) {
			list = append(list, p)
		}
	}
	return list
}

// Spare reports whether a connection serves only the node: no stream of the application
// is on it, and the application has not protected the peer from the connection manager.
func (h *Wrapper) Spare(c network.Conn) bool {
	return !UsedByOthers(c, h.sharesTopic) && !h.ConnManager().IsProtected(c.RemotePeer(), "")
}

// UsedByOthers reports whether a connection has a stream that is not the node's.
// sharesTopic is as for [New].
func UsedByOthers(c network.Conn, sharesTopic func(peer.ID) bool) bool {
	pubsub := false
	for _, s := range c.GetStreams() {
		switch id := s.Protocol(); {
		case id == "": // its protocol is still being negotiated
		case protocol.IsOurs(id):
		case strings.HasPrefix(string(id), "/ipfs/id/"): // libp2p sends the peer our protocols
		case isPubSub(id):
			pubsub = true
		default:
			return true
		}
	}
	// A pubsub keeps a stream to each peer that it knows, so the stream alone does not mean
	// that the application needs the connection.
	return pubsub && sharesTopic != nil && sharesTopic(c.RemotePeer())
}
