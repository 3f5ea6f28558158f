// Package guard makes pubsub safe and fast enough for broadcasts: options for many
// messages in quick succession, and limits on the memory that any peer can make a pubsub
// use.
package guard

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

	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// An Inspector limits the memory that any peer can make a pubsub use. It is installed in
// the pubsub as RPC inspector, subscription filter and tracer. As the inspector it
// counts each arriving message, as the tracer it notices when the message's signature
// was checked. Pubsub does not recover from panics, so the methods of the Inspector do.
type Inspector struct {
	counters *Counters
	log      *slog.Logger
	shared   bool // other parts of the program use the pubsub, too, so the Inspector is not its subscription filter

	mu        sync.Mutex
	own       map[string]bool              // topics that this node has joined
	topics    map[peer.ID]map[string]bool  // other topics that each peer has announced
	unchecked map[*pb.Message]uncheckedMsg // messages whose signature was not checked yet
	bytes     int                          // size of all unchecked messages
}

// uncheckedMsg is the size of a message that is not checked yet, and when it arrived.
type uncheckedMsg struct {
	size int
	at   time.Time
}

// uncheckedFor is how long a message counts as unchecked at most. If its topic was left
// in the meantime, pubsub drops the message without calling the tracer.
const uncheckedFor = 30 * time.Second

// New returns an Inspector for one pubsub, which has to be made with its Options.
func New(cfg Config) *Inspector {
	if cfg.Counters == nil {
		cfg.Counters = new(Counters)
	}
	if cfg.Log == nil {
		cfg.Log = logging.Dependency("pubsub", nil)
	}
	g := &Inspector{
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

func (g *Inspector) recover() {
	if v := recover(); v != nil {
		g.counters.panics.Add(1)
		g.log.Error("a panic in pubsub", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}

var errInspector = errors.New("events: a panic while a message of pubsub was inspected")

// inspect is called with every RPC that arrives, in the event loop of pubsub. It
// removes the messages that break a limit, and leaves the rest of the RPC as it is.
func (g *Inspector) inspect(from peer.ID, rpc *pubsub.RPC) (err error) {
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

// admit reports whether pubsub may go on to check the message m, which arrived at the
// time now.
func (g *Inspector) admit(m *pb.Message, now time.Time) bool {
	switch {
	case m == nil:
		return false
	case !g.own[m.GetTopic()]:
		return g.shared // not our topic; on a shared pubsub it may be one of the application's
	case len(m.Seqno) > protocol.MaxSeqno, len(m.From) > protocol.MaxAuthor, len(m.Key) > protocol.MaxKey, len(m.Signature) > protocol.MaxKey, len(m.ProtoReflect().GetUnknown()) > protocol.MaxKey:
		g.counters.refused.Add(1)
		return false
	}
	size := len(m.Data) + len(m.ProtoReflect().GetUnknown()) + 512
	if g.bytes+size > maxUnchecked { // old messages may have been dropped without notice
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

// sweep stops counting messages that arrived more than uncheckedFor ago.
func (g *Inspector) sweep(now time.Time) {
	for m, u := range g.unchecked {
		if now.Sub(u.at) > uncheckedFor {
			delete(g.unchecked, m)
			g.bytes -= u.size
		}
	}
}

// checked notes that the signature of m was checked, so m no longer counts as
// unchecked.
func (g *Inspector) checked(m *pubsub.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if u, ok := g.unchecked[m.Message]; ok {
		delete(g.unchecked, m.Message)
		g.bytes -= u.size
	}
}

// Stats returns the counters of the guard.
func (g *Inspector) Stats() map[string]uint64 { return g.counters.Stats() }

// Unchecked returns how many messages wait for the check of their signature, and their
// size.
func (g *Inspector) Unchecked() (messages, bytes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.unchecked), g.bytes
}

// TopicsOf returns how many topics of a peer are remembered that this node has not joined.
func (g *Inspector) TopicsOf(p peer.ID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.topics[p])
}

// CanSubscribe is called by pubsub when this node joins a topic. It allows every topic.
func (g *Inspector) CanSubscribe(topic string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own[topic] = true
	return true
}

// FilterIncomingSubscriptions returns those topic announcements of a peer that pubsub
// is to remember. A peer announces each topic only once, and this node may join the
// topic later. So a limited number of topics that this node has not joined is
// remembered, too.
func (g *Inspector) FilterIncomingSubscriptions(p peer.ID, subs []*pb.RPC_SubOpts) (keep []*pb.RPC_SubOpts, err error) {
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

// remember reports whether pubsub is to process an announcement of the peer p about a
// topic. The peer says that it subscribes to the topic, or, if subscribe is false, that
// it leaves the topic.
func (g *Inspector) remember(p peer.ID, topic string, subscribe bool) bool {
	topics := g.topics[p]
	switch {
	case g.own[topic]:
		return true
	case !subscribe:
		known := topics[topic] // pubsub knows only topics whose announcement was let through
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
			clear(g.topics) // limits this map; the count of each peer starts again
		}
		topics = make(map[string]bool)
		g.topics[p] = topics
	}
	topics[topic] = true
	return true
}

// The methods of the tracer follow. Pubsub calls them in its event loop and in
// its validation workers.

func (g *Inspector) OnClosedOutboundStream(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.topics, p)
}

func (g *Inspector) RejectMessage(m *pubsub.Message, reason string) {
	g.checked(m)
	if reason == pubsub.RejectValidationQueueFull {
		g.counters.overload.Add(1)
	} else {
		g.counters.rejected.Add(1)
	}
}

func (g *Inspector) DropRPC(rpc *pubsub.RPC, _ peer.ID) {
	g.counters.dropped.Add(uint64(len(rpc.GetPublish())))
}

// Join is called by pubsub when this node has joined a topic. From now on the messages of the
// topic are checked. CanSubscribe does the same, but is not called on a pubsub that the
// application shares with the node.
func (g *Inspector) Join(topic string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own[topic] = true
}

func (g *Inspector) Leave(topic string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shared {
		delete(g.own, topic) // or the map would grow with each topic that the application joins and leaves
	}
}

func (g *Inspector) ValidateMessage(m *pubsub.Message)        { g.checked(m) }
func (g *Inspector) DuplicateMessage(m *pubsub.Message)       { g.checked(m) }
func (g *Inspector) UndeliverableMessage(*pubsub.Message)     { g.counters.undeliverable.Add(1) }
func (g *Inspector) OnNewOutboundStream(peer.ID, protocol.ID) {}
func (g *Inspector) Graft(peer.ID, string)                    {}
func (g *Inspector) Prune(peer.ID, string)                    {}
func (g *Inspector) DeliverMessage(*pubsub.Message)           {}
func (g *Inspector) ThrottlePeer(peer.ID)                     {}
func (g *Inspector) RecvRPC(*pubsub.RPC)                      {}
func (g *Inspector) SendRPC(*pubsub.RPC, peer.ID)             {}

// SendRPCCompleted is a method of pubsub.RawTracer since v0.19; older versions ignore
// it.
func (g *Inspector) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
