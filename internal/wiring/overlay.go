// Package wiring holds the types by which package smokesignal connects the parts of a node
// to each other. A program that uses package discovery or events alone needs none of them.
package wiring

import (
	"context"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// An Overlay connects a discovery.Driver to the other parts of a node. The node sets the fields
// from Session to SeedIsSelf and then calls discovery.New, which sets the other fields.
type Overlay struct {
	// Session distinguishes this start of the node from other starts under the same id.
	// The zero value means a random session.
	Session protocol.Session
	// Seeds are parsed seeds. The driver uses them in addition to those in its Config.
	Seeds []*seed.Seed
	// Addrs returns the addresses at which other nodes can dial this one, the most
	// reachable first. Nil means the addresses of the host.
	Addrs func() []ma.Multiaddr
	// Connected returns the nodes to which the host is connected. The driver calls it when
	// it starts.
	Connected func() []peer.ID
	// Lent means that the host belongs to an application. Then the driver asks the nodes
	// that the application has dialed for links. When the driver closes, it closes only
	// those connections that it has made itself and that the application does not use.
	Lent bool

	// The driver calls the functions below one at a time on its goroutine, except for
	// Spare and Heard, which may be called on any goroutine. They must not block, nor call a
	// method of the driver that waits for that goroutine. Nil functions are not called.

	// Spare reports whether only the node uses a connection, so that the driver may close
	// it. Nil means that it may close all connections.
	Spare func(network.Conn) bool
	// Pending is called when a handshake with p begins. Linked or Unlinked follows.
	Pending func(p peer.ID)
	// Linked is called when the link to p is complete on both sides. greeting is the
	// result of Greeting at the peer.
	Linked func(p peer.ID, greeting []byte)
	// Unlinked is called when the link to p has ended, or when a handshake with p has
	// failed. reason is the error, and how says whether a node ended the link on
	// purpose or a fault did.
	Unlinked func(p peer.ID, reason error, how peers.Ending)
	// OnTopic reports whether pubsub sees p on the topic of the network. A handshake is
	// complete only when both nodes see each other there. Nil means that all peers count as
	// being on the topic.
	OnTopic func(p peer.ID) bool
	// Greeting returns the bytes that a new neighbor receives at the end of the handshake.
	Greeting func() []byte
	// Heard is called for each message of a neighbor.
	Heard func(from peer.ID)
	// SeedFound is called when the node info was found at the address of a seed.
	SeedFound func(seed string, info peer.AddrInfo)
	// SeedIsSelf is called when a seed turns out to be an address of this node itself.
	SeedIsSelf func(seed string)

	// Serve makes the host accept streams of the overlay. The driver's Start does the same,
	// but a node calls Serve before its host listens: a peer that connects before Start
	// would otherwise learn that this host does not speak the protocol.
	Serve func()
	// Leave writes the peer book and ends all links. After it, the driver makes no new ones.
	// An error means that the peer book could not be written.
	Leave func(ctx context.Context) error
	// Dial connects to the peer at a seed's address, which may be any libp2p program, and
	// makes no link. See the method dial of discovery.Driver.
	Dial func(ctx context.Context, s *seed.Seed, protocols []protocol.ID) (peer.ID, error)
	// NodeConnected tells the driver that the host is connected to p, which is a node.
	NodeConnected func(p peer.ID)
	// TopicChanged tells the driver that p has joined the topic, or has left it.
	TopicChanged func(p peer.ID, present bool)
	// SeedLost tells the driver that the watchdog no longer hears the seed through the
	// overlay. The driver then tries to link to the seed, even if it has enough links, until
	// SeedHeard is called.
	SeedLost, SeedHeard func(seed string)
	// Sources returns one sentence about the peer book and one about each rendezvous, which
	// say why they have led to no link.
	Sources func() []error
}
