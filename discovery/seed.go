package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

const (
	// findTimeout bounds one Find (promise 5).
	findTimeout = 5 * time.Second
	// quicGrace is how much longer QUIC may take once TCP on the same port was
	// refused; a closed UDP port says nothing, so only waiting tells.
	quicGrace = time.Second
	// maxTargets bounds the places a name may stand for.
	maxTargets = 16
	// maxDNSAddrs bounds how often a dnsaddr may refer to another.
	maxDNSAddrs = 4
)

// A Seed is an address at which a network can be joined, as a user wrote it. It
// does not change; its methods may be called from several goroutines.
type Seed struct {
	text    string
	id      peer.ID  // pinned by /p2p/ID or a ticket, or empty
	network string   // of a ticket; empty for other seeds
	targets []target // empty for a name with a port; one but for a ticket
	name    string
	port    uint16
	dns     madns.BasicResolver
}

// A target is one place to look at: addresses which must be the same node's
// (TCP and QUIC on one port), the id it has to prove if that is known, and its
// address and port if they are.
type target struct {
	addrs []ma.Multiaddr
	id    peer.ID
	at    netip.AddrPort
}

var systemDNS madns.BasicResolver = net.DefaultResolver

// String returns the text the seed was parsed from.
func (s *Seed) String() string { return s.text }

// ID returns the id pinned by /p2p/ID or a ticket, or the empty id.
func (s *Seed) ID() peer.ID { return s.id }

// AddrPorts returns the IP addresses and ports that the text gives, and none for a name or
// an address behind a relay.
func (s *Seed) AddrPorts() (list []netip.AddrPort) {
	for _, t := range s.targets {
		if t.at.IsValid() {
			list = append(list, t.at)
		}
	}
	return list
}

// Network returns the name of the network that a ticket is for, and is empty for
// other seeds.
func (s *Seed) Network() string { return s.network }

// Find looks who is at the seed's address and leaves a connection open to it.
// It asks anew each time, so a seed that came back with another identity is
// found, unless /p2p/ID or a ticket pins it. The result holds the addresses at
// which it answered.
//
// Find blocks until then, at most 5 s and not longer than ctx. A name is looked
// up each time and all its addresses, as those of a ticket, are tried at once. The
// errors are ErrSelf, ErrUnresolvable, ErrUnreachable, ErrRelayed,
// ErrNotSmokesignal (no libp2p there) and *WrongIDError, each one line with the
// cause wrapped, or that of ctx when ctx was cancelled.
func (s *Seed) Find(ctx context.Context, h corehost.Host) (peer.AddrInfo, error) {
	if s.id != "" && s.id == h.ID() {
		return peer.AddrInfo{}, ErrSelf
	}
	limited, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	look := s.find
	if len(s.targets) > 1 {
		look = s.findAny
	}
	info, err := look(limited, h)
	if err == nil {
		return info, nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return peer.AddrInfo{}, context.Cause(ctx)
	}
	return peer.AddrInfo{}, explain(err)
}

func (s *Seed) find(ctx context.Context, h corehost.Host) (peer.AddrInfo, error) {
	targets, err := s.resolve(ctx)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	own := ownPorts(h)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Where relays are dialled, what is given as a direct address is not to be reached
	// through one, and a direct dial passes over the swarm's back-off also where that
	// cannot be cleared. Elsewhere none is forced: libp2p's swarm panics when it is
	// closed at that moment.
	direct := ctx
	if dialsRelays(h) || backoff(h) == nil {
		direct = network.WithForceDirectDial(ctx, "smokesignal seed")
	}
	answers := make(chan answer, len(targets))
	asked := 0
	var failed failures
	for _, t := range targets {
		if own[t.at] {
			failed.add(answer{target: t, err: s.isSelf(h)})
			continue
		}
		asked++
		tasks.Go(func() {
			switch {
			case t.relayed():
				answers <- t.findRelayed(ctx, h)
			case len(targets) == 1 && t.id != "" && len(t.addrs) == 1 && !s.isTicket():
				// Who should be there is known and there is one way to him: no need to
				// ask first who it is. A ticket may have others, of which the swarm
				// would wait for one before it dials the next.
				answers <- connect(direct, h, t, t.id, t.addrs)
			default:
				answers <- meet(direct, h, t)
			}
		})
	}
	for range asked {
		a := <-answers
		if a.err == nil {
			return a.info, nil
		}
		failed.add(a)
	}
	return peer.AddrInfo{}, failed.err()
}

// findAny looks at all targets at once, each with its own name to look up, and takes
// the first that is found.
func (s *Seed) findAny(ctx context.Context, h corehost.Host) (peer.AddrInfo, error) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(s.targets))
	for _, t := range s.targets {
		tasks.Go(func() {
			one := *s
			one.targets = []target{t}
			info, err := one.find(ctx, h)
			answers <- answer{target: t, info: info, err: explain(err)}
		})
	}
	var failed failures
	for range s.targets {
		a := <-answers
		if a.err == nil {
			return a.info, nil
		}
		failed.add(a)
	}
	return peer.AddrInfo{}, failed.err()
}

func (s *Seed) isTicket() bool { return s.network != "" }

// isSelf is what to say when this node itself is at the seed's address. A pinned
// seed is another one, which may come back there.
func (s *Seed) isSelf(h corehost.Host) error {
	if s.id != "" {
		return &WrongIDError{Expected: s.id, Actual: h.ID()}
	}
	return ErrSelf
}

// An answer is what came of one target.
type answer struct {
	target
	info peer.AddrInfo
	err  error
}

// failures gathers why no target of a seed could be used.
type failures struct {
	self bool // an address was this node's own
	list []answer
}

func (f *failures) add(a answer) {
	if errors.Is(a.err, ErrSelf) {
		f.self = true
		return
	}
	f.list = append(f.list, a)
}

// err returns the most telling cause. A name that stands for this node and for
// others, as one name for all seeds may, is this node only if the others are
// mere loopback twins (localhost is 127.0.0.1 and ::1).
func (f *failures) err() error {
	var best error
	var rank int
	var all []error
	for _, a := range f.list {
		if f.self && a.at.Addr().IsLoopback() {
			continue
		}
		all = append(all, a.err)
		r := rankAnswer
		if failure, ok := errors.AsType[*failure](a.err); ok {
			r = failure.rank
		}
		if best == nil || r > rank {
			best, rank = a.err, r
		}
	}
	if best == nil {
		if f.self {
			return ErrSelf
		}
		return &failure{kind: ErrUnresolvable, text: "the name has no usable address"}
	}
	if failure, ok := errors.AsType[*failure](best); ok && len(all) > 1 {
		joined := *failure
		joined.err = errors.Join(all...)
		return &joined
	}
	return best
}

// meet asks at the addresses of t, all at once, who is there, and connects to
// the first that may be it.
func meet(ctx context.Context, h corehost.Host, t target) answer {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type reply struct {
		id   peer.ID
		addr ma.Multiaddr
		err  error
	}
	replies := make(chan reply, len(t.addrs))
	start := time.Now()
	for _, addr := range t.addrs {
		tasks.Go(func() {
			id, err := whoIsAt(ctx, h, addr)
			replies <- reply{id, addr, err}
		})
	}
	var best *failure
	for range t.addrs {
		r := <-replies
		if r.err == nil {
			switch {
			case t.id != "" && r.id != t.id:
				return answer{target: t, err: &WrongIDError{Expected: t.id, Actual: r.id}}
			case r.id == h.ID():
				return answer{target: t, err: ErrSelf}
			}
			addrs := []ma.Multiaddr{r.addr}
			if dialsRelays(h) {
				// Holes are punched for QUIC, once a connection over it has shown where
				// this node is seen; TCP answers sooner, but libp2p prefers QUIC.
				addrs = t.addrs
			}
			return connect(ctx, h, t, r.id, addrs)
		}
		f := mostTelling(r.err)
		f.err = r.err
		if best == nil || f.rank > best.rank {
			best = f
		}
		if f.rank >= rankRoute {
			// That was a clear no. What else is under way, QUIC, may take as long as a
			// few round trips, which the no has measured, and no longer.
			late := time.AfterFunc(quicGrace+4*time.Since(start), cancel)
			defer late.Stop()
		}
	}
	return answer{target: t, err: best}
}

// connect connects to id at addrs.
func connect(ctx context.Context, h corehost.Host, t target, id peer.ID, addrs []ma.Multiaddr) answer {
	info := peer.AddrInfo{ID: id, Addrs: addrs}
	if id == h.ID() {
		return answer{target: t, err: ErrSelf}
	}
	// How often a seed is tried is decided above, and "dial backoff" would take the
	// place of the real cause.
	clearBackoff(h, id)
	err := h.Connect(ctx, info)
	if err != nil {
		clearBackoff(h, id)
		err = explain(err)
		if _, wrong := errors.AsType[*WrongIDError](err); wrong {
			h.Peerstore().SetAddrs(id, addrs, 0) // they are somebody else's
		}
		return answer{target: t, err: err}
	}
	return answer{target: t, info: info}
}

// whoIsAt returns the id of the node at addr. It dials with an id that nobody
// has: the other side's proof of its own then fails the handshake, and the
// failure says who it is. Noise and TLS check before anything else is sent, so
// this works alike on all transports. With WebRTC, where the side that is dialled speaks
// first, the dial is a connection there for a moment.
func whoIsAt(ctx context.Context, h corehost.Host, addr ma.Multiaddr) (peer.ID, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return "", err
	}
	nobody, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return "", err
	}
	ps := h.Peerstore()
	ps.AddAddr(nobody, addr, peerstore.TempAddrTTL)
	_, err = h.Network().DialPeer(ctx, nobody)
	ps.ClearAddrs(nobody)
	ps.RemovePeer(nobody)
	clearBackoff(h, nobody)
	if mismatch, ok := errors.AsType[sec.ErrPeerIDMismatch](err); ok && mismatch.Expected == nobody {
		return mismatch.Actual, nil
	}
	if err == nil {
		return "", fmt.Errorf("somebody at %s proved an id made up a moment ago", addr)
	}
	return "", err
}

// clearBackoff makes the swarm forget that dials to p failed, where the swarm
// can be reached.
func clearBackoff(h corehost.Host, p peer.ID) {
	if b := backoff(h); b != nil {
		b.Clear(p)
	}
}

// backoff returns what the swarm knows of failed dials, or nil if it is hidden.
func backoff(h corehost.Host) *swarm.DialBackoff {
	if s, ok := h.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
		return s.Backoff()
	}
	return nil
}

// ownPorts returns where this node listens.
func ownPorts(h corehost.Host) map[netip.AddrPort]bool {
	own := map[netip.AddrPort]bool{}
	addrs, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		return own // then the handshake tells
	}
	for _, a := range addrs {
		if ap, ok := addr.AddrPort(a); ok {
			own[ap] = true
		}
	}
	return own
}
