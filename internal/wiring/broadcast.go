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
	// Session identifies the session of this node: a new start of the program is a new
	// session. The zero value stands for a random session.
	Session protocol.Session
	// Began is when the session began; it is sent in milliseconds since 1970. Of two
	// sessions of one sender, receivers take the one that began later as the current
	// one. Zero means the current time, but later than any earlier session of this
	// process.
	Began time.Time
	// OwnPubSub means that the node has made the pubsub itself, so that events.New need
	// not check whether the pubsub can carry broadcasts.
	OwnPubSub bool
	// OnTopic is called when a peer announces the pubsub topic of the network (present
	// is true) and when it leaves the topic. The calls are made in order, on one
	// goroutine, after Start. The first calls are for the peers that are on the topic
	// already. Events that are emitted after the call for a peer reach that peer.
	// OnTopic may be nil.
	OnTopic func(p peer.ID, present bool)
	// Guest reports whether a peer on the topic is a guest: it receives broadcasts and
	// is never linked. After the first guest has come, Emit no longer returns
	// ErrNoPeers. Guest must not block. Nil means that there are no guests.
	Guest func(p peer.ID) bool
	// Admit is called before events of a sender are handled, on the goroutine that handles
	// them. It may block while a link to the sender is being made; its ctx ends at Close. If
	// it returns an error, the events are dropped. Nil admits all senders.
	Admit func(ctx context.Context, sender peer.ID) error

	// Start allows Emit, begins to send marks to neighbors and to answer their requests
	// for missing events, and begins to call OnTopic. It does nothing if it was called
	// before, or after Close.
	Start func()
	// Link makes p a neighbor: Emit waits until p has received the events, and p is
	// asked for missing events. greeting is the result of Greeting at p. The error is
	// that of the method link of events.Broadcast.
	Link func(p peer.ID, greeting []byte) error
	// Unlink ends the link to p, if there is one.
	Unlink func(p peer.ID)
	// Greeting returns this node's encoded marks, which say how far it has received
	// each sender. A new neighbor passes them to its Link. They have at most 64 KiB.
	Greeting func() []byte
	// EmitBytes is Emit with data as the only argument. It allocates no memory.
	EmitBytes func(ctx context.Context, name string, data []byte) error
	// OnBorrowed is On for an f that must not keep the event, which is reused when f
	// returns. The bytes of the event may be kept; they keep the whole batch in memory.
	OnBorrowed func(name string, f func(context.Context, *event.Event)) (off func())
	// Pipe returns a two-way stream of bytes to and from all nodes, made of the events
	// named pipe.EventName.
	Pipe func() io.ReadWriteCloser
}
