package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"time"

	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
)

// openRendezvous calls the functions of WithDiscovery.
func (n *Node) openRendezvous() (list []corediscovery.Discovery, err error) {
	for _, open := range n.cfg.rendezvous {
		d, err := open(n.face)
		if err == nil && d == nil {
			err = errors.New("the function returned no Discovery")
		}
		if err != nil {
			return nil, fmt.Errorf("WithDiscovery: %w", err)
		}
		list = append(list, d)
	}
	return list, nil
}

// locate looks for p in the network and connects to it, so that a direct event can be sent.
func (n *Node) locate(ctx context.Context, p peer.ID) error {
	if p == n.ID() {
		return ErrSelf
	}
	_, err := n.driver.FindPeer(ctx, p)
	return err
}

// Routing lets other libp2p code find any node of the network by its id. FindPeer asks
// the neighbors, which ask theirs, for the node's signed addresses, connects to it, and
// returns the addresses at which it was found. Its errors are ErrUnknownPeer, which is
// routing.ErrNotFound, ErrUnreachable when the peer does not answer at its last known
// addresses, ErrBadID, ErrNotStarted, ErrClosed, and that of ctx.
func (n *Node) Routing() routing.PeerRouting { return (*nodeRouting)(n) }

type nodeRouting Node

func (r *nodeRouting) FindPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	n := (*Node)(r)
	err := n.running()
	if err == nil {
		err = checkID(p) // an id that no node can have is an error at once, and not only after a search
	}
	if err == nil {
		var info peer.AddrInfo
		if info, err = n.driver.FindPeer(ctx, p); err == nil {
			return info, nil
		}
	}
	return peer.AddrInfo{}, fmt.Errorf("smokesignal: find peer %s: %w", p, err)
}

// Discovery lets other libp2p code find the nodes of the network. FindPeers returns at
// once: first the peers, then the other nodes that this node knows, with their addresses, up
// to the option Limit. It ignores the namespace, because all nodes of one network are assumed
// to run the same application. Advertise returns the TTL and does nothing else, since the
// network knows its nodes anyway. Both may return ErrNotStarted or ErrClosed.
func (n *Node) Discovery() corediscovery.Discovery { return (*nodeDiscovery)(n) }

type nodeDiscovery Node

// memberTTL is the time to live that Advertise returns if the caller gives none.
const memberTTL = time.Hour

func (d *nodeDiscovery) Advertise(_ context.Context, _ string, opts ...corediscovery.Option) (time.Duration, error) {
	var o corediscovery.Options
	if err := o.Apply(opts...); err != nil {
		return 0, fmt.Errorf("smokesignal: advertise: %w", err)
	}
	if err := (*Node)(d).running(); err != nil {
		return 0, fmt.Errorf("smokesignal: advertise: %w", err)
	}
	if o.Ttl > 0 {
		return o.Ttl, nil
	}
	return memberTTL, nil
}

func (d *nodeDiscovery) FindPeers(ctx context.Context, _ string, opts ...corediscovery.Option) (<-chan peer.AddrInfo, error) {
	n := (*Node)(d)
	var o corediscovery.Options
	err := o.Apply(opts...)
	if err == nil {
		err = n.running()
	}
	var list []peer.AddrInfo
	if err == nil {
		list, err = n.driver.Nodes(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("smokesignal: find peers: %w", err)
	}
	if o.Limit > 0 {
		list = list[:min(len(list), o.Limit)]
	}
	found := make(chan peer.AddrInfo, len(list))
	for _, info := range list {
		found <- info
	}
	close(found)
	return found, nil
}
