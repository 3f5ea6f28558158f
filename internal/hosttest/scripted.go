package hosttest

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Scripted is a host for which the test decides what it answers to libp2p's identify protocol,
// and when.
type Scripted struct {
	host.Host
	Asked chan func(protocols ...protocol.ID) // gets a function for each query of a peer; it answers the query with the given protocols, or resets the stream if none are given

	t *testing.T
}

// NewScripted returns a host that closes with the test and listens nowhere.
func NewScripted(t *testing.T) *Scripted {
	t.Helper()
	h := &Scripted{Host: New(t), t: t, Asked: make(chan func(...protocol.ID), 100)}
	h.SetStreamHandler(identify.ID, func(s network.Stream) {
		h.Asked <- func(protocols ...protocol.ID) { h.answer(s, protocols) }
	})
	return h
}

// answer sends an identify message in two parts. The second one has the protocols.
func (h *Scripted) answer(s network.Stream, protocols []protocol.ID) {
	if protocols == nil {
		s.Reset()
		return
	}
	protocols = append([]protocol.ID{identify.ID, identify.IDPush}, protocols...)
	for _, part := range []*pb.Identify{{AgentVersion: new("scripted")}, {Protocols: protocol.ConvertToStrings(protocols)}} {
		b, err := proto.Marshal(part)
		if err != nil {
			h.t.Error(err)
		}
		if _, err := s.Write(frame.Append(nil, b)); err != nil {
			h.t.Error(err)
		}
	}
	s.Close()
}

// Push sends the protocols to a peer that has not asked for them.
func (h *Scripted) Push(to peer.ID, protocols ...protocol.ID) {
	h.t.Helper()
	s, err := h.NewStream(h.t.Context(), to, identify.IDPush)
	if err != nil {
		h.t.Fatal(err)
	}
	h.answer(s, protocols)
}

// Next waits at most 20 s for the next query of a peer, and returns the function that answers
// it.
func (h *Scripted) Next() (answer func(protocols ...protocol.ID)) {
	h.t.Helper()
	select {
	case answer := <-h.Asked:
		return answer
	case <-time.After(20 * time.Second):
		h.t.Fatal("no peer has asked for the protocols within 20 s")
		return nil
	}
}

// Dial connects the host to another one.
func (h *Scripted) Dial(to host.Host) {
	h.t.Helper()
	h.Peerstore().AddAddrs(to.ID(), to.Addrs(), time.Hour)
	if _, err := h.Network().DialPeer(h.t.Context(), to.ID()); err != nil {
		h.t.Fatal(err)
	}
}
