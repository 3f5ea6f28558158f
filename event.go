package smokesignal

import (
	"context"

	"github.com/go-smokesignal/smokesignal/events"
)

// Event is an event as it arrives.
type Event = events.Event

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
