package discovery

import (
	"net/netip"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

const (
	// maxFilteredAddrs bounds the addresses taken of one peer.
	maxFilteredAddrs = 8
	// maxRelayedAddrs bounds those behind relays that are taken besides.
	maxRelayedAddrs = 4
)

// An addrClass is how far an address reaches. A peer may name addresses that
// reach as far as the one he is reached at, or farther: a stranger on the
// internet must not make us dial into the local network, nor a neighbour in
// that network make us dial ourselves.
type addrClass int

const (
	unusable    addrClass = iota // nobody is there, or everybody
	loopback                     // this machine
	private                      // a local network, or otherwise not the internet
	publicClass                  // the internet
)

// FilterAddrs returns those of addrs that a peer reached at via may name as
// his own: a peer on this machine any, one in a private network private and
// public ones, one on the internet public ones only. A via that begins with
// no IP address counts as the internet. It drops names, relays, ports 0 and 22,
// transports that are none of ours, and addresses that are unspecified,
// link-local, multicast or reserved, and keeps the first 8 of what remains,
// without duplicates. The slice is new.
func FilterAddrs(addrs []ma.Multiaddr, via ma.Multiaddr) []ma.Multiaddr {
	least := leastClass(via)
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) == maxFilteredAddrs {
			break
		}
		if dialable(a, least) && !ma.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// filterRelayed returns those of addrs behind a relay that a peer reached at via may
// name as his own: the relay's address has to be one that he may name, and to be
// followed by /p2p/RELAY/p2p-circuit and nothing else. At most 4, without
// duplicates.
//
// Only a node that punches holes asks for them (see dialsRelays). To dial one is no
// worse than to dial an address he names as his own: the relay's address is of the
// same class, whoever answers there has to prove the relay's id before it hears a
// word, and dialGuard counts the dials to it over all the peers that name it.
func filterRelayed(addrs []ma.Multiaddr, via ma.Multiaddr) []ma.Multiaddr {
	least := leastClass(via)
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) == maxRelayedAddrs {
			break
		}
		if _, relay, ok := addr.SplitRelay(a); ok && dialable(relay, least) && !ma.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// leastClass is how far an address has to reach that a peer reached at via names.
func leastClass(via ma.Multiaddr) addrClass {
	if ap := addrPort(via); ap.IsValid() {
		if c := classOf(ap.Addr()); c != unusable {
			return c
		}
	}
	return publicClass
}

// dialable reports whether a is an address of one of our transports at an IP
// address of class least or wider.
func dialable(a ma.Multiaddr, least addrClass) bool {
	ap := addrPort(a)
	if !ap.IsValid() || checkTransport(a) != nil {
		return false
	}
	// 22: no node of ours is there, and a knock on SSH is noticed.
	return ap.Port() != 0 && ap.Port() != 22 && classOf(ap.Addr()) >= least
}

// Ranges which net/netip does not know by name (RFC 6890 and its registries).
var (
	unusableRanges = prefixes(
		"0.0.0.0/8",      // this network
		"240.0.0.0/4",    // reserved, and broadcast
		"::/96",          // IPv4-compatible, deprecated; ::1 is seen before
		"64:ff9b:1::/48", // local translation to IPv4, to whatever
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

// classOf looks through the forms in which IPv6 can carry an IPv4 address, by
// which one class could pass for another.
func classOf(ip netip.Addr) addrClass {
	ip = ip.Unmap()
	b := ip.As16()
	switch {
	case !ip.IsValid() || ip.Zone() != "":
		return unusable
	case ip.IsLoopback():
		return loopback
	case ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast(), within(ip, unusableRanges):
		return unusable
	case nat64.Contains(ip):
		return classOf(netip.AddrFrom4([4]byte(b[12:])))
	case sixTo4.Contains(ip):
		return classOf(netip.AddrFrom4([4]byte(b[2:6])))
	case ip.IsPrivate(), within(ip, privateRanges):
		return private
	}
	return publicClass
}

func within(ip netip.Addr, ranges []netip.Prefix) bool {
	for _, p := range ranges {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
