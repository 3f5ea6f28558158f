package direct

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Call calls the handler of that name at a peer and waits for its answer: an
// event of the same name with the results as its arguments. It waits until ctx
// ends; if ctx has no deadline, for [DirectConfig.CallTimeout]. Calls share the
// queue and the order of the direct events to that peer, so when a call returns,
// the events that its caller emitted before it have been handled. The arguments
// belong to the caller again when Call returns.
//
// A nil error means that the handler has finished. ErrRemoteHandler means that
// it has finished with an error, and ErrUnknownOutcome that it may have run.
// After any other error it has not run and will not: those of [Direct.Emit],
// ErrNoHandler, and ErrBadArgument if the handler cannot read the arguments. No
// call runs twice.
func (d *Direct) Call(ctx context.Context, to peer.ID, name string, args ...any) (*event.Event, error) {
	answer, err := d.call(ctx, to, name, args)
	if err == nil {
		return answer, nil
	}
	// Close cancels what a call waits for, so these errors are its doing. The
	// caller learns the reason, and still that the handler may have run.
	if d.ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrNotConnected)) {
		if errors.Is(err, ErrUnknownOutcome) {
			err = errs.Because(ErrUnknownOutcome, errs.ErrClosed)
		} else {
			err = errs.ErrClosed
		}
	}
	return nil, &emitError{"call", to, name, err}
}

// Handle lets f answer the calls of that name from any peer, or with "*" the
// calls that no other handler answers. Of several handlers for one name, the one
// registered last answers, until its off is called; a handler for one peer goes
// before one for any. The results of f are the arguments of the answer. Its error
// goes to the caller as text, cut to 1 KiB; a panic is an error to the caller. f
// runs in the peer's turn, as a handler of [Direct.On] does: the peer's next
// events and calls wait for it.
func (d *Direct) Handle(name string, f func(context.Context, *event.Event) (results []any, err error)) (off func()) {
	return d.calls.register(d.log, "", name, f)
}

// HandleFrom is Handle for the calls of one peer.
func (d *Direct) HandleFrom(p peer.ID, name string, f func(context.Context, *event.Event) (results []any, err error)) (off func()) {
	return d.calls.register(d.log, p, name, f)
}
