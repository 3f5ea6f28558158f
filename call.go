package smokesignal

import (
	"context"
	"fmt"

	"github.com/go-smokesignal/smokesignal/internal/handling"
)

// A Call is the name of a question to another node together with the types of the
// question and its answer. Both ends agree on them:
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
// A nil error means that the handler has finished. It has finished, too, with
// ErrRemoteHandler (a *RemoteError holds its text) and with ErrUndecodable (its answer
// is not an Out). With ErrUnknownOutcome it may have run, and the cause is wrapped beside
// it. With any other error it has not run and will not: ErrNoHandler, ErrBadArgument
// (in cannot be encoded, or the other node expects another type), ErrNotConnected
// with its causes, ErrBadID, ErrBadName, ErrTooLarge, ErrNotStarted, ErrClosed, or the
// error of ctx. Whatever happens, no call runs twice.
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

// Handle lets f answer the calls of the name: with node.Direct() those of any node, with
// a Peer those of that peer. off removes f. Of several handlers for one name the last
// one answers, and one for the caller goes before one for any node.
//
// The error of f goes to the caller as text, cut to 1 KiB. f runs as a handler of events
// does: the caller's next events and calls wait for it. A call whose argument is not an In is
// answered with ErrBadArgument and counted in Stats (Undecodable); f does not get it.
func (c Call[In, Out]) Handle(src CallSource, f func(ctx context.Context, from ID, in In) (Out, error)) (off func()) {
	return src.Handle(string(c), func(ctx context.Context, ev *Event) ([]any, error) {
		in, err := decodeAs[In](ev)
		if err != nil {
			noteUndecodable(ctx, ev, err)
			return nil, &handling.BadArgument{Err: err}
		}
		out, err := f(ctx, ev.From, in)
		if err != nil {
			return nil, err
		}
		return arguments(out), nil
	})
}

// A CallSource is where calls are answered: node.Direct() for those of any node, a Peer
// for its own.
type CallSource interface {
	Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func())
}
