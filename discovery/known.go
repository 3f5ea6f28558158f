package discovery

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// A NetworkStatus is what a node knows of the part of the network that it is in.
type NetworkStatus struct {
	Links int // neighbors
	Known int // nodes that it knows and takes for alive, neighbors included
	Lost  int // nodes that did not answer, and are tried again now and then
	// Tag is the id of the node whose beacon is heard in all of the part. Nodes with the
	// same tag are in one part. Since is when the tag became that node's.
	Tag   peer.ID
	Since time.Time
}

// Status returns what the node knows of the part of the network that it is in. It is zero once
// the driver is closed.
func (d *Driver) Status() (v NetworkStatus) {
	d.ask(context.Background(), func() {
		n := d.state.View()
		v = NetworkStatus{Links: n.Links, Known: n.Known, Lost: n.Lost, Tag: n.Tag.ID, Since: n.Since}
	})
	return v
}

// Nodes returns the nodes of the network that this one knows, and their addresses. Linked
// nodes come first. It waits for the driver, or until ctx ends.
func (d *Driver) Nodes(ctx context.Context) (list []peer.AddrInfo, err error) {
	contacts, linked, err := d.known(ctx)
	if err != nil {
		return nil, err
	}
	for _, first := range []bool{true, false} {
		for _, c := range contacts {
			if linked[c.ID] == first && len(c.Addrs) > 0 {
				list = append(list, peer.AddrInfo{ID: c.ID, Addrs: c.Addrs})
			}
		}
	}
	return list, nil
}

// Neighbors returns the nodes to which there is a link, in no particular order.
func (d *Driver) Neighbors() []peer.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.links))
}

// RTT returns the round trip time last measured on the link to p, or zero.
func (d *Driver) RTT(p peer.ID) (rtt time.Duration) {
	d.ask(context.Background(), func() { rtt = d.state.RTT(p) })
	return rtt
}

// known returns the contacts of the links and of other nodes, and the ids of the links.
func (d *Driver) known(ctx context.Context) (contacts []overlay.Contact, linked map[peer.ID]bool, err error) {
	err = d.ask(ctx, func() {
		contacts = d.state.Known()
		linked = map[peer.ID]bool{}
		d.mu.Lock()
		defer d.mu.Unlock()
		for p := range d.links {
			linked[p] = true
		}
	})
	return contacts, linked, err
}

// linked reports whether there is a link to p.
func (d *Driver) linked(p peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.links[p]
}

func (d *Driver) linkCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.links)
}

// learn gives nodes to the state machine, with the addresses that this host can dial. It does
// not block.
func (d *Driver) learn(contacts ...overlay.Contact) {
	relays := dialsRelays(d.host)
	d.run(func() {
		for _, c := range contacts {
			if !relays {
				c.Addrs = slices.DeleteFunc(slices.Clone(c.Addrs), addr.IsRelayed)
			}
			if c.ID != d.host.ID() && len(c.Addrs) > 0 {
				d.step(overlay.Learned{Contact: c})
			}
		}
	})
}

// learnUnvouched gives a node that a stranger may have named to the state machine. It reports
// whether the node has an address that may be dialed. It does not block.
func (d *Driver) learnUnvouched(info peer.AddrInfo) bool {
	addrs := d.filterUnvouched(info)
	if len(addrs) > 0 {
		d.learn(overlay.Contact{ID: info.ID, Addrs: addrs})
	}
	return len(addrs) > 0
}

// filterUnvouched returns the addresses at which a node that a stranger may have named may be
// dialed. They have to reach as far as this node's own addresses do.
func (d *Driver) filterUnvouched(info peer.AddrInfo) []ma.Multiaddr {
	if info.ID == d.host.ID() || info.ID.Validate() != nil {
		return nil
	}
	var own ma.Multiaddr
	if addrs := d.node.Addrs(); len(addrs) > 0 {
		own = addrs[0] // the one that reaches farthest
	}
	return dialguard.Filter(info.Addrs, own)
}
