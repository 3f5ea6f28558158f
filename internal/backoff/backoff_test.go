package backoff_test

import (
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/backoff"
)

func TestAClearedPeerIsDialedAtOnce(t *testing.T) {
	h, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	id, err := test.RandPeerID()
	if err != nil {
		t.Fatal(err)
	}
	// Nothing listens on port 1.
	down := peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}
	refuses := func(want bool) {
		t.Helper()
		if err := h.Connect(t.Context(), down); err == nil || errors.Is(err, swarm.ErrDialBackoff) != want {
			t.Errorf("the swarm refuses to dial: want %v, and the error is %v", want, err)
		}
	}
	refuses(false)
	refuses(true)
	backoff.Clear(h, id)
	refuses(false)

	hiding := hidingHost{h}
	if !backoff.CanClear(h) || backoff.CanClear(hiding) {
		t.Error("CanClear is wrong")
	}
	backoff.Clear(hiding, id) // does nothing
	refuses(true)
}

type hidingHost struct{ corehost.Host }

func (h hidingHost) Network() network.Network { return struct{ network.Network }{h.Host.Network()} }
