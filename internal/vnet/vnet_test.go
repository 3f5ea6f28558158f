package vnet_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/vnet"
)

const latency = 20 * time.Millisecond

// pair is two machines with a socket each.
func pair(t *testing.T) (n *vnet.Network, a, b net.PacketConn) {
	t.Helper()
	n = vnet.New(func(netip.Addr, netip.Addr) time.Duration { return latency })
	listen := func(ip string) net.PacketConn {
		c, err := n.Machine(ip).ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(ip), Port: 8495})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return n, listen("10.0.0.1"), listen("10.0.0.2")
}

func write(t *testing.T, from, to net.PacketConn, text string) {
	t.Helper()
	if _, err := from.WriteTo([]byte(text), to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
}

// wantPacket fails unless the next packet that arrives is this.
func wantPacket(t *testing.T, at, from net.PacketConn, text string) {
	t.Helper()
	b := make([]byte, 1500)
	size, addr, err := at.ReadFrom(b)
	if err != nil || string(b[:size]) != text || addr.String() != from.LocalAddr().String() {
		t.Fatalf("%q from %v, %v; want %q from %v", b[:size], addr, err, text, from.LocalAddr())
	}
}

// wantSilence fails if a packet arrives within a second.
func wantSilence(t *testing.T, at net.PacketConn) {
	t.Helper()
	at.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 1500)
	if size, addr, err := at.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%q from %v, %v; want nothing", b[:size], addr, err)
	}
	at.SetReadDeadline(time.Time{})
}

// Packets arrive in their order, after the latency.
func TestPacketsArriveInOrderAfterTheLatency(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, a, b := pair(t)
		began := time.Now()
		for i := range 10 {
			write(t, a, b, fmt.Sprint(i))
		}
		for i := range 10 {
			wantPacket(t, b, a, fmt.Sprint(i))
		}
		if took := time.Since(began); took != latency {
			t.Errorf("they took %v, want %v", took, latency)
		}
		write(t, b, a, "back")
		wantPacket(t, a, b, "back")
		wantSilence(t, a)
	})
}

// A packet that comes while somebody waits for a later one is read first.
func TestNearPacketOvertakesFarOne(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		far := netip.MustParseAddr("10.0.0.9")
		n := vnet.New(func(from, _ netip.Addr) time.Duration {
			if from == far {
				return time.Second
			}
			return latency
		})
		socket := func(ip string) net.PacketConn {
			c, err := n.Machine(ip).ListenUDP("udp4", &net.UDPAddr{})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		a, b, c := socket("10.0.0.1"), socket("10.0.0.2"), socket(far.String())
		write(t, c, a, "far")
		time.AfterFunc(100*time.Millisecond, func() { b.WriteTo([]byte("near"), a.LocalAddr()) })
		wantPacket(t, a, b, "near")
		wantPacket(t, a, c, "far")
	})
}

// A cut drops packets in one direction only, and none that is on its way.
func TestCutDropsOneWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		write(t, a, b, "on its way")
		n.Cut(func(from, _ netip.Addr) bool { return from == netip.MustParseAddr("10.0.0.1") })
		write(t, a, b, "lost")
		write(t, b, a, "other way")
		wantPacket(t, b, a, "on its way")
		wantPacket(t, a, b, "other way")
		wantSilence(t, b)
		n.Cut(nil)
		write(t, a, b, "healed")
		wantPacket(t, b, a, "healed")
		if s := n.Stats(); s != (vnet.Stats{Sent: 4, Cut: 1, Sockets: 2}) {
			t.Errorf("%+v", s)
		}
	})
}

// Close unblocks readers, and the address can be bound again.
func TestCloseUnblocksReadersAndFreesTheAddress(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		time.AfterFunc(time.Second, func() { a.Close() })
		if _, _, err := a.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := a.Close(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := a.WriteTo([]byte("x"), b.LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		write(t, b, a, "to nobody")
		if s := n.Stats(); s.Lost != 1 || s.Sockets != 1 {
			t.Errorf("%+v", s)
		}
		m := n.Machine("10.0.0.1")
		again, err := m.ListenUDP("udp4", a.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		write(t, b, again, "again")
		wantPacket(t, again, b, "again")
	})
}

// A machine listens on its own address only.
func TestMachineHasOneAddress(t *testing.T) {
	n := vnet.New(vnet.Between(time.Millisecond, time.Second))
	m := n.Machine("10.0.0.1")
	c, err := m.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero})
	if err != nil {
		t.Fatal(err)
	}
	at := c.LocalAddr().(*net.UDPAddr)
	if !at.IP.Equal(net.IPv4(10, 0, 0, 1)) || at.Port == 0 {
		t.Errorf("a free port is %v", at)
	}
	if _, err := m.ListenUDP("udp4", at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	if _, err := m.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2)}); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Error(err)
	}
	if other, err := m.ListenUDP("udp4", &net.UDPAddr{}); err != nil || other.LocalAddr().String() == at.String() {
		t.Error(other, err)
	}
}

// Between returns a latency in its range, the same in both directions.
func TestBetween(t *testing.T) {
	latency := vnet.Between(5*time.Millisecond, 50*time.Millisecond)
	seen := map[time.Duration]bool{}
	for i := range byte(100) {
		a, b := netip.AddrFrom4([4]byte{10, 0, 0, i}), netip.AddrFrom4([4]byte{10, 0, 1, 0})
		d := latency(a, b)
		if d < 5*time.Millisecond || d > 50*time.Millisecond || d != latency(b, a) || d != latency(a, b) {
			t.Errorf("%v and %v: %v there, %v back", a, b, d, latency(b, a))
		}
		seen[d] = true
	}
	if len(seen) < 90 {
		t.Errorf("%d different latencies of 100", len(seen))
	}
}

// A socket with a full queue drops further packets and counts them.
func TestFullSocketDrops(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		for range 5000 {
			write(t, a, b, "x")
		}
		if s := n.Stats(); s.Lost != 5000-4096 {
			t.Errorf("%+v", s)
		}
		if _, _, err := b.ReadFrom(bytes.Repeat([]byte{0}, 1)); err != nil {
			t.Error(err)
		}
	})
}
