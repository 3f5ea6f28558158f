// Package addr converts between multiaddrs and IP addresses with ports, and handles the
// addresses of relays.
package addr

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	ma "github.com/multiformats/go-multiaddr"
)

// AddrPort returns the IP address and the TCP or UDP port at the beginning of a, as in
// /ip4/1.2.3.4/udp/8495/quic-v1. It returns false if a begins with anything else, or with an
// IPv6 zone, which has no meaning on another machine. It returns an IPv4 address that is
// written as IPv6 as IPv4. It does not look up DNS names.
func AddrPort(a ma.Multiaddr) (netip.AddrPort, bool) {
	at, _, ok := Split(a)
	if !ok || at.Addr().Zone() != "" {
		return netip.AddrPort{}, false
	}
	return at, true
}

// Split returns the same as [AddrPort], but also accepts an IPv6 zone. transport is the rest of
// a, beginning with the TCP or UDP port.
func Split(a ma.Multiaddr) (at netip.AddrPort, transport ma.Multiaddr, ok bool) {
	zone := ""
	if len(a) > 0 && a[0].Code() == ma.P_IP6ZONE {
		zone, a = a[0].Value(), a[1:]
	}
	if len(a) < 2 || !is(a[0], ma.P_IP4, ma.P_IP6) || !is(a[1], ma.P_TCP, ma.P_UDP) {
		return netip.AddrPort{}, nil, false
	}
	ip, ok := netip.AddrFromSlice(a[0].RawValue())
	port := a[1].RawValue()
	if !ok || len(port) != 2 {
		return netip.AddrPort{}, nil, false
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(zone), binary.BigEndian.Uint16(port)), a[1:], true
}

func is(c ma.Component, one, other int) bool { return c.Code() == one || c.Code() == other }

// TCP returns the multiaddr of TCP at the given IP address and port, without an IPv6 zone.
func TCP(at netip.AddrPort) ma.Multiaddr { return ma.StringCast(prefix(at, "tcp")) }

// QUIC returns the multiaddr of QUIC at the given IP address and UDP port, without an IPv6
// zone.
func QUIC(at netip.AddrPort) ma.Multiaddr { return ma.StringCast(prefix(at, "udp") + "/quic-v1") }

func prefix(at netip.AddrPort, transport string) string {
	ip, family := at.Addr().Unmap().WithZone(""), "/ip4/"
	if ip.Is6() {
		family = "/ip6/"
	}
	return family + ip.String() + "/" + transport + "/" + strconv.Itoa(int(at.Port()))
}
