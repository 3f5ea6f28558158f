package gate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
)

// natHost returns a host that listens on loopback. Nobody has a public address there,
// so a relayed connection stays one: no hole is ever punched.
func natHost(t *testing.T, cfg host.NAT) *host.Host {
	t.Helper()
	h, err := host.New(host.Config{Listen: []string{"127.0.0.1:0"}, NAT: cfg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	return h
}

// overQUIC returns the address at which h is reached over QUIC, without a relay.
func overQUIC(t *testing.T, h *host.Host) ma.Multiaddr {
	t.Helper()
	i := slices.IndexFunc(h.Dialable(), func(a ma.Multiaddr) bool {
		return strings.Contains(a.String(), "/quic-v1/") && !addr.IsRelayed(a)
	})
	if i < 0 {
		t.Fatalf("no QUIC among %v", h.Dialable())
	}
	return h.Dialable()[i]
}

// relayed returns the addresses at which h is reached through relays.
func relayed(h *host.Host) []ma.Multiaddr {
	return slices.DeleteFunc(h.Dialable(), func(a ma.Multiaddr) bool { return !addr.IsRelayed(a) })
}

// TestGateKeepsBroadcastsOffRelays: pubsub sees an admitted peer when it is
// connected directly, and not while it is connected through a relay, even one that
// says it has no limits.
func TestGateKeepsBroadcastsOffRelays(t *testing.T) {
	t.Parallel()
	service, err := libp2p.New(libp2p.ListenAddrStrings(hosttest.QUIC), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	unlimited, err := relay.New(service, relay.WithInfiniteLimits())
	if err != nil {
		t.Fatal(err)
	}
	defer unlimited.Close()
	limited := natHost(t, host.NAT{RelayService: true})
	for name, at := range map[string]ma.Multiaddr{
		"limited":   overQUIC(t, limited),
		"unlimited": service.Addrs()[0].Encapsulate(ma.StringCast("/p2p/" + service.ID().String())),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := natHost(t, host.NAT{Relays: []string{at.String()}}), natHost(t, host.NAT{HolePunching: true})
			ga, gb := gatedOn(t, a), gatedOn(t, b)
			hosttest.Eventually(t, "a place", func() bool { return len(relayed(a)) == 1 })
			link(ga, gb)
			if err := b.Host().Connect(t.Context(), peer.AddrInfo{ID: a.Host().ID(), Addrs: relayed(a)}); err != nil {
				t.Fatal(err)
			}
			// A peer that opens a stream all the same is refused.
			s, err := b.Host().NewStream(network.WithAllowLimitedConn(t.Context(), "test"), a.Host().ID(), pubsub.FloodSubID)
			if err == nil {
				s.SetReadDeadline(time.Now().Add(10 * time.Second))
				_, err = s.Read(make([]byte, 1))
				s.Reset()
			}
			if !errors.Is(err, network.ErrReset) {
				t.Errorf("a pubsub stream through a relay: %v", err)
			}
			for _, g := range []*gated{gb, ga} {
				if c := g.gate.Host().Network(); len(c.Peers()) > 0 || c.Connectedness(a.Host().ID()) != network.NotConnected || c.Connectedness(b.Host().ID()) != network.NotConnected {
					t.Error("pubsub is shown a peer behind a relay")
				}
			}
			if _, err := gb.gate.openStream(t.Context(), a.Host().ID(), []protocol.ID{pubsub.FloodSubID}); !errors.Is(err, errRelayed) {
				t.Errorf("the gate opens a stream through a relay: %v", err)
			}
			if ga.sees(gb) || gb.sees(ga) {
				t.Error("they see each other through a relay")
			}
			direct := network.WithForceDirectDial(t.Context(), "test")
			if err := b.Host().Connect(direct, peer.AddrInfo{ID: a.Host().ID(), Addrs: []ma.Multiaddr{overQUIC(t, a)}}); err != nil {
				t.Fatal(err)
			}
			waitLinked(t, ga, gb)
			talk(t, ga, gb, name)
		})
	}
}

// gatedOn puts a floodsub behind a gate on h.
func gatedOn(t *testing.T, h *host.Host) *gated {
	t.Helper()
	n := gate(t, h.Host(), Config{})
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	var err error
	if n.ps, err = pubsub.NewFloodSub(ctx, n.gate.Host()); err != nil {
		t.Fatal(err)
	}
	n.join("topic")
	return n
}
