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
	// reorderWindow is the time within which two identify messages of a peer may arrive in the
	// wrong order. A stream of identify lasts at most five seconds; this is twice that time.
	reorderWindow = 2 * identify.DefaultTimeout
	// queryInterval is the shortest pause between two queries by which the Tracker asks
	// one peer for its protocols.
	queryInterval = time.Second
	// recheckDelay is how long Recheck waits before it queries a peer, because libp2p may
	// learn the peer's protocols by itself meanwhile.
	recheckDelay = 500 * time.Millisecond
	// maxRechecks is the largest number of calls of Recheck that wait for recheckDelay at
	// the same time, for one peer. Further calls are ignored.
	maxRechecks = 4
	// queryTries is the number of failed queries to a peer in a row after which the
	// Tracker gives up asking this peer.
	queryTries = 3
	// maxQueries bounds the queries to all peers together that run at the same time.
	maxQueries = 16
	// maxIdentify is the largest size in bytes of one part of a peer's answer to
	// identify, and maxIdentifyParts is the largest number of parts. libp2p has the
	// same limits.
	maxIdentify      = 8 << 10
	maxIdentifyParts = 10
	// closeTimeout limits how long Close waits for the reset of a stream, which blocks until
	// a connection to a frozen peer times out.
	closeTimeout = 2 * time.Second
)

// A Tracker corrects the peerstore of a host where it is wrong about the protocols that
// connected peers speak.
//
// Libp2p asks a peer for its protocols once, when the peer connects. Later the peer sends
// changes by itself (a push). A push arrives on another stream, so it can be lost, or be read
// before an older message. That happens to hosts that set stream handlers and dial at the
// same time. The peerstore then lacks, for example, that a peer speaks pubsub. So the Tracker
// queries a peer once more if the peer has not answered libp2p, if it has sent two different
// lists of protocols within ten seconds, or if [Tracker.Recheck] is called. The Tracker emits
// a correction on the host's event bus as an [event.EvtPeerProtocolsUpdated].
//
// All methods may be called from any goroutine. The caller of an unexported method whose name
// ends in Locked holds mu.
type Tracker struct {
	// Set once.
	host    corehost.Host
	watched []protocol.ID
	log     *slog.Logger
	pauses  pauses
	sub     event.Subscription
	updated event.Emitter

	// Goroutines.
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   sync.WaitGroup // Add only under mu and before closed, or in a running task
	queries chan struct{}  // has one element for each query that is running

	mu      sync.Mutex
	closed  bool
	peers   map[peer.ID]*answers
	cleaned time.Time // when removeOldLocked last ran
}

// answers is what the Tracker knows of the protocols of one peer.
type answers struct {
	answered  bool          // the peer has listed its protocols
	protocols []protocol.ID // the protocols that the peer has listed and the Tracker watches, sorted
	at        time.Time     // when the record last changed

	querying bool // a query to the peer is running
	again    bool // the query that is running must be repeated, because the peer sent another list meanwhile

	rechecks  int       // the number of Recheck calls that wait for recheckDelay
	rechecked time.Time // when Recheck last started a query
}

// pauses are the times for which a Tracker waits. Tests shorten them.
type pauses struct{ query, recheck time.Duration }

// Track returns a Tracker that watches which of the given protocols the peers of h speak. A
// nil log means the logger "smokesignal/host" of go-log. The error says why the event bus
// of h cannot be used. Close the Tracker before the host; Close does not close the host.
func Track(h corehost.Host, log *slog.Logger, protocols ...protocol.ID) (*Tracker, error) {
	return track(h, log, pauses{queryInterval, recheckDelay}, protocols)
}

// track does what Track does, with pauses of its own.
func track(h corehost.Host, log *slog.Logger, pauses pauses, protocols []protocol.ID) (*Tracker, error) {
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
		host: h, watched: protocols, log: log, pauses: pauses, sub: sub, updated: updated,
		queries: make(chan struct{}, maxQueries), peers: make(map[peer.ID]*answers),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.tasks.Go(t.run)
	return t, nil
}

// Close ends the running queries and waits for their goroutines. It waits at most two seconds,
// since a frozen connection can block a goroutine for longer.
func (t *Tracker) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.sub.Close()
	// If Wait timed out, a goroutine that still runs may use the emitter, so the
	// emitter stays open.
	if tasks.Wait(&t.tasks, closeTimeout) {
		t.updated.Close()
	} else {
		t.log.Debug("closed while a query for a peer's protocols is blocked by a frozen connection or a full event bus")
	}
}

// Recheck says that p must speak one of the given protocols, because p has just used it. If
// the peerstore does not list one of them for p within half a second, the Tracker queries p
// for its protocols. It does so at most once in ten seconds per peer. Recheck does not block.
func (t *Tracker) Recheck(p peer.ID, protocols ...protocol.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.touchLocked(p, time.Now())
	// Without these limits, a peer could make this node send any number of queries.
	if t.closed || time.Since(a.rechecked) < reorderWindow || a.rechecks == maxRechecks {
		return
	}
	a.rechecks++
	t.tasks.Go(func() {
		select {
		case <-time.After(t.pauses.recheck):
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

// run handles the events of libp2p's identify protocol until Close.
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

// recordAnswer records at the time now a list of protocols that libp2p received from p. It
// queries p if p has sent another list shortly before.
func (t *Tracker) recordAnswer(p peer.ID, protocols []protocol.ID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeOldLocked(now)
	protocols = t.onlyWatched(protocols)
	// Two different lists of the peer have arrived within a short time, perhaps in the
	// wrong order. So the peer is asked which one is right.
	if a := t.peers[p]; a != nil && a.answered && now.Sub(a.at) < reorderWindow && !slices.Equal(a.protocols, protocols) {
		t.startQueryLocked(p, a)
	}
	a := t.touchLocked(p, now)
	a.answered, a.protocols = true, protocols
}

// touchLocked returns the Tracker's entry for p, and sets the time of its last change to
// now. It makes an entry if there is none.
func (t *Tracker) touchLocked(p peer.ID, now time.Time) *answers {
	a := t.peers[p]
	if a == nil {
		a = &answers{}
		t.peers[p] = a
	}
	a.at = now
	return a
}

// removeOldLocked removes the entries of peers that have not changed for reorderWindow: no
// older message of such a peer can arrive any more.
func (t *Tracker) removeOldLocked(now time.Time) {
	if now.Sub(t.cleaned) < reorderWindow {
		return
	}
	t.cleaned = now
	maps.DeleteFunc(t.peers, func(_ peer.ID, a *answers) bool {
		return !a.querying && a.rechecks == 0 && now.Sub(a.at) >= reorderWindow
	})
}

// onlyWatched returns those of the given protocols that the Tracker watches, sorted.
func (t *Tracker) onlyWatched(protocols []protocol.ID) (list []protocol.ID) {
	for _, id := range protocols {
		if slices.Contains(t.watched, id) {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// startQueryLocked starts a query to p, whose entry is a. If a query to p is running, that
// one will be repeated instead.
func (t *Tracker) startQueryLocked(p peer.ID, a *answers) {
	if a.querying {
		a.again = true
		return
	}
	a.querying = true
	t.tasks.Go(func() { t.queryUntilSettled(p, a) })
}

// queryUntilSettled queries p, whose entry is a, until p answers a query and has sent no
// other list of its protocols meanwhile. It gives up after queryTries failures in a row, or
// when p is not connected.
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
		// mu is not held here, because Emit blocks while the buffer of a subscriber
		// is full.
		if update != nil {
			t.updated.Emit(*update)
		}
		if done {
			return
		}
		select {
		case <-time.After(t.pauses.query):
		case <-t.ctx.Done():
		}
	}
}

// correct sets the protocols of p in the peerstore. It returns the event to emit, or nil if
// nothing has changed.
func (t *Tracker) correct(p peer.ID, protocols []protocol.ID) *event.EvtPeerProtocolsUpdated {
	before, _ := t.host.Peerstore().GetProtocols(p)
	if err := t.host.Peerstore().SetProtocols(p, protocols...); err != nil {
		t.log.Debug("cannot store the protocols of a peer", "peer", p, "error", err)
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

// query asks p for its protocols, with libp2p's identify protocol. It first waits until fewer
// than maxQueries queries are running, and then blocks for at most five seconds.
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
	stop := context.AfterFunc(ctx, func() { s.Reset() }) // ends the read below when ctx ends
	defer stop()
	protocols, err := readIdentify(s)
	if err != nil {
		s.Reset()
		return nil, err
	}
	s.Close() // the error is ignored: over QUIC, Close can fail because the peer has closed the stream
	return protocols, nil
}

// readIdentify reads a peer's answer to identify, which may have several parts, and returns
// the protocols in it.
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
	return nil, fmt.Errorf("identify: read an answer: it has more than %d parts", maxIdentifyParts)
}
