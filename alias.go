package smokesignal

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/host"
)

// ID identifies a node; it is bound to the node's key. It is libp2p's peer.ID: String
// returns it as text, and ParseID reads that text.
type ID = peer.ID

// LocalIP returns this machine's first address in the subnet, which is given as
// "192.168.2.0/24" or "192.168.2.1/255.255.255.0"; host bits are ignored, IPv6
// and loopback are fine. The error lists what addresses there are.
func LocalIP(subnet string) (netip.Addr, error) { return host.LocalIP(subnet) }
