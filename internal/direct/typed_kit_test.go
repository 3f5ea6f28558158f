package direct

import (
	"bytes"
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Typed events and calls in the form in which package smokesignal has them, for tests
// and benchmarks of the channels below.

// An Emitter sends events: to all nodes, or to one peer. Emit encodes the
// arguments before it returns, so the caller may change them afterwards.
type Emitter interface {
	Emit(ctx context.Context, name string, args ...any) error
}

// A Source calls f for every event of a name that arrives, or for every event
// at all if the name is "*". Events of one sender arrive one after the other;
// f may run for several senders at once. After off has returned, no further
// call of f begins; off does not wait for a call that is running.
type Source interface {
	On(name string, f func(context.Context, *event.Event)) (off func())
}

// Name is a typed event.
type Name[T any] string

func (n Name[T]) Emit(ctx context.Context, e Emitter, v T) error {
	if b, ok := any(v).([]byte); ok {
		if e, ok := e.(interface {
			EmitBytes(ctx context.Context, name string, b []byte) error
		}); ok {
			return e.EmitBytes(ctx, string(n), b)
		}
	}
	return e.Emit(ctx, string(n), v)
}

func (n Name[T]) On(src Source, f func(ctx context.Context, from peer.ID, v T)) (off func()) {
	on := src.On
	switch src := src.(type) {
	case *Direct:
		on = func(name string, f func(context.Context, *event.Event)) func() {
			return src.OnBorrowed("", name, f)
		}
	}
	return on(string(n), func(ctx context.Context, ev *event.Event) {
		v, err := copyAs[T](ctx, ev)
		if err != nil {
			dispatch.TurnOf(ctx).Undecodable(ev.Name, ev.From, err)
			return
		}
		f(ctx, ev.From, v)
	})
}

func copyAs[T any](ctx context.Context, ev *event.Event) (T, error) {
	var v T
	if p, ok := any(&v).(*[]byte); ok {
		if b, ok := ev.Bytes(0); ok {
			*p = dispatch.TurnOf(ctx).Copy(b)
			return v, nil
		}
	}
	return copyOther[T](ev)
}

func copyOther[T any](ev *event.Event) (T, error) {
	v, err := decodeAs[T](ev)
	if p, ok := any(&v).(*any); ok {
		if b, ok := (*p).([]byte); ok {
			*p = bytes.Clone(b)
		}
	}
	return v, err
}

func decodeAs[T any](ev *event.Event) (v T, err error) {
	if _, none := any(v).(struct{}); none {
		return v, nil
	}
	return v, ev.Decode(&v)
}

// Call is a typed call.
type Call[In, Out any] string

func (c Call[In, Out]) Do(ctx context.Context, to *remote, in In) (out Out, err error) {
	var args []any
	if _, none := any(in).(struct{}); !none {
		args = []any{in}
	}
	answer, err := to.Call(ctx, to.peer, string(c), args...)
	if err != nil {
		return out, err
	}
	if out, err = decodeAs[Out](answer); err != nil {
		err = fmt.Errorf("events: call: the answer: %w", err)
	}
	return out, err
}

// callSource is a Direct, or one peer of it.
type callSource interface {
	Handle(name string, f func(context.Context, *event.Event) (results []any, err error)) (off func())
}

func (c Call[In, Out]) Handle(src callSource, f func(ctx context.Context, from peer.ID, in In) (Out, error)) (off func()) {
	return src.Handle(string(c), func(ctx context.Context, ev *event.Event) ([]any, error) {
		in, err := decodeAs[In](ev)
		if err != nil {
			dispatch.TurnOf(ctx).Undecodable(ev.Name, ev.From, err)
			return nil, &BadArgument{Err: err}
		}
		out, err := f(ctx, ev.From, in)
		if _, none := any(out).(struct{}); none || err != nil {
			return nil, err
		}
		return []any{out}, nil
	})
}

// remote is one peer of a Direct.
type remote struct {
	*Direct
	peer peer.ID
}

func (d *Direct) to(p peer.ID) *remote { return &remote{d, p} }

func (r *remote) Emit(ctx context.Context, name string, args ...any) error {
	return r.Direct.Emit(ctx, r.peer, name, args...)
}

func (r *remote) EmitBytes(ctx context.Context, name string, b []byte) error {
	return r.Direct.EmitBytes(ctx, r.peer, name, b)
}

func (r *remote) TryEmit(name string, args ...any) error {
	return r.Direct.TryEmit(r.peer, name, args...)
}

func (r *remote) On(name string, f func(context.Context, *event.Event)) (off func()) {
	return r.OnFrom(r.peer, name, f)
}

func (r *remote) Handle(name string, f func(context.Context, *event.Event) (results []any, err error)) (off func()) {
	return r.HandleFrom(r.peer, name, f)
}
