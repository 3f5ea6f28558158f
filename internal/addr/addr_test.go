package addr

import (
	"net/netip"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

const (
	relay  = "12D3KooWJTBnMkqj93obubEwhbqt8SGwRBckdTAnCnDo2c6YVRXC"
	behind = "12D3KooWPVNpYCUw7EmPRNf1WF4Sr5AvYTz76mXjyWFeoy7Cp8vL"
)

// AddrPort returns the IP address and the port of a multiaddr.
func TestAddrPort(t *testing.T) {
	for text, want := range map[string]string{
		"/ip4/1.2.3.4/tcp/8495":                      "1.2.3.4:8495",
		"/ip4/1.2.3.4/udp/8495/quic-v1":              "1.2.3.4:8495",
		"/ip6/2001:db8::1/tcp/1/ws":                  "[2001:db8::1]:1",
		"/ip6/::ffff:1.2.3.4/tcp/1":                  "1.2.3.4:1",
		"/ip4/0.0.0.0/tcp/0":                         "0.0.0.0:0",
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay:            "1.2.3.4:1",
		"/ip6zone/eth0/ip6/fe80::1/tcp/1":            "",
		"/dns4/example.org/tcp/8495":                 "",
		"/ip4/1.2.3.4":                               "",
		"/ip4/1.2.3.4/sctp/1":                        "",
		"/p2p-circuit":                               "",
		"/p2p/" + relay + "/p2p-circuit":             "",
		"/ip4/1.2.3.4/ip4/1.2.3.4/tcp/1/p2p-circuit": "",
	} {
		at, ok := AddrPort(ma.StringCast(text))
		if ok != (want != "") || ok && at.String() != want {
			t.Errorf("%s: %v, %v", text, at, ok)
		}
	}
	if at, ok := AddrPort(nil); ok {
		t.Errorf("of no address: %v", at)
	}
}

// Split returns an address with its zone, and the transport.
func TestSplitKeepsZoneAndTransport(t *testing.T) {
	at, transport, ok := Split(ma.StringCast("/ip6zone/eth0/ip6/fe80::1/udp/7/quic-v1"))
	if !ok || at.String() != "[fe80::1%eth0]:7" || transport.String() != "/udp/7/quic-v1" {
		t.Errorf("%v, %v, %v", at, transport, ok)
	}
}

// An address with a port becomes a TCP and a QUIC multiaddr.
func TestMultiaddrsOfAnAddrPort(t *testing.T) {
	for text, want := range map[string][2]string{
		"1.2.3.4:5":          {"/ip4/1.2.3.4/tcp/5", "/ip4/1.2.3.4/udp/5/quic-v1"},
		"[::ffff:1.2.3.4]:5": {"/ip4/1.2.3.4/tcp/5", "/ip4/1.2.3.4/udp/5/quic-v1"},
		"[fe80::1%eth0]:5":   {"/ip6/fe80::1/tcp/5", "/ip6/fe80::1/udp/5/quic-v1"},
	} {
		at := netip.MustParseAddrPort(text)
		if tcp, quic := TCP(at).String(), QUIC(at).String(); tcp != want[0] || quic != want[1] {
			t.Errorf("%s: %s and %s", text, tcp, quic)
		}
	}
}

// SplitRelay finds the address of the relay in a circuit address.
func TestSplitRelay(t *testing.T) {
	for text, want := range map[string]string{
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay + "/p2p-circuit":                                "/ip4/1.2.3.4/tcp/1",
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay + "/p2p-circuit/p2p/" + behind:                  "/ip4/1.2.3.4/tcp/1",
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay:                                                 "",
		"/ip4/1.2.3.4/tcp/1/p2p-circuit":                                                  "",
		"/p2p/" + relay + "/p2p-circuit":                                                  "",
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay + "/p2p-circuit/p2p/" + behind + "/p2p-circuit": "",
	} {
		a := ma.StringCast(text)
		id, at, ok := SplitRelay(a)
		if ok != (want != "") || ok && (id.String() != relay || at.String() != want) {
			t.Errorf("%s: %v at %v, %v", text, id, at, ok)
		}
		if ok && !IsRelayed(a) {
			t.Errorf("%s is not relayed", text)
		}
	}
}
