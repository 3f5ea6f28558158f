// Package identify keeps track of the protocols that connected peers speak.
package identify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/tasks"
)

const (
	// reorderWindow is how long after one identify message another, older one may still
	// arrive: the streams of identify end after five seconds, and as long again is added.
	reorderWindow = 2 * identify.DefaultTimeout
	// queryInterval is the least time between two queries to one peer.
	queryInterval = time.Second
	// recheckDelay is how long Recheck waits for libp2p to learn the protocols by itself.
	recheckDelay = 500 * time.Millisecond
	// maxRechecks bounds the calls of Recheck that wait, per peer.
	maxRechecks = 4
	// queryTries is how often a query without an answer is repeated.
	queryTries = 3
	// maxQueries bounds the open queries.
	maxQueries = 16
	// maxIdentify and maxIdentifyParts bound an answer, as libp2p itself does.
	maxIdentify      = 8 << 10
	maxIdentifyParts = 10
	// closeTimeout bounds how long Close waits. A reset can take as long as the
	// connection to a frozen peer lives.
	closeTimeout = 2 * time.Second
)

// A Tracker corrects the peerstore of a host where it is wrong about the protocols that
// connected peers speak.
//
// Libp2p asks a peer for its protocols once, when it connects, and hears of each change
// by a push. A push arrives on another stream, so it can be lost, or be read before an
// older message. A host that sets its handlers and dials at once changes its protocols
// at the very moment when it connects. If nobody noticed, a peer that speaks pubsub
// would never be known to do so. So the Tracker queries a peer once more when it has not
// answered libp2p, when it has sent two different lists within ten seconds, and on
// [Tracker.Recheck]. A correction is emitted on the host's event bus as an
// [event.EvtPeerProtocolsUpdated].
//
// All methods may be called from any goroutine. Unexported methods whose names end in
// Locked need mu.
type Tracker struct {
	// Set once.
	host    corehost.Host
	watched []protocol.ID
	log     *slog.Logger
	sub     event.Subscription
	updated event.Emitter

	// Goroutines.
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   sync.WaitGroup // Add only under mu and before closed, or in a running task
	queries chan struct{}  // one element per open query

	mu      sync.Mutex
	closed  bool
	peers   map[peer.ID]*answers
	cleaned time.Time // when removeOldLocked last ran
}

// answers is what a Tracker knows of one peer.
type answers struct {
	answered  bool          // with the protocols below
	protocols []protocol.ID // the watched ones, sorted
	at        time.Time     // of the last news

	querying bool
	again    bool // another answer arrived during the query

	rechecks  int       // calls of Recheck that wait
	rechecked time.Time // when Recheck last caused a query
}

// Track begins to track the given protocols. A nil log means the logger
// "smokesignal/host" of go-log. The host stays the caller's; close the Tracker first.
func Track(h corehost.Host, log *slog.Logger, protocols ...protocol.ID) (*Tracker, error) {
	log = cmp.Or(log, logging.Package("host", nil))
	sub, err := h.EventBus().Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerIdentificationFailed)},
		eventbus.BufSize(256), eventbus.Name("smokesignal protocols"))
	if err != nil {
		return nil, fmt.Errorf("identify: subscribe to the host's event bus: %w", err)
	}
	updated, err := h.EventBus().Emitter(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		sub.Close()
		return nil, fmt.Errorf("identify: prepare to emit on the host's event bus: %w", err)
	}
	t := &Tracker{
		host: h, watched: protocols, log: log, sub: sub, updated: updated,
		queries: make(chan struct{}, maxQueries), peers: make(map[peer.ID]*answers),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.tasks.Go(t.run)
	return t, nil
}

// Close waits for the queries that have begun, but at most two seconds for a connection
// that is frozen.
func (t *Tracker) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.sub.Close()
	// A task that is left behind may still emit.
	if tasks.Wait(&t.tasks, closeTimeout) {
		t.updated.Close()
	} else {
		t.log.Debug("a query for a peer's protocols goes on, since its connection or the event bus is stuck")
	}
}

// Recheck queries p for its protocols unless within half a second it is known to speak
// one of these: it did something that only peers do that speak one. A peer that was
// queried for this reason is not queried again within ten seconds. Recheck does not
// block.
func (t *Tracker) Recheck(p peer.ID, protocols ...protocol.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.touchLocked(p, time.Now())
	// The bounds keep a peer from causing queries without end.
	if t.closed || time.Since(a.rechecked) < reorderWindow || a.rechecks == maxRechecks {
		return
	}
	a.rechecks++
	t.tasks.Go(func() {
		select {
		case <-time.After(recheckDelay):
		case <-t.ctx.Done():
		}
		known, err := t.host.Peerstore().SupportsProtocols(p, protocols...)
		t.mu.Lock()
		defer t.mu.Unlock()
		a.rechecks--
		if (err != nil || len(known) == 0) && time.Since(a.rechecked) >= reorderWindow {
			a.rechecked = time.Now()
			t.startQueryLocked(p, a)
		}
	})
}

// run follows the identifications of libp2p until Close.
func (t *Tracker) run() {
	for ev := range t.sub.Out() {
		switch ev := ev.(type) {
		case event.EvtPeerIdentificationCompleted:
			t.recordAnswer(ev.Peer, ev.Protocols, time.Now())
		case event.EvtPeerIdentificationFailed:
			t.mu.Lock()
			t.startQueryLocked(ev.Peer, t.touchLocked(ev.Peer, time.Now()))
			t.mu.Unlock()
		}
	}
}

// recordAnswer records an answer that libp2p got.
func (t *Tracker) recordAnswer(p peer.ID, protocols []protocol.ID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeOldLocked(now)
	protocols = t.onlyWatched(protocols)
	// The two may have arrived in the wrong order.
	if a := t.peers[p]; a != nil && a.answered && now.Sub(a.at) < reorderWindow && !slices.Equal(a.protocols, protocols) {
		t.startQueryLocked(p, a)
	}
	a := t.touchLocked(p, now)
	a.answered, a.protocols = true, protocols
}

// touchLocked returns the record of p, of which there is news.
func (t *Tracker) touchLocked(p peer.ID, now time.Time) *answers {
	a := t.peers[p]
	if a == nil {
		a = &answers{}
		t.peers[p] = a
	}
	a.at = now
	return a
}

// removeOldLocked removes the records of peers whose messages have all arrived.
func (t *Tracker) removeOldLocked(now time.Time) {
	if now.Sub(t.cleaned) < reorderWindow {
		return
	}
	t.cleaned = now
	maps.DeleteFunc(t.peers, func(_ peer.ID, a *answers) bool {
		return !a.querying && a.rechecks == 0 && now.Sub(a.at) >= reorderWindow
	})
}

// onlyWatched returns the watched ones among the protocols, sorted.
func (t *Tracker) onlyWatched(protocols []protocol.ID) (list []protocol.ID) {
	for _, id := range protocols {
		if slices.Contains(t.watched, id) {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// startQueryLocked starts a query to p, or has the running one repeated.
func (t *Tracker) startQueryLocked(p peer.ID, a *answers) {
	if a.querying {
		a.again = true
		return
	}
	a.querying = true
	t.tasks.Go(func() { t.queryUntilSettled(p, a) })
}

// queryUntilSettled queries p until it has answered and no other answer arrived during
// the query, for as long as p is connected.
func (t *Tracker) queryUntilSettled(p peer.ID, a *answers) {
	for failed := 0; ; {
		protocols, err := t.query(p)
		var update *event.EvtPeerProtocolsUpdated
		t.mu.Lock()
		if err == nil {
			failed = 0
			a.answered, a.protocols, a.at = true, t.onlyWatched(protocols), time.Now()
			update = t.correct(p, protocols)
		} else if failed++; t.ctx.Err() == nil {
			t.log.Debug("a query for a peer's protocols failed", "peer", p, "error", err)
		}
		done := !a.again && err == nil || failed == queryTries || t.ctx.Err() != nil || t.host.Network().Connectedness(p) == network.NotConnected
		a.querying, a.again = !done, false
		t.mu.Unlock()
		// Without mu, since the bus blocks until its subscribers have room.
		if update != nil {
			t.updated.Emit(*update)
		}
		if done {
			return
		}
		select {
		case <-time.After(queryInterval):
		case <-t.ctx.Done():
		}
	}
}

// correct sets the protocols of p in the peerstore, and returns what that changed, or
// nil for nothing.
func (t *Tracker) correct(p peer.ID, protocols []protocol.ID) *event.EvtPeerProtocolsUpdated {
	before, _ := t.host.Peerstore().GetProtocols(p)
	if err := t.host.Peerstore().SetProtocols(p, protocols...); err != nil {
		t.log.Debug("the protocols of a peer cannot be stored", "peer", p, "error", err)
		return nil
	}
	update := &event.EvtPeerProtocolsUpdated{Peer: p, Added: without(protocols, before), Removed: without(before, protocols)}
	if len(update.Added)+len(update.Removed) == 0 {
		return nil
	}
	return update
}

// without returns the elements of list that are not in other.
func without(list, other []protocol.ID) []protocol.ID {
	return slices.DeleteFunc(slices.Clone(list), func(id protocol.ID) bool { return slices.Contains(other, id) })
}

// query asks p for its protocols, by libp2p's identify. It blocks for five seconds at
// most, after it has waited for a place among the open queries.
func (t *Tracker) query(p peer.ID) ([]protocol.ID, error) {
	select {
	case t.queries <- struct{}{}:
		defer func() { <-t.queries }()
	case <-t.ctx.Done():
		return nil, context.Cause(t.ctx)
	}
	ctx, cancel := context.WithTimeout(t.ctx, identify.DefaultTimeout)
	defer cancel()
	s, err := t.host.NewStream(network.WithAllowLimitedConn(network.WithNoDial(ctx, "identify"), "identify"), p, identify.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Scope().SetService(identify.ServiceName); err != nil {
		s.Reset()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() }) // unblocks the read
	defer stop()
	protocols, err := readIdentify(s)
	if err != nil {
		s.Reset()
		return nil, err
	}
	s.Close() // over QUIC this can fail, as the peer is done with the stream
	return protocols, nil
}

// readIdentify reads the protocols of an answer, which may come in several messages.
func readIdentify(r io.Reader) ([]protocol.ID, error) {
	parts := frame.NewReader(r, maxIdentify)
	var answer pb.Identify
	for range maxIdentifyParts {
		part, err := parts.Next()
		if errors.Is(err, io.EOF) {
			return protocol.ConvertFromStrings(answer.Protocols), nil
		}
		if err == nil {
			err = proto.UnmarshalOptions{Merge: true}.Unmarshal(part, &answer)
		}
		if err != nil {
			return nil, fmt.Errorf("identify: read an answer: %w", err)
		}
	}
	return nil, fmt.Errorf("identify: an answer of more than %d parts", maxIdentifyParts)
}
