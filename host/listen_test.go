package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// A chosen port is the same for TCP and UDP, and it is the announced one.
func TestFreePortIsTheSameAndAnnouncedTruthfully(t *testing.T) {
	h := listening(t, "127.0.0.1:0")
	addrs := h.Host().Network().ListenAddresses()
	if len(addrs) != 2 {
		t.Fatalf("listening on %v", addrs)
	}
	tcp, _, _ := splitAddr(addrs[0])
	udp, _, _ := splitAddr(addrs[1])
	if tcp.Port() != udp.Port() || tcp.Port() == 0 {
		t.Errorf("ports %d and %d", tcp.Port(), udp.Port())
	}
	for _, a := range h.Dialable() {
		if at, _, _ := splitAddr(a); at.Port() != tcp.Port() {
			t.Errorf("announced %v, want port %d", a, tcp.Port())
		}
	}
}

// A host on all interfaces announces the address of each one, never the unspecified address.
func TestAllInterfacesAreAnnouncedOneByOne(t *testing.T) {
	h := listening(t, ":0")
	addrs := h.Dialable()
	var loopback bool
	for _, a := range addrs {
		at, _, ok := splitAddr(a)
		if !ok || at.Port() == 0 || at.Addr().IsUnspecified() || !strings.HasSuffix(a.String(), "/p2p/"+h.Host().ID().String()) {
			t.Errorf("cannot be dialed: %v", a)
		}
		loopback = loopback || manet.IsIPLoopback(a)
	}
	if !loopback {
		t.Errorf("no loopback address among %v", addrs)
	}
}

// With a subnet, a host on all interfaces binds only addresses in it.
func TestASubnetRestrictsAllInterfaces(t *testing.T) {
	// Host bits do not matter, as in LocalIP.
	h, err := New(Config{Listen: []string{":0"}, Subnet: netip.MustParsePrefix("127.0.0.1/8")})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	for _, a := range slices.Concat(h.Host().Network().ListenAddresses(), h.Dialable()) {
		if at, _, _ := splitAddr(a); at.Addr().String() != "127.0.0.1" {
			t.Errorf("%v is not in the subnet", a)
		}
	}
	for _, tt := range []struct{ listen, subnet, option, want string }{
		{":0", "203.0.113.0/24", "Subnet", "it has 127.0.0.1"},
		{"203.0.113.1:0", "127.0.0.0/8", "Listen", "not in Subnet 127.0.0.0/8"},
	} {
		_, err := New(Config{Listen: []string{tt.listen}, Subnet: netip.MustParsePrefix(tt.subnet)})
		if ce, ok := errors.AsType[*configError](err); !ok || ce.Option != tt.option || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s in %s: got %v, want %q", tt.listen, tt.subnet, err, tt.want)
		}
	}
}

// occupy binds a port of loopback that is free for both TCP and UDP, and keeps
// the given ones.
func occupy(t *testing.T, tcp, udp bool) (port int, release func()) {
	t.Helper()
	for {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		port := c.LocalAddr().(*net.UDPAddr).Port
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			c.Close()
			continue
		}
		if !tcp {
			l.Close()
		}
		if !udp {
			c.Close()
		}
		return port, func() { l.Close(); c.Close() }
	}
}

// wantFree fails unless both could be bound now.
func wantFree(t *testing.T, port int, tcp, udp bool) {
	t.Helper()
	at := fmt.Sprintf("127.0.0.1:%d", port)
	if tcp {
		l, err := net.Listen("tcp4", at)
		if err != nil {
			t.Errorf("still bound: %v", err)
		} else {
			l.Close()
		}
	}
	if udp {
		c, err := net.ListenPacket("udp4", at)
		if err != nil {
			t.Errorf("still bound: %v", err)
		} else {
			c.Close()
		}
	}
}

// The error of a port in use names the port and its transport.
func TestAPortInUseIsNamed(t *testing.T) {
	for _, tt := range []struct{ tcp, udp bool }{{true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprintf("tcp=%t udp=%t", tt.tcp, tt.udp), func(t *testing.T) {
			occupied, release := occupy(t, tt.tcp, tt.udp)
			defer release()
			free, release2 := occupy(t, true, true)
			release2()
			h := newHost(t, fmt.Sprintf("127.0.0.1:%d", free), fmt.Sprintf("127.0.0.1:%d", occupied))
			err := h.Listen()
			le, ok := errors.AsType[*ListenError](err)
			if !ok || !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("got %v", err)
			}
			var want []string
			if tt.tcp {
				want = append(want, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", occupied))
			}
			if tt.udp {
				want = append(want, fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", occupied))
			}
			var got []string
			for _, f := range le.Failed {
				got = append(got, f.Addr.String())
				if !strings.Contains(err.Error(), f.Addr.String()+": address already in use") {
					t.Errorf("%v is not named in: %v", f.Addr, err)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("failed %v, want %v", got, want)
			}
			if addrs := h.Host().Network().ListenAddresses(); len(addrs) != 0 || len(h.Dialable()) != 0 {
				t.Errorf("listening on %v, announcing %v", addrs, h.Dialable())
			}
			wantFree(t, free, true, true)
			wantFree(t, occupied, !tt.tcp, !tt.udp)

			release()
			if err := h.Listen(); err != nil {
				t.Fatalf("when the port was free again: %v", err)
			}
			if addrs := h.Host().Network().ListenAddresses(); len(addrs) != 4 {
				t.Errorf("listening on %v", addrs)
			}
		})
	}
}

// With SO_REUSEPORT, which libp2p likes, both would listen and share the
// connections.
func TestTwoNodesCannotShareAPort(t *testing.T) {
	for _, form := range []string{"127.0.0.1:%d", "/ip4/127.0.0.1/tcp/%d", "/ip4/127.0.0.1/tcp/%d/ws"} {
		port, release := occupy(t, true, true)
		release()
		text := fmt.Sprintf(form, port)
		listening(t, text)
		if err := newHost(t, text).Listen(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// The error of an address that this machine does not have names the address.
func TestAnAddressOfAnotherMachineIsNamed(t *testing.T) {
	h := newHost(t, "127.0.0.1:0", "203.0.113.1:0", "203.0.113.2:8495")
	err := h.Listen()
	if !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"203.0.113.1", "/ip4/203.0.113.2/tcp/8495: not an address of this machine", "/ip4/203.0.113.2/udp/8495/quic-v1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if addrs := h.Host().Network().ListenAddresses(); len(addrs) != 0 {
		t.Errorf("listening on %v", addrs)
	}
}

// The error of a host name that does not resolve names it.
func TestANameThatCannotBeFoundIsNamed(t *testing.T) {
	err := newHost(t, "127.0.0.1:0", "no-such-host.invalid:8495").Listen()
	if le, ok := errors.AsType[*ListenError](err); !ok || !strings.Contains(err.Error(), "no-such-host.invalid") || len(le.Failed) != 1 {
		t.Errorf("got %v", err)
	}
}

// QUIC, WebTransport and WebRTC can share one socket, asked for in any order,
// and an address asked for twice is one.
func TestUDPTransportsShareASocket(t *testing.T) {
	port, release := occupy(t, true, true)
	release()
	webRTC := fmt.Sprintf("/ip4/127.0.0.1/udp/%d/webrtc-direct", port)
	webTransport := fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1/webtransport", port)
	both := fmt.Sprintf("127.0.0.1:%d", port)
	h := listening(t, webRTC, webTransport, both, both)
	if addrs := h.Host().Network().ListenAddresses(); len(addrs) != 4 {
		t.Errorf("listening on %v", addrs)
	}
	if waiting := len(h.sockets.ready); waiting != 0 || len(h.sockets.inUse) != 1 {
		t.Errorf("%d sockets waiting, %d in use", waiting, len(h.sockets.inUse))
	}
}

// A failure after the sockets were bound closes the other sockets too.
func TestAFailingTransportReleasesAllSockets(t *testing.T) {
	h := newHost(t)
	port, release := occupy(t, true, true)
	release()
	b := binder{sw: h.swarm, sockets: &h.sockets}
	b.bindGroup(listenGroup{text: "x", ips: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, kinds: kinds[:2], port: uint16(port)})
	b.udp = append(b.udp, boundUDP{"y", ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/udp/%d/utp", port)), kind{"udp", "/utp"}})
	failed := b.bind(nil)
	if len(failed) != 1 || failed[0].Text != "y" {
		t.Fatalf("got %v", failed)
	}
	wantFree(t, port, true, true)
	if addrs := h.Host().Network().ListenAddresses(); len(addrs) != 0 {
		t.Errorf("listening on %v", addrs)
	}
	// Not in use, so no hindrance for the next attempt.
	h.requests[0].port = uint16(port)
	if err := h.Listen(); err != nil {
		t.Error(err)
	}
}
