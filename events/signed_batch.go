package events

import (
	"errors"
	"fmt"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A signedBatch is a batch together with the signed pubsub message in which its sender
// published it. So a node can give the batch to nodes that trust only the sender's
// signature. The wire format and the errors call it an original.
type signedBatch struct {
	arrivedBatch
	msg *pb.Message
}

// signedBatchOverhead is roughly how many bytes of memory a signedBatch uses besides
// the data of its message.
const signedBatchOverhead = 640

// size returns how many bytes of memory o uses.
func (o *signedBatch) size() int { return len(o.msg.Data) + signedBatchOverhead }

// parseSignedBatch decodes a message whose signature pubsub has verified already.
func parseSignedBatch(msg *pb.Message) (*signedBatch, error) {
	if err := checkBounds(msg); err != nil {
		return nil, err
	}
	o := &signedBatch{msg: msg}
	if err := o.arrivedBatch.parse(msg.Data); err != nil {
		return nil, err
	}
	return o, nil
}

// errUnsigned is returned when the signature of a batch is not that of its sender.
var errUnsigned = errors.New("events: the signature of a batch is wrong")

// decodeSignedBatch decodes a signed batch that a neighbor sent in answer to a repair
// request. It verifies that the sender has signed the batch for the topic.
func decodeSignedBatch(b []byte, sender peer.ID, topic string) (*signedBatch, error) {
	msg := new(pb.Message)
	if err := proto.Unmarshal(b, msg); err != nil {
		return nil, fmt.Errorf("%w original: %w", event.ErrMalformed, err)
	}
	switch {
	case peer.ID(msg.From) != sender:
		return nil, fmt.Errorf("%w original: it is of another sender", event.ErrMalformed)
	case msg.GetTopic() != topic:
		return nil, fmt.Errorf("%w original: it is of topic %s", event.ErrMalformed, event.Quote(msg.GetTopic()))
	}
	// This check comes first because it is much cheaper than that of the signature.
	if err := checkBounds(msg); err != nil {
		return nil, err
	}
	if err := verifySignature(msg, sender); err != nil {
		return nil, err
	}
	return parseSignedBatch(msg)
}

// errBounds is returned when a field of a message other than its data is too large. Such
// a field uses memory that the memory limits do not count.
var errBounds = fmt.Errorf("%w original: a field is out of bounds", event.ErrMalformed)

// checkBounds returns errBounds if a field of the message other than its data is larger
// than necessary. The memory limits count only the data, and a node that forwards the
// message could add fields that the sender has not signed.
func checkBounds(msg *pb.Message) error {
	if len(msg.ProtoReflect().GetUnknown()) > 0 || len(msg.Seqno) > protocol.MaxSeqno || len(msg.From) > protocol.MaxAuthor || len(msg.Key) > protocol.MaxKey || len(msg.Signature) > protocol.MaxKey {
		return errBounds
	}
	return nil
}

// verifySignature verifies the signature as pubsub does with the policy StrictSign.
func verifySignature(msg *pb.Message, sender peer.ID) error {
	key, err := senderKey(msg, sender)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsigned, err)
	}
	signed := pb.Message{From: msg.From, Data: msg.Data, Seqno: msg.Seqno, Topic: msg.Topic}
	b, err := proto.MarshalOptions{}.MarshalAppend([]byte(pubsub.SignPrefix), &signed)
	if err != nil {
		return err
	}
	if ok, err := key.Verify(b, msg.Signature); err != nil || !ok {
		return errUnsigned
	}
	return nil
}

// senderKey returns the public key with which the sender signed the message.
func senderKey(msg *pb.Message, sender peer.ID) (crypto.PubKey, error) {
	if msg.Key == nil { // short keys are contained in the peer id itself
		return sender.ExtractPublicKey()
	}
	key, err := crypto.UnmarshalPublicKey(msg.Key)
	if err != nil {
		return nil, err
	}
	// Anybody can sign with a key of their own. Only the sender's key counts.
	if !sender.MatchesPublicKey(key) {
		return nil, errors.New("its key is of another sender")
	}
	return key, nil
}

// encode returns the message in its wire format.
func (o *signedBatch) encode() ([]byte, error) { return proto.Marshal(o.msg) }
