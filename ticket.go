package smokesignal

import (
	"fmt"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// A Ticket is the content of the string that Node.Ticket returns: what another program needs
// to join the network through that node.
type Ticket struct {
	// ID is the id of the node. A node with another id is not accepted at the addresses.
	ID ID
	// Network is the name of its network.
	Network string
	// Addrs are the addresses at which the node is reached, the most reachable first.
	Addrs []ma.Multiaddr
}

// ParseTicket decodes a string that Node.Ticket returned, for a program that wants to show its
// content. Seeds, Connect and Dial accept the string itself. The error says whether the string
// is damaged or of another version.
func ParseTicket(text string) (Ticket, error) {
	t, err := seed.ParseTicket(text)
	if err != nil {
		return Ticket{}, fmt.Errorf("smokesignal: %w", err)
	}
	return Ticket(t), nil
}

// Ticket returns one string with which others join through this node: its id, the name of
// its network, and at most eight addresses at which it is reached, the most reachable first.
// It consists of letters and digits, eighty for one address, and can be pasted into a chat
// or on a command line; Seeds and Connect accept it. It is not a secret. It is valid as long
// as the node keeps its id (see IdentityFile) and at least one of its addresses.
//
// Ticket returns ErrNotStarted before Start, ErrClosed after Close, and an error if nobody
// can dial any address of the node. It does not block.
func (n *Node) Ticket() (string, error) {
	if err := n.running(); err != nil {
		return "", err
	}
	text, err := seed.Ticket{ID: n.ID(), Network: n.cfg.network, Addrs: n.Addrs()}.Encode()
	if err != nil {
		return "", fmt.Errorf("smokesignal: %w; see Listen and Advertise", err)
	}
	return text, nil
}

// joinTickets takes the name of the network from the tickets among the seeds, unless the user
// gave a name. It returns an error if two tickets, or a ticket and the user, name different
// networks.
func (c *config) joinTickets(seeds []*seed.Seed) error {
	var first *seed.Seed
	for _, s := range seeds {
		switch {
		case s.Network() == "":
		case c.netName != nil && s.Network() != c.network:
			return fmt.Errorf("the ticket %s is for the network %q, Network is %q; leave Network out to join the ticket's",
				s.Short(), s.Network(), c.network)
		case first == nil:
			first = s
		case s.Network() != first.Network():
			return fmt.Errorf("the tickets %s and %s are for different networks, %q and %q; a node is in one",
				first.Short(), s.Short(), first.Network(), s.Network())
		}
	}
	if first != nil {
		c.network = first.Network()
	}
	return nil
}
