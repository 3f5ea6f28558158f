package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// headStart is how long the addresses which libp2p remembers of a peer are dialled
// alone, before the network is asked for newer ones.
const headStart = 500 * time.Millisecond

// identifyTime is how long a peer that has called may take to say its addresses.
const identifyTime = time.Second

// maxAnswers bounds the answers of one lookup that are dialled.
const maxAnswers = 16

// ErrUnknownPeer is returned when nobody that could be asked knows where the peer
// is. It is routing.ErrNotFound of libp2p, too.
var ErrUnknownPeer error = unknownPeer{}

type unknownPeer struct{}

func (unknownPeer) Error() string { return "unknown peer" }
func (unknownPeer) Unwrap() error { return routing.ErrNotFound }

// lookups are the searches under way. Who wants the same peer shares one.
type lookups struct {
	mu       sync.Mutex
	byTarget map[peer.ID]*lookup
}

// A lookup is a search for one peer.
type lookup struct {
	target  peer.ID
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int // under the lock of lookups; the last one to leave cancels

	// The loop's: what the overlay has located, until it is closed, and the token of
	// the question, zero before it was asked.
	answers chan overlay.Contact
	token   uint64

	done chan struct{} // closed when the outcome is there
	info peer.AddrInfo
	err  error
}

// FindPeer finds a node of the network, neighbour or not, and connects to it.
// First it tries the addresses that libp2p remembers; if that takes half a second,
// or there are none, it asks the neighbours, and these theirs, for the peer's
// signed record. What is found is dialled under the same rules as every address
// that others tell. FindPeer returns when a connection stands, with the addresses
// of the peer, that at which it answered first. For the node itself it returns
// its own.
//
// Calls for one peer share one search. It ends with ErrUnknownPeer when nobody
// asked knows the peer, with ErrUnreachable when it is known and does not answer,
// with the cause of ctx when that ends, and with ErrClosed. It is to be called
// after Start.
func (d *Driver) FindPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	if err := p.Validate(); err != nil {
		return peer.AddrInfo{}, fmt.Errorf("%w: the id is empty", ErrUnknownPeer)
	}
	if p == d.host.ID() {
		self := peer.AddrInfo{ID: p}
		for _, a := range d.cfg.Addrs() {
			addr, _ := peer.SplitAddr(a)
			self.Addrs = append(self.Addrs, addr)
		}
		return self, nil
	}
	if info, ok := d.connected(p); ok {
		return d.introduced(ctx, info), nil
	}
	l, err := d.join(p)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	defer d.leaveLookup(l)
	select {
	case <-l.done:
		if l.err != nil {
			return l.info, l.err
		}
		return d.introduced(ctx, l.info), nil
	case <-ctx.Done():
		return peer.AddrInfo{}, fmt.Errorf("looking for it over %s: %w", d.overLinks(), context.Cause(ctx))
	case <-d.done:
		return peer.AddrInfo{}, ErrClosed
	}
}

// introduced waits a moment for a peer that has called us to say where it is.
func (d *Driver) introduced(ctx context.Context, info peer.AddrInfo) peer.AddrInfo {
	if len(info.Addrs) > 0 {
		return info
	}
	sub, err := d.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return info
	}
	defer sub.Close()
	timeout := time.After(identifyTime)
	for {
		if now, ok := d.connected(info.ID); !ok || len(now.Addrs) > 0 {
			return withAddrs(info, now.Addrs)
		}
		select {
		case <-sub.Out():
		case <-timeout:
			return info
		case <-ctx.Done():
			return info
		}
	}
}

// connected returns the addresses of p if there is a direct connection to it: where
// it was dialled, then what it says of itself.
func (d *Driver) connected(p peer.ID) (peer.AddrInfo, bool) {
	conns := slices.DeleteFunc(d.host.Network().ConnsToPeer(p), func(c network.Conn) bool {
		return addr.IsRelayed(c.RemoteMultiaddr()) // over which nothing is sent
	})
	if len(conns) == 0 {
		return peer.AddrInfo{}, false
	}
	info := peer.AddrInfo{ID: p}
	add := func(addrs ...ma.Multiaddr) {
		for _, a := range addrs {
			if !ma.Contains(info.Addrs, a) {
				info.Addrs = append(info.Addrs, a)
			}
		}
	}
	for _, c := range conns {
		if c.Stat().Direction == network.DirOutbound {
			add(c.RemoteMultiaddr())
		}
	}
	add(dialguard.Filter(d.host.Peerstore().Addrs(p), conns[0].RemoteMultiaddr())...)
	return info, true
}

// join returns the search for p, a new one if there is none.
func (d *Driver) join(p peer.ID) (*lookup, error) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if l := d.lookups.byTarget[p]; l != nil {
		l.waiters++
		return l, nil
	}
	l := &lookup{target: p, waiters: 1, answers: make(chan overlay.Contact, maxAnswers), done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(d.ctx)
	// From the loop, since nothing may be added to tasks when that has ended.
	if !d.run(func() { d.tasks.Go(func() { d.look(l) }) }) {
		l.cancel()
		return nil, ErrClosed
	}
	d.lookups.byTarget[p] = l
	return l, nil
}

// leaveLookup is called by who has joined. A search that nobody waits for ends.
func (d *Driver) leaveLookup(l *lookup) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if l.waiters--; l.waiters == 0 {
		l.cancel()
		d.lookups.forget(l)
	}
}

// forget lets the next call begin a new search. The lock is held.
func (f *lookups) forget(l *lookup) {
	if f.byTarget[l.target] == l {
		delete(f.byTarget, l.target)
	}
}

// look runs a search to its end.
func (d *Driver) look(l *lookup) {
	defer l.cancel()
	l.info, l.err = d.search(l, func() { d.run(func() { d.askFor(l) }) })
	d.run(func() { d.enough(l) })
	d.lookups.mu.Lock()
	d.lookups.forget(l) // so that who comes now does not get an old answer
	d.lookups.mu.Unlock()
	close(l.done)
}

// search dials what is remembered of the peer and then what is located once
// askOverlay was called, until there is a connection, which the peer may also have
// made.
func (d *Driver) search(l *lookup, askOverlay func()) (peer.AddrInfo, error) {
	came := make(chan struct{}, 1)
	defer whenConnected(d.host.Network(), l.target, func(network.Conn) {
		select {
		case came <- struct{}{}:
		default:
		}
	})()
	ctx, cancel := context.WithCancel(l.ctx)
	var dials sync.WaitGroup
	defer dials.Wait()
	defer cancel()
	ended := make(chan error)
	end := func(err error) {
		select {
		case ended <- err:
		case <-ctx.Done():
		}
	}
	under := 0 // dials under way
	var tried []ma.Multiaddr
	var failed *failure

	var late <-chan time.Time
	if known := d.host.Peerstore().Addrs(l.target); len(known) > 0 {
		tried = known
		under++
		dials.Go(func() { end(d.dialKnown(ctx, l.target)) })
		late = time.After(headStart)
	}
	var answers chan overlay.Contact
	asked, answered := false, false
	ask := func() {
		if !asked {
			asked, late, answers = true, nil, l.answers
			askOverlay()
		}
	}
	if under == 0 {
		ask()
	}
	for {
		if info, ok := d.connected(l.target); ok {
			return withAddrs(info, tried), nil
		}
		select {
		case <-late:
			ask()
		case c, ok := <-answers:
			if !ok {
				answers, answered = nil, true
				break
			}
			var fresh []ma.Multiaddr
			for _, a := range c.Addrs {
				if !ma.Contains(tried, a) {
					fresh = append(fresh, a)
				}
			}
			if len(fresh) > 0 {
				tried = append(tried, fresh...)
				under++
				dials.Go(func() { end(d.dialTold(ctx, l.target, fresh)) })
			}
		case err := <-ended:
			under--
			if err != nil {
				f := mostTelling(err)
				f.err = err
				if errors.Is(err, errNoAddress) {
					f.rank = rankSkipped
				}
				if failed == nil || f.rank >= failed.rank {
					failed = f
				}
			}
			ask()
		case <-came:
		case <-ctx.Done():
			return peer.AddrInfo{}, ErrClosed
		}
		if answered && under == 0 {
			if info, ok := d.connected(l.target); ok {
				return withAddrs(info, tried), nil
			}
			return peer.AddrInfo{}, d.notFound(tried, failed)
		}
	}
}

// withAddrs adds to info where else the peer is said to be.
func withAddrs(info peer.AddrInfo, told []ma.Multiaddr) peer.AddrInfo {
	for _, a := range told {
		if !ma.Contains(info.Addrs, a) {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}

// dialKnown dials the addresses that libp2p remembers, as its own NewStream does, and
// waits for a direct connection if it was through a relay.
func (d *Driver) dialKnown(ctx context.Context, p peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dropStale(d.host, p, staleAfter)
	if err := d.connect(ctx, p, d.host.Peerstore().Addrs(p), func() {}); err != nil {
		return err
	}
	return awaitDirect(ctx, d.host, p)
}

// dialTold dials addresses that others told.
func (d *Driver) dialTold(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
	return d.reach(ctx, p, addrs, d.dials)
}

// askFor asks the overlay for the peer. Like enough, located and call it runs on the
// loop.
func (d *Driver) askFor(l *lookup) {
	d.token++
	l.token = d.token
	d.finds[l.token] = l
	d.step(overlay.Find{Target: l.target, Token: l.token})
}

// enough ends the question unless the overlay has.
func (d *Driver) enough(l *lookup) {
	if d.finds[l.token] == l {
		delete(d.finds, l.token)
		d.step(overlay.EndFind{Token: l.token})
	}
}

// located takes an answer to a Find.
func (d *Driver) located(o overlay.Located) {
	l := d.finds[o.Token]
	if l == nil {
		return
	}
	if o.Contact.ID == l.target && len(o.Contact.Addrs) > 0 {
		select {
		case l.answers <- o.Contact:
		default: // as many as anybody would dial
		}
	}
	if o.Done {
		delete(d.finds, o.Token)
		close(l.answers)
	}
}

// call connects to a node that looks for this one, in case that cannot dial. It is
// what somebody told, so not more than the guard allows, and few at once.
func (d *Driver) call(to overlay.Contact) {
	if d.calling == maxCalls {
		return
	}
	d.calling++
	d.tasks.Go(func() {
		if err := d.dialTold(d.ctx, to.ID, to.Addrs); err != nil {
			d.log.Debug("cannot call back", "peer", to.ID, "err", err)
		}
		d.run(func() { d.calling-- })
	})
}

func (d *Driver) overLinks() string {
	if n := d.linkCount(); n != 1 {
		return fmt.Sprintf("%d links", n)
	}
	return "1 link"
}

// notFound says why a search came to nothing. tried is where the peer was said to
// be, failed what came of the dials.
func (d *Driver) notFound(tried []ma.Multiaddr, failed *failure) error {
	if len(tried) == 0 {
		if d.linkCount() == 0 {
			return fmt.Errorf("%w: this node has no peers to ask for it; wait until it is connected", ErrUnknownPeer)
		}
		return fmt.Errorf("%w: asked over %s, and nobody in network %q knows where it is; is it running, and connected to the network?",
			ErrUnknownPeer, d.overLinks(), d.cfg.Network)
	}
	if failed == nil {
		failed = &failure{err: errNoAddress}
	}
	at := tried[0].String()
	if n := len(tried) - 1; n > 0 {
		at += fmt.Sprintf(" and %d more", n)
	}
	if errors.Is(failed.err, errNoAddress) {
		failed.text = "dialled in vain before, and not again so soon"
	}
	return &failure{kind: ErrUnreachable, err: failed, text: fmt.Sprintf("%s: it was last seen at %s: %s", errs.Text(ErrUnreachable), at, failed.text)}
}
