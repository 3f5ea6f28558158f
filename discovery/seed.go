package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/directdial"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

const (
	// findTimeout bounds one search for the node at a seed's address.
	findTimeout = 5 * time.Second
	// quicGrace is how much longer QUIC may take once TCP on the same port was refused. A
	// closed UDP port answers nothing, so only waiting tells.
	quicGrace = time.Second
)

// findSeed finds out which node is at the address of s, and leaves a connection to it. It asks
// anew each time, so it finds a seed that came back with another identity, unless /p2p/ID or a
// ticket pins the id. The result holds the addresses that answered.
//
// findSeed blocks for five seconds at most, and not longer than ctx. It looks a name up each
// time. All addresses of a name or a ticket are tried at once. The error is ErrSelf,
// ErrUnresolvable, ErrUnreachable, ErrRelayed, ErrNotSmokesignal (the answer was not that of a
// libp2p host) or *WrongIDError, each in one line with the cause wrapped, or the cause of ctx if
// ctx was canceled.
func findSeed(ctx context.Context, h corehost.Host, s *seed.Seed) (peer.AddrInfo, error) {
	if s.ID() != "" && s.ID() == h.ID() {
		return peer.AddrInfo{}, withText(ErrSelf)
	}
	limited, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	find := findOne
	if len(s.Targets()) > 1 {
		find = findAny
	}
	info, err := find(limited, h, s)
	if err == nil {
		return info, nil
	}
	// The caller gave up, so the address is not at fault. A deadline is different: the
	// address did not answer in time.
	if errors.Is(ctx.Err(), context.Canceled) {
		return peer.AddrInfo{}, context.Cause(ctx)
	}
	return peer.AddrInfo{}, explain(err)
}

// findSeed is the function of the same name on the driver's host. Close ends it.
func (d *Driver) findSeed(ctx context.Context, s *seed.Seed) (peer.AddrInfo, error) {
	kind := directdial.Plain
	if forcesDirect(d.host) {
		kind = directdial.Forced
	}
	ctx, end, err := d.seedDials.Begin(ctx, kind)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	defer end()
	return findSeed(ctx, d.host, s)
}

// forcesDirect reports whether seeds are dialed with network.WithForceDirectDial. On a host
// that dials relays, a direct address must not be reached through one. And where the
// swarm's back-off cannot be cleared, a forced direct dial ignores it. On other hosts
// nothing is forced, because libp2p's swarm panics if it is closed at that moment.
func forcesDirect(h corehost.Host) bool { return dialsRelays(h) || backoff(h) == nil }

// findOne is findSeed for a seed that is not a ticket with several targets.
func findOne(ctx context.Context, h corehost.Host, s *seed.Seed) (peer.AddrInfo, error) {
	targets, err := s.Resolve(ctx)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	own := ownPorts(h)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	direct := ctx
	if forcesDirect(h) {
		direct = network.WithForceDirectDial(ctx, "smokesignal seed")
	}
	answers := make(chan targetResult, len(targets))
	asked := 0
	var failed failures
	for _, t := range targets {
		if own[t.At] { // a dial to it would only fail later
			failed.add(targetResult{target: t, err: selfError(h, s)})
			continue
		}
		asked++
		tasks.Go(func() {
			switch {
			case t.Relayed():
				answers <- findRelayed(ctx, h, t)
			case len(targets) == 1 && t.ID != "" && len(t.Addrs) == 1 && !s.IsTicket():
				// The id is known and there is one address, so there is no need to ask for
				// the id first. A ticket may have more addresses of the same id, and the
				// swarm would wait for one of them before it dials the next.
				answers <- connect(direct, h, t, t.ID, t.Addrs)
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

// findAny tries all targets at once, of which each may be a name to look up, and returns the
// first node that is found.
func findAny(ctx context.Context, h corehost.Host, s *seed.Seed) (peer.AddrInfo, error) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan targetResult, len(s.Targets()))
	for _, t := range s.Targets() {
		tasks.Go(func() {
			info, err := findOne(ctx, h, s.Only(t))
			answers <- targetResult{target: t, info: info, err: explain(err)}
		})
	}
	var failed failures
	for range s.Targets() {
		a := <-answers
		if a.err == nil {
			return a.info, nil
		}
		failed.add(a)
	}
	return peer.AddrInfo{}, failed.err()
}

// selfError returns the error for a seed at whose address this node itself is. A pinned seed
// is another node, which may come back there.
func selfError(h corehost.Host, s *seed.Seed) error {
	if s.ID() != "" {
		return &WrongIDError{Expected: s.ID(), Actual: h.ID()}
	}
	return withText(ErrSelf)
}

// A targetResult is the outcome for one target.
type targetResult struct {
	target seed.Target
	info   peer.AddrInfo
	err    error
}

// failures collects why no target of a seed could be used.
type failures struct {
	self bool // this node itself is at one of the targets
	list []targetResult
}

func (f *failures) add(a targetResult) {
	if errors.Is(a.err, ErrSelf) {
		f.self = true
		return
	}
	f.list = append(f.list, a)
}

// err returns the cause of the highest rank. One name may stand for all seeds, this node
// among them. It counts as this node itself only if all its other addresses are loopback
// (localhost is 127.0.0.1 and ::1).
func (f *failures) err() error {
	var best error
	var highest rank
	var all []error
	for _, a := range f.list {
		if f.self && a.target.At.Addr().IsLoopback() {
			continue
		}
		all = append(all, a.err)
		r := rankAnswer
		if failure, ok := errors.AsType[*failure](a.err); ok {
			r = failure.rank
		}
		if best == nil || r > highest {
			best, highest = a.err, r
		}
	}
	if best == nil {
		if f.self {
			return withText(ErrSelf)
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

// meet asks at all addresses of t at once for the id of the node there, and connects to the
// first node that answers.
func meet(ctx context.Context, h corehost.Host, t seed.Target) targetResult {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type reply struct {
		id   peer.ID
		addr ma.Multiaddr
		err  error
	}
	replies := make(chan reply, len(t.Addrs))
	start := time.Now()
	for _, a := range t.Addrs {
		tasks.Go(func() {
			id, err := askID(ctx, h, a)
			replies <- reply{id, a, err}
		})
	}
	var best *failure
	for range t.Addrs {
		r := <-replies
		if r.err == nil {
			switch {
			case t.ID != "" && r.id != t.ID:
				return targetResult{target: t, err: &WrongIDError{Expected: t.ID, Actual: r.id}}
			case r.id == h.ID():
				return targetResult{target: t, err: withText(ErrSelf)}
			}
			addrs := []ma.Multiaddr{r.addr}
			if dialsRelays(h) {
				// Hole punching needs a QUIC connection first: it shows the address under
				// which others see this node. The address that answered first is usually
				// TCP, so libp2p gets all of them and prefers QUIC by itself.
				addrs = t.Addrs
			}
			return connect(ctx, h, t, r.id, addrs)
		}
		f := highestRank(r.err)
		f.err = r.err
		if best == nil || f.rank > best.rank {
			best = f
		}
		if f.rank >= rankRoute {
			// That was a clear no. The other dial, QUIC, may take a few round trips, which
			// the no has measured, and no longer.
			late := time.AfterFunc(quicGrace+4*time.Since(start), cancel)
			defer late.Stop()
		}
	}
	return targetResult{target: t, err: best}
}

// connect connects to id at addrs.
func connect(ctx context.Context, h corehost.Host, t seed.Target, id peer.ID, addrs []ma.Multiaddr) targetResult {
	info := peer.AddrInfo{ID: id, Addrs: addrs}
	if id == h.ID() {
		return targetResult{target: t, err: withText(ErrSelf)}
	}
	// The state machine decides how often a seed is tried, and the error "dial backoff"
	// would hide the real cause.
	clearBackoff(h, id)
	err := h.Connect(ctx, info)
	if err != nil {
		clearBackoff(h, id)
		err = explain(err)
		if _, wrong := errors.AsType[*WrongIDError](err); wrong {
			h.Peerstore().SetAddrs(id, addrs, 0) // they belong to another node
		}
		return targetResult{target: t, err: err}
	}
	return targetResult{target: t, info: info}
}

// askID returns the id of the node at an address. It dials with an id that no node has. The
// other side then proves its own id, the handshake fails, and the error names that id. Noise
// and TLS check the id before anything else is sent, so this works on all transports. Over
// WebRTC, where the dialed side finishes its handshake first, the other side has a connection
// for a moment.
func askID(ctx context.Context, h corehost.Host, a ma.Multiaddr) (peer.ID, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return "", err
	}
	nobody, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return "", err
	}
	ps := h.Peerstore()
	ps.AddAddr(nobody, a, peerstore.TempAddrTTL)
	_, err = h.Network().DialPeer(ctx, nobody)
	ps.ClearAddrs(nobody)
	ps.RemovePeer(nobody)
	clearBackoff(h, nobody)
	if mismatch, ok := errors.AsType[sec.ErrPeerIDMismatch](err); ok && mismatch.Expected == nobody {
		return mismatch.Actual, nil
	}
	if err == nil {
		return "", fmt.Errorf("the node at %s proved an id that was made up a moment ago", a)
	}
	return "", err
}

// clearBackoff makes the swarm forget that dials to p failed, unless the host hides its swarm.
func clearBackoff(h corehost.Host, p peer.ID) {
	if b := backoff(h); b != nil {
		b.Clear(p)
	}
}

// backoff returns the swarm's back-off of dials, or nil if the host hides its swarm.
func backoff(h corehost.Host) *swarm.DialBackoff {
	if s, ok := h.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
		return s.Backoff()
	}
	return nil
}

// ownPorts returns the addresses and ports on which this node listens.
func ownPorts(h corehost.Host) map[netip.AddrPort]bool {
	own := map[netip.AddrPort]bool{}
	addrs, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		return own // the handshake will tell
	}
	for _, a := range addrs {
		if ap, ok := addr.AddrPort(a); ok {
			own[ap] = true
		}
	}
	return own
}
