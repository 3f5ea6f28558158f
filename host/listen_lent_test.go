package host

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/vnet"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// onSockets returns a host that listens at addr of a network in memory.
func onSockets(t *testing.T, n *vnet.Network, ip, addr string) *Host {
	t.Helper()
	h, err := New(Config{Listen: []string{addr}, Node: &wiring.HostParts{ListenUDP: n.Machine(ip).ListenUDP}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// Hosts on sockets that are not the system's reach each other, from the address
// they listen on, and leave no socket behind.
func TestHostsOnOtherSocketsReachEachOther(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n := vnet.New(func(netip.Addr, netip.Addr) time.Duration { return 10 * time.Millisecond })
		a := onSockets(t, n, "10.0.0.1", "/ip4/10.0.0.1/udp/8495/quic-v1")
		b := onSockets(t, n, "10.0.0.2", "/ip4/10.0.0.2/udp/0/quic-v1")
		for _, h := range []*Host{a, b} {
			if err := h.Listen(); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Host().Connect(t.Context(), peer.AddrInfo{ID: a.Host().ID(), Addrs: a.Host().Addrs()}); err != nil {
			t.Fatal(err)
		}
		conns := a.Host().Network().ConnsToPeer(b.Host().ID())
		if len(conns) != 1 || conns[0].Stat().Direction != network.DirInbound || !conns[0].RemoteMultiaddr().Equal(b.Host().Addrs()[0]) {
			t.Errorf("connected by %v, want one from %v", conns, b.Host().Addrs())
		}
		a.Close()
		b.Close()
		if s := n.Stats(); s.Sockets != 0 {
			t.Errorf("%d sockets are open", s.Sockets)
		}
	})
}

// The error of a socket that the application provides is returned by Listen.
func TestOtherSocketsReportTheirErrors(t *testing.T) {
	n := vnet.New(vnet.Between(0, 0))
	h := onSockets(t, n, "10.0.0.1", "/ip4/10.0.0.2/udp/8495/quic-v1")
	if err := h.Listen(); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Error(err)
	}
}
