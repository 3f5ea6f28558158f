package events

import (
	"errors"
	"fmt"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

// An original is a batch together with the pubsub message that its sender signed,
// so that it can be handed to others who believe nobody but the sender.
type signedBatch struct {
	batch
	msg *pb.Message
}

// signedBatchOverhead is about what an original takes besides its data, in bytes.
const signedBatchOverhead = 640

// size returns the bytes that it keeps alive.
func (o *signedBatch) size() int { return len(o.msg.Data) + signedBatchOverhead }

// parseSignedBatch reads the message of a pubsub that has proven its signature.
func parseSignedBatch(msg *pb.Message) (*signedBatch, error) {
	if err := checkBounds(msg); err != nil {
		return nil, err
	}
	o := &signedBatch{msg: msg}
	if err := o.batch.parse(msg.Data); err != nil {
		return nil, err
	}
	return o, nil
}

// errUnsigned is returned for an original that its sender has not signed.
var errUnsigned = errors.New("events: the signature is wrong")

// decodeSignedBatch reads an original that somebody else than a pubsub brought, and
// proves that the sender has signed it for the topic.
func decodeSignedBatch(b []byte, sender peer.ID, topic string) (*signedBatch, error) {
	msg := new(pb.Message)
	if err := proto.Unmarshal(b, msg); err != nil {
		return nil, fmt.Errorf("%w original: %w", ErrMalformed, err)
	}
	switch {
	case peer.ID(msg.From) != sender:
		return nil, fmt.Errorf("%w original: it is of another sender", ErrMalformed)
	case msg.GetTopic() != topic:
		return nil, fmt.Errorf("%w original: it is of topic %s", ErrMalformed, quote(msg.GetTopic()))
	}
	if err := checkBounds(msg); err != nil {
		return nil, err
	}
	if err := verifySignature(msg, sender); err != nil {
		return nil, err
	}
	return parseSignedBatch(msg)
}

// errBounds is returned for a message that would keep more alive than its data.
var errBounds = fmt.Errorf("%w original: a field is out of bounds", ErrMalformed)

// checkBounds refuses what is in a message besides its data, which is all that is counted
// of it, if it is more than a message needs: who passes it on can add to it what the
// sender has not signed.
func checkBounds(msg *pb.Message) error {
	if len(msg.ProtoReflect().GetUnknown()) > 0 || len(msg.Seqno) > maxSeqno || len(msg.From) > maxAuthor || len(msg.Key) > maxKey || len(msg.Signature) > maxKey {
		return errBounds
	}
	return nil
}

// verifySignature is what pubsub does with StrictSign.
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
	if msg.Key == nil {
		return sender.ExtractPublicKey()
	}
	key, err := crypto.UnmarshalPublicKey(msg.Key)
	if err != nil {
		return nil, err
	}
	if !sender.MatchesPublicKey(key) {
		return nil, errors.New("its key is of another sender")
	}
	return key, nil
}

// encode returns the message as it travels.
func (o *signedBatch) encode() ([]byte, error) { return proto.Marshal(o.msg) }
