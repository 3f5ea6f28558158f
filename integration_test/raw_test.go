package integration_test

import (
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// rawHost starts a libp2p host without smokesignal. A test writes its streams by hand, as
// an attacker would.
func rawHost(t *testing.T, opts ...libp2p.Option) corehost.Host {
	t.Helper()
	h, err := libp2p.New(append([]libp2p.Option{libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics()}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// connect connects a raw host to a node.
func connect(t *testing.T, h corehost.Host, n *smokesignal.Node) {
	t.Helper()
	if err := h.Connect(within(t, soon), peer.AddrInfo{ID: n.ID(), Addrs: n.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// say opens a stream, writes b and ends its side. It returns when the other side has ended
// the stream, too, and with that has read all that it wants.
func say(t *testing.T, h corehost.Host, to peer.ID, proto protocol.ID, b []byte) {
	t.Helper()
	s := openStream(t, h, to, proto)
	if s == nil {
		return
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(soon))
	// The other side may end the stream before it has read all, so errors are expected.
	s.Write(b)
	s.CloseWrite()
	if _, err := io.Copy(io.Discard, s); deadline.IsTimeout(err) {
		t.Errorf("a stream of %s stays open %v after its other side has ended", proto, soon)
	}
}

// hold opens a stream, writes b, and returns how long the other side leaves the stream
// open, at most d.
func hold(t *testing.T, h corehost.Host, to peer.ID, proto protocol.ID, b []byte, d time.Duration) time.Duration {
	t.Helper()
	s := openStream(t, h, to, proto)
	if s == nil {
		return 0
	}
	defer s.Reset()
	began := time.Now()
	s.SetDeadline(began.Add(d))
	if _, err := s.Write(b); err == nil {
		io.Copy(io.Discard, s)
	}
	return time.Since(began)
}

// openStream opens a stream over a connection that exists. It returns nil if the other
// side refuses the stream or has closed the connection.
func openStream(t *testing.T, h corehost.Host, to peer.ID, proto protocol.ID) network.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	s, err := h.NewStream(network.WithNoDial(ctx, "the test needs the connection that exists"), to, proto)
	if err != nil {
		return nil
	}
	return s
}

// badBytes are bytes that an attacker may write in place of a frame. The first two ended
// nodes of the original library.
var badBytes = map[string][]byte{
	"a handshake of the original":           []byte("[\"smoke\",\"handshake\",null]\n"),
	"null":                                  []byte("null\n"),
	"nothing":                               nil,
	"an empty frame":                        {0},
	"null in a frame":                       frame.Append(nil, []byte("null")),
	"a length cut off":                      {0x80},
	"a frame cut off":                       {0x20, 1, 2, 3},
	"a length without end":                  {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	"a length of 2^34":                      {0x80, 0x80, 0x80, 0x80, 0x40},
	"a length of 2^63":                      binary.AppendUvarint(nil, 1<<63),
	"a group, which protobuf no longer has": frame.Append(nil, []byte{0x0b, 0x0c}),
	"field number zero":                     frame.Append(nil, []byte{0x00, 0x01}),
	"a field longer than its frame":         frame.Append(nil, []byte{0x0a, 0x7f, 1}),
	"every field, empty":                    frame.Append(nil, everyField(0)),
	"every field, of one byte":              frame.Append(nil, everyField(1)),
	"every field, of nested fields":         frame.Append(nil, everyField(2)),
	"many frames at once":                   manyFrames(),
	"text of 100 KiB":                       make([]byte, 100<<10),
}

// everyField returns a message with the fields 1 to 15, each once as a number and once as
// bytes: empty, one byte, or such a message again, for depth 0, 1 and 2.
func everyField(depth int) []byte {
	var inner []byte
	switch depth {
	case 1:
		inner = []byte{0xff}
	case 2:
		inner = everyField(1)
	}
	var b []byte
	for n := byte(1); n < 16; n++ {
		b = append(b, n<<3|2)
		b = binary.AppendUvarint(b, uint64(len(inner)))
		b = append(b, inner...)
		b = append(b, n<<3)
		b = binary.AppendUvarint(b, 1<<63)
	}
	return b
}

func manyFrames() (b []byte) {
	for range 1000 {
		b = frame.Append(b, everyField(1))
	}
	return b
}

// forged returns a pubsub message that claims to come from author. It is signed with key.
// If key is nil, it carries zeros in place of a signature.
func forged(t *testing.T, author peer.ID, key crypto.PrivKey, topic string, seqno uint64, data []byte) *pb.Message {
	t.Helper()
	m := &pb.Message{
		From: []byte(author), Data: data, Topic: &topic,
		Seqno: binary.BigEndian.AppendUint64(nil, seqno),
	}
	if key == nil {
		m.Signature = make([]byte, 64)
		return m
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if m.Signature, err = key.Sign(append([]byte(pubsub.SignPrefix), b...)); err != nil {
		t.Fatal(err)
	}
	if m.Key, err = crypto.MarshalPublicKey(key.GetPublic()); err != nil {
		t.Fatal(err)
	}
	return m
}

// rpc returns one pubsub frame with these messages.
func rpc(t *testing.T, msgs ...*pb.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(&pb.RPC{Publish: msgs})
	if err != nil {
		t.Fatal(err)
	}
	return frame.Append(nil, b)
}
