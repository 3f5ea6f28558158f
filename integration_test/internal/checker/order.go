package checker

// checkOrder checks the order of the events of a link. When a peer is added, they are:
// connect (only if the list was empty), peer added, the list's add. When a peer is
// removed: disconnect (only if the list becomes empty), peer removed, the list's
// remove, the peer's close. No event of another peer may come in between.
//
// It must be called before the record is applied to the state.
func (c *check) checkOrder(r Record) {
	n, p := c.node(r.Proc), c.state.Proc(r.Proc)
	if n.next != "" && (r.Kind != n.next || (n.nextPeer != "" && r.Peer != n.nextPeer)) {
		c.report(RuleEvents, r, "%q of %s, want %q of %s", r.Kind, c.name(r.Peer), n.next, c.name(n.nextPeer))
		n.next = ""
	}
	expected := n.next != ""
	n.next, n.nextPeer = "", r.Peer
	switch r.Kind {
	case Connect:
		if len(p.Peers) != 0 {
			c.report(RuleEvents, r, "connect while it has %d peers", len(p.Peers))
		}
		n.next, n.nextPeer = PeerAdded, ""
	case PeerAdded:
		if p.Has(r.Peer) {
			c.report(RuleEvents, r, "%s was added twice", c.name(r.Peer))
		}
		if len(p.Peers) == 0 && !expected {
			c.report(RuleEvents, r, "the first peer %s was added without connect", c.name(r.Peer))
		}
		n.next = ListAdd
	case ListAdd:
		if !expected {
			c.report(RuleEvents, r, "add of %s without peer added", c.name(r.Peer))
		}
	case Disconnect:
		if len(p.Peers) != 1 {
			c.report(RuleEvents, r, "disconnect while it has %d peers", len(p.Peers))
		}
		n.next, n.nextPeer = PeerRemoved, ""
	case PeerRemoved:
		if !p.Has(r.Peer) {
			c.report(RuleEvents, r, "%s was removed without having been added", c.name(r.Peer))
		}
		if len(p.Peers) == 1 && !expected {
			c.report(RuleEvents, r, "the last peer %s was removed without disconnect", c.name(r.Peer))
		}
		n.next = ListRemove
	case ListRemove:
		if !expected {
			c.report(RuleEvents, r, "remove of %s without peer removed", c.name(r.Peer))
		}
		n.next = PeerClose
	case PeerClose:
		if !expected {
			c.report(RuleEvents, r, "close of %s without remove", c.name(r.Peer))
		}
	}
	switch up := r.Kind == Connect || r.Kind == PeerAdded || r.Kind == ListAdd; {
	case up && !r.Up:
		c.report(RuleConnected, r, "Connected is false inside %q", r.Kind)
	case r.Kind == Disconnect && r.Up:
		c.report(RuleConnected, r, "Connected is true inside %q", r.Kind)
	}
}
