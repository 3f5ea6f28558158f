package smokesignal

import (
	"context"
	"io"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// A Broadcast is the channel to all nodes of the network. Node.Broadcast returns it.
//
// Every node gets each event once, and the events of one sender in the order in which
// the sender emitted them. An event that was dropped on the way is fetched from a
// neighbor; an event that no neighbor has any more is reported as part of a Gap. A node
// does not receive its own events. All methods may be called from several goroutines,
// and from handlers.
type Broadcast struct {
	channel *events.Broadcast
	wiring  wiring.Broadcasts // the methods of the channel that the node calls, and those of the node that it calls
}

// Broadcast returns the channel to all nodes of the network.
func (n *Node) Broadcast() *Broadcast { return &n.channels.broadcast }

// Emit sends an event to all nodes of the network. Nil means that the event was encoded,
// numbered, stored and queued. The arguments belong to the caller again when Emit
// returns. Events emitted while the node has no peer are kept for the next peer, within
// the limits of KeepFor and KeepBytes.
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

// EmitConfirmed emits an event and waits until k neighbors have received it. If k is 0,
// it waits for all neighbors to which the event was sent; if k is negative, it does not
// wait. A neighbor that has received the event passes it on, but has not necessarily
// handled it. While the node has fewer than k neighbors, EmitConfirmed waits for more,
// so give ctx a deadline.
//
// If ctx ends first, the error is an *UnconfirmedError, and the event may still arrive.
// All other errors are those of Emit; nothing was sent then.
func (b *Broadcast) EmitConfirmed(ctx context.Context, k int, name string, args ...any) error {
	return b.channel.EmitConfirmed(ctx, k, name, args...)
}

// On calls f for the events of that name from any node, or for every event if the name is
// "*". off removes f: no call begins after off has returned; a call that runs is not waited
// for.
//
// The events of one sender are handled one after the other, in order, also across names;
// f may run for several senders at once. A slow f delays the events of that sender at this
// node and nothing elsewhere. When the events that wait for f exceed KeepBytes, the oldest
// are dropped and reported as a Gap. The ctx of f ends when the node closes. A panic of f
// is caught, counted and logged.
func (b *Broadcast) On(name string, f func(context.Context, *Event)) (off func()) {
	return b.channel.On(name, handler(f))
}

// OnRaw calls f for messages that plain pubsub peers publish on the network's topic: bytes
// that are not events of this library. from is the author, proven by its signature. data
// may be empty, and f may keep and change it. off removes f.
//
// The messages of one author are handled one after the other in the order of their
// arrival; f may run for several authors at once. At most 4 MiB of messages, from at most
// 4,096 authors, wait for handlers; beyond that, messages of the author with the most
// waiting bytes are dropped and counted. Messages that arrive while there is no handler
// are counted in Stats as "foreign".
func (b *Broadcast) OnRaw(f func(ctx context.Context, from ID, data []byte)) (off func()) {
	return b.channel.OnRaw(f)
}

// OnGap calls f for each range of missing events, at its place in the sender's order: after
// the handlers of the event before the gap have returned, and before the handlers of the
// event after it are called. f may run for several senders at once. Node.OnGap reports the
// same gaps, but not in order with the events. off removes f.
func (b *Broadcast) OnGap(f func(context.Context, Gap)) (off func()) {
	return b.channel.OnGap(gapHandler(f))
}

// Pipe returns a reader and writer of the broadcast events named "data", as the Node.js
// library smokesignal has it. Each Write emits one event, and blocks and fails as Emit does.
// Each Read returns bytes of one event, never of two. Read returns io.EOF after the Pipe is
// closed; after the node has closed, it returns io.EOF once all received bytes were read.
//
// A Pipe receives the events that arrive after this call, and buffers up to 64 KiB or 256
// events. While the buffer is full, no handler at this node gets further events of the
// sender whose event is next, so read the Pipe or close it.
func (b *Broadcast) Pipe() io.ReadWriteCloser { return b.wiring.Pipe() }

// The methods below exist for Name, whose events are typed: with them it makes one allocation
// less per event.

func (b *Broadcast) emitBytes(ctx context.Context, name string, data []byte) error {
	return b.wiring.EmitBytes(ctx, name, data)
}

func (b *Broadcast) onBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return b.wiring.OnBorrowed(name, handler(f))
}

func (b *Broadcast) closing() <-chan struct{} { return b.channel.Done() }
