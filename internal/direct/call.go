package direct

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Call calls the handler with the given name at a peer and waits for its answer: an
// event of the same name that has the results as its arguments. It waits until ctx
// ends, or for Config.CallTimeout if ctx has no deadline. Calls are sent through the
// same queue as the direct events to the peer, in the same order. So when a call
// returns, the peer has handled the events that its caller emitted before. After Call
// has returned, the caller may change the arguments.
//
// A nil error means that the handler has finished. ErrRemoteHandler means that it has
// finished with an error, and ErrUnknownOutcome that it may have run. After any other
// error it has not run and will not: such errors are those of [Direct.Emit],
// ErrNoHandler, and ErrBadArgument if the handler cannot read the arguments. No call
// runs twice.
func (d *Direct) Call(ctx context.Context, to peer.ID, name string, args ...any) (*event.Event, error) {
	answer, err := d.call(ctx, to, name, args)
	if err == nil {
		return answer, nil
	}
	// Close ends what a call waits for, so these errors come from closing. Return that
	// reason, and keep the information that the handler may have run.
	if d.ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrNotConnected)) {
		if errors.Is(err, ErrUnknownOutcome) {
			err = errs.Because(ErrUnknownOutcome, errs.ErrClosed)
		} else {
			err = errs.ErrClosed
		}
	}
	return nil, &emitError{"call", to, name, err}
}

// Handle lets f answer the calls with the given name from any peer, or, if the name is
// "*", the calls that no other handler answers. If several handlers have the same name,
// the one registered last answers, until its off is called. A handler for one peer
// precedes one for any peer. The results of f are the arguments of the answer. The
// caller receives an error of f as text, cut to 1 KiB, and a panic as an error. f runs
// in the peer's order, as a handler of [Direct.On] does: the peer's next events and
// calls wait for it.
func (d *Direct) Handle(name string, f func(context.Context, *event.Event) (results []any, err error)) (off func()) {
	return d.calls.register(d.log, "", name, f)
}

// HandleFrom is Handle for the calls of one peer.
func (d *Direct) HandleFrom(p peer.ID, name string, f func(context.Context, *event.Event) (results []any, err error)) (off func()) {
	return d.calls.register(d.log, p, name, f)
}
