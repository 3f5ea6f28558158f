package smokesignal

import "time"

// A NetworkView describes the network as one node sees it. While the network is split, it
// describes the part that the node is in. It is the zero value if the node is not running.
type NetworkView struct {
	// Links is the number of peers in the peer list.
	Links int
	// Known is the number of nodes that this node knows and believes to be alive, its peers
	// included. In a large network a node knows only a sample of all nodes.
	Known int
	// Lost is the number of known nodes that do not answer at present. They are tried again
	// now and then, by which the parts of a split network find each other without seeds.
	Lost int
	// Tag is the id of one node of the part of the network that this node is in. Every node
	// of that part has the same tag, so two nodes with the same tag can reach each other.
	// After a split, nodes that lost the tagged node have a new tag within 40 seconds; after
	// parts have met, they share one tag within seconds. The tag of a node without peers is
	// its own id.
	Tag ID
	// Since is when Tag last changed. A change means that the network was split or that
	// two parts have met.
	Since time.Time
}

// Network returns what the node knows of its network now. Before Start and after Close it
// returns the zero value. It does not block.
func (n *Node) Network() NetworkView {
	if n.running() != nil {
		return NetworkView{}
	}
	x := n.driver.Status()
	return NetworkView{Links: x.Links, Known: x.Known, Lost: x.Lost, Tag: x.Tag, Since: x.Since}
}
