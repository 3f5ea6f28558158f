package events

import (
	"testing"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// TestVectorsOfOriginals: docs/vectors/original.json has signed pubsub Messages.
func TestVectorsOfOriginals(t *testing.T) {
	type vector struct {
		Sender string        `json:"sender"`
		Topic  string        `json:"topic"`
		Data   vectors.Bytes `json:"data"`
	}
	vectors.Test(t, "original.json", func(b []byte) (v vector, err error) {
		msg := new(pb.Message)
		if err := proto.Unmarshal(b, msg); err != nil {
			return v, err
		}
		sender, err := peer.IDFromBytes(msg.From)
		if err != nil {
			return v, err
		}
		if _, err := decodeSignedBatch(b, sender, msg.GetTopic()); err != nil {
			return v, err
		}
		return vector{sender.String(), msg.GetTopic(), msg.Data}, nil
	}, nil) // all of them are readOnly, since the keys are in no file
}
