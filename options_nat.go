package smokesignal

import (
	"errors"
	"fmt"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// HolePunching lets the node link to nodes that are behind a NAT or firewall: it dials them
// through their relay, and both ends then make a direct connection, from whichever side that
// works. It is off by default.
//
// Only that agreement goes through a relay, never an event. If no direct connection comes
// about within five seconds, there is no link, and Ready, OnSeedError or Connect say so
// (ErrRelayed). Holes are punched for QUIC only, so the node has to listen on it, as it does
// by default. Two NATs that use another port for each connection cannot be passed.
//
// A node that only dials and is never dialed needs none of these options: it joins through
// any node that can be dialed.
func HolePunching() Option {
	return func(c *config) { c.nat.HolePunching = true }
}

// Relays names relays through which this node can be dialed although it is behind a NAT or
// firewall: nodes with RelayService, or any libp2p circuit relay (v2), as multiaddrs with
// /p2p/ID. The node keeps a reservation at each of them, and tells the others its address there
// while none of its own addresses is known to be dialable. It includes HolePunching. Several
// calls add up.
func Relays(addrs ...string) Option {
	return func(c *config) { c.nat.Relays = append(c.nat.Relays, addrs...) }
}

// RelayService makes this node a relay for nodes that name it with Relays, and lets it tell
// other nodes on request whether their public addresses can be dialed (AutoNAT v2). Use it on a
// node that can be dialed from everywhere. The limits of libp2p hold: 128 reservations, 8 per IP
// address, and two minutes or 128 KiB per connection. It includes HolePunching. It is off by
// default.
func RelayService() Option {
	return func(c *config) { c.nat.RelayService = true }
}

// PortMapping asks the router by UPnP to forward the ports that the node listens on, and tells
// the others the resulting addresses. It is off by default. On systems other than Linux libp2p
// also asks by NAT-PMP.
func PortMapping() Option {
	return func(c *config) { c.nat.PortMapping = true }
}

var errNoHolePunching = errors.New("it is behind a relay, which needs HolePunching or Relays")

// whyRelayed returns what relays may have to do with the node having no peer: nodes that were
// reached through a relay only, unless the known causes have that already, and relays that
// gave no reservation.
func (n *Node) whyRelayed(known []error) (parts []string, causes []error) {
	switch only := n.host.Relayed(); {
	case len(only) == 0 || errors.Is(errors.Join(known...), discovery.ErrRelayed):
		// The seed's own error says it, with the name of the seed.
	case len(only) == 1:
		parts = append(parts, "node "+only[0].String()+" is "+errs.Text(discovery.ErrRelayed))
		causes = append(causes, discovery.ErrRelayed)
	default:
		parts = append(parts, fmt.Sprintf("%d nodes are %s", len(only), errs.Text(discovery.ErrRelayed)))
		causes = append(causes, discovery.ErrRelayed)
	}
	made, ok := n.host.(madeHost)
	if !ok { // the application chooses the relays of a host that it lends
		return parts, causes
	}
	for _, r := range made.Relays() {
		if r.Err != nil {
			parts = append(parts, fmt.Sprintf("no reservation at relay %v: %v", r.Relay, r.Err))
			causes = append(causes, r.Err)
		}
	}
	return parts, causes
}
