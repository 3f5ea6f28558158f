package events

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// pubsubGuard bounds the memory that any peer can make a pubsub use. It is the
// inspector, the subscription filter and the tracer of the pubsub: it counts a
// message in as the inspector, and out as the tracer. Pubsub does not recover from
// panics, so the guard does.
type pubsubGuard struct {
	counters *PubSubCounters
	log      *slog.Logger
	shared   bool // others use the pubsub, too; there is no subscription filter

	mu        sync.Mutex
	own       map[string]bool              // topics joined here
	topics    map[peer.ID]map[string]bool  // others, of each peer
	unchecked map[*pb.Message]uncheckedMsg // messages whose signature is being checked
	bytes     int                          // of unchecked
}

type uncheckedMsg struct {
	size int
	at   time.Time
}

// uncheckedFor is how long a message counts as unchecked at most. Pubsub drops
// messages on a topic that was left meanwhile without a word to the tracer.
const uncheckedFor = 30 * time.Second

func newPubSubGuard(cfg PubSubConfig) *pubsubGuard {
	if cfg.Counters == nil {
		cfg.Counters = new(PubSubCounters)
	}
	if cfg.Log == nil {
		cfg.Log = logging.Dependency("pubsub", nil)
	}
	g := &pubsubGuard{
		counters: cfg.Counters, log: cfg.Log, shared: cfg.Shared,
		own:       make(map[string]bool),
		topics:    make(map[peer.ID]map[string]bool),
		unchecked: make(map[*pb.Message]uncheckedMsg),
	}
	if cfg.Topic != "" {
		g.own[cfg.Topic] = true
	}
	return g
}

func (g *pubsubGuard) recover() {
	if v := recover(); v != nil {
		g.counters.panics.Add(1)
		g.log.Error("a panic in pubsub", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

var errInspector = errors.New("events: the inspector panicked")

// inspect sees every RPC first, in the event loop of pubsub. It removes the messages
// that are out of bounds and leaves the rest of the RPC.
func (g *pubsubGuard) inspect(from peer.ID, rpc *pubsub.RPC) (err error) {
	err = errInspector
	defer g.recover()
	if len(rpc.Publish) > 0 {
		now := time.Now()
		g.mu.Lock()
		defer g.mu.Unlock()
		rpc.Publish = slices.DeleteFunc(rpc.Publish, func(m *pb.Message) bool { return !g.admit(m, now) })
	}
	return nil
}

// admit reports whether pubsub may go on with a message.
func (g *pubsubGuard) admit(m *pb.Message, now time.Time) bool {
	switch {
	case m == nil:
		return false
	case !g.own[m.GetTopic()]:
		return g.shared // a topic that others only publish on is not known to the guard
	case len(m.Seqno) > maxSeqno, len(m.From) > maxAuthor, len(m.Key) > maxKey, len(m.Signature) > maxKey, len(m.ProtoReflect().GetUnknown()) > maxKey:
		g.counters.refused.Add(1)
		return false
	}
	size := len(m.Data) + len(m.ProtoReflect().GetUnknown()) + 512
	if g.bytes+size > maxUnchecked { // some of it may be gone without a word
		g.sweep(now)
		if g.bytes+size > maxUnchecked {
			g.counters.overload.Add(1)
			return false
		}
	}
	g.unchecked[m] = uncheckedMsg{size, now}
	g.bytes += size
	return true
}

func (g *pubsubGuard) sweep(now time.Time) {
	for m, u := range g.unchecked {
		if now.Sub(u.at) > uncheckedFor {
			delete(g.unchecked, m)
			g.bytes -= u.size
		}
	}
}

// checked counts m out: its check is over.
func (g *pubsubGuard) checked(m *pubsub.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if u, ok := g.unchecked[m.Message]; ok {
		delete(g.unchecked, m.Message)
		g.bytes -= u.size
	}
}

// CanSubscribe is called when a topic is joined here. It allows every topic.
func (g *pubsubGuard) CanSubscribe(topic string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own[topic] = true
	return true
}

// FilterIncomingSubscriptions returns the announcements of a peer that pubsub is to
// remember. A peer announces a topic once only, and the topic may be joined here
// later. So a limited number of topics that are not joined here is remembered too.
func (g *pubsubGuard) FilterIncomingSubscriptions(p peer.ID, subs []*pb.RPC_SubOpts) (keep []*pb.RPC_SubOpts, err error) {
	err = errInspector
	defer g.recover()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, sub := range subs {
		if g.remember(p, sub.GetTopicid(), sub.GetSubscribe()) {
			keep = append(keep, sub)
		}
	}
	return keep, nil
}

func (g *pubsubGuard) remember(p peer.ID, topic string, subscribe bool) bool {
	topics := g.topics[p]
	switch {
	case g.own[topic]:
		return true
	case !subscribe:
		known := topics[topic] // pubsub only needs the end of an announcement it has seen
		delete(topics, topic)
		return known
	case topics[topic]:
		return true
	case len(topics) >= maxTopics || len(topic) > maxTopicName:
		g.counters.topics.Add(1)
		return false
	}
	if topics == nil {
		if len(g.topics) >= maxTopicPeers {
			clear(g.topics) // bounds our own memory; the counts begin anew
		}
		topics = make(map[string]bool)
		g.topics[p] = topics
	}
	topics[topic] = true
	return true
}

// The methods of the tracer. Pubsub calls them in its event loop and its validation workers.

func (g *pubsubGuard) OnClosedOutboundStream(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.topics, p)
}

func (g *pubsubGuard) RejectMessage(m *pubsub.Message, reason string) {
	g.checked(m)
	if reason == pubsub.RejectValidationQueueFull {
		g.counters.overload.Add(1)
	} else {
		g.counters.rejected.Add(1)
	}
}

func (g *pubsubGuard) DropRPC(rpc *pubsub.RPC, _ peer.ID) {
	g.counters.dropped.Add(uint64(len(rpc.GetPublish())))
}

// Join starts the checks of messages on a topic. On a shared pubsub there is no
// subscription filter, so CanSubscribe was not called for it.
func (g *pubsubGuard) Join(topic string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own[topic] = true
}

func (g *pubsubGuard) Leave(topic string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shared {
		delete(g.own, topic) // an application may join any number of topics in turn
	}
}

func (g *pubsubGuard) ValidateMessage(m *pubsub.Message)        { g.checked(m) }
func (g *pubsubGuard) DuplicateMessage(m *pubsub.Message)       { g.checked(m) }
func (g *pubsubGuard) UndeliverableMessage(*pubsub.Message)     { g.counters.undeliverable.Add(1) }
func (g *pubsubGuard) OnNewOutboundStream(peer.ID, protocol.ID) {}
func (g *pubsubGuard) Graft(peer.ID, string)                    {}
func (g *pubsubGuard) Prune(peer.ID, string)                    {}
func (g *pubsubGuard) DeliverMessage(*pubsub.Message)           {}
func (g *pubsubGuard) ThrottlePeer(peer.ID)                     {}
func (g *pubsubGuard) RecvRPC(*pubsub.RPC)                      {}
func (g *pubsubGuard) SendRPC(*pubsub.RPC, peer.ID)             {}

// SendRPCCompleted is part of pubsub.RawTracer from v0.19 on; older versions ignore it.
func (g *pubsubGuard) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
