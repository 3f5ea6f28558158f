package direct

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

var (
	// ErrNotConnected is returned when the peer cannot be reached or the link to it
	// ended. The error also wraps the cause.
	ErrNotConnected = errs.ErrNotConnected
	// ErrOtherNetwork is returned when the peer said that it belongs to another
	// network. The error also wraps ErrNotConnected.
	ErrOtherNetwork = errs.ErrOtherNetwork
	// ErrRefused is returned when the peer does not accept events from this node at
	// present. The error also wraps ErrNotConnected.
	ErrRefused = errors.New("events: refused by the peer")
	// ErrStalled is returned by an Emit that waited for space in the queue while no
	// byte could be written to the peer for the stall timeout.
	ErrStalled = errors.New("events: the queue is full and the peer reads nothing")
	// ErrNoHandler is returned by a call for which the other node has no handler.
	// Nothing has run.
	ErrNoHandler = errors.New("events: the other node has no handler for this call")
	// ErrRemoteHandler is returned by a call whose handler ran and failed. The error is
	// a *RemoteError with the text of the handler's error.
	ErrRemoteHandler = errors.New("events: the other node's handler failed")
	// ErrUnknownOutcome is returned by a call that may have reached the other node and
	// was not answered: its handler may have run, may still run, or may never run. The
	// error also wraps the cause, such as context.DeadlineExceeded, ErrNotConnected or
	// ErrClosed.
	ErrUnknownOutcome = errors.New("events: unknown outcome")
)

// RemoteError is the error that the handler of a call returned at the other node.
// errors.Is reports it as ErrRemoteHandler.
type RemoteError struct {
	// Text is the text of the error, at most 1 KiB of UTF-8. The other node chose it,
	// so it may contain line breaks and escape sequences.
	Text string
}

func (e *RemoteError) Error() string { return ErrRemoteHandler.Error() + ": " + strconv.Quote(e.Text) }

// Is reports whether target is ErrRemoteHandler.
func (e *RemoteError) Is(target error) bool { return target == ErrRemoteHandler }

// BadArgument is returned by the handler of a call that cannot decode its arguments: the
// caller then gets another error than from a handler that ran and failed.
type BadArgument struct{ Err error }

func (e *BadArgument) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *BadArgument) Unwrap() error { return e.Err }

// emitError adds the name of the event or call, and the peer, to an error.
type emitError struct {
	what string // "emit" or "call"
	to   peer.ID
	name string
	err  error
}

func (e *emitError) Error() string {
	return fmt.Sprintf("events: %s %s to %s: %s", e.what, event.Quote(e.name), e.to, errs.Text(e.err))
}
func (e *emitError) Unwrap() error { return e.err }
