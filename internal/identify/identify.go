// Package identify keeps track of the protocols that connected peers speak.
package identify

import (
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
	// overtakes is how long a message of identify can be on its way while others pass
	// it, and as long again: its streams end after five seconds.
	overtakes = 2 * identify.DefaultTimeout
	// askPause is the least time between two questions to one peer.
	askPause = time.Second
	// doubtPause is how long a doubt is left to identify.
	doubtPause = 500 * time.Millisecond
	// maxDoubts bounds those that wait, of one peer.
	maxDoubts = 4
	// askTries is how often a question is asked that gets no answer.
	askTries = 3
	// maxAsking bounds the questions that are open.
	maxAsking = 16
	// maxIdentify and maxIdentifyParts bound an answer, as identify itself does.
	maxIdentify      = 8 << 10
	maxIdentifyParts = 10
	// closeTimeout bounds how long Close waits. A reset can take as long as the
	// connection to a frozen peer lives.
	closeTimeout = 2 * time.Second
)

// Tracker keeps what the peerstore of a host says of some protocols true for
// connected peers.
//
// Libp2p's identify asks a peer once what it speaks, when it connects, and is told of each
// change by a push, which comes on another stream and can be lost, or be read before what is
// older. A host that sets its handlers and dials at once does change what it speaks in
// the moment it connects; if nobody noticed, a peer that speaks pubsub would never be seen
// as one. So a peer is asked once more when it has not answered, when it has said two
// different things within ten seconds, and on [Tracker.Doubt]. What comes of it goes on the
// host's event bus as an [event.EvtPeerProtocolsUpdated].
//
// All methods may be called from any goroutine.
type Tracker struct {
	host    corehost.Host
	watched []protocol.ID
	log     *slog.Logger
	sub     event.Subscription
	updated event.Emitter
	places  chan struct{} // of those who ask

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // Add only under mu and before closed, or in one that counts

	mu     sync.Mutex
	closed bool
	of     map[peer.ID]*spoken
	swept  time.Time
}

// spoken is what a peer said last.
type spoken struct {
	said      bool          // anything
	protocols []protocol.ID // of those that are watched, sorted
	at        time.Time
	asking    bool
	again     bool      // it said something else while it was asked
	doubts    int       // that wait
	doubted   time.Time // when it was asked for one
}

// Track begins to keep the given protocols. The log is the room's logger, nil the
// default one. The host stays the caller's; close what is returned first.
func Track(h corehost.Host, log *slog.Logger, protocols ...protocol.ID) (*Tracker, error) {
	if log == nil {
		log = logging.Room("host", nil)
	}
	sub, err := h.EventBus().Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerIdentificationFailed)},
		eventbus.BufSize(256), eventbus.Name("smokesignal protocols"))
	if err != nil {
		return nil, fmt.Errorf("host: listen to the host's event bus for what peers speak: %w", err)
	}
	updated, err := h.EventBus().Emitter(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		sub.Close()
		return nil, fmt.Errorf("host: prepare to tell on the host's event bus what peers speak: %w", err)
	}
	k := &Tracker{
		host: h, watched: protocols, log: log, sub: sub, updated: updated,
		places: make(chan struct{}, maxAsking), of: make(map[peer.ID]*spoken),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.tasks.Go(k.run)
	return k, nil
}

// Close waits for what was begun, though not longer than two seconds for a connection that
// is frozen.
func (k *Tracker) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.sub.Close()
	if tasks.Wait(&k.tasks, closeTimeout) {
		k.updated.Close()
	} else {
		k.log.Debug("a peer is still asked what it speaks, while its connection or the event bus is stuck")
	}
}

// Doubt has p asked what it speaks if in half a second it has not said that it speaks
// one of the protocols: it did something that only those do who speak it. Who was asked
// for that is not asked again within ten seconds. It does not block.
func (k *Tracker) Doubt(p peer.ID, protocols ...protocol.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.peer(p, time.Now())
	if k.closed || time.Since(r.doubted) < overtakes || r.doubts == maxDoubts {
		return
	}
	r.doubts++
	k.tasks.Go(func() {
		select {
		case <-time.After(doubtPause): // identify may be about to tell
		case <-k.ctx.Done():
		}
		known, err := k.host.Peerstore().SupportsProtocols(p, protocols...)
		k.mu.Lock()
		defer k.mu.Unlock()
		r.doubts--
		if (err != nil || len(known) == 0) && time.Since(r.doubted) >= overtakes {
			r.doubted = time.Now()
			k.ask(p, r)
		}
	})
}

func (k *Tracker) run() {
	for ev := range k.sub.Out() {
		switch ev := ev.(type) {
		case event.EvtPeerIdentificationCompleted:
			k.heard(ev.Peer, ev.Protocols, time.Now())
		case event.EvtPeerIdentificationFailed:
			k.mu.Lock()
			k.ask(ev.Peer, k.peer(ev.Peer, time.Now()))
			k.mu.Unlock()
		}
	}
}

// heard takes what p said.
func (k *Tracker) heard(p peer.ID, protocols []protocol.ID, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweep(now)
	protocols = k.ofInterest(protocols)
	if r := k.of[p]; r != nil && r.said && now.Sub(r.at) < overtakes && !slices.Equal(r.protocols, protocols) {
		k.ask(p, r)
	}
	r := k.peer(p, now)
	r.said, r.protocols = true, protocols
}

// peer returns the record of p, of which there is news. It needs the lock, as all below
// that do not say otherwise.
func (k *Tracker) peer(p peer.ID, now time.Time) *spoken {
	r := k.of[p]
	if r == nil {
		r = &spoken{}
		k.of[p] = r
	}
	r.at = now
	return r
}

// sweep forgets what nothing can overtake any more.
func (k *Tracker) sweep(now time.Time) {
	if now.Sub(k.swept) < overtakes {
		return
	}
	k.swept = now
	maps.DeleteFunc(k.of, func(_ peer.ID, r *spoken) bool { return !r.asking && r.doubts == 0 && now.Sub(r.at) >= overtakes })
}

func (k *Tracker) ofInterest(protocols []protocol.ID) (list []protocol.ID) {
	for _, id := range protocols {
		if slices.Contains(k.watched, id) {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (k *Tracker) ask(p peer.ID, r *spoken) {
	if r.asking {
		r.again = true
		return
	}
	r.asking = true
	k.tasks.Go(func() { k.askUntilKnown(p, r) })
}

// askUntilKnown asks p until it has said what it speaks and has not changed it while it was
// asked, as long as it is connected. It does not have the lock.
func (k *Tracker) askUntilKnown(p peer.ID, r *spoken) {
	for failed := 0; ; {
		said, err := k.question(p)
		var news *event.EvtPeerProtocolsUpdated
		k.mu.Lock()
		if err == nil {
			failed = 0
			r.said, r.protocols, r.at = true, k.ofInterest(said), time.Now()
			news = k.remember(p, said)
		} else if failed++; k.ctx.Err() == nil {
			k.log.Debug("a peer was asked again what it speaks", "peer", p, "err", err)
		}
		done := !r.again && err == nil || failed == askTries || k.ctx.Err() != nil || k.host.Network().Connectedness(p) == network.NotConnected
		r.asking, r.again = !done, false
		k.mu.Unlock()
		if news != nil {
			k.updated.Emit(*news) // waits for the bus's subscribers
		}
		if done {
			return
		}
		select {
		case <-time.After(askPause):
		case <-k.ctx.Done():
		}
	}
}

// remember has the peerstore say what p has said just now, and returns what is new.
func (k *Tracker) remember(p peer.ID, said []protocol.ID) *event.EvtPeerProtocolsUpdated {
	before, _ := k.host.Peerstore().GetProtocols(p)
	if err := k.host.Peerstore().SetProtocols(p, said...); err != nil {
		k.log.Debug("what a peer speaks cannot be remembered", "peer", p, "err", err)
		return nil
	}
	news := &event.EvtPeerProtocolsUpdated{Peer: p, Added: without(said, before), Removed: without(before, said)}
	if len(news.Added)+len(news.Removed) == 0 {
		return nil
	}
	return news
}

func without(list, other []protocol.ID) []protocol.ID {
	return slices.DeleteFunc(slices.Clone(list), func(id protocol.ID) bool { return slices.Contains(other, id) })
}

// question asks p what it speaks. It does not have the lock.
func (k *Tracker) question(p peer.ID) ([]protocol.ID, error) {
	select {
	case k.places <- struct{}{}:
		defer func() { <-k.places }()
	case <-k.ctx.Done():
		return nil, context.Cause(k.ctx)
	}
	ctx, cancel := context.WithTimeout(k.ctx, identify.DefaultTimeout)
	defer cancel()
	s, err := k.host.NewStream(network.WithAllowLimitedConn(network.WithNoDial(ctx, "identify"), "identify"), p, identify.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Scope().SetService(identify.ServiceName); err != nil {
		s.Reset()
		return nil, err
	}
	ended := context.AfterFunc(ctx, func() { s.Reset() })
	defer ended()
	said, err := readIdentify(s)
	if err != nil {
		s.Reset()
		return nil, err
	}
	s.Close() // over QUIC it can fail, as the peer is done with the stream
	return said, nil
}

// readIdentify reads the protocols of an answer, which may come in parts.
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
			return nil, fmt.Errorf("host: identify: read an answer: %w", err)
		}
	}
	return nil, fmt.Errorf("host: identify: an answer of more than %d parts", maxIdentifyParts)
}
