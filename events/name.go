package events

import (
	"bytes"
	"context"
	"iter"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A Name is the name of an event together with the type of its argument, on
// which both ends agree. T is []byte, which is sent as it is, a protobuf message
// such as *wrapperspb.StringValue, or any type that the node's [Codec] can
// handle. An event of type struct{} has no argument at all.
//
//	var chat = events.Name[string]("chat")
type Name[T any] string

// A Message is an event with its decoded argument.
type Message[T any] struct {
	*Event
	Value T
}

// Emit emits v; it blocks and fails as the emitter's Emit does.
func (n Name[T]) Emit(ctx context.Context, e Emitter, v T) error {
	if _, none := any(v).(struct{}); none {
		return e.Emit(ctx, string(n))
	}
	if b, ok := any(v).([]byte); ok {
		if e, ok := e.(bytesEmitter); ok {
			return e.EmitBytes(ctx, string(n), b)
		}
	}
	return e.Emit(ctx, string(n), v)
}

// On calls f for every event of the name, as src.On does. An event whose
// argument is not a T is counted, logged at debug level, and not given to f.
// Further arguments are ignored.
func (n Name[T]) On(src Source, f func(ctx context.Context, from peer.ID, v T)) (off func()) {
	on := src.On
	if src, ok := src.(borrowing); ok {
		on = src.OnBorrowed
	}
	return on(string(n), func(ctx context.Context, ev *Event) {
		v, err := copyAs[T](ctx, ev)
		if err != nil {
			ev.undecodable(ctx, err)
			return
		}
		f(ctx, ev.From, v)
	})
}

// bytesEmitter is an Emitter that knows a cheaper way for a lone []byte.
type bytesEmitter interface {
	EmitBytes(ctx context.Context, name string, b []byte) error
}

// borrowing is a Source that can use events again.
type borrowing interface {
	OnBorrowed(name string, f func(context.Context, *Event)) (off func())
}

// All returns the events of the name as a loop, which runs on the caller's
// goroutine with no lock held. It subscribes at once, so that nothing is missed
// that comes before the loop begins, and can be looped over once. It ends when
// ctx ends, or when src closes if src has a Done method, as those of this
// module have. An event whose argument is not a T comes in its place as an
// error that wraps [ErrUndecodable], with the Event and without a Value. So does
// a gap in the broadcasts of a sender, whatever their names were: a [*GapError]
// with neither.
//
// The loop takes one event at a time: before it begins, and while its body
// runs, the sender of the next event is held back as by a slow handler. So a
// loop that is not wanted after all needs the end of its ctx.
func (n Name[T]) All(ctx context.Context, src Source) iter.Seq2[Message[T], error] {
	type item struct {
		msg Message[T]
		err error
	}
	next, left := make(chan item), make(chan struct{})
	put := func(hctx context.Context, it item) {
		select {
		case next <- it:
		case <-left:
		case <-hctx.Done():
		}
	}
	off := src.On(string(n), func(hctx context.Context, ev *Event) {
		v, err := decodeAs[T](ev)
		if err != nil {
			ev.undecodable(hctx, err)
		}
		put(hctx, item{Message[T]{ev, v}, err})
	})
	offGap := func() {}
	if s, ok := src.(gapSource); ok {
		offGap = s.OnGap(func(hctx context.Context, g Gap) { put(hctx, item{err: &GapError{g}}) })
	}
	leave := sync.OnceFunc(func() {
		off()
		offGap()
		close(left)
	})
	forget := context.AfterFunc(ctx, leave)
	var closed <-chan struct{}
	if c, ok := src.(interface{ Done() <-chan struct{} }); ok {
		closed = c.Done()
	}
	return func(yield func(Message[T], error) bool) {
		defer forget()
		defer leave()
		for ctx.Err() == nil {
			select {
			case it := <-next:
				if !yield(it.msg, it.err) {
					return
				}
			case <-left:
				return
			case <-closed:
				return
			}
		}
	}
}

// copyAs is decodeAs for what shall outlive the event.
func copyAs[T any](ctx context.Context, ev *Event) (T, error) {
	var v T
	if p, ok := any(&v).(*[]byte); ok {
		if b, ok := ev.Bytes(0); ok {
			if r, ok := ctx.(*running); ok {
				*p = r.copy(b)
			} else {
				*p = bytes.Clone(b)
			}
			return v, nil
		}
	}
	return copyOther[T](ev)
}

// copyOther is apart from copyAs so that the variable there needs no memory of
// its own.
func copyOther[T any](ev *Event) (T, error) {
	v, err := decodeAs[T](ev)
	if p, ok := any(&v).(*any); ok {
		if b, ok := (*p).([]byte); ok {
			*p = bytes.Clone(b)
		}
	}
	return v, err
}

func decodeAs[T any](ev *Event) (T, error) {
	var v T
	if _, none := any(v).(struct{}); none {
		return v, nil
	}
	if err := ev.Decode(&v); err != nil {
		var zero T // not a half-filled one
		return zero, err
	}
	return v, nil
}
