// Package dialguard decides which addresses from other peers this node may dial. [Filter]
// decides by the address itself and by the peer that stated it. [Guard] decides by the
// number of earlier dials to the address.
package dialguard

import (
	"net/netip"
	"slices"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/seedaddr"
)

const (
	// maxDirect bounds the addresses that Filter accepts from one peer.
	maxDirect = 8
	// maxRelayed bounds the addresses behind relays that FilterRelayed accepts from one peer.
	maxRelayed = 4
)

// A Class says from where an IP address can be reached; a greater Class means from more
// places. A peer may state only addresses of the class of its own address, or of a greater
// one. So a peer on the internet cannot make this node dial into the local network, and a
// peer in the local network cannot make this node dial programs on its own machine.
type Class int

const (
	Unusable Class = iota // not the address of a single host
	Loopback              // only from the same machine
	Private               // only from a local network
	Public                // from the internet
)

// Filter returns the addresses in addrs that a peer may state as its own. via is the address
// at which this node is connected to the peer. If via is on this machine, all addresses are
// allowed; if it is in a private network, private and public ones; otherwise, or if via does
// not begin with an IP address, only public ones.
//
// Filter drops addresses with a host name, addresses behind relays, the ports 0 and 22,
// unknown transports, and addresses that are unspecified, link-local, multicast or reserved.
// It returns at most 8 addresses, without duplicates, in a new slice.
func Filter(addrs []ma.Multiaddr, via ma.Multiaddr) []ma.Multiaddr {
	least := leastClass(via)
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) == maxDirect {
			break // a peer must not make this node dial any number of addresses
		}
		if Dialable(a, least) && !ma.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// FilterRelayed returns the addresses behind relays that a peer, connected at via, may state
// as its own. Such an address has the form ADDRESS/p2p/RELAY/p2p-circuit, where [Filter]
// would allow ADDRESS. At most 4 addresses are returned, without duplicates.
//
// Only a node that punches holes needs such addresses. They are not more dangerous than
// others: the address of the relay has an allowed class, the relay has to prove its id
// before this node sends it anything, and a [Guard] counts the dials to the relay for all
// peers together.
func FilterRelayed(addrs []ma.Multiaddr, via ma.Multiaddr) []ma.Multiaddr {
	least := leastClass(via)
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) == maxRelayed {
			break // as in Filter
		}
		if _, relay, ok := addr.SplitRelay(a); ok && Dialable(relay, least) && !ma.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// leastClass returns the smallest class of address that a peer, connected at via, may state.
func leastClass(via ma.Multiaddr) Class {
	if ap, ok := addr.AddrPort(via); ok {
		if c := classOf(ap.Addr()); c != Unusable {
			return c
		}
	}
	return Public
}

// Dialable reports whether a uses a transport that this library knows, at an IP address of
// the class least or a greater one.
func Dialable(a ma.Multiaddr, least Class) bool {
	ap, ok := addr.AddrPort(a)
	if !ok || seedaddr.CheckTransport(a) != nil {
		return false
	}
	// No node listens on port 22, which is for SSH, and dials to it would look like an
	// attack.
	return ap.Port() != 0 && ap.Port() != 22 && classOf(ap.Addr()) >= least
}

// The special ranges of addresses for which package netip has no method. They come from RFC
// 6890 and its registries.
var (
	unusableRanges = prefixes(
		"0.0.0.0/8",      // "this network"
		"240.0.0.0/4",    // reserved addresses, and the broadcast address
		"::/96",          // IPv4-compatible, deprecated; classOf handles ::1 before
		"64:ff9b:1::/48", // local translation to an IPv4 address that this node does not know
		"2001::/32",      // Teredo, which contains an IPv4 address in another form
		"fec0::/10",      // site-local, deprecated
		"100::/64",       // discard
		"192.88.99.0/24", // 6to4 relays
	)
	privateRanges = prefixes(
		"100.64.0.0/10",   // shared by the customers of a provider (carrier-grade NAT)
		"192.0.0.0/24",    // IETF protocol assignments
		"192.0.2.0/24",    // documentation
		"198.51.100.0/24", // documentation
		"203.0.113.0/24",  // documentation
		"2001:db8::/32",   // documentation
		"3fff::/20",       // documentation
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

// classOf returns the class of an IP address. An IPv6 address that contains an IPv4 address
// has the class of that IPv4 address, so that a private address cannot pass for a public one.
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
