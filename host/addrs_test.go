package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func testNet() netip.Addr { return netip.MustParseAddr("203.0.113.1") } // nobody has it

// Each form of a Listen text is parsed into an address, a port and its transports.
func TestListenTextsAreUnderstood(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"127.0.0.1:8495", "127.0.0.1 8495 tcp udp/quic-v1"},
		{":8495", "all 8495 tcp udp/quic-v1"},
		{"8495", "all 8495 tcp udp/quic-v1"},
		{":0", "all 0 tcp udp/quic-v1"},
		{"[::1]:8495", "::1 8495 tcp udp/quic-v1"},
		{"[::]:8495", ":: 8495 tcp udp/quic-v1"},
		{"[fe80::1%eth0]:8495", "fe80::1%eth0 8495 tcp udp/quic-v1"},
		{"[::ffff:127.0.0.1]:1", "127.0.0.1 1 tcp udp/quic-v1"},
		{"localhost:8495", "localhost 8495 tcp udp/quic-v1"},
		{"my-host.example.org.:65535", "my-host.example.org. 65535 tcp udp/quic-v1"},
		{"/ip4/192.168.2.1/tcp/8495", "192.168.2.1 8495 tcp"},
		{"/ip4/0.0.0.0/tcp/80/ws", "0.0.0.0 80 tcp/ws"},
		{"/ip6/::1/udp/8495/quic-v1", "::1 8495 udp/quic-v1"},
		{"/ip6zone/eth0/ip6/fe80::1/tcp/8495", "fe80::1%eth0 8495 tcp"},
		{"/ip4/127.0.0.1/udp/0/quic-v1/webtransport", "127.0.0.1 0 udp/quic-v1/webtransport"},
		{"/ip4/127.0.0.1/udp/1/webrtc-direct", "127.0.0.1 1 udp/webrtc-direct"},
	} {
		r, err := parseListen(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		got := r.name
		if r.all {
			got = "all"
		} else if r.ip.IsValid() {
			got = r.ip.String()
		}
		got += fmt.Sprintf(" %d", r.port)
		for _, k := range r.kinds {
			got += " " + k.net + k.rest
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.text, got, tt.want)
		}
	}
}

// Every bad text is an error that names the option and the text, and says what
// would have been right.
func TestBadTextsNameTheOption(t *testing.T) {
	other, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	otherID, err := peer.IDFromPrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ option, text, want string }{
		{"Listen", "", "missing port"},
		{"Listen", "127.0.0.1", "the port is missing"},
		{"Listen", "::1", "the port is missing"},
		{"Listen", "::1:8495", "missing"}, // an IPv6 address by itself
		{"Listen", "localhost", "missing port"},
		{"Listen", "127.0.0.1:", `port ""`},
		{"Listen", "127.0.0.1:http", `port "http"`},
		{"Listen", "127.0.0.1:65536", "0 to 65535"},
		{"Listen", "127.0.0.1:-1", "0 to 65535"},
		{"Listen", "70000", "0 to 65535"},
		{"Listen", "127.0.0.300:80", "neither an IP address nor a host name"},
		{"Listen", "1.2.3:80", "neither an IP address nor a host name"},
		{"Listen", "a b:80", "neither"},
		{"Listen", "http://x:80", "want host:port"},
		{"Listen", "[fe80::1%a/b]:80", "interface"},
		{"Listen", "/ip4/127.0.0.1", "/tcp/PORT"},
		{"Listen", "/ip4/127.0.0.1/tcp/x", "x"},
		{"Listen", "/ip4/127.0.0.1/udp/8495", "/udp/PORT/quic-v1"},
		{"Listen", "/ip4/127.0.0.1/tcp/1/quic-v1", "/tcp/PORT"},
		{"Listen", "/ip4/127.0.0.1/udp/8495/quic", "quic-v1"},
		{"Listen", "/unix/tmp/x", "/tcp/PORT"},
		{"Listen", "/p2p-circuit", "/tcp/PORT"},
		{"Listen", "/dns4/localhost/tcp/8495", "IP address, not a name"},
		{"Listen", "/ip4/127.0.0.1/tcp/443/wss", "certificate"},
		{"Listen", "/ip4/127.0.0.1/tcp/443/tls/ws", "certificate"},
		{"Listen", "/ip4/127.0.0.1/tcp/443/tls/sni/example.org/ws", "certificate"},
		{"Listen", "/ip4/127.0.0.1/tcp/1/p2p/" + otherID.String(), "/p2p"},
		{"Advertise", "", "host:port"},
		{"Advertise", "example.org", "missing port"},
		{"Advertise", "example.org:0", "port 0"},
		{"Advertise", "8495", "all interfaces"},
		{"Advertise", ":8495", "all interfaces"},
		{"Advertise", "0.0.0.0:8495", "all interfaces"},
		{"Advertise", "[::]:8495", "all interfaces"},
		{"Advertise", "[fe80::1%eth0]:8495", "zone"},
		{"Advertise", "1.2.3.4.5:8495", "neither"},
		{"Advertise", "/ip4/0.0.0.0/tcp/1", "all interfaces"},
		{"Advertise", "/ip4/1.2.3.4/tcp/0", "port 0"},
		{"Advertise", "/ip4/1.2.3.4/udp/0/quic-v1", "port 0"},
		{"Advertise", "/ip4/1.2.3.4/tcp/1/p2p/" + otherID.String(), otherID.String()},
		{"Advertise", "/nonsense", "nonsense"},
	} {
		cfg := Config{Listen: []string{"127.0.0.1:0", tt.text}}
		if tt.option == "Advertise" {
			cfg = Config{Advertise: []string{"example.org:80", tt.text}}
		}
		h, err := New(cfg)
		if err == nil {
			h.Close()
			t.Errorf("%s %q: accepted", tt.option, tt.text)
			continue
		}
		ce, ok := errors.AsType[*configError](err)
		if !ok || ce.Option != tt.option || ce.Value != tt.text || !strings.Contains(ce.Err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %q: got %v, want %q", tt.option, tt.text, err, tt.want)
		}
	}
}

// Any address text is either refused or parsed into addresses that can be used.
func FuzzAddressTexts(f *testing.F) {
	for _, s := range []string{"127.0.0.1:1", ":1", "[::1]:0", "/ip4/1.2.3.4/tcp/1/ws", "/dns/x/tcp/1", "x:1", "/ip6zone/a/ip6/fe80::1/udp/1/quic-v1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseListen(text); err == nil {
			m := computer{v4: true, lookup: func(string) ([]netip.Addr, error) { return []netip.Addr{testNet()}, nil }}
			if r.name != "" && strings.EqualFold(strings.TrimSuffix(r.name, "."), "localhost") {
				return
			}
			groups, failed := m.plan([]listenRequest{r}, netip.Prefix{})
			if len(failed) > 0 || len(groups) != 1 || len(groups[0].ips) == 0 {
				t.Fatalf("%q: %v", text, failed)
			}
			for _, k := range groups[0].kinds {
				at, k2, ok := splitAddr(k.multiaddr(groups[0].ips[0], r.port))
				if !ok || at != netip.AddrPortFrom(groups[0].ips[0], r.port) || k2 != k {
					t.Errorf("%q: %v %v", text, at, k2)
				}
			}
		}
		if a, err := parseAdvertise(text, "id"); err == nil {
			for _, addr := range a.expand(plain) {
				if len(addr) == 0 || strings.Contains(addr.String()+"/", "/tcp/0/") {
					t.Errorf("%q: %v", text, addr)
				}
			}
		}
	})
}

// A Listen request becomes the addresses of this computer that it covers.
func TestRequestsStandForAddresses(t *testing.T) {
	ips := func(texts ...string) (ips []netip.Addr) {
		for _, s := range texts {
			ips = append(ips, netip.MustParseAddr(s))
		}
		return ips
	}
	both := computer{
		ips: ips("127.0.0.1", "192.168.2.7", "192.168.2.8", "10.0.0.1", "::1", "fd00::7", "fe80::1%eth0"),
		v4:  true, v6: true,
		lookup: func(name string) ([]netip.Addr, error) {
			if name == "me" {
				return ips("192.168.2.7", "::ffff:192.168.2.7", "fd00::7"), nil
			}
			return nil, errors.New("no such host")
		},
	}
	only4 := computer{ips: ips("127.0.0.1", "192.168.2.7"), v4: true}
	only6 := computer{ips: ips("::1"), v6: true}
	for _, tt := range []struct {
		name, listen, subnet string
		m                    computer
		want, fails          string
	}{
		{name: "all", m: both, listen: ":1", want: "0.0.0.0, ::"},
		{name: "all, no IPv6", m: only4, listen: ":1", want: "0.0.0.0"},
		{name: "all, no IPv4", m: only6, listen: ":1", want: "::"},
		{name: "all, nothing", m: computer{}, listen: ":1", fails: "neither IPv4 nor IPv6"},
		{name: "IPv4", m: both, listen: "0.0.0.0:1", want: "0.0.0.0"},
		{name: "IPv6", m: both, listen: "[::]:1", want: "::"},
		{name: "localhost", m: both, listen: "localhost:1", want: "127.0.0.1, ::1"},
		{name: "localhost, no IPv6", m: only4, listen: "LOCALHOST.:1", want: "127.0.0.1"},
		{name: "localhost, none", m: computer{}, listen: "localhost:1", fails: "no loopback"},
		{name: "name", m: both, listen: "me:1", want: "192.168.2.7, fd00::7"},
		{name: "unknown name", m: both, listen: "you:1", fails: "no such host"},
		{name: "subnet", m: both, subnet: "192.168.2.0/24", listen: ":1", want: "192.168.2.7, 192.168.2.8"},
		{name: "subnet, IPv4", m: both, subnet: "192.168.2.0/24", listen: "0.0.0.0:1", want: "192.168.2.7, 192.168.2.8"},
		{name: "subnet, IPv6", m: both, subnet: "fe80::/10", listen: "[::]:1", want: "fe80::1%eth0"},
		{name: "subnet, other family", m: both, subnet: "192.168.2.0/24", listen: "[::]:1", fails: "none of its addresses is in Subnet 192.168.2.0/24"},
		{name: "subnet, multiaddr", m: both, subnet: "10.0.0.0/8", listen: "/ip4/0.0.0.0/tcp/1/ws", want: "10.0.0.1"},
		{name: "subnet, inside", m: both, subnet: "10.0.0.0/8", listen: "10.0.0.1:1", want: "10.0.0.1"},
		{name: "subnet, outside", m: both, subnet: "10.0.0.0/8", listen: "192.168.2.7:1", fails: "192.168.2.7 is not in Subnet 10.0.0.0/8"},
		{name: "subnet, name outside", m: both, subnet: "10.0.0.0/8", listen: "localhost:1", fails: "127.0.0.1 is not in Subnet"},
		{name: "subnet, nothing there", m: both, subnet: "172.16.0.0/12", listen: ":1", fails: "it has 127.0.0.1, 192.168.2.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := parseListen(tt.listen)
			if err != nil {
				t.Fatal(err)
			}
			var subnet netip.Prefix
			if tt.subnet != "" {
				subnet = netip.MustParsePrefix(tt.subnet)
			}
			groups, failed := tt.m.plan([]listenRequest{r}, subnet)
			if tt.fails != "" {
				if len(failed) != 1 || !strings.Contains(failed[0].Error(), tt.fails) || !strings.Contains(failed[0].Error(), tt.listen) {
					t.Errorf("got %v %v, want %q", groups, failed, tt.fails)
				}
				return
			}
			if len(failed) != 0 || len(groups) != 1 || joinIPs(groups[0].ips) != tt.want {
				t.Errorf("got %v %v, want %s", groups, failed, tt.want)
			}
		})
	}
}

// If addresses to advertise are given, they are announced in place of the bound ones.
func TestAdvertiseReplacesWhatIsAnnounced(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		listen    string
		advertise []string
		want      []string
	}{
		{"127.0.0.1:0", []string{"8.8.8.8:8495"}, []string{"/ip4/8.8.8.8/tcp/8495", "/ip4/8.8.8.8/udp/8495/quic-v1"}},
		{"127.0.0.1:0", []string{"[2600::1]:80"}, []string{"/ip6/2600::1/tcp/80", "/ip6/2600::1/udp/80/quic-v1"}},
		{"127.0.0.1:0", []string{"node.example.org:80"}, []string{"/dns/node.example.org/tcp/80", "/dns/node.example.org/udp/80/quic-v1"}},
		{"/ip4/127.0.0.1/tcp/0", []string{"8.8.8.8:8495"}, []string{"/ip4/8.8.8.8/tcp/8495"}},
		{"/ip4/127.0.0.1/udp/0/quic-v1", []string{"8.8.8.8:8495"}, []string{"/ip4/8.8.8.8/udp/8495/quic-v1"}},
		{"/ip4/127.0.0.1/tcp/0/ws", []string{"/dns4/example.org/tcp/443/wss"}, []string{"/dns4/example.org/tcp/443/wss"}},
		{"127.0.0.1:0", []string{"/ip4/8.8.8.8/tcp/1/p2p/" + id.String(), "192.168.2.1:2"},
			[]string{"/ip4/8.8.8.8/tcp/1", "/ip4/192.168.2.1/tcp/2", "/ip4/192.168.2.1/udp/2/quic-v1"}},
	} {
		h, err := New(Config{Key: key, Listen: []string{tt.listen}, Advertise: tt.advertise})
		if err != nil {
			t.Errorf("%v: %v", tt.advertise, err)
			continue
		}
		defer h.Close()
		if got := h.Dialable(); len(got) != 0 {
			t.Errorf("%v: announced before Listen: %v", tt.advertise, got)
		}
		if err := h.Listen(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range h.Dialable() {
			got = append(got, strings.TrimSuffix(a.String(), "/p2p/"+id.String()))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s %v: %v, want %v", tt.listen, tt.advertise, got, tt.want)
		}
	}
	_, err = New(Config{Listen: []string{"/ip4/127.0.0.1/tcp/0/ws"}, Advertise: []string{"8.8.8.8:80"}})
	if ce, ok := errors.AsType[*configError](err); !ok || ce.Option != "Advertise" || !strings.Contains(err.Error(), "multiaddr") {
		t.Errorf("host:port with WebSocket only: %v", err)
	}
}

// A browser needs the certificate's hash, which only the host knows.
func TestAdvertisedWebTransportHasItsHash(t *testing.T) {
	h, err := New(Config{Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1/webtransport"}, Advertise: []string{"/ip4/8.8.8.8/udp/1/quic-v1/webtransport"}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	if got := h.Dialable(); len(got) != 1 || !strings.Contains(got[0].String(), "/webtransport/certhash/") {
		t.Errorf("got %v", got)
	}
}
