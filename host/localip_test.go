package host

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSubnetTextsAreUnderstood(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"192.168.2.1/255.255.255.0", "192.168.2.0/24"},
		{"192.168.2.0/24", "192.168.2.0/24"},
		{"192.168.2.77/24", "192.168.2.0/24"},
		{"127.0.0.1/8", "127.0.0.0/8"},
		{"127.0.0.1/255.0.0.0", "127.0.0.0/8"},
		{"10.1.2.3/255.255.255.255", "10.1.2.3/32"},
		{"10.1.2.3/0.0.0.0", "0.0.0.0/0"},
		{"10.1.2.3/255.255.254.0", "10.1.2.0/23"},
		{"fd00::1/64", "fd00::/64"},
		{"fd00::1/ffff:ffff::", "fd00::/32"},
		{"::1/128", "::1/128"},
		{"::/0", "::/0"},
	} {
		got, err := ParseSubnet(tt.text)
		if err != nil || got != netip.MustParsePrefix(tt.want) {
			t.Errorf("%s: %v %v, want %s", tt.text, got, err, tt.want)
		}
	}
	for _, bad := range []string{
		"", "/", "192.168.2.1", "192.168.2.1/", "192.168.2/24", "192.168.2.1/33", "192.168.2.1/-1", "192.168.2.1/024",
		"192.168.2.1/255.0.255.0", "192.168.2.1/0.0.0.255", "192.168.2.1/ffff::", "192.168.2.1/255.255.255.0/24",
		"fd00::1/129", "fd00::1/255.255.255.0", "fe80::1%lo/64", "::ffff:1.2.3.4/120", "localhost/8", "a/b", " 10.0.0.1/8",
	} {
		_, err := ParseSubnet(bad)
		if err == nil || !strings.Contains(err.Error(), "255.255.255.0") || !strings.Contains(err.Error(), "/24") {
			t.Errorf("%q: the error does not say what was expected: %v", bad, err)
		}
		if _, err := LocalIP(bad); err == nil {
			t.Errorf("LocalIP(%q): no error", bad)
		}
	}
}

func FuzzParseSubnet(f *testing.F) {
	for _, s := range []string{"192.168.2.1/255.255.255.0", "fd00::/64", "1.2.3.4/0.0.0.0", "::/::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseSubnet(text)
		if err != nil {
			return
		}
		if again, err := ParseSubnet(p.String()); err != nil || again != p || p != p.Masked() {
			t.Errorf("%q: %v, then %v %v", text, p, again, err)
		}
	})
}

func TestLocalIPIsTheFirstInTheSubnet(t *testing.T) {
	for _, tt := range []struct{ subnet, want string }{
		{"127.0.0.1/8", "127.0.0.1"},
		{"127.99.99.99/255.0.0.0", "127.0.0.1"}, // host bits do not matter
		{"127.0.0.1/32", "127.0.0.1"},
	} {
		if got, err := LocalIP(tt.subnet); err != nil || got.String() != tt.want {
			t.Errorf("%s: %v %v, want %s", tt.subnet, got, err, tt.want)
		}
	}
	if hasIPv6Loopback(t) {
		if got, err := LocalIP("::1/128"); err != nil || got != netip.IPv6Loopback() {
			t.Errorf("::1/128: %v %v", got, err)
		}
	}
	_, err := LocalIP("203.0.113.0/24")
	if err == nil || !strings.Contains(err.Error(), "203.0.113.0/24") || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("the error does not list the addresses there are: %v", err)
	}
}

func hasIPv6Loopback(t *testing.T) bool {
	t.Helper()
	ips, err := interfaceIPs()
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range ips {
		if ip == netip.IPv6Loopback() {
			return true
		}
	}
	return false
}

func TestIPsInKeepsOrderAndZones(t *testing.T) {
	have := []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.168.2.7"), netip.MustParseAddr("10.0.0.1"),
		netip.MustParseAddr("192.168.2.3"), netip.MustParseAddr("fe80::1%eth0"),
	}
	for _, tt := range []struct{ prefix, want string }{
		{"192.168.2.0/24", "192.168.2.7, 192.168.2.3"},
		{"fe80::/10", "fe80::1%eth0"},
		{"0.0.0.0/0", "127.0.0.1, 192.168.2.7, 10.0.0.1, 192.168.2.3"},
	} {
		got, err := ipsIn(netip.MustParsePrefix(tt.prefix), have)
		if err != nil || joinIPs(got) != tt.want {
			t.Errorf("%s: %v %v, want %s", tt.prefix, got, err, tt.want)
		}
	}
	if _, err := ipsIn(netip.MustParsePrefix("10.9.0.0/16"), nil); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no addresses at all: %v", err)
	}
}
