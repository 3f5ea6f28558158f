package smokesignal

import (
	"context"
	"net/netip"

	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/lent"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// Connect links to the node at addr, which has one of the forms of Seeds, and returns when
// the link has been made. The node may have more peers than the minimum of PeerLimits, but
// not more than the maximum. If the node at addr is a peer already, Connect returns at
// once. Peer.Disconnect ends the link. The Node.js library calls this method addPeer. To
// connect to a program that is not a node use Dial.
//
// Connect blocks until ctx ends. The error is ErrFull (this peer list, or that of the other
// node), ErrSelf, ErrOtherNetwork, ErrUnreachable, ErrRelayed, ErrUnresolvable,
// ErrNotSmokesignal, a *WrongIDError, ErrNotStarted, ErrClosed, that of ctx, or says what is
// wrong with addr.
func (n *Node) Connect(ctx context.Context, addr string) (*Peer, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	id, err := n.driver.Connect(ctx, addr)
	if err != nil {
		// Close cancels dials. ErrClosed says why; the error of the dial would not.
		if err := n.running(); err != nil {
			return nil, err
		}
		return nil, errs.Wrap("smokesignal: connect to "+addr, err)
	}
	return n.Peer(id), nil
}

// Dial makes a connection to the libp2p program at addr, which has one of the forms of
// Seeds, and returns the program's id. It does not make a link. Use it to meet a program
// on a Topic; the program need not be a node.
//
// Dial blocks until ctx ends, and at most five seconds. The error is ErrSelf,
// ErrUnreachable, ErrRelayed, ErrUnresolvable, ErrNotSmokesignal (the program at addr does
// not speak libp2p), a *WrongIDError, ErrNotStarted, ErrClosed, or that of ctx.
func (n *Node) Dial(ctx context.Context, addr string) (ID, error) {
	if err := n.running(); err != nil {
		return "", err
	}
	seed, err := seed.Parse(addr)
	if err != nil {
		return "", errs.Wrap("smokesignal: dial", err)
	}
	id, err := n.overlay.Dial(ctx, seed, lent.PubSubProtocols(n.host))
	if err != nil {
		return "", errs.Wrap("smokesignal: dial "+addr, err)
	}
	return id, nil
}

// LocalIP returns this machine's first address in the subnet, which is given as
// "192.168.2.0/24" or "192.168.2.1/255.255.255.0". Host bits are ignored; IPv6 and
// loopback are allowed. If no address is in the subnet, the error lists the machine's
// addresses.
func LocalIP(subnet string) (netip.Addr, error) { return host.LocalIP(subnet) }
