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
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/backoff"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

const (
	// findTimeout bounds the time for which findSeed looks for the node at a seed's address.
	findTimeout = 5 * time.Second
	// quicGrace is the time that a dial over QUIC has after the dial over TCP on the same
	// port was refused. A closed UDP port does not answer, so only a timeout can end it.
	quicGrace = time.Second
)

// findSeed finds out which node is at the address of s, and connects to it. It looks up names
// and asks for the id of the node each time, so it also finds a seed that was restarted with
// another identity, unless the seed contains an id. The result has the addresses that answered.
//
// findSeed blocks for at most five seconds, or until ctx ends. It tries all addresses of a name
// or a ticket at once. The error is ErrSelf, ErrUnresolvable, ErrUnreachable, ErrRelayed,
// ErrNotSmokesignal (if a program without libp2p answered) or *WrongIDError, each with a text of
// one line and the cause wrapped. If ctx was canceled, it is the cause of ctx.
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
	// If ctx was canceled, the caller has given up, and the address is not at fault. A
	// deadline of ctx is different: the address did not answer in time.
	if errors.Is(ctx.Err(), context.Canceled) {
		return peer.AddrInfo{}, context.Cause(ctx)
	}
	return peer.AddrInfo{}, explain(err)
}

// findSeed calls the function findSeed with the driver's host. Close cancels it and waits
// until it has ended.
func (d *Driver) findSeed(ctx context.Context, s *seed.Seed) (peer.AddrInfo, error) {
	d.mu.Lock() // Close holds mu while it ends d.ctx, and waits for tasks after that
	closed := d.ctx.Err() != nil
	if !closed {
		d.tasks.Add(1)
	}
	d.mu.Unlock()
	if closed {
		return peer.AddrInfo{}, context.Cause(d.ctx)
	}
	defer d.tasks.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.ctx, func() { cancel(context.Cause(d.ctx)) })()
	return findSeed(ctx, d.host, s)
}

// findOne does what findSeed does, for a seed that has a name or one target (a place where
// a node may be). It tries all the targets that the name stands for at once.
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
	answers := make(chan targetResult, len(targets))
	asked := 0
	var failed failures
	for _, t := range targets {
		if own[t.At] { // this node listens at that address, so a dial would fail
			failed.add(targetResult{target: t, err: selfError(h, s)})
			continue
		}
		asked++
		tasks.Go(func() {
			switch {
			case t.Relayed():
				answers <- findRelayed(ctx, h, t)
			case len(targets) == 1 && !s.IsTicket() && !asksFirst(h, t):
				// A ticket may have more targets with the same id. The swarm would dial
				// these one after the other, so they are asked for the id.
				answers <- connectDirect(ctx, h, t, t.ID, t.Addrs, staleAfter)
			default:
				answers <- meet(ctx, h, t)
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

// asksFirst reports whether the node at t is asked for its id before it is dialed with that
// id.
func asksFirst(h corehost.Host, t seed.Target) bool {
	switch {
	case t.ID == "" || len(t.Addrs) != 1:
		return true // the id is not known, or the swarm would dial the addresses one after the other
	case addr.HasOnlyRelayed(h.Network(), t.ID):
		// libp2p dials only if the connection through the relay is closed. It may lead to a
		// direct one, so it is closed only if the node answers at t.
		return true
	case backoff.CanClear(h) || overWebRTC(t.Addrs):
		// There is no need to ask. Over WebRTC, that would even leave a dead connection at
		// the peer.
		return false
	default:
		// The swarm would count the dials to a node that is down, and refuse to dial it for
		// minutes when it is up again. To ask for the id is a dial to a made-up id, so it is
		// not counted.
		return true
	}
}

// findAny does what findSeed does, for a ticket with several targets. It tries all targets at
// once, and returns the first node that is found.
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

// selfError returns the error for a seed whose address is one of this node. If the seed contains
// an id, that is a WrongIDError, since the node with that id may come back to the address.
func selfError(h corehost.Host, s *seed.Seed) error {
	if s.ID() != "" {
		return &WrongIDError{Expected: s.ID(), Actual: h.ID()}
	}
	return withText(ErrSelf)
}

// A targetResult is the result of an attempt to find a node at one target of a seed.
type targetResult struct {
	target seed.Target
	info   peer.AddrInfo
	err    error
}

// failures collects the errors of all targets of a seed.
type failures struct {
	self bool // one of the targets is an address of this node
	list []targetResult
}

func (f *failures) add(a targetResult) {
	if errors.Is(a.err, ErrSelf) {
		f.self = true // err decides whether this counts
		return
	}
	f.list = append(f.list, a)
}

// err returns the failure with the highest rank. If one target is this node itself, failures at
// loopback addresses do not count, since localhost stands for 127.0.0.1 and ::1. If no other
// failure is left then, the error is ErrSelf. Otherwise that other failure counts, since a name
// may stand for several seeds, of which this node is one.
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
	// errors.Is shall find the causes of all targets, not only the one in the text.
	if failure, ok := errors.AsType[*failure](best); ok && len(all) > 1 {
		joined := *failure
		joined.err = errors.Join(all...)
		return &joined
	}
	return best
}

// meet asks all addresses of the target t at once for the id of the node there, and
// connects to the first node that answers.
func meet(ctx context.Context, h corehost.Host, t seed.Target) targetResult {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	asking, cancel := context.WithCancel(ctx)
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
			id, err := askID(asking, h, a)
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
				// Hole punching works best after a QUIC connection, by which this node
				// learns its public UDP address. The address that answered first is usually
				// TCP, so libp2p gets all addresses; it prefers QUIC by itself.
				addrs = t.Addrs
			}
			// The node has just answered without a relay, so a connection through a relay is
			// not needed, however young it is.
			return connectDirect(ctx, h, t, r.id, addrs, 0)
		}
		f := highestRank(r.err)
		f.err = r.err
		if best == nil || f.rank > best.rank {
			best = f
		}
		if f.rank >= rankRoute {
			// The dial to r.addr certainly failed, and that took at least one
			// round trip. The other dial to this port, over QUIC, gets four
			// times that time plus quicGrace from now on.
			late := time.AfterFunc(quicGrace+4*time.Since(start), cancel)
			defer late.Stop()
		}
	}
	return targetResult{target: t, err: best}
}

// connect connects to the node id at addrs, and returns the result for the target t.
func connect(ctx context.Context, h corehost.Host, t seed.Target, id peer.ID, addrs []ma.Multiaddr) targetResult {
	info := peer.AddrInfo{ID: id, Addrs: addrs}
	if id == h.ID() {
		return targetResult{target: t, err: withText(ErrSelf)}
	}
	// The state machine decides how often to try a seed. The swarm's own back-off would only
	// hide the real error behind "dial backoff".
	backoff.Clear(h, id)
	err := h.Connect(ctx, info)
	if err != nil {
		backoff.Clear(h, id)
		err = explain(err)
		if _, wrong := errors.AsType[*WrongIDError](err); wrong {
			h.Peerstore().SetAddrs(id, addrs, 0) // removes addrs from the peerstore's entry of id, since they belong to another node
		}
		return targetResult{target: t, err: err}
	}
	return targetResult{target: t, info: info}
}

// askID returns the id of the node at an address. It dials the address with an id that no node
// has. The node there proves its own id, so the handshake fails with an error that contains
// that id. Noise and TLS check the id before any other data is sent, so this works with all
// transports. Over WebRTC, the dialed node completes its handshake first, so it has a connection
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
	backoff.Clear(h, nobody)
	// This is the error by which the node at the address tells its id.
	if mismatch, ok := errors.AsType[sec.ErrPeerIDMismatch](err); ok && mismatch.Expected == nobody {
		return mismatch.Actual, nil
	}
	if err == nil {
		return "", fmt.Errorf("the node at %s proved an id that was made up a moment ago", a)
	}
	return "", err
}

// ownPorts returns the addresses and ports on which this node listens.
func ownPorts(h corehost.Host) map[netip.AddrPort]bool {
	own := map[netip.AddrPort]bool{}
	addrs, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		return own // an empty map is harmless: a dial to this node itself then fails only in its handshake
	}
	for _, a := range addrs {
		if ap, ok := addr.AddrPort(a); ok {
			own[ap] = true
		}
	}
	return own
}
