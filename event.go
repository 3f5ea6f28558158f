package smokesignal

import (
	"context"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// An Event is one event that arrived. All its handlers share it. They may use it at the
// same time and keep it, but must not change its bytes.
type Event struct {
	From ID           // the sender of the event, proven by the connection or by a signature
	Name string       // as the sender gave it to Emit
	Args payload.Args // the encoded arguments; read them with Decode or Bytes
}

// Len returns the number of arguments.
func (e *Event) Len() int { return e.Args.Len() }

// Decode stores the arguments in the variables that ptrs point to, in order. There may be
// fewer pointers than arguments; a nil pointer skips an argument.
//
// An argument is decoded as its sender encoded it, whatever the codec of this node. A
// []byte goes into a *[]byte or an *any and shares the memory of the event: it may be
// kept but not changed. A protobuf message goes into a message of its type, such as a
// *wrapperspb.StringValue, or into a variable of that type, which gets a new message. JSON
// follows the rules of encoding/json. CBOR does the same, except that an integer becomes
// an int64 or a big.Int in an any.
//
// The error is ErrUndecodable and names the argument, counted from 1; the variables before
// that argument are set.
func (e *Event) Decode(ptrs ...any) error { return (*event.Event)(e).Decode(ptrs...) }

// Bytes returns argument i, counted from 0, and whether it was emitted as a []byte. The
// bytes may be kept but not changed.
func (e *Event) Bytes(i int) ([]byte, bool) { return (*event.Event)(e).Bytes(i) }

// An Emitter is what events can be sent with: a *Broadcast or a *Peer.
type Emitter interface {
	// Emit sends an event. It encodes the arguments before it returns, so the caller
	// may change them afterwards.
	Emit(ctx context.Context, name string, args ...any) error
	// TryEmit is Emit without waiting: it returns ErrQueueFull where Emit would wait.
	TryEmit(name string, args ...any) error
}

// A Source is where events arrive: a *Broadcast, a *Direct or a *Peer.
type Source interface {
	// On calls f for every event of that name, or for every event if the name is "*".
	// Events of one sender are handled one after the other; f may run for several
	// senders at once. off removes f: no call begins after off has returned; a call
	// that runs is not waited for.
	On(name string, f func(context.Context, *Event)) (off func())
}

// handler returns f as a handler of package events. Its events convert without a copy.
func handler(f func(context.Context, *Event)) func(context.Context, *event.Event) {
	return func(ctx context.Context, ev *event.Event) { f(ctx, (*Event)(ev)) }
}

// callHandler returns f as a handler of calls of package events.
func callHandler(f func(context.Context, *Event) ([]any, error)) func(context.Context, *event.Event) ([]any, error) {
	return func(ctx context.Context, ev *event.Event) ([]any, error) { return f(ctx, (*Event)(ev)) }
}

// gapHandler returns f as a handler of gaps of package events.
func gapHandler(f func(context.Context, Gap)) func(context.Context, events.Gap) {
	return func(ctx context.Context, g events.Gap) { f(ctx, Gap(g)) }
}
