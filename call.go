package smokesignal

import (
	"context"
	"fmt"

	"github.com/go-smokesignal/smokesignal/internal/direct"
)

// A Call is the name of a request to another node together with the types of its argument
// In and its result Out. Both nodes must use the same name and types:
//
//	var sum = smokesignal.Call[[]int, int]("sum")
//
//	sum.Handle(node.Direct(), func(ctx context.Context, from smokesignal.ID, n []int) (int, error) { ... })
//	total, err := sum.Do(ctx, node.Peer(id), []int{1, 2, 3})
//
// The types are as for a Name; struct{} stands for no argument or no result. A Call may
// be used from several goroutines.
type Call[In, Out any] string

// Do calls the handler at the other node and waits for its answer, until ctx ends; if
// ctx has no deadline, for ten seconds. A peer that is not connected is found first, as
// by Peer.Emit. Calls share the queue of direct events to that peer, and their order: if
// you emit and then call, the emitted event has been handled when the call returns.
//
// A nil error means that the handler has finished without an error. The handler has also
// finished if the error is ErrRemoteHandler (it failed; a *RemoteError holds its text) or
// ErrUndecodable (its answer is not an Out). ErrUnknownOutcome means that the handler may
// have run; the cause is wrapped beside it. After any other error the handler has not run
// and will not run: ErrNoHandler, ErrBadArgument (in cannot be encoded, or the other node
// expects another type), ErrNotConnected with its causes, ErrBadID, ErrBadName,
// ErrTooLarge, ErrNotStarted, ErrClosed, or the error of ctx. No call runs twice.
func (c Call[In, Out]) Do(ctx context.Context, p *Peer, in In) (Out, error) {
	var zero Out
	answer, err := p.Call(ctx, string(c), arguments(in)...)
	if err != nil {
		return zero, err
	}
	out, err := decodeAs[Out](answer)
	if err != nil {
		return zero, fmt.Errorf("smokesignal: call %q to %s: the answer: %w", string(c), answer.From, err)
	}
	return out, nil
}

// Handle registers f to answer the calls named c: the calls of any node if src is
// node.Direct(), or the calls of one peer if src is that Peer. If several handlers have the
// same name, the one registered last answers; a handler for one peer takes precedence over
// a handler for any node. off removes f.
//
// The error of f goes to the caller as text, cut to 1 KiB. As with handlers of events, the
// caller's next events and calls wait until f returns. A call whose argument is not an In is
// answered with ErrBadArgument and counted in Stats as "undecodable"; f does not get it.
func (c Call[In, Out]) Handle(src CallSource, f func(ctx context.Context, from ID, in In) (Out, error)) (off func()) {
	return src.Handle(string(c), func(ctx context.Context, ev *Event) ([]any, error) {
		in, err := decodeAs[In](ev)
		if err != nil {
			noteUndecodable(ctx, ev, err)
			return nil, &direct.BadArgument{Err: err}
		}
		out, err := f(ctx, ev.From, in)
		if err != nil {
			return nil, err
		}
		return arguments(out), nil
	})
}

// A CallSource is an argument of Call.Handle: node.Direct() for the calls of any node, or a
// Peer for the calls of that peer.
type CallSource interface {
	Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func())
}
