// Package wiring holds the types by which package smokesignal connects the parts of a node
// to each other. A user of the package discovery or events alone needs none of them.
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

// An Overlay connects a discovery.Driver to the other parts of a node. The node sets the
// fields of the first two groups before it calls discovery.New, which sets those of the last
// group.
type Overlay struct {
	// Session distinguishes this run of the node from other runs under the same id. The
	// zero value stands for a random one.
	Session protocol.Session
	// Seeds are the parsed seeds. They replace the seeds in the driver's configuration.
	Seeds []*seed.Seed
	// Addrs returns the addresses at which other nodes can dial this one, the most
	// reachable first. Nil stands for the addresses of the host.
	Addrs func() []ma.Multiaddr
	// Connected returns the nodes to which the host has a connection when the driver starts.
	Connected func() []peer.ID
	// Lent says that the host belongs to an application. The driver then asks the nodes
	// that the application has dialed for links, and Close closes the connections that the
	// driver has made and that only the node uses.
	Lent bool

	// The driver calls the functions below one at a time on its goroutine, except for
	// Spare and Heard, which may be called on any goroutine. They must not block, nor call a
	// method of the driver that waits for that goroutine. Nil functions are not called.

	// Spare reports whether only the node uses a connection, so that the driver may close
	// it. Nil stands for yes.
	Spare func(network.Conn) bool
	// Pending is called when a handshake with p begins. Linked or Unlinked follows.
	Pending func(p peer.ID)
	// Linked is called when the link to p is complete on both sides. greeting is the
	// result of Greeting at the peer.
	Linked func(p peer.ID, greeting []byte)
	// Unlinked is called when a link has ended, or a handshake has failed.
	Unlinked func(p peer.ID, reason error, how peers.Ending)
	// OnTopic reports whether pubsub sees p on the topic of the network. A handshake is
	// complete only when both nodes see each other there. Nil stands for yes.
	OnTopic func(p peer.ID) bool
	// Greeting returns the bytes that a new neighbor gets with the end of the handshake.
	Greeting func() []byte
	// Heard is called for each message of a linked peer.
	Heard func(from peer.ID)
	// SeedFound is called when the node info was found at the address of a seed.
	SeedFound func(seed string, info peer.AddrInfo)
	// SeedIsSelf is called when a seed is the address of this node itself.
	SeedIsSelf func(seed string)

	// Serve accepts streams of the overlay. Start does the same; a node calls Serve before
	// its host listens, because a peer that connects in between would learn that this host
	// does not speak the protocol.
	Serve func()
	// Leave writes the peer book, ends all links, and makes no new ones. It returns the
	// error of the peer book.
	Leave func(ctx context.Context) error
	// Dial connects to the libp2p program at a seed's address without a link. See the
	// method dial of discovery.Driver.
	Dial func(ctx context.Context, s *seed.Seed, protocols []protocol.ID) (peer.ID, error)
	// NodeConnected says that the host has a connection to p, which is a node.
	NodeConnected func(p peer.ID)
	// TopicChanged says that pubsub sees p on the topic, or no longer sees it there.
	TopicChanged func(p peer.ID, present bool)
	// SeedLost says that the seed is no longer heard through the overlay. The driver then
	// tries to link to the seed, even if it has enough links, until SeedHeard is called.
	SeedLost, SeedHeard func(seed string)
	// Sources returns a sentence about the peer book and each rendezvous, for a node that
	// has no link.
	Sources func() []error
}
