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

// A NetworkStatus says what this node knows of its part of the network. A part is a set of
// nodes that links connect; a network that is cut has several.
type NetworkStatus struct {
	Links int // neighbors
	Known int // nodes that are believed to be alive, neighbors included
	Lost  int // nodes that did not answer; the driver tries them again now and then
	// Tag is a name for the part of the network to which this node belongs: all nodes
	// of one part have the same Tag, and two parts have different ones. Tag is the id
	// of one node of the part. That node regularly floods a message to the others.
	Tag peer.ID
	// Since is the time at which this node first received the flooded message of the
	// node Tag.
	Since time.Time
}

// Status returns what this node knows of its part of the network. It returns the zero value
// once the driver is closed.
func (d *Driver) Status() (v NetworkStatus) {
	d.ask(context.Background(), func() {
		n := d.state.View()
		v = NetworkStatus{Links: n.Links, Known: n.Known, Lost: n.Lost, Tag: n.Tag.ID, Since: n.Since}
	})
	return v
}

// Nodes returns the nodes of the network that this node knows, with their addresses. The
// neighbors come first. It waits for the driver's goroutine, at most until ctx ends.
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

// Neighbors returns the ids of all neighbors, in no particular order.
func (d *Driver) Neighbors() []peer.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.links))
}

// RTT returns the round trip time last measured on the link to p. It is zero if there is no
// link to p, or no measurement yet.
func (d *Driver) RTT(p peer.ID) (rtt time.Duration) {
	d.ask(context.Background(), func() { rtt = d.state.RTT(p) })
	return rtt
}

// known returns the contacts of the neighbors and of other nodes that are believed to be
// alive, and the ids of the neighbors.
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

// learn gives contacts to the state machine, without the addresses that this host cannot
// dial. It does not block.
func (d *Driver) learn(contacts ...overlay.Contact) {
	relays := dialsRelays(d.host)
	d.run(func() {
		for _, c := range contacts {
			if !relays { // this host cannot use addresses behind relays
				c.Addrs = slices.DeleteFunc(slices.Clone(c.Addrs), addr.IsRelayed)
			}
			if c.ID != d.host.ID() && len(c.Addrs) > 0 {
				d.step(overlay.Learned{Contact: c})
			}
		}
	})
}

// learnUnvouched gives a node to the state machine whose addresses are not signed, so that
// anybody may have stated them. It reports whether the node has an address that may be
// dialed. It does not block.
func (d *Driver) learnUnvouched(info peer.AddrInfo) bool {
	addrs := d.filterUnvouched(info)
	if len(addrs) > 0 { // without an address, the node is of no interest
		d.learn(overlay.Contact{ID: info.ID, Addrs: addrs})
	}
	return len(addrs) > 0
}

// filterUnvouched returns those addresses of info that may be dialed although they are not
// signed. A node on the internet accepts only public addresses.
func (d *Driver) filterUnvouched(info peer.AddrInfo) []ma.Multiaddr {
	if info.ID == d.host.ID() || info.ID.Validate() != nil {
		return nil
	}
	var own ma.Multiaddr
	if addrs := d.node.Addrs(); len(addrs) > 0 {
		own = addrs[0] // the most reachable address of this node
	}
	return dialguard.Filter(info.Addrs, own)
}
