package wiring

import (
	"context"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// Broadcasts connects an events.Broadcast to the other parts of a node. The node sets the
// fields of the first group before it calls events.New, which sets those of the second group.
type Broadcasts struct {
	// Session distinguishes this run of the node from other runs under the same id. The
	// zero value stands for a random one.
	Session protocol.Session
	// Began is the start of the session, which travels in milliseconds since 1970. Of two
	// sessions of one sender, receivers take the one that began later as the current one.
	// Zero means now, but later than every session of this process.
	Began time.Time
	// OwnPubSub says that the node has made the pubsub itself, so that events.New need not
	// check that the pubsub can carry broadcasts.
	OwnPubSub bool
	// OnTopic is called when a peer announces the topic (present) and when it leaves it: in
	// order, on one goroutine, from Start on, beginning with the peers that are on the topic
	// already. Events that are sent after the call reach that peer. Nil is not called.
	OnTopic func(p peer.ID, present bool)
	// Guest reports whether a peer on the topic stays there without being linked. From the
	// first such peer on, Emit has somebody to send to. It must not block. Nil stands for no.
	Guest func(p peer.ID) bool
	// Admit is called before events of a sender are handled, on the goroutine that handles
	// them. It may block while a link to the sender is being made; its ctx ends at Close. If
	// it returns an error, the events are dropped. Nil admits all senders.
	Admit func(ctx context.Context, sender peer.ID) error

	// Start allows Emit, begins to serve marks and repairs, and calls OnTopic from now on. It
	// does nothing the second time and after Close.
	Start func()
	// Link makes p a neighbor: Emit waits for it, and it is asked for missing events. See the
	// method link of events.Broadcast.
	Link func(p peer.ID, greeting []byte) error
	// Unlink ends the link to p, if there is one.
	Unlink func(p peer.ID)
	// Greeting returns the high-water marks of this node, encoded, for a new neighbor to give
	// to its Link. It has at most 64 KiB.
	Greeting func() []byte
	// EmitBytes is Emit with data as the only argument. It allocates nothing.
	EmitBytes func(ctx context.Context, name string, data []byte) error
	// OnBorrowed is On for an f that does not keep the event, which is used again when f
	// returns. The bytes of the event may be kept; they keep the whole batch in memory.
	OnBorrowed func(name string, f func(context.Context, *event.Event)) (off func())
	// Pipe returns a duplex view of the events named pipe.EventName to and from all nodes.
	Pipe func() io.ReadWriteCloser
}
