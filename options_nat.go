package smokesignal

import (
	"errors"
	"fmt"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// HolePunching lets the node link to nodes that are behind a NAT or firewall: it dials them
// through their relay, over which both nodes agree to open a direct connection at the same
// moment. It is off by default.
//
// Events never go through a relay. If no direct connection could be made within five seconds,
// there is no link, and Ready, OnSeedError or Connect report ErrRelayed. Hole punching works
// over QUIC only, so the node has to listen on QUIC, as it does by default. It does not work
// if both NATs use a different port for each connection.
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

// whyRelayed returns reasons, concerning relays, why the node has no peer: nodes that were
// reached only through a relay, and relays at which the node got no reservation (a place).
// parts has their texts, and causes their errors. Nodes are left out if the errors in known,
// which are those of the seeds, contain ErrRelayed already.
func (n *Node) whyRelayed(known []error) (parts []string, causes []error) {
	switch only := n.host.Relayed(); {
	case len(only) == 0 || errors.Is(errors.Join(known...), discovery.ErrRelayed):
		// The error of the seed in known says the same, and names the seed.
	case len(only) == 1:
		parts = append(parts, "node "+only[0].String()+" is "+errs.Text(discovery.ErrRelayed))
		causes = append(causes, discovery.ErrRelayed)
	default:
		parts = append(parts, fmt.Sprintf("%d nodes are %s", len(only), errs.Text(discovery.ErrRelayed)))
		causes = append(causes, discovery.ErrRelayed)
	}
	made, ok := n.host.(madeHost)
	if !ok { // a lent host: the application chooses the relays, so the node knows none
		return parts, causes
	}
	for _, r := range made.node.Relays() {
		if r.Err != nil {
			parts = append(parts, fmt.Sprintf("no reservation at relay %v: %v", r.Relay, r.Err))
			causes = append(causes, r.Err)
		}
	}
	return parts, causes
}
