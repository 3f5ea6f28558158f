// Package dialguard decides which of the addresses that other peers tell may be dialed:
// [Filter] by where an address leads and who named it, [Guard] by how often it was dialed
// in vain.
package dialguard

import (
	"net/netip"
	"slices"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/seedaddr"
)

const (
	// maxDirect bounds the direct addresses that Filter accepts from one peer.
	maxDirect = 8
	// maxRelayed bounds those that FilterRelayed accepts.
	maxRelayed = 4
)

// A Class is how far an address reaches. A peer may name addresses that reach as far as the
// one at which the peer itself is reached, or farther. A stranger on the internet must not
// make us dial into the local network, and a neighbor in that network must not make us
// dial ourselves.
type Class int

const (
	Unusable Class = iota // of no host, or of many
	Loopback              // this machine
	Private               // a local network, or otherwise not the internet
	Public                // the internet
)

// Filter returns the addresses in addrs that a peer reached at via may name as its own. A
// peer on this machine may name any, a peer in a private network private and public ones,
// and a peer on the internet public ones only. A via that does not begin with an IP
// address counts as the internet.
//
// Filter drops names, addresses behind relays, the ports 0 and 22, unknown transports, and
// addresses that are unspecified, link-local, multicast or reserved. It keeps the first 8
// of the rest, without duplicates. The slice is new.
func Filter(addrs []ma.Multiaddr, via ma.Multiaddr) []ma.Multiaddr {
	least := leastClass(via)
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) == maxDirect {
			break
		}
		if Dialable(a, least) && !ma.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// FilterRelayed returns the addresses behind relays that a peer reached at via may name as
// its own. The relay's address must be one that the peer may name, and
// /p2p/RELAY/p2p-circuit must follow it, and nothing else. At most 4 are kept, without
// duplicates.
//
// Only a node that punches holes needs them. A dial to such an address is not worse
// than a dial to an address that the peer names as its own: the relay's address is of the same
// class, the relay has to prove its id before it hears a word, and a [Guard] counts the
// dials to it over all the peers that name it.
func FilterRelayed(addrs []ma.Multiaddr, via ma.Multiaddr) []ma.Multiaddr {
	least := leastClass(via)
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) == maxRelayed {
			break
		}
		if _, relay, ok := addr.SplitRelay(a); ok && Dialable(relay, least) && !ma.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// leastClass returns the narrowest class that a peer reached at via may name.
func leastClass(via ma.Multiaddr) Class {
	if ap, ok := addr.AddrPort(via); ok {
		if c := classOf(ap.Addr()); c != Unusable {
			return c
		}
	}
	return Public
}

// Dialable reports whether a is an address of one of our transports, at an IP address of
// class least or wider.
func Dialable(a ma.Multiaddr, least Class) bool {
	ap, ok := addr.AddrPort(a)
	if !ok || seedaddr.CheckTransport(a) != nil {
		return false
	}
	// A node does not listen on port 22, and a knock on SSH raises alarms.
	return ap.Port() != 0 && ap.Port() != 22 && classOf(ap.Addr()) >= least
}

// Ranges that net/netip does not know by name (RFC 6890 and its registries).
var (
	unusableRanges = prefixes(
		"0.0.0.0/8",      // this network
		"240.0.0.0/4",    // reserved, and broadcast
		"::/96",          // IPv4-compatible, deprecated; ::1 is handled before
		"64:ff9b:1::/48", // local translation to IPv4, to unknown addresses
		"2001::/32",      // Teredo: hides an IPv4 address
		"fec0::/10",      // site-local, deprecated
		"100::/64",       // discard
		"192.88.99.0/24", // 6to4 relays
	)
	privateRanges = prefixes(
		"100.64.0.0/10",   // shared by the customers of a provider
		"192.0.0.0/24",    // protocol assignments
		"192.0.2.0/24",    // documentation, and so on
		"198.51.100.0/24", //
		"203.0.113.0/24",  //
		"2001:db8::/32",   //
		"3fff::/20",       //
		"198.18.0.0/15",   // benchmarks
	)
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

// classOf returns the class of an IP address. It looks through the forms in which IPv6
// carries an IPv4 address, since one class could pass for another in them.
func classOf(ip netip.Addr) Class {
	ip = ip.Unmap()
	b := ip.As16()
	switch {
	case !ip.IsValid() || ip.Zone() != "":
		return Unusable
	case ip.IsLoopback():
		return Loopback
	case ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast(), In(ip, unusableRanges):
		return Unusable
	case nat64.Contains(ip):
		return classOf(netip.AddrFrom4([4]byte(b[12:])))
	case sixTo4.Contains(ip):
		return classOf(netip.AddrFrom4([4]byte(b[2:6])))
	case ip.IsPrivate(), In(ip, privateRanges):
		return Private
	}
	return Public
}

// In reports whether ip is in one of the ranges.
func In(ip netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(ip) })
}
