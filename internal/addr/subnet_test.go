package addr

import (
	"net/netip"
	"strings"
	"testing"
)

// Each form of a subnet text is parsed into a prefix.
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
	}
}

// Any text is either refused or parsed into a valid prefix.
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
