package seed

import (
	"context"
	"net/netip"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-smokesignal/smokesignal/internal/seedaddr"
)

const (
	// maxTargets bounds the targets (places where a node may be) that the look-up of a
	// name returns.
	maxTargets = 16
	// maxDNSAddrs bounds the rounds of DNS look-ups for one seed, since a dnsaddr
	// record may contain another name to look up.
	maxDNSAddrs = 4
)

// Resolve looks up the names in the seed and returns its targets, at most maxTargets. It asks
// the name server each time. The error is that of the name server.
func (s *Seed) Resolve(ctx context.Context) ([]Target, error) {
	if s.name != "" {
		return s.resolveName(ctx)
	}
	resolver, err := madns.NewResolver(madns.WithDefaultResolver(s.DNS))
	if err != nil {
		return nil, err
	}
	var found []Target
	var failed error // the error of one name; other names may be found
	todo := s.targets
	for range maxDNSAddrs {
		var next []Target
		for _, t := range todo {
			// Targets without a name are complete. libp2p itself looks up the name of a relay.
			if !isName(t.Addrs[0]) || t.Relayed() {
				found = append(found, t)
				continue
			}
			addrs, err := resolver.Resolve(ctx, t.full())
			if err != nil {
				failed = err
				continue
			}
			if needsName(t.Addrs[0]) {
				found = append(found, t) // the name exists, and the transport dials the name
				continue
			}
			for _, a := range addrs {
				addr, id := peer.SplitAddr(a)
				// A DNS record may contain anything. Only addresses that can be dialed count,
				// and, if the seed contains an id, only addresses with that id.
				if len(addr) == 0 || s.id != "" && id != s.id || seedaddr.CheckTransport(addr) != nil {
					continue
				}
				next = append(next, newTarget(addr, id))
			}
		}
		todo = next[:min(len(next), maxTargets)]
	}
	if len(found) == 0 && failed != nil {
		return nil, failed
	}
	return found[:min(len(found), maxTargets)], nil
}

// resolveName looks up the name of a seed that has the form name:port.
func (s *Seed) resolveName(ctx context.Context) ([]Target, error) {
	ips, err := s.DNS.LookupIPAddr(ctx, s.name)
	if err != nil {
		return nil, err
	}
	var found []Target
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.IP); ok && seedaddr.CheckIP(a.Unmap()) == nil && len(found) < maxTargets {
			found = append(found, hostPort(netip.AddrPortFrom(a, s.port)))
		}
	}
	return found, nil
}

// full returns the address of t with /p2p/ID at the end, if t has an id. In a look-up of a
// dnsaddr, the id selects the records of that node.
func (t Target) full() ma.Multiaddr {
	if t.ID == "" {
		return t.Addrs[0]
	}
	return t.Addrs[0].Encapsulate(ma.StringCast("/p2p/" + t.ID.String()))
}

func isName(addr ma.Multiaddr) bool {
	return seedaddr.Is(addr[0], ma.P_DNS, ma.P_DNS4, ma.P_DNS6, ma.P_DNSADDR)
}

// needsName reports whether addr has a transport that must be dialed with the name and not with
// an IP address, such as TLS and the transports of the web.
func needsName(addr ma.Multiaddr) bool {
	return !seedaddr.Is(addr[0], ma.P_DNSADDR) && slices.ContainsFunc(addr, func(c ma.Component) bool {
		return seedaddr.Is(c, ma.P_WS, ma.P_WSS, ma.P_TLS, ma.P_WEBTRANSPORT)
	})
}
