package events

import (
	"context"
	"errors"
	"strconv"

	"github.com/libp2p/go-libp2p/core/peer"
)

var (
	// ErrNoHandler is returned by a call for which the other node has no
	// handler. Nothing has run.
	ErrNoHandler = errors.New("events: the other node has no handler for this call")
	// ErrRemoteHandler is returned by a call whose handler ran and failed. The
	// error is a *RemoteError with the other side's text.
	ErrRemoteHandler = errors.New("events: the other node's handler failed")
	// ErrUnknownOutcome is returned by a call that may have reached the other
	// node, and to which no answer came: its handler may have run, may still
	// run, or never will. The cause is wrapped beside it, such as
	// context.DeadlineExceeded, ErrNotConnected or ErrClosed.
	ErrUnknownOutcome = errors.New("events: unknown outcome")
)

// RemoteError is what the handler of a call returned. It is ErrRemoteHandler.
type RemoteError struct {
	// Text is what the other side says, 1 KiB of UTF-8 at most. It is a
	// stranger's: it may contain line breaks and escape sequences.
	Text string
}

func (e *RemoteError) Error() string { return ErrRemoteHandler.Error() + ": " + strconv.Quote(e.Text) }

// Is reports whether target is ErrRemoteHandler.
func (e *RemoteError) Is(target error) bool { return target == ErrRemoteHandler }

// Call calls the handler of that name at a peer and waits for its answer, an
// event of the same name with the results as its arguments. It waits until ctx
// ends; if ctx has no deadline, for CallTimeout. Calls share the queue of direct
// events to that peer, and their order. The arguments belong to the caller again
// when it returns.
//
// A nil error means that the handler has finished. It has finished, too, with
// ErrRemoteHandler. With ErrUnknownOutcome it may have run. With any other error it
// has not run and will not: those of [Direct.Emit], and ErrNoHandler. Whatever
// happens, it does not run twice.
func (d *Direct) Call(ctx context.Context, to peer.ID, name string, args ...any) (*Event, error) {
	answer, err := d.call(ctx, to, name, args)
	if err == nil {
		return answer, nil
	}
	if d.ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrNotConnected)) {
		// Which comes of the closing.
		if errors.Is(err, ErrUnknownOutcome) {
			err = &because{ErrUnknownOutcome, ErrClosed}
		} else {
			err = ErrClosed
		}
	}
	return nil, &emitError{"call", to, name, err}
}

// Handle lets f answer the calls of that name from any peer, or with "*" those
// that no other handler answers. Of several handlers for one name the last one
// answers, until its off. A handler for one peer goes before one for any. What f
// returns are the arguments of the answer. It runs in the turn of the peer's events, under the
// rules of [Direct.On]; a panic is an error to the caller.
func (d *Direct) Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return d.mux.handle("", name, f)
}

// HandleFrom is Handle for the calls of one peer.
func (d *Direct) HandleFrom(p peer.ID, name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return d.mux.handle(p, name, f)
}
