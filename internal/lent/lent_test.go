package lent_test

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/lent"
)

// listening returns a host of an application that listens on loopback.
func listening(t *testing.T, opts ...libp2p.Option) corehost.Host {
	t.Helper()
	return hosttest.New(t, append([]libp2p.Option{libp2p.ListenAddrStrings(hosttest.TCP)}, opts...)...)
}

// A lent host can have one node at a time.
func TestAHostHasOneNode(t *testing.T) {
	h := listening(t)
	release, err := lent.Claim(h)
	if err != nil {
		t.Fatal(err)
	}
	for what, same := range map[string]corehost.Host{"the host": h, "a wrapper": lent.Wrap(h, nil), "a wrapper of another kind": struct{ corehost.Host }{h}} {
		if _, err := lent.Claim(same); !errors.Is(err, lent.ErrClaimed) {
			t.Errorf("%s: %v, want ErrClaimed", what, err)
		}
	}
	if other, err := lent.Claim(listening(t)); err != nil {
		t.Error("another host:", err)
	} else {
		other()
	}
	release()
	again, err := lent.Claim(h)
	if err != nil {
		t.Fatal("after the release:", err)
	}
	release() // the first claim's, which is no more
	if _, err := lent.Claim(h); !errors.Is(err, lent.ErrClaimed) {
		t.Errorf("after the release of an older claim: %v, want ErrClaimed", err)
	}
	again()
}

// TestOnlyDialableAddressesAreReturned: the addresses are those of the moment, without what an
// application's AddrsFactory can get wrong.
func TestOnlyDialableAddressesAreReturned(t *testing.T) {
	var at atomic.Pointer[[]ma.Multiaddr] // libp2p asks at any time
	at.Store(new([]ma.Multiaddr))
	h := listening(t, libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return *at.Load() }))
	id := "/p2p/" + h.ID().String()
	b := lent.Wrap(h, nil)
	look := func(want []string, given ...string) {
		t.Helper()
		var addrs []ma.Multiaddr
		for _, text := range given {
			addrs = append(addrs, ma.StringCast(text))
		}
		at.Store(&addrs)
		var got []string
		for _, a := range b.Dialable() {
			got = append(got, a.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q,\nwant %q", got, want)
		}
	}
	look(nil)
	look([]string{"/ip4/20.0.0.1/tcp/1" + id, "/ip4/192.168.2.1/tcp/1" + id, "/ip4/127.0.0.1/tcp/1" + id},
		"/ip4/127.0.0.1/tcp/1", "/ip4/192.168.2.1/tcp/1", "/ip4/20.0.0.1/tcp/1")
	look([]string{"/ip4/127.0.0.1/tcp/2" + id},
		"/ip4/127.0.0.1/tcp/2"+id, "/ip4/127.0.0.1/tcp/2", "/ip4/0.0.0.0/tcp/2", "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1",
		"/ip4/127.0.0.1/tcp/3/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf", id)
}

// TestALentHostStaysAsItIs: neither Listen nor Close does anything.
func TestALentHostStaysAsItIs(t *testing.T) {
	h := hosttest.New(t)
	b := lent.Wrap(h, nil)
	if err := errors.Join(b.Listen(), b.Close()); err != nil {
		t.Error(err)
	}
	if at := h.Network().ListenAddresses(); len(at) > 0 {
		t.Errorf("it listens at %v", at)
	}
	if err := h.Connect(t.Context(), *peerInfo(listening(t))); err != nil {
		t.Error("it cannot dial:", err)
	}
}

func peerInfo(h corehost.Host) *peer.AddrInfo { return corehost.InfoFromHost(h) }

// TestConnectionIsClosableIfOnlyTheNodeUsesIt: a connection with a stream of the
// application, or to a peer that it protects, is not spare.
func TestConnectionIsClosableIfOnlyTheNodeUsesIt(t *testing.T) {
	for _, c := range []struct {
		what    string
		streams []protocol.ID
		protect bool
		shares  func(peer.ID) bool
		want    bool
		own     bool // what the host of a node's own says
	}{
		{"no stream", nil, false, nil, true, true},
		{"streams of ours", []protocol.ID{"/smokesignal/overlay/1.0.0", "/smokesignal/events/1.0.0", "/floodsub/1.0.0"}, false, nil, true, true},
		{"a stream of the application's", []protocol.ID{"/smokesignal/overlay/1.0.0", "/app/1.0.0"}, false, nil, false, false},
		{"the application protects the peer", nil, true, nil, false, true},
		{"a topic of the application's", []protocol.ID{"/meshsub/1.2.0"}, false, func(peer.ID) bool { return true }, false, true},
		{"pubsub of the application's, and no topic in common", []protocol.ID{"/meshsub/1.2.0"}, false, func(peer.ID) bool { return false }, true, true},
	} {
		h, other := listening(t), listening(t)
		for _, id := range c.streams {
			other.SetStreamHandler(id, func(network.Stream) {})
		}
		if err := h.Connect(t.Context(), *peerInfo(other)); err != nil {
			t.Fatal(err)
		}
		for _, id := range c.streams {
			if _, err := h.NewStream(t.Context(), other.ID(), id); err != nil {
				t.Fatal(err)
			}
		}
		if c.protect {
			h.ConnManager().Protect(other.ID(), "app")
		}
		b := lent.Wrap(h, c.shares)
		conn := h.Network().ConnsToPeer(other.ID())[0]
		if got := b.Spare(conn); got != c.want {
			t.Errorf("%s: spare %v, want %v", c.what, got, c.want)
		}
		if got := !lent.UsedByOthers(conn, nil); got != c.own {
			t.Errorf("%s, on a host of the node's own: spare %v, want %v", c.what, got, c.own)
		}
	}
}
