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

// A Callee is somebody to call: a *smokesignal.Peer, or what [Direct.To]
// returns.
type Callee interface {
	Call(ctx context.Context, name string, args ...any) (*Event, error)
}

// A CallSource is where calls come from: a Direct, which has those of any
// node, or one peer. f answers the calls of a name, or with "*" those that no
// other handler answers. Of several handlers for one name the last one
// answers, until its off. A handler for one peer goes before one for any.
type CallSource interface {
	Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func())
}

// A Call is the name of a question to another node together with the types of
// what is asked and what is answered, on which both ends agree. They are types
// as those of a [Name]; struct{} is nothing at all.
//
//	var sum = events.Call[[]int, int]("sum")
type Call[In, Out any] string

// Do calls the handler at the other node and waits for its answer, until ctx
// ends; if ctx has no deadline, for ten seconds (CallTimeout). Calls share the
// queue of direct events to that node, and their order: who emits and then
// calls knows, when the call returns, that what it emitted was handled.
//
// A nil error means that the handler has finished. It has finished, too, with
// ErrRemoteHandler, and with ErrUndecodable if its answer is not an Out. With
// ErrUnknownOutcome it may have run. With any other error it has not run and
// will not: those of [Direct.Emit], ErrNoHandler, and ErrBadArgument if in is
// not what the other side takes. Whatever happens, it does not run twice.
func (c Call[In, Out]) Do(ctx context.Context, to Callee, in In) (Out, error) {
	var args []any
	if _, none := any(in).(struct{}); !none {
		args = []any{in}
	}
	answer, err := to.Call(ctx, string(c), args...)
	if err != nil {
		var zero Out
		return zero, err
	}
	out, err := decodeAs[Out](answer)
	if err != nil {
		err = &emitError{"call", answer.From, string(c), &because{errors.New("the answer"), err}}
	}
	return out, err
}

// Handle lets f answer the calls of the name. Its error goes to the caller as
// text, cut to 1 KiB. f runs in the caller's turn, as a handler of an event
// does: the caller's next events and calls wait for it. A call with an
// argument that is not an In is answered with an error, counted, and not given
// to f.
func (c Call[In, Out]) Handle(src CallSource, f func(ctx context.Context, from peer.ID, in In) (Out, error)) (off func()) {
	return src.Handle(string(c), func(ctx context.Context, ev *Event) ([]any, error) {
		in, err := decodeAs[In](ev)
		if err != nil {
			ev.undecodable(ctx, err)
			return nil, &badArgument{err}
		}
		out, err := f(ctx, ev.From, in)
		if err != nil {
			return nil, err
		}
		if _, none := any(out).(struct{}); none {
			return nil, nil
		}
		return []any{out}, nil
	})
}

// badArgument is returned by a typed handler that cannot read its argument.
type badArgument struct{ error }

// Call calls the handler of that name at a peer and waits for its answer, an
// event of the same name with the results as its arguments. It is [Call.Do]
// for any number of arguments of any type. All its arguments belong to the
// caller again when it returns.
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
// that no other handler answers; see [CallSource]. What f returns are the
// arguments of the answer. It runs in the turn of the peer's events, under the
// rules of [Direct.On]; a panic is an error to the caller.
func (d *Direct) Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return d.mux.handle("", name, f)
}

// HandleFrom is Handle for the calls of one peer.
func (d *Direct) HandleFrom(p peer.ID, name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return d.mux.handle(p, name, f)
}

// Remote is one peer as an Emitter, a Source, a Callee and a CallSource.
type Remote struct {
	d *Direct
	p peer.ID
}

// To returns a handle on one peer. It holds nothing and need not be closed.
func (d *Direct) To(p peer.ID) *Remote { return &Remote{d, p} }

// Emit is [Direct.Emit] to the peer.
func (r *Remote) Emit(ctx context.Context, name string, args ...any) error {
	return r.d.Emit(ctx, r.p, name, args...)
}

// TryEmit is [Direct.TryEmit] to the peer.
func (r *Remote) TryEmit(name string, args ...any) error { return r.d.TryEmit(r.p, name, args...) }

// EmitBytes is [Direct.EmitBytes] to the peer.
func (r *Remote) EmitBytes(ctx context.Context, name string, b []byte) error {
	return r.d.EmitBytes(ctx, r.p, name, b)
}

// Call is [Direct.Call] to the peer.
func (r *Remote) Call(ctx context.Context, name string, args ...any) (*Event, error) {
	return r.d.Call(ctx, r.p, name, args...)
}

// On is [Direct.OnFrom] with the peer.
func (r *Remote) On(name string, f func(context.Context, *Event)) (off func()) {
	return r.d.OnFrom(r.p, name, f)
}

// OnBorrowed is [Direct.OnBorrowedFrom] with the peer.
func (r *Remote) OnBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return r.d.OnBorrowedFrom(r.p, name, f)
}

// Handle is [Direct.HandleFrom] with the peer.
func (r *Remote) Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return r.d.HandleFrom(r.p, name, f)
}

// Done is closed when the Direct closes; it ends Name.All loops.
func (r *Remote) Done() <-chan struct{} { return r.d.Done() }
