package addr

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// ParseSubnet parses a subnet that is written as an address and a netmask, as in
// "192.168.2.1/255.255.255.0", or in CIDR notation, as in "192.168.2.0/24" or "fd00::/64".
// The host bits of the result are zero.
func ParseSubnet(text string) (netip.Prefix, error) {
	addr, mask, _ := strings.Cut(text, "/")
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Zone() != "" || ip.Is4In6() {
		return netip.Prefix{}, badSubnet(text)
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		bits, ok := maskBits(ip, mask)
		if !ok {
			return netip.Prefix{}, badSubnet(text)
		}
		prefix = netip.PrefixFrom(ip, bits)
	}
	return prefix.Masked(), nil
}

func badSubnet(text string) error {
	return fmt.Errorf("host: subnet %q: want an address and a netmask, as in 192.168.2.1/255.255.255.0, or CIDR, as in 192.168.2.0/24 or fd00::/64", text)
}

// maskBits returns the number of one bits in a netmask. It returns false if text is not a
// netmask of the same family (IPv4 or IPv6) as ip.
func maskBits(ip netip.Addr, text string) (int, bool) {
	mask, err := netip.ParseAddr(text)
	if err != nil || mask.BitLen() != ip.BitLen() {
		return 0, false
	}
	ones, size := net.IPMask(mask.AsSlice()).Size() // 0, 0 if the ones have a gap
	return ones, size != 0
}
