package events

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync/atomic"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Bounds of a pubsub of our own. The figures are those with which a burst of
// 10,000 messages over a line of five loses nothing; the defaults of 32 lose
// two thirds of it.
const (
	outboundQueue = 1 << 16 // RPCs per peer; a slice that grows, so it costs nothing unused
	validateQueue = 1 << 14 // messages that wait for their signature to be checked
	// maxSeqno is the longest sequence number of pubsub that is let in. Others use
	// 8 and 20 bytes; the seen cache keeps what comes for minutes.
	maxSeqno = 64
	// maxTopics is how many announcements one RPC may hold.
	maxTopics = 64
)

// PubSubConfig says what [PubSubOptions] is for.
type PubSubConfig struct {
	// Topic is the one topic that is of interest.
	Topic string
	// Log gets what pubsub logs.
	Log *slog.Logger
	// Stats counts what pubsub drops. May be nil.
	Stats *PubSubStats
}

// PubSubStats counts messages that pubsub lost or refused.
type PubSubStats struct {
	Dropped       atomic.Uint64 // RPCs that a peer's full queue did not take
	Rejected      atomic.Uint64 // messages with a bad signature, of one's own back, and the like
	Undeliverable atomic.Uint64 // messages that a full subscription did not take
}

// PubSubOptions returns the options with which floodsub keeps order on a link and
// drops nothing at ordinary speeds: raised queues, one validation worker (two
// reorder), signatures required, message ids of a fixed size (a long sequence
// number would be kept for minutes), and bounds on what a peer announces.
func PubSubOptions(cfg PubSubConfig) []pubsub.Option {
	options := []pubsub.Option{
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithPeerOutboundQueueSize(outboundQueue),
		pubsub.WithValidateQueueSize(validateQueue),
		pubsub.WithValidateWorkers(1),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithAppSpecificRpcInspector(inspect),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(pubsub.NewAllowlistSubscriptionFilter(cfg.Topic), maxTopics)),
	}
	if cfg.Log != nil {
		options = append(options, pubsub.WithLogger(cfg.Log))
	}
	if cfg.Stats != nil {
		options = append(options, pubsub.WithRawTracer(tracer{stats: cfg.Stats}))
	}
	return options
}

// messageID digests author and sequence number; the length in between keeps
// two different pairs from having one text.
func messageID(m *pb.Message) string {
	from := m.GetFrom()
	b := make([]byte, 0, 128)
	b = binary.BigEndian.AppendUint32(b, uint32(len(from)))
	b = append(append(b, from...), m.GetSeqno()...)
	sum := sha256.Sum256(b)
	return string(sum[:])
}

var errSeqno = errors.New("events: a sequence number of pubsub is too long")

// inspect refuses an RPC before anything of it is kept. It runs in pubsub's event
// loop.
func inspect(_ peer.ID, rpc *pubsub.RPC) error {
	for _, m := range rpc.GetPublish() {
		if len(m.GetSeqno()) > maxSeqno {
			return errSeqno
		}
	}
	return nil
}

// tracer counts what would be lost without a trace.
type tracer struct{ stats *PubSubStats }

func (t tracer) DropRPC(*pubsub.RPC, peer.ID)             { t.stats.Dropped.Add(1) }
func (t tracer) RejectMessage(*pubsub.Message, string)    { t.stats.Rejected.Add(1) }
func (t tracer) UndeliverableMessage(*pubsub.Message)     { t.stats.Undeliverable.Add(1) }
func (t tracer) OnNewOutboundStream(peer.ID, protocol.ID) {}
func (t tracer) OnClosedOutboundStream(peer.ID)           {}
func (t tracer) Join(string)                              {}
func (t tracer) Leave(string)                             {}
func (t tracer) Graft(peer.ID, string)                    {}
func (t tracer) Prune(peer.ID, string)                    {}
func (t tracer) ValidateMessage(*pubsub.Message)          {}
func (t tracer) DeliverMessage(*pubsub.Message)           {}
func (t tracer) DuplicateMessage(*pubsub.Message)         {}
func (t tracer) ThrottlePeer(peer.ID)                     {}
func (t tracer) RecvRPC(*pubsub.RPC)                      {}
func (t tracer) SendRPC(*pubsub.RPC, peer.ID)             {}
