package seed

import (
	"fmt"
	"strings"
	"testing"
)

const otherID = "12D3KooWJ4ct7gS3fLiVcQ7pgTTYG1kCHUEfLdmHXeWSBpwJHVJz"

const testID = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"

// Parse accepts each form of a seed and returns its addresses or its name.
func TestParseAcceptsTheUsualSpellings(t *testing.T) {
	for _, c := range []struct{ text, targets, name string }{
		{"192.168.2.100:8495", "/ip4/192.168.2.100/tcp/8495 /ip4/192.168.2.100/udp/8495/quic-v1", ""},
		{"127.0.0.1:1", "/ip4/127.0.0.1/tcp/1 /ip4/127.0.0.1/udp/1/quic-v1", ""},
		{"[2001:db8::1]:65535", "/ip6/2001:db8::1/tcp/65535 /ip6/2001:db8::1/udp/65535/quic-v1", ""},
		{"[::1]:8495", "/ip6/::1/tcp/8495 /ip6/::1/udp/8495/quic-v1", ""},
		{"[::ffff:10.0.0.1]:8495", "/ip4/10.0.0.1/tcp/8495 /ip4/10.0.0.1/udp/8495/quic-v1", ""},
		{"localhost:8495", "", "localhost"},
		{"seed.example.org:8495", "", "seed.example.org"},
		{"seed.example.org.:8495", "", "seed.example.org."},
		{"my_box-2.lan:8495", "", "my_box-2.lan"},
		{"/ip4/10.0.0.1/tcp/8495", "/ip4/10.0.0.1/tcp/8495", ""},
		{"/ip4/10.0.0.1/tcp/8495/p2p/" + testID, "/ip4/10.0.0.1/tcp/8495", ""},
		{"/ip4/10.0.0.1/udp/8495/quic-v1/p2p/" + testID, "/ip4/10.0.0.1/udp/8495/quic-v1", ""},
		{"/ip6/2001:db8::1/udp/8495/quic-v1", "/ip6/2001:db8::1/udp/8495/quic-v1", ""},
		{"/ip4/10.0.0.1/tcp/80/ws", "/ip4/10.0.0.1/tcp/80/ws", ""},
		{"/dns4/seed.example.org/tcp/443/tls/sni/seed.example.org/ws", "/dns4/seed.example.org/tcp/443/tls/sni/seed.example.org/ws", ""},
		{"/dns/seed.example.org/tcp/443/wss", "/dns/seed.example.org/tcp/443/wss", ""},
		{"/ip4/10.0.0.1/udp/8495/quic-v1/webtransport", "/ip4/10.0.0.1/udp/8495/quic-v1/webtransport", ""},
		{"/ip4/10.0.0.1/udp/8495/webrtc-direct", "/ip4/10.0.0.1/udp/8495/webrtc-direct", ""},
		{"/dns6/seed.example.org/udp/8495/quic-v1", "/dns6/seed.example.org/udp/8495/quic-v1", ""},
		{"/dnsaddr/example.org", "/dnsaddr/example.org", ""},
		{"/dnsaddr/example.org/p2p/" + testID, "/dnsaddr/example.org", ""},
	} {
		s, err := Parse(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		var got []string
		for _, target := range s.targets {
			for _, a := range target.Addrs {
				got = append(got, a.String())
			}
		}
		if strings.Join(got, " ") != c.targets || s.name != c.name || s.String() != c.text {
			t.Errorf("%s: targets %q name %q text %q, want %q %q", c.text, got, s.name, s, c.targets, c.name)
		}
		pinned := ""
		if strings.Contains(c.text, "/p2p/") {
			pinned = testID
		}
		if id := s.ID(); id == "" && pinned != "" || id != "" && id.String() != pinned {
			t.Errorf("%s: pinned id %q, want %q", c.text, s.ID(), pinned)
		}
	}
}

// The error of a bad seed names the mistake in one sentence.
func TestErrorOfABadSeedIsOneSentence(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "empty"},
		{"192.168.2.100", "port is missing"},
		{"192.168.2.100:", "port is missing"},
		{":8495", "host is missing"},
		{"192.168.2.100:0", "port 0"},
		{"192.168.2.100:65536", "out of range"},
		{"192.168.2.100:99999999999", "not a number"},
		{"192.168.2.100:http", "not a number"},
		{"192.168.2.100:-1", "not a number"},
		{"192.168.2.100:+1", "not a number"},
		{"192.168.2.256:8495", "neither an IP address nor a name"},
		{"192.168.2:8495", "neither an IP address nor a name"},
		{"8495:8495", "neither an IP address nor a name"},
		{"0.0.0.0:8495", "every address"},
		{"[::]:8495", "every address"},
		{"224.0.0.1:8495", "multicast"},
		{"255.255.255.255:8495", "broadcast"},
		{"[ff02::1]:8495", "multicast"},
		{"[fe80::1%eth0]:8495", "link-local"},
		{"[fe80::1]:8495", "link-local"},
		{"2001:db8::1:8495", "brackets"},
		{"[2001:db8::1]", "port is missing"},
		{"[2001:db8::1]:", "port is missing"},
		{"[2001:db8::1:8495", "not closed"},
		{"[10.0.0.1]:8495", "not an IPv6 address"},
		{"[seed]:8495", "not an IPv6 address"},
		{"10.0.0.1 :8495", "blank"},
		{" 10.0.0.1:8495", "blank"},
		{"10.0.0.1:8495\n", "blank"},
		{"http://10.0.0.1:8495", "without a scheme"},
		{"seed..example:8495", "not a DNS name"},
		{"se/ed:8495", "not a DNS name"},
		{"sééd.example:8495", "xn--"},
		{strings.Repeat("a.", 130) + "b:8495", "253"},
		{strings.Repeat("a", 64) + ".b:8495", "not a DNS name"},
		{"/ip4/10.0.0.1", "port is missing"},
		{"/ip4/10.0.0.1/tcp/0", "port 0"},
		{"/ip4/10.0.0.1/udp/8495", "the protocol over UDP is missing"},
		{"/ip4/10.0.0.1/udp/8495/quic", "write /quic-v1"},
		{"/ip4/10.0.0.1/tcp/8495/quic-v1", "goes over /udp"},
		{"/ip4/10.0.0.1/udp/8495/ws", "goes over /tcp"},
		{"/ip4/0.0.0.0/tcp/8495", "every address"},
		{"/ip4/10.0.0.1/tcp/99999", "not a multiaddr"},
		{"/ip4/10.0.0.300/tcp/8495", "not a multiaddr"},
		{"/nonsense", "not a multiaddr"},
		{"/", "not a multiaddr"},
		{"/p2p/" + testID, "no address"},
		{"/p2p/nonsense", "not a multiaddr"},
		{"/ip4/10.0.0.1/tcp/8495/p2p/" + testID + "/p2p-circuit", "relay"},
		{"/ip4/10.0.0.1/tcp/8495/p2p/" + testID + "/p2p-circuit/p2p/" + testID, "relay"},
		{"/ip4/10.0.0.1/tcp/8495/p2p/" + testID + "/ws", "may stand at the end only"},
		{"/unix/tmp/socket", "not where a seed's address begins"},
		{"/ip6zone/eth0/ip6/fe80::1/tcp/8495", "link-local"},
		{"/ip4/10.0.0.1/tcp/8495/http", "not a transport"},
		{"/dns4/10.0.0.1/tcp/8495", "neither an IP address nor a name"},
	} {
		s, err := Parse(c.text)
		if err == nil {
			t.Errorf("%q: accepted as %+v", c.text, s.targets)
			continue
		}
		text := err.Error()
		if !strings.Contains(text, c.want) || !strings.HasPrefix(text, "seed ") || strings.Contains(text, "\n") {
			t.Errorf("%q: %q, want one line with %q in it", c.text, text, c.want)
		}
	}
}

// Any text is either refused or parsed into a seed with a name or addresses.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"10.0.0.1:8495", "[::1]:1", "a.b:2", "/ip4/1.2.3.4/tcp/1/p2p/" + testID, "/dnsaddr/a.b", ":", "[", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("more than one line: %q", err)
			}
			return
		}
		if s.String() != text {
			t.Fatalf("%q became %q", text, s)
		}
		if (s.name == "") == (len(s.targets) == 0) {
			t.Fatalf("%q: a seed must have either a name or addresses: %+v", text, s)
		}
	})
}

// The watchdog asks for a seed by these addresses.
func TestSeedHasTheAddressesInItsText(t *testing.T) {
	for text, want := range map[string]string{
		"192.168.2.100:8495":                                                 "[192.168.2.100:8495]",
		"[2001:db8::1]:8495":                                                 "[[2001:db8::1]:8495]",
		"[::ffff:192.168.2.100]:8495":                                        "[192.168.2.100:8495]",
		"/ip4/192.168.2.100/udp/8495/quic-v1":                                "[192.168.2.100:8495]",
		"/ip4/192.168.2.100/tcp/8495/ws/p2p/" + testID:                       "[192.168.2.100:8495]",
		"seed.example.org:8495":                                              "[]",
		"/dns4/seed.example.org/tcp/8495/p2p/" + testID:                      "[]",
		"/ip4/192.0.2.1/tcp/1/p2p/" + testID + "/p2p-circuit/p2p/" + otherID: "[]",
	} {
		s, err := Parse(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprint(s.AddrPorts()); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// A seed behind a relay has the id of the node, not of the relay.
func TestParseSeedBehindRelay(t *testing.T) {
	at := "/ip4/10.0.0.1/udp/8495/quic-v1"
	s := mustParse(t, at+"/p2p/"+testID+"/p2p-circuit/p2p/"+otherID)
	if !s.Relayed() || s.ID().String() != otherID || mustParse(t, at+"/p2p/"+testID).Relayed() {
		t.Errorf("read as %+v", s)
	}
	mustParse(t, "/dns4/relay.example.org/udp/8495/quic-v1/p2p/"+testID+"/p2p-circuit/p2p/"+otherID)
	for text, want := range map[string]string{
		at + "/p2p-circuit/p2p/" + otherID:                                                    "behind a relay is written",
		at + "/p2p/" + testID + "/p2p-circuit":                                                "behind a relay is written",
		"/p2p/" + testID + "/p2p-circuit/p2p/" + otherID:                                      "behind a relay is written",
		at + "/p2p/" + testID + "/p2p-circuit" + at + "/p2p/" + otherID:                       "behind a relay is written",
		at + "/p2p/" + testID + "/p2p-circuit/p2p/" + testID:                                  "behind itself",
		"/ip4/10.0.0.1/udp/8495/p2p/" + testID + "/p2p-circuit/p2p/" + otherID:                "the protocol over UDP is missing",
		"/ip4/0.0.0.0/tcp/8495/p2p/" + testID + "/p2p-circuit/p2p/" + otherID:                 "every address",
		at + "/p2p/" + testID + "/p2p-circuit/p2p/" + otherID + "/p2p-circuit/p2p/" + otherID: "behind a relay is written",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func mustParse(t testing.TB, text string) *Seed {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
