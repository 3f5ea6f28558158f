package events

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"sync/atomic"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
)

// Bounds of a pubsub of our own. With the queues' defaults of 32 a burst of
// 10,000 messages over a line of five loses half of them, and reorders.
const (
	outboundQueue = 1 << 16 // RPCs per peer; a slice that grows, so it costs nothing unused
	validateQueue = 1 << 16 // messages that wait for their signature to be checked
	// maxUnchecked bounds the same messages in bytes. A queue of 32 was a bound
	// for memory too.
	maxUnchecked = 64 << 20
	// maxControl bounds what an RPC holds besides the data of its messages, in
	// bytes. The least message takes two bytes there, and some 200 decoded.
	maxControl = 64 << 10
	// Bounds of the fields of one message. Sequence numbers have 8 bytes, and 20
	// with rust; author and key are those of any kind of peer id (of at most 42 bytes).
	maxSeqno  = 64
	maxAuthor = 64
	maxKey    = 4 << 10
	// maxTopics bounds the topics that are remembered of a peer, besides the
	// topics that were joined here, and maxTopicName their length.
	maxTopics    = 64
	maxTopicName = 1 << 10
	// maxTopicPeers bounds of how many peers topics are counted.
	maxTopicPeers = 4096
)

// PubSubConfig configures [PubSubOptions]. Its zero value works.
type PubSubConfig struct {
	// Topic is a topic that will be joined. It does not count into the topics
	// that are remembered of a peer, nor do those that were joined before the
	// peer came.
	Topic string
	// Shared says that the pubsub is for others, too, so that nothing is wanted of it
	// that they could have to do without.
	Shared bool
	// Counters counts the faults, if it is not nil.
	Counters *PubSubCounters
	// Log gets what pubsub logs, apart from a line for every RPC; nil is go-log's
	// "pubsub", which is quiet by default.
	Log *slog.Logger
}

// PubSubStats is a snapshot of counters of messages that pubsub did not pass on,
// since the start.
type PubSubStats struct {
	Dropped       uint64 // messages not sent to a peer because its queue was full
	Overload      uint64 // messages dropped because too many waited for their signature to be checked
	Rejected      uint64 // messages that were forged, unsigned, or claimed to be from this node
	Refused       uint64 // messages with a field out of bounds
	Undeliverable uint64 // messages that did not fit into a full subscription
	Topics        uint64 // announcements of topics that were not remembered
	Panics        uint64 // panics of this package on the goroutines of pubsub
}

// PubSubCounters are the counters behind [PubSubStats]. The zero value is ready for
// use, with one pubsub.
type PubSubCounters struct {
	dropped, overload, rejected, refused, undeliverable, topics, panics atomic.Uint64
}

// Stats returns a snapshot of the counters.
func (c *PubSubCounters) Stats() PubSubStats {
	return PubSubStats{
		Dropped:       c.dropped.Load(),
		Overload:      c.overload.Load(),
		Rejected:      c.rejected.Load(),
		Refused:       c.refused.Load(),
		Undeliverable: c.undeliverable.Load(),
		Topics:        c.topics.Load(),
		Panics:        c.panics.Load(),
	}
}

// PubSubOptions returns the options for the pubsub under a [Broadcast]: queues
// that take a burst, one validation worker, as more of them reorder, signed
// messages only, and bounds on what a stranger's message can cost, which
// pubsub's defaults lack. A Broadcast works on a pubsub without them, but loses
// more. They are for one pubsub; call it again for another.
//
// For a pubsub that is shared they are fewer, as its other users may have topics
// without number, ids of messages that all their nodes have to agree on, large control
// messages, and checks that take all cores; in what order they end is put right here.
func PubSubOptions(cfg PubSubConfig) []pubsub.Option {
	return newPubSubGuard(cfg).options()
}

func (g *pubsubGuard) options() []pubsub.Option {
	options := []pubsub.Option{
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithPeerOutboundQueueSize(outboundQueue),
		pubsub.WithValidateQueueSize(validateQueue),
		pubsub.WithAppSpecificRpcInspector(g.inspect),
		pubsub.WithRawTracer(g),
	}
	if g.shared {
		return options
	}
	return append(options,
		pubsub.WithValidateWorkers(1),
		pubsub.WithMaxControlMessageSize(maxControl),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithSubscriptionFilter(g),
		pubsub.WithLogger(g.log),
		pubsub.WithRPCLogger(slog.New(withoutDebug{g.log.Handler()})),
	)
}

// messageID digests author and sequence number. By default they are kept
// themselves, for minutes, however long a stranger made them.
func messageID(m *pb.Message) string {
	var buf [256]byte
	b := binary.BigEndian.AppendUint32(buf[:0], uint32(len(m.From)))
	b = append(append(b, m.From...), m.Seqno...)
	sum := sha256.Sum256(b)
	return string(sum[:])
}

// withoutDebug leaves out the debug lines, of which pubsub writes two an RPC.
type withoutDebug struct{ slog.Handler }

func (h withoutDebug) Enabled(ctx context.Context, level slog.Level) bool {
	return level > slog.LevelDebug && h.Handler.Enabled(ctx, level)
}

func (h withoutDebug) WithAttrs(attrs []slog.Attr) slog.Handler {
	return withoutDebug{h.Handler.WithAttrs(attrs)}
}

func (h withoutDebug) WithGroup(name string) slog.Handler {
	return withoutDebug{h.Handler.WithGroup(name)}
}
