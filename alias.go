package smokesignal

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/host"
)

// The aliases below let a small program import one package of ours.
type (
	// ID identifies a node; it is bound to the node's key.
	ID = peer.ID
	// Event is an event as it arrives.
	Event = events.Event
	// Name is a typed event: both ends agree on the name and the type.
	Name[T any] = events.Name[T]
	// Message is an event of a Name with its decoded value.
	Message[T any] = events.Message[T]
	// Gap is broadcasts that are missing and will not come.
	Gap = events.Gap
	// Call is a typed question to one other node: both ends agree on the name and
	// the types of what is asked and answered.
	Call[In, Out any] = events.Call[In, Out]
	// RemoteError is what the handler of a call at the other node returned.
	RemoteError = events.RemoteError
	// Emitter is what an event can be sent with: *events.Broadcast and *Peer.
	Emitter = events.Emitter
	// Source is where handlers can be registered: the Emitters and *events.Direct.
	Source = events.Source
)

// LocalIP returns this machine's first address in the subnet, which is given as
// "192.168.2.0/24" or "192.168.2.1/255.255.255.0"; host bits are ignored, IPv6
// and loopback are fine. The error lists what addresses there are.
func LocalIP(subnet string) (netip.Addr, error) { return host.LocalIP(subnet) }
