package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// LocalIP returns the first address of this machine in a subnet, in the order of the
// interfaces. The subnet is an address and a netmask, as in "192.168.2.1/255.255.255.0",
// or in CIDR notation, as in "192.168.2.0/24" or "fd00::/64". Its host bits do not matter.
// Loopback addresses count ("127.0.0.1/8"); interfaces that are down do not. A link-local
// IPv6 address has its zone.
//
// If the machine has no address in the subnet, the error lists its addresses.
func LocalIP(subnet string) (netip.Addr, error) {
	prefix, err := addr.ParseSubnet(subnet)
	if err != nil {
		return netip.Addr{}, err
	}
	have, err := interfaceIPs()
	if err != nil {
		return netip.Addr{}, err
	}
	in, err := ipsIn(prefix, have)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("host: local IP: %w", err)
	}
	return in[0], nil
}

// ipsIn returns the addresses in have that are inside prefix, or an error that lists
// have.
func ipsIn(prefix netip.Prefix, have []netip.Addr) ([]netip.Addr, error) {
	var in []netip.Addr
	for _, ip := range have {
		if prefix.Contains(ip.WithZone("")) {
			in = append(in, ip)
		}
	}
	if len(in) == 0 {
		return nil, fmt.Errorf("this machine has no address in %v; it has %s", prefix, joinIPs(have))
	}
	return in, nil
}

func joinIPs(ips []netip.Addr) string {
	if len(ips) == 0 {
		return "none"
	}
	var texts []string
	for _, ip := range ips {
		texts = append(texts, ip.String())
	}
	return strings.Join(texts, ", ")
}

// interfaceIPs returns the addresses of all interfaces that are up.
func interfaceIPs() ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("host: list network interfaces: %w", err)
	}
	var ips []netip.Addr
	var errs []error
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			errs = append(errs, err) // the interface may have been removed meanwhile
			continue
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(n.IP)
			if !ok {
				continue
			}
			ip = ip.Unmap()
			if ip.Is6() && ip.IsLinkLocalUnicast() {
				ip = ip.WithZone(i.Name)
			}
			ips = append(ips, ip)
		}
	}
	if len(ips) == 0 && len(errs) > 0 {
		return nil, fmt.Errorf("host: list network addresses: %w", errors.Join(errs...))
	}
	return ips, nil
}
