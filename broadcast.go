package smokesignal

import (
	"context"
	"io"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/internal/handling"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// A Broadcast is the channel to all nodes of the network. Node.Broadcast returns it.
//
// Every node gets the events of one sender once and in the order in which the sender
// emitted them. What was dropped on the way is fetched from neighbors, and what no
// neighbor has any more is reported as a Gap. A node does not hear its own events. All
// methods may be called from several goroutines, and from handlers.
type Broadcast struct {
	channel *events.Broadcast
}

// Broadcast returns the channel to all nodes of the network.
func (n *Node) Broadcast() *Broadcast { return &n.channels.broadcast }

// Emit sends an event to all nodes of the network. Nil means that the event was encoded,
// numbered, stored and queued. The arguments belong to the caller again when Emit
// returns. What is emitted while the node has no peer is kept, see KeepFor and KeepBytes,
// for the next one.
//
// Emit waits while more events could overrun a neighbor, until that neighbor catches up
// or ctx ends; it waits at most five seconds for a neighbor that makes no progress. These
// errors come at once: ErrNoPeers (there never was a peer), ErrNotStarted, ErrClosed,
// ErrBadName, ErrBadArgument, ErrTooLarge, and ErrPubSubEnded. After an error nothing was
// sent.
func (b *Broadcast) Emit(ctx context.Context, name string, args ...any) error {
	return b.channel.Emit(ctx, name, args...)
}

// TryEmit is Emit without waiting: it returns ErrQueueFull where Emit would wait.
func (b *Broadcast) TryEmit(name string, args ...any) error {
	return b.channel.TryEmit(name, args...)
}

// EmitConfirmed is Emit that returns when k neighbors have received the event or, if k
// is 0, all neighbors to which it was sent. Neighbors pass the event on; whether it was
// handled anywhere is not known. With fewer than k neighbors it waits for more, so give
// ctx a deadline. A negative k waits for nobody.
//
// When ctx ends first the error is an *UnconfirmedError, and the event may arrive all the
// same. With any other error, those of Emit, nothing was sent.
func (b *Broadcast) EmitConfirmed(ctx context.Context, k int, name string, args ...any) error {
	return b.channel.EmitConfirmed(ctx, k, name, args...)
}

// On calls f for the events of that name from any node, or for every event if the name is
// "*". off removes f: no call begins after off has returned; a call that runs is not waited
// for.
//
// The events of one sender are handled one after the other, in order, also across names;
// f may run for several senders at once. A slow f delays the events of that sender at this
// node and nothing elsewhere. Events that have to make room before f gets to them are
// reported as a Gap, see KeepBytes. The ctx of f ends when the node closes. A panic of f
// is caught, counted and logged.
func (b *Broadcast) On(name string, f func(context.Context, *Event)) (off func()) {
	return b.channel.On(name, handler(f))
}

// OnRaw calls f for messages that plain pubsub peers publish on the network's topic: bytes
// that are not events of this library. The signature has proven the author, and nothing
// else is known. data belongs to f, and may be empty. off removes f.
//
// The messages of one author are handled one after the other in the order of their
// arrival; f may run for several authors at once. At most 4 MiB and 4,096 authors wait for
// handlers; beyond that, messages of the author with the most waiting are dropped and
// counted. Without a handler messages are counted as Foreign in Stats.
func (b *Broadcast) OnRaw(f func(ctx context.Context, from ID, data []byte)) (off func()) {
	return b.channel.OnRaw(f)
}

// OnGap calls f for missing events in their place: after the handlers of the event before
// them have returned, and before those of the next one are called. f may run for several
// senders at once. Node.OnGap reports the same without the order. off removes f.
func (b *Broadcast) OnGap(f func(context.Context, Gap)) (off func()) {
	return b.channel.OnGap(gapHandler(f))
}

// Pipe returns a duplex view of the events named "data" to and from all nodes, as the
// original library has it: each Write emits one event and blocks and fails as Emit does;
// a Read returns bytes of one event, never of two. Read returns io.EOF after Close and,
// when everything was read, after the node has closed.
//
// A Pipe receives from now on and holds 64 KiB or 256 events. When it is full, no handler
// at this node gets further events of that sender, so read it or close it.
func (b *Broadcast) Pipe() io.ReadWriteCloser { return b.channel.Pipe() }

// The methods below make typed events cheaper, see Name.

func (b *Broadcast) emitBytes(ctx context.Context, name string, data []byte) error {
	return b.channel.EmitBytes(ctx, name, payload.Raw{Bytes: data})
}

func (b *Broadcast) onBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return b.channel.OnBorrowed(name, handling.Borrower[events.Event]{Handle: handler(f)})
}

func (b *Broadcast) closing() <-chan struct{} { return b.channel.Done() }
