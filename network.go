package smokesignal

import "time"

// A NetworkView is what a node knows of its network: all of it, or its own part while the
// network is split. The zero value is the view of a node that is not running.
type NetworkView struct {
	// Links is the number of peers in the peer list.
	Links int
	// Known is the number of nodes that the node knows and believes to be alive, its peers
	// included. In a large network that is a sample.
	Known int
	// Lost is the number of nodes that the node knows and that do not answer. It tries them
	// now and then; so parts of a network find each other without seeds.
	Lost int
	// Tag names the part of the network: it is the id of one of its nodes, whose beacon is
	// heard in all of it. Nodes with the same tag are in one part. A node that is cut off
	// from that one has another tag within 40 seconds; parts that meet have one tag within
	// seconds. A node without peers becomes its own tag.
	Tag ID
	// Since is when Tag became the tag. A change shows a split or a merge, also without
	// seeds.
	Since time.Time
}

// Network returns what the node knows of its network now. Before Start and after Close it
// returns the zero value. It does not block.
func (n *Node) Network() NetworkView {
	if n.running() != nil {
		return NetworkView{}
	}
	x := n.driver.Network()
	return NetworkView{Links: x.Links, Known: x.Known, Lost: x.Lost, Tag: x.Tag, Since: x.Since}
}
