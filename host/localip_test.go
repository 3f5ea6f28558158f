package host

import (
	"net/netip"
	"strings"
	"testing"
)

// LocalIP returns the first address of this machine in the subnet.
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
	for _, bad := range []string{"", "192.168.2.1", "192.168.2.1/33", "localhost/8", "a/b"} {
		if _, err := LocalIP(bad); err == nil {
			t.Errorf("LocalIP(%q): no error", bad)
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

// Addresses in a prefix are returned in their order, with their zones.
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
