package guard

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"sync/atomic"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
)

// Limits of a pubsub that uses these options. With pubsub's default queue length of 32,
// half of 10,000 messages sent at once were lost on a line of five nodes, and the rest
// came out of order.
const (
	outboundQueue = 1 << 16 // how many RPCs may be queued per peer; the queue is a growing slice, so an empty one costs no memory
	validateQueue = 1 << 16 // how many messages may wait until their signature is checked
	// maxUnchecked limits the size of the messages that wait until their signature is
	// checked, in bytes. validateQueue alone would let them use too much memory.
	maxUnchecked = 64 << 20
	// maxControl limits what an RPC contains besides the data of its messages, in
	// bytes. An empty message takes two bytes there, and some 200 bytes of memory when
	// decoded.
	maxControl = 64 << 10
	// maxTopics is how many topics are remembered of one peer, not counting topics that
	// this node has joined. maxTopicName is the greatest length of their names in
	// bytes.
	maxTopics    = 64
	maxTopicName = 1 << 10
	// maxTopicPeers is the largest number of peers of which this node remembers topics
	// that it has not joined itself.
	maxTopicPeers = 4096
)

// Config configures an [Inspector]. Its zero value works.
type Config struct {
	// Topic is a topic that this node is going to join. Joined topics do not count
	// against the limit of 64 topics that pubsub remembers of one peer.
	Topic string
	// Shared means that other parts of the program use the pubsub, too. Then options that
	// could restrict their use of it are left out.
	Shared bool
	// Counters counts dropped and refused messages; nil counts nothing.
	Counters *Counters
	// Log receives the log lines of pubsub, except its debug lines for each RPC. nil is
	// go-log's logger "pubsub", which is silent by default.
	Log *slog.Logger
}

// Counters counts, since the start, messages that pubsub did not send or deliver. The
// zero value is ready to use, for one pubsub.
type Counters struct {
	dropped, overload, rejected, refused, undeliverable, topics, panics atomic.Uint64
}

// Stats returns the counters.
func (c *Counters) Stats() map[string]uint64 {
	return map[string]uint64{
		// Messages that were not sent to a peer because the queue for that peer was full.
		"dropped": c.dropped.Load(),
		// Messages dropped because too many waited for the check of their signature.
		"overload": c.overload.Load(),
		// Messages that were forged, unsigned, or claimed to be from this node.
		"rejected": c.rejected.Load(),
		// Messages with a field that is larger than allowed.
		"refused": c.refused.Load(),
		// Messages dropped because the queue of the subscription was full.
		"undeliverable": c.undeliverable.Load(),
		// Topics that peers announced and that were not remembered, because there were too many.
		"topics": c.topics.Load(),
		// Panics in this package on goroutines of pubsub.
		"panics": c.panics.Load(),
	}
}

// Options returns options for the pubsub under a broadcast: queues large enough for
// thousands of messages at once, a single worker that checks signatures (several would
// change the order of messages), signed messages only, and limits on the memory that a
// message can use, which pubsub lacks by default. They are for one pubsub.
//
// With Shared there are fewer options, because the pubsub's other users may need any
// number of topics, message ids that all their nodes agree on, large control messages,
// and several workers. A broadcast restores the order of its own messages itself.
func (g *Inspector) Options() []pubsub.Option {
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

// messageID returns a hash of the author and the sequence number of a message. By
// default pubsub keeps these two fields themselves for minutes, however long a peer
// made them.
func messageID(m *pb.Message) string {
	var buf [256]byte
	b := binary.BigEndian.AppendUint32(buf[:0], uint32(len(m.From)))
	b = append(append(b, m.From...), m.Seqno...)
	sum := sha256.Sum256(b)
	return string(sum[:])
}

// withoutDebug drops debug lines. Pubsub writes two of them for each RPC.
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
