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
)

// A signedBatch is a batch with the pubsub message that its sender signed, so that a
// node can forward it to nodes that trust only the sender. The wire format and the
// errors call it an original.
type signedBatch struct {
	arrivedBatch
	msg *pb.Message
}

// signedBatchOverhead is about how many bytes of memory a signedBatch takes besides its
// data.
const signedBatchOverhead = 640

// size returns how many bytes of memory o keeps alive.
func (o *signedBatch) size() int { return len(o.msg.Data) + signedBatchOverhead }

// parseSignedBatch reads a message whose signature pubsub has verified.
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

// errUnsigned is returned when a batch is not signed by its sender.
var errUnsigned = errors.New("events: the signature of a batch is wrong")

// decodeSignedBatch reads a signed batch that came by repair instead of pubsub, and
// verifies that the sender has signed it for the topic.
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
	// First, because it is much cheaper than the signature.
	if err := checkBounds(msg); err != nil {
		return nil, err
	}
	if err := verifySignature(msg, sender); err != nil {
		return nil, err
	}
	return parseSignedBatch(msg)
}

// errBounds is returned when a message has fields that would keep more memory alive than
// is counted for it.
var errBounds = fmt.Errorf("%w original: a field is out of bounds", event.ErrMalformed)

// checkBounds refuses a message whose fields other than the data are larger than a
// message needs. Only the data is counted against the limits of memory, and a node that
// forwards the message can add fields that the sender has not signed.
func checkBounds(msg *pb.Message) error {
	if len(msg.ProtoReflect().GetUnknown()) > 0 || len(msg.Seqno) > maxSeqno || len(msg.From) > maxAuthor || len(msg.Key) > maxKey || len(msg.Signature) > maxKey {
		return errBounds
	}
	return nil
}

// verifySignature checks the signature in the way of pubsub's StrictSign.
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

func senderKey(msg *pb.Message, sender peer.ID) (crypto.PubKey, error) {
	if msg.Key == nil { // then the peer id contains the key
		return sender.ExtractPublicKey()
	}
	key, err := crypto.UnmarshalPublicKey(msg.Key)
	if err != nil {
		return nil, err
	}
	// Otherwise anybody could sign for the sender with a key of their own.
	if !sender.MatchesPublicKey(key) {
		return nil, errors.New("its key is of another sender")
	}
	return key, nil
}

// encode returns the message in its wire format.
func (o *signedBatch) encode() ([]byte, error) { return proto.Marshal(o.msg) }
