// Package handling lets the typed events and calls of package smokesignal talk to the
// channel of package events that calls their handlers.
package handling

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A Turn is one goroutine of a channel while it calls handlers. It is found in the
// context of a handler with [Of].
type Turn interface {
	// Undecodable counts and logs that a handler could not decode an event.
	Undecodable(name string, from peer.ID, err error)
	// Copy returns a copy of b that the handler may keep. Small copies share memory.
	Copy(b []byte) []byte
}

// Key is the key under which the context of a handler holds its [Turn].
type Key struct{}

// Of returns the turn whose handler was called with ctx, or nil if ctx is not the
// context of a handler.
func Of(ctx context.Context) Turn {
	if t, ok := ctx.(Turn); ok { // spares the search for each event
		return t
	}
	t, _ := ctx.Value(Key{}).(Turn)
	return t
}

// BadArgument is returned by the handler of a call that cannot decode its argument: the
// caller then gets another error than from a handler that ran and failed.
type BadArgument struct{ Err error }

func (e *BadArgument) Error() string { return e.Err.Error() }
func (e *BadArgument) Unwrap() error { return e.Err }

// A Borrower is a handler that keeps neither its event nor the bytes of it, because both
// are used again when it returns. Only this module can make one: it keeps methods that
// take it to the packages of this module.
type Borrower[E any] struct {
	Handle func(context.Context, *E)
}
