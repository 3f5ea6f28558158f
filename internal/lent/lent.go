// Package lent lets a node run on a libp2p host that belongs to the application. It allows one
// node per host, and does not change or close anything that belongs to the application.
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

// ErrClaimed is returned by [Claim] when another node uses the host already.
var ErrClaimed = errors.New("lent: another node uses the host already")

// claims lists the hosts of this process that a node uses.
var claims = struct {
	mu      sync.Mutex
	claimed map[any]bool
}{claimed: map[any]bool{}}

// Claim reserves h for one node until release is called. It returns [ErrClaimed] if another
// node has claimed h, or a host that wraps h.
func Claim(h corehost.Host) (release func(), err error) {
	// The key is the host's table of stream handlers, in which the handlers of two nodes
	// would collide. A host that wraps another, such as a routed host, has the same table.
	var key any = h.Mux()
	if !reflect.TypeOf(key).Comparable() {
		key = h.ID()
	}
	claims.mu.Lock()
	defer claims.mu.Unlock()
	// If h has a handler for one of our protocols but no claim, the program contains another
	// version of this module, whose claims are in another variable.
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

// PubSubProtocols returns the pubsub protocols for which h has a stream handler.
func PubSubProtocols(h corehost.Host) []protocol.ID {
	return slices.DeleteFunc(slices.Clone(h.Mux().Protocols()), func(id protocol.ID) bool { return !isPubSub(id) })
}

// A Wrapper wraps a host of the application for a node. Its Listen and Close do nothing.
type Wrapper struct {
	corehost.Host

	sharesTopic func(peer.ID) bool // see Wrap

	mu       sync.Mutex
	handlers map[protocol.ID]*releasableHandler
}

// A releasableHandler is the stream handler that the host gets in place of the node's own one,
// to which it holds a pointer. The host's table keeps a removed handler in memory until another
// one replaces it (go-multistream v0.6.1). Without this indirection, it would keep a closed node
// and all its data in memory.
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

// Wrap returns a Wrapper of h. If the application lends its pubsub as well, sharesTopic reports
// whether the application and a peer are on the same topic. Otherwise sharesTopic is nil.
func Wrap(h corehost.Host, sharesTopic func(peer.ID) bool) *Wrapper {
	return &Wrapper{Host: h, sharesTopic: sharesTopic, handlers: map[protocol.ID]*releasableHandler{}}
}

// SetStreamHandler sets a stream handler. After RemoveStreamHandler, nothing keeps the handler
// in memory any more.
func (h *Wrapper) SetStreamHandler(id protocol.ID, f network.StreamHandler) {
	h.Host.SetStreamHandler(id, h.newHandler(id, f))
}

// SetStreamHandlerMatch sets a stream handler for all protocols that match accepts. After
// RemoveStreamHandler, nothing keeps the handler in memory any more.
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

// RemoveStreamHandler removes the handler of a protocol and releases its memory.
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

// Dialable returns the current addresses of the host, each with /p2p/ID at its end. The
// addresses that most peers can dial come first. Addresses that nobody can dial are skipped,
// even if the application advertises them.
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

// Relayed returns the smokesignal nodes that are connected only through relays. It leaves out
// peers of the application that are not nodes.
func (h *Wrapper) Relayed() (list []peer.ID) {
	for _, p := range addr.RelayedPeers(h.Network()) {
		if ids, err := h.Peerstore().GetProtocols(p); err == nil && slices.ContainsFunc(ids, protocol.IsOurs) {
			list = append(list, p)
		}
	}
	return list
}

// Spare reports whether only the node uses the connection c: c has no stream of the
// application, and the application has not protected the peer in the connection manager.
func (h *Wrapper) Spare(c network.Conn) bool {
	return !UsedByOthers(c, h.sharesTopic) && !h.ConnManager().IsProtected(c.RemotePeer(), "")
}

// UsedByOthers reports whether the connection c has a stream that does not belong to the node.
// sharesTopic has the same meaning as in [Wrap].
func UsedByOthers(c network.Conn, sharesTopic func(peer.ID) bool) bool {
	pubsub := false
	for _, s := range c.GetStreams() {
		switch id := s.Protocol(); {
		case id == "": // its protocol is still being negotiated
		case protocol.IsOurs(id):
		case strings.HasPrefix(string(id), "/ipfs/id/"): // libp2p's own identify protocol
		case isPubSub(id):
			pubsub = true
		default:
			return true
		}
	}
	// Pubsub keeps a stream to every peer that speaks it. So a pubsub stream alone does not
	// mean that the application needs the connection; a common topic does.
	return pubsub && sharesTopic != nil && sharesTopic(c.RemotePeer())
}
