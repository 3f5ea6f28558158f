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
	// headStart is how long the addresses that libp2p remembers of a peer are dialed before
	// the network is asked for newer ones.
	headStart = 500 * time.Millisecond
	// identifyTimeout is how long a peer that has dialed us may take to tell its
	// addresses.
	identifyTimeout = time.Second
	// maxAnswers bounds the answers to one lookup that are dialed.
	maxAnswers = 16
)

// lookups holds the searches under way. Calls that look for the same peer share one.
type lookups struct {
	mu       sync.Mutex
	byTarget map[peer.ID]*peerLookup
}

// remove lets the next call for the peer begin a new search. It needs mu.
func (s *lookups) remove(l *peerLookup) {
	// A newer search may have taken the place already.
	if s.byTarget[l.target] == l {
		delete(s.byTarget, l.target)
	}
}

// A peerLookup is a search for one peer.
type peerLookup struct {
	target  peer.ID
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int // guarded by lookups.mu; the last one to leave cancels

	// Owned by the loop: the answers that the state machine has found, closed after the
	// last one, and the token of the question, zero before it was asked.
	answers chan overlay.Contact
	token   uint64

	done chan struct{} // closed when info and err are set
	info peer.AddrInfo
	err  error
}

// FindPeer finds a node of the network, neighbor or not, and connects to it. First it tries
// the addresses that libp2p remembers. If that takes half a second, or if there are none, it
// asks the neighbors, and these ask theirs, for the peer's signed record. The addresses in it
// are dialed under the same rules as all others. FindPeer returns when there is a connection,
// with the addresses of the peer, of which the first is the one that answered. For this node
// itself it returns the node's own addresses.
//
// Calls for one peer share one search. The error is ErrUnknownPeer when none of the nodes
// asked knows the peer, ErrUnreachable when the peer is known and does not answer, the cause
// of ctx when that ends, or ErrClosed. Call FindPeer after Start.
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

// awaitAddrs waits a moment for a peer that has dialed us to tell its addresses.
func (d *Driver) awaitAddrs(ctx context.Context, info peer.AddrInfo) peer.AddrInfo {
	if len(info.Addrs) > 0 {
		return info
	}
	sub, err := d.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return info // the connection is what counts, the addresses are an extra
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

// connected returns the addresses of p if there is a direct connection to it: first those
// where it was dialed, then those that it names itself.
func (d *Driver) connected(p peer.ID) (peer.AddrInfo, bool) {
	conns := slices.DeleteFunc(d.host.Network().ConnsToPeer(p), func(c network.Conn) bool {
		return addr.IsRelayed(c.RemoteMultiaddr()) // nothing is sent over these
	})
	if len(conns) == 0 {
		return peer.AddrInfo{}, false
	}
	info := peer.AddrInfo{ID: p}
	for _, c := range conns {
		// The far end of an inbound connection is not where the peer listens.
		if c.Stat().Direction == network.DirOutbound {
			info = withAddrs(info, []ma.Multiaddr{c.RemoteMultiaddr()})
		}
	}
	return withAddrs(info, dialguard.Filter(d.host.Peerstore().Addrs(p), conns[0].RemoteMultiaddr())), true
}

// withAddrs adds addresses to info, without duplicates.
func withAddrs(info peer.AddrInfo, addrs []ma.Multiaddr) peer.AddrInfo {
	for _, a := range addrs {
		if !ma.Contains(info.Addrs, a) {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}

// joinLookup returns the search for p, a new one if there is none. The caller calls
// leaveLookup.
func (d *Driver) joinLookup(p peer.ID) (*peerLookup, error) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if l := d.lookups.byTarget[p]; l != nil {
		l.waiters++
		return l, nil
	}
	l := &peerLookup{target: p, waiters: 1, answers: make(chan overlay.Contact, maxAnswers), done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(d.ctx)
	// On the loop, since nothing may be added to tasks once the loop has ended.
	if !d.run(func() { d.tasks.Go(func() { d.runLookup(l) }) }) {
		l.cancel()
		return nil, ErrClosed
	}
	d.lookups.byTarget[p] = l
	return l, nil
}

// leaveLookup ends a search for which no call waits any more.
func (d *Driver) leaveLookup(l *peerLookup) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if l.waiters--; l.waiters == 0 {
		l.cancel()
		d.lookups.remove(l)
	}
}

// runLookup runs a search to its end.
func (d *Driver) runLookup(l *peerLookup) {
	defer l.cancel()
	l.info, l.err = d.search(l, func() { d.run(func() { d.askOverlay(l) }) })
	d.run(func() { d.endQuestion(l) })
	d.lookups.mu.Lock()
	d.lookups.remove(l) // before done, so that a new call does not get an old answer
	d.lookups.mu.Unlock()
	close(l.done)
}

// A dialSearch is the part of a lookup that dials. One goroutine owns it.
type dialSearch struct {
	d     *Driver
	l     *peerLookup
	ctx   context.Context // of the dials
	tasks sync.WaitGroup
	ended chan error // one for each dial

	running int            // dials under way
	tried   []ma.Multiaddr // addresses of all dials
	failed  *failure       // the failure of the highest rank so far

	askOverlay func()
	asked      bool
	answers    <-chan overlay.Contact // nil before the overlay was asked, and after its last answer
	answered   bool                   // the last answer is here
}

// search dials the remembered addresses of the peer, and then those that the overlay has
// found once askOverlay was called. It ends when there is a connection, which the peer may
// also have made.
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
			// The remembered addresses are out of date.
			s.ask()
		case <-connected:
		case <-s.ctx.Done():
			return peer.AddrInfo{}, ErrClosed
		}
	}
}

// ask asks the overlay, once.
func (s *dialSearch) ask() {
	if !s.asked {
		s.asked, s.answers = true, s.l.answers
		s.askOverlay()
	}
}

// dialAnswer dials the addresses in an answer that were not dialed before.
func (s *dialSearch) dialAnswer(c overlay.Contact) {
	var fresh []ma.Multiaddr
	for _, a := range c.Addrs {
		if !ma.Contains(s.tried, a) {
			fresh = append(fresh, a)
		}
	}
	// Several nodes answer, mostly with the same addresses.
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
	if errors.Is(err, errNoAddress) { // the guard allowed no dial, which tells nothing
		f.rank = rankSkipped
	}
	// Of equal ranks the later one, as its addresses are newer.
	if s.failed == nil || f.rank >= s.failed.rank {
		s.failed = f
	}
}

// dialKnown dials the addresses that libp2p remembers, as its own NewStream does. If that was
// through a relay, it waits for a direct connection.
func (d *Driver) dialKnown(ctx context.Context, p peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	closeStale(d.host, p, staleAfter)
	if err := d.connect(ctx, p, d.host.Peerstore().Addrs(p), func() {}); err != nil {
		return err
	}
	return awaitDirect(ctx, d.host, p)
}

// askOverlay asks the state machine for the peer. Like endQuestion, located and callBack it
// runs on the loop.
func (d *Driver) askOverlay(l *peerLookup) {
	d.token++
	l.token = d.token
	d.finds[l.token] = l
	d.step(overlay.Find{Target: l.target, Token: l.token})
}

// endQuestion ends the question of a lookup, if there are answers still to come.
func (d *Driver) endQuestion(l *peerLookup) {
	if d.finds[l.token] == l {
		delete(d.finds, l.token)
		d.step(overlay.EndFind{Token: l.token})
	}
}

// located passes an answer on to its lookup.
func (d *Driver) located(o overlay.Located) {
	l := d.finds[o.Token]
	if l == nil {
		return // it has ended
	}
	if o.Contact.ID == l.target && len(o.Contact.Addrs) > 0 {
		select {
		case l.answers <- o.Contact:
		default: // more answers than anybody would dial
		}
	}
	if o.Done {
		delete(d.finds, o.Token)
		close(l.answers)
	}
}

// callBack connects to a node that looks for this one, because that node may not be able to
// dial. Its address comes from a stranger, so the guard decides, and few dials are made at
// once.
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

// notFound says why a search has failed. tried holds the addresses of the peer, and failed
// the failure of the dials that says most.
func (d *Driver) notFound(tried []ma.Multiaddr, failed *failure) error {
	if len(tried) == 0 {
		why := fmt.Sprintf("asked over %s, and nobody in network %q knows where it is; is it running, and connected to the network?",
			d.linksText(), d.cfg.Network)
		if d.linkCount() == 0 {
			why = "this node has no peers to ask for it; wait until it is connected"
		}
		return &failure{kind: ErrUnknownPeer, text: errs.Text(ErrUnknownPeer) + ": " + why}
	}
	if failed == nil { // no dial has ended with an error, and still there is no connection
		failed = &failure{err: errNoAddress}
	}
	at := tried[0].String()
	if n := len(tried) - 1; n > 0 {
		at += fmt.Sprintf(" and %d more", n)
	}
	if errors.Is(failed.err, errNoAddress) {
		failed.text = "dialed in vain before, and not again so soon"
	}
	return &failure{kind: ErrUnreachable, err: failed, text: fmt.Sprintf("%s: it was last seen at %s: %s", errs.Text(ErrUnreachable), at, failed.text)}
}
