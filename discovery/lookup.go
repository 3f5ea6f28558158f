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
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

const (
	// headStart is the time for which a search dials the addresses that libp2p remembers of
	// a peer, before it also asks the network for newer ones.
	headStart = 500 * time.Millisecond
	// identifyTimeout bounds the time for which a search waits until a peer that has dialed
	// this node sends its addresses.
	identifyTimeout = time.Second
	// maxAnswers bounds the answers of the overlay to one search for a peer. The search
	// dials the addresses in these answers only.
	maxAnswers = 16
)

// lookups holds the searches that are under way. All calls that look for the same peer share
// one search.
type lookups struct {
	mu       sync.Mutex
	byTarget map[peer.ID]*peerLookup
}

// remove removes the search l, so that the next call for its peer begins a new one. The caller
// holds mu.
func (s *lookups) remove(l *peerLookup) {
	// A newer search for the same peer may have replaced l already.
	if s.byTarget[l.target] == l {
		delete(s.byTarget, l.target)
	}
}

// A peerLookup is a search for one peer.
type peerLookup struct {
	target  peer.ID
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int // the number of FindPeer calls that wait for this search; guarded by lookups.mu

	// Used only by the loop.
	answers chan overlay.Contact // what other nodes answer to this search; closed after the last answer
	token   uint64               // identifies this search in the state machine; zero before the state machine was asked

	done chan struct{} // closed when info and err are set
	info peer.AddrInfo
	err  error
}

// FindPeer finds a member of the network, neighbor or not, and connects to it. First it dials
// the addresses that libp2p remembers. If there are none, or if no one answers within half a
// second, it asks the neighbors, which ask theirs, for the peer's signed record, and dials the
// addresses in it. FindPeer returns when there is a connection. It returns the addresses of
// the peer; the first one is the address at which the peer answered. For the id of this node
// it returns the node's own addresses.
//
// Calls for the same peer share one search. The error is ErrUnknownPeer if no node that was
// asked knows the peer, ErrUnreachable if the peer is known but does not answer, the cause of
// ctx if ctx ends first, or ErrClosed. Call FindPeer after Start.
func (d *Driver) FindPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	if err := p.Validate(); err != nil {
		return peer.AddrInfo{}, &failure{kind: ErrUnknownPeer, text: errs.Text(ErrUnknownPeer) + ": the id is empty"}
	}
	if p == d.host.ID() {
		self := peer.AddrInfo{ID: p}
		for _, a := range d.node.Addrs() {
			at, _ := peer.SplitAddr(a)
			self.Addrs = append(self.Addrs, at)
		}
		return self, nil
	}
	if info, ok := d.connected(p); ok {
		return d.awaitAddrs(ctx, info), nil
	}
	l, err := d.joinLookup(p)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	defer d.leaveLookup(l)
	select {
	case <-l.done:
		if l.err != nil {
			return l.info, l.err
		}
		return d.awaitAddrs(ctx, l.info), nil
	case <-ctx.Done():
		return peer.AddrInfo{}, fmt.Errorf("looking for it over %s: %w", d.linksText(), context.Cause(ctx))
	case <-d.done:
		return peer.AddrInfo{}, ErrClosed
	}
}

// awaitAddrs returns info with the addresses of a connected peer. If the peer has dialed this
// node and not sent its addresses yet, it waits for them, at most for identifyTimeout.
func (d *Driver) awaitAddrs(ctx context.Context, info peer.AddrInfo) peer.AddrInfo {
	if len(info.Addrs) > 0 {
		return info
	}
	sub, err := d.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return info // there is a connection, so missing addresses are not an error
	}
	defer sub.Close()
	timeout := time.After(identifyTimeout)
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

// connected reports whether there is a direct connection to p. If so, it returns the addresses
// of p: first those at which this node has dialed it, and then those that p states itself.
func (d *Driver) connected(p peer.ID) (peer.AddrInfo, bool) {
	conns := slices.DeleteFunc(d.host.Network().ConnsToPeer(p), func(c network.Conn) bool {
		return addr.IsRelayed(c.RemoteMultiaddr()) // messages are never sent through a relay
	})
	if len(conns) == 0 {
		return peer.AddrInfo{}, false
	}
	info := peer.AddrInfo{ID: p}
	for _, c := range conns {
		// The remote address of an inbound connection is not one at which the peer listens.
		if c.Stat().Direction == network.DirOutbound {
			info = withAddrs(info, []ma.Multiaddr{c.RemoteMultiaddr()})
		}
	}
	return withAddrs(info, dialguard.Filter(d.host.Peerstore().Addrs(p), conns[0].RemoteMultiaddr())), true
}

// withAddrs returns info with addrs added, except those that it has already.
func withAddrs(info peer.AddrInfo, addrs []ma.Multiaddr) peer.AddrInfo {
	for _, a := range addrs {
		if !ma.Contains(info.Addrs, a) {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}

// joinLookup returns the running search for p, or begins one. The caller must call
// leaveLookup when it no longer waits for the result. The error is ErrClosed if the driver
// is closed.
func (d *Driver) joinLookup(p peer.ID) (*peerLookup, error) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if l := d.lookups.byTarget[p]; l != nil { // share the search of an earlier call
		l.waiters++
		return l, nil
	}
	l := &peerLookup{target: p, waiters: 1, answers: make(chan overlay.Contact, maxAnswers), done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(d.ctx)
	// The loop starts the goroutine, since nothing may be added to tasks once the loop has
	// ended.
	if !d.run(func() { d.tasks.Go(func() { d.runLookup(l) }) }) {
		l.cancel()
		return nil, ErrClosed
	}
	d.lookups.byTarget[p] = l
	return l, nil
}

// leaveLookup notes that one call no longer waits for the search l. When no call waits any
// more, it cancels the search.
func (d *Driver) leaveLookup(l *peerLookup) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if l.waiters--; l.waiters == 0 {
		l.cancel()
		d.lookups.remove(l)
	}
}

// runLookup runs the search l to its end, and stores the result in it.
func (d *Driver) runLookup(l *peerLookup) {
	defer l.cancel()
	l.info, l.err = d.search(l, func() { d.run(func() { d.askOverlay(l) }) })
	d.run(func() { d.endQuestion(l) })
	d.lookups.mu.Lock()
	d.lookups.remove(l) // remove l before done is closed, so that no new call of FindPeer gets this old result
	d.lookups.mu.Unlock()
	close(l.done)
}

// A dialSearch makes the dials of one search. One goroutine uses it.
type dialSearch struct {
	d     *Driver
	l     *peerLookup
	ctx   context.Context // ends all dials
	tasks sync.WaitGroup
	ended chan error // the result of each dial

	running int            // the number of dials under way
	tried   []ma.Multiaddr // the addresses of all dials so far
	failed  *failure       // the failure with the highest rank among the dials that have failed so far

	askOverlay func()
	asked      bool                   // askOverlay was called
	answers    <-chan overlay.Contact // the answers of other nodes to the search; nil while none can arrive
	answered   bool                   // the last answer of other nodes to the search has arrived
}

// search dials the addresses of the peer that libp2p remembers. If that does not lead to a
// connection, it calls askOverlay, and dials the addresses in the answers of the overlay. It
// ends as soon as there is a connection, which the peer may also have made.
func (d *Driver) search(l *peerLookup, askOverlay func()) (peer.AddrInfo, error) {
	ctx, cancel := context.WithCancel(l.ctx)
	s := &dialSearch{d: d, l: l, ctx: ctx, ended: make(chan error), askOverlay: askOverlay}
	defer s.tasks.Wait()
	defer cancel()
	return s.run()
}

func (s *dialSearch) run() (peer.AddrInfo, error) {
	connected := notify.NewSignal()
	defer whenConnected(s.d.host.Network(), s.l.target, func(network.Conn) { connected.Set() })()
	var late <-chan time.Time
	if known := s.d.host.Peerstore().Addrs(s.l.target); len(known) > 0 {
		s.dial(known, func() error { return s.d.dialKnown(s.ctx, s.l.target) })
		late = time.After(headStart)
	} else {
		s.ask()
	}
	for {
		if info, ok := s.d.connected(s.l.target); ok {
			return withAddrs(info, s.tried), nil
		}
		// If other nodes will send no more answers, and all dials have failed, the
		// search has failed.
		if s.answered && s.running == 0 {
			return peer.AddrInfo{}, s.d.notFound(s.tried, s.failed)
		}
		select {
		case <-late:
			s.ask()
		case c, ok := <-s.answers:
			if !ok {
				s.answers, s.answered = nil, true
				break
			}
			s.dialAnswer(c)
		case err := <-s.ended:
			s.running--
			s.recordFailure(err)
			// If the dial of the remembered addresses failed, they are out of
			// date. So ask other nodes for newer ones.
			s.ask()
		case <-connected:
		case <-s.ctx.Done():
			return peer.AddrInfo{}, ErrClosed
		}
	}
}

// ask asks the overlay for the peer, unless it was asked before.
func (s *dialSearch) ask() {
	if !s.asked {
		s.asked, s.answers = true, s.l.answers
		s.askOverlay()
	}
}

// dialAnswer dials those addresses in an answer of the overlay that were not dialed before.
func (s *dialSearch) dialAnswer(c overlay.Contact) {
	var fresh []ma.Multiaddr
	for _, a := range c.Addrs {
		if !ma.Contains(s.tried, a) {
			fresh = append(fresh, a)
		}
	}
	// Several nodes answer, usually with the same addresses, so an answer may have no
	// new address.
	if len(fresh) > 0 {
		s.dial(fresh, func() error { return s.d.reach(s.ctx, s.l.target, fresh, s.d.dials) })
	}
}

func (s *dialSearch) dial(addrs []ma.Multiaddr, dial func() error) {
	s.tried = append(s.tried, addrs...)
	s.running++
	s.tasks.Go(func() {
		err := dial()
		select {
		case s.ended <- err:
		case <-s.ctx.Done():
		}
	})
}

func (s *dialSearch) recordFailure(err error) {
	if err == nil {
		return
	}
	f := highestRank(err)
	f.err = err
	if errors.Is(err, errNoAddress) { // the guard forbade the dial, so the failure shows nothing about the address
		f.rank = rankSkipped
	}
	// Of two failures with the same rank the later one counts, since its addresses are newer.
	if s.failed == nil || f.rank >= s.failed.rank {
		s.failed = f
	}
}

// dialKnown dials the addresses of p that libp2p remembers. If the connection goes through a
// relay, it waits for a direct one.
func (d *Driver) dialKnown(ctx context.Context, p peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	closeStale(d.host, p, staleAfter)
	if err := d.connect(ctx, p, d.host.Peerstore().Addrs(p), func() {}); err != nil {
		return err
	}
	return awaitDirect(ctx, d.host, p)
}

// askOverlay makes the state machine search for the peer of l. It runs on the loop.
func (d *Driver) askOverlay(l *peerLookup) {
	d.token++
	l.token = d.token
	d.finds[l.token] = l
	d.step(overlay.Find{Target: l.target, Token: l.token})
}

// endQuestion ends the search of the state machine for l, unless it has ended. It runs on the
// loop.
func (d *Driver) endQuestion(l *peerLookup) {
	if d.finds[l.token] == l {
		delete(d.finds, l.token)
		d.step(overlay.EndFind{Token: l.token})
	}
}

// located passes an answer of the state machine on to the search that waits for it. It runs
// on the loop.
func (d *Driver) located(o overlay.Located) {
	l := d.finds[o.Token]
	if l == nil {
		return // the search has ended
	}
	if o.Contact.ID == l.target && len(o.Contact.Addrs) > 0 {
		select {
		case l.answers <- o.Contact:
		default: // there are maxAnswers answers already, which is enough
		}
	}
	if o.Done {
		delete(d.finds, o.Token)
		close(l.answers)
	}
}

// callBack connects to the node to, which looks for this node and may not be able to dial
// it. Anybody can cause such a dial, so the guard has to allow it, and only few are under
// way at once. It runs on the loop.
func (d *Driver) callBack(to overlay.Contact) {
	if d.callbacks == maxCallbacks {
		return
	}
	d.callbacks++
	d.tasks.Go(func() {
		if err := d.reach(d.ctx, to.ID, to.Addrs, d.dials); err != nil {
			d.log.Debug("cannot connect to a node that looks for this one", "peer", to.ID, "error", err)
		}
		d.run(func() { d.callbacks-- })
	})
}

func (d *Driver) linksText() string {
	if n := d.linkCount(); n != 1 {
		return fmt.Sprintf("%d links", n)
	}
	return "1 link"
}

// notFound returns the error of a search that has failed. tried has the addresses that were
// dialed, and failed is the failure with the highest rank among those dials.
func (d *Driver) notFound(tried []ma.Multiaddr, failed *failure) error {
	if len(tried) == 0 {
		why := fmt.Sprintf("asked over %s, and nobody in network %q knows where it is; is it running, and connected to the network?",
			d.linksText(), d.cfg.Network)
		if d.linkCount() == 0 {
			why = "this node has no peers to ask for it; wait until it is connected"
		}
		return &failure{kind: ErrUnknownPeer, text: errs.Text(ErrUnknownPeer) + ": " + why}
	}
	if failed == nil { // a dial succeeded, but its connection was lost at once
		failed = &failure{err: errNoAddress}
	}
	at := tried[0].String()
	if n := len(tried) - 1; n > 0 {
		at += fmt.Sprintf(" and %d more", n)
	}
	if errors.Is(failed.err, errNoAddress) {
		failed.text = failedBefore
	}
	return &failure{kind: ErrUnreachable, err: failed, text: fmt.Sprintf("%s: it was last seen at %s: %s", errs.Text(ErrUnreachable), at, failed.text)}
}
