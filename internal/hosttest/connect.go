package hosttest

import (
	"testing"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Connect connects a to b.
func Connect(t testing.TB, a, b host.Host) {
	t.Helper()
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// Announce opens a pubsub stream from one host to another and announces the topic on it, so
// that the other host's pubsub sees a peer on the topic. The hosts must be connected.
func Announce(t testing.TB, from, to host.Host, topic string) {
	t.Helper()
	stream, err := from.NewStream(t.Context(), to.ID(), pubsub.FloodSubID)
	if err != nil {
		t.Fatal(err)
	}
	sub := frame.AppendMessage(frame.AppendUint(nil, 1, 1), 2, []byte(topic))
	if _, err := stream.Write(frame.Append(nil, frame.AppendMessage(nil, 1, sub))); err != nil {
		t.Fatal(err)
	}
}
