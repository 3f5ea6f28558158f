package smokesignal

import "time"

// A NetworkView is what a node knows of the part of the network that it is in, which is all
// of it unless the network is split. The zero value is that of a node that is not
// running.
type NetworkView struct {
	// Links is the number of peers in the peer list.
	Links int
	// Known is how many nodes it knows and takes for alive, its peers among them. In a
	// large network that is a sample.
	Known int
	// Lost is how many it knows that do not answer. They are tried now and then, which
	// is how parts find each other without seeds.
	Lost int
	// Tag names the part: it is the id of one of its nodes, whose beacon is heard in
	// all of it. Nodes with the same tag are in one part. One that was cut off from that
	// node has another tag within 40 seconds, two parts that meet have one within
	// seconds. A node that is alone is its own tag, in the end.
	Tag ID
	// Since is when the tag became that node's. Without seeds, this is how a split or
	// a merge shows.
	Since time.Time
}

// Network returns what the node knows of the part of the network that it is in, as of
// now. Before Start and after Close it returns the zero value.
func (n *Node) Network() NetworkView {
	if n.running() != nil {
		return NetworkView{}
	}
	x := n.driver.Network()
	return NetworkView{Links: x.Links, Known: x.Known, Lost: x.Lost, Tag: x.Tag, Since: x.Since}
}
