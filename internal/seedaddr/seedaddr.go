// Package seedaddr checks the addresses of nodes that people write down. Its errors explain
// a mistake in one sentence. It does not look up names.
package seedaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
)

// SplitHostPort splits host:port like the function in package net, but its errors say how to
// write the text correctly.
func SplitHostPort(text string) (host, port string, err error) {
	const example = "write host:port, as in 192.168.2.100:8495"
	if rest, ok := strings.CutPrefix(text, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		if !closed {
			return "", "", errors.New("the bracket is not closed")
		}
		port, ok := strings.CutPrefix(after, ":")
		if !ok || port == "" {
			return "", "", errors.New("the port is missing: write it behind the bracket, as in [2001:db8::1]:8495")
		}
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			return "", "", fmt.Errorf("%q in brackets is not an IPv6 address", host)
		}
		return host, port, nil
	}
	switch strings.Count(text, ":") {
	case 0:
		return "", "", fmt.Errorf("the port is missing: %s", example)
	case 1:
		host, port, _ = strings.Cut(text, ":")
	default:
		return "", "", errors.New("an IPv6 address needs brackets and a port, as in [2001:db8::1]:8495")
	}
	if host == "" {
		return "", "", fmt.Errorf("the host is missing: %s", example)
	}
	if port == "" {
		return "", "", fmt.Errorf("the port is missing: %s", example)
	}
	return host, port, nil
}

// CheckIP returns an error if ip is not the address of a single host, or if it cannot be
// dialed without the name of a network interface.
func CheckIP(ip netip.Addr) error {
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified():
		return fmt.Errorf("%s means every address of a machine; write one of them", ip)
	case ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s is a multicast or broadcast address", ip)
	case ip.Zone() != "", ip.Is6() && ip.IsLinkLocalUnicast():
		// Such an address needs a zone, which names an interface of one machine, so it
		// means nothing on another machine.
		return fmt.Errorf("%s is a link-local address, which cannot be dialed", ip)
	}
	return nil
}

// CheckName returns an error if name is not a DNS name. It also rejects mistyped IP
// addresses.
func CheckName(name string) error {
	last := strings.TrimSuffix(name, ".")
	if i := strings.LastIndexByte(last, '.'); i >= 0 {
		last = last[i+1:]
	}
	// The last label consists of digits only. That is the case for IPv4 addresses, but for no
	// top-level domain.
	if strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("%q is neither an IP address nor a name", name)
	}
	if len(name) > 253 {
		return errors.New("the name is longer than 253 characters")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("%q is not a DNS name", name)
		}
		for _, c := range []byte(label) {
			if c >= 0x80 {
				return fmt.Errorf("%q is not a DNS name: write its ASCII form (xn--...)", name)
			}
			// The underscore is not allowed in host names, but it is used in practice.
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return fmt.Errorf("%q is not a DNS name", name)
			}
		}
	}
	return nil
}

// CheckTransport returns an error if a cannot be dialed with the transports that this
// library supports. The caller must remove a /p2p/ID at the end of a first.
func CheckTransport(a ma.Multiaddr) error {
	first, rest := a[0], a[1:]
	switch first.Code() {
	case ma.P_IP4, ma.P_IP6:
		ip, _ := netip.AddrFromSlice(first.RawValue())
		if err := CheckIP(ip); err != nil {
			return err
		}
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		if err := CheckName(first.Value()); err != nil {
			return err
		}
	case ma.P_DNSADDR:
		// The first component is a dnsaddr, a name whose DNS records contain whole
		// addresses. So the rest of a need not have a port; it only selects among
		// the records.
		return CheckName(first.Value())
	case ma.P_IP6ZONE:
		return errors.New("a link-local address cannot be dialed")
	default:
		return fmt.Errorf("/%s is not where a seed's address begins (ip4, ip6, dns, dns4, dns6, dnsaddr)", first.Protocol().Name)
	}
	if len(rest) == 0 || !Is(rest[0], ma.P_TCP, ma.P_UDP) {
		return errors.New("the port is missing, as in /tcp/8495 or /udp/8495/quic-v1")
	}
	if rest[0].Value() == "0" {
		return errors.New("port 0 cannot be dialed")
	}
	udp := rest[0].Code() == ma.P_UDP
	hasCarrier := false // UDP alone is not a transport; it needs QUIC or WebRTC on top
	for _, c := range rest[1:] {
		switch c.Code() {
		case ma.P_QUIC_V1, ma.P_WEBRTC_DIRECT:
			if !udp {
				return fmt.Errorf("/%s goes over /udp", c.Protocol().Name)
			}
			hasCarrier = true
		case ma.P_WS, ma.P_WSS, ma.P_TLS, ma.P_SNI, ma.P_HTTP_PATH:
			if udp {
				return fmt.Errorf("/%s goes over /tcp", c.Protocol().Name)
			}
		case ma.P_WEBTRANSPORT, ma.P_CERTHASH:
		case ma.P_QUIC:
			return errors.New("/quic is the old draft: write /quic-v1")
		case ma.P_P2P:
			return errors.New("/p2p/ID may stand at the end only")
		default:
			return fmt.Errorf("/%s is not a transport of a seed", c.Protocol().Name)
		}
	}
	if udp && !hasCarrier {
		return errors.New("the protocol over UDP is missing, as in /udp/8495/quic-v1")
	}
	return nil
}

// Is reports whether the protocol of a component is one of codes.
func Is(c ma.Component, codes ...int) bool { return slices.Contains(codes, c.Code()) }
