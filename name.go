package smokesignal

import (
	"bytes"
	"context"
	"iter"
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
)

// A Name is the name of an event together with the type of its argument. The sender and
// the receivers must use the same name and type:
//
//	var chat = smokesignal.Name[string]("chat")
//
// T is a []byte, which is sent as it is, a protobuf message such as
// *wrapperspb.StringValue, or any type that JSON can encode (or CBOR, see the option
// of that name). An event of a Name[struct{}] has no argument. For events with several
// arguments use the methods of Broadcast, Direct and Peer.
//
// A Name is 1 to 128 bytes of UTF-8, and not "*". It may be used from several
// goroutines.
type Name[T any] string

// A Message is an event of a Name, in the loop of Name.All.
type Message[T any] struct {
	From  ID // the sender, proven by its signature or its connection
	Value T  // the decoded argument; the zero value if the loop got an error
}

// Emit sends v: with node.Broadcast() to all nodes of the network, with node.Peer(id)
// to that node. It blocks and fails as the Emit of e does.
func (n Name[T]) Emit(ctx context.Context, e Emitter, v T) error {
	if b, ok := any(v).([]byte); ok {
		// Bytes need no encoding. The types of this package can emit them without an
		// allocation.
		if e, ok := e.(bytesEmitter); ok {
			return e.emitBytes(ctx, string(n), b)
		}
	}
	return e.Emit(ctx, string(n), arguments(v)...)
}

// TryEmit is Emit without waiting: it returns ErrQueueFull where Emit would wait. It
// fails as the TryEmit of e does.
func (n Name[T]) TryEmit(e Emitter, v T) error {
	return e.TryEmit(string(n), arguments(v)...)
}

// EmitConfirmed broadcasts v and returns when k neighbors have received it, or all of
// them if k is 0. It blocks and fails as Broadcast.EmitConfirmed does.
func (n Name[T]) EmitConfirmed(ctx context.Context, b *Broadcast, k int, v T) error {
	return b.EmitConfirmed(ctx, k, string(n), arguments(v)...)
}

// arguments returns the arguments of an event whose typed value is v: v itself, or none if v is
// a struct{}.
func arguments(v any) []any {
	if _, none := v.(struct{}); none {
		return nil
	}
	return []any{v}
}

// On calls f for every event of the name that arrives at src: node.Broadcast() for
// broadcasts, node.Direct() for events that any peer sent to this node alone, a Peer for
// those of one peer. off removes f: no call begins after off has returned.
//
// Events of one sender are handled one after the other; f may run for several senders at
// once. An event whose argument is not a T is not given to f; it is logged, and counted in
// Stats as "undecodable". Arguments after the first are ignored. If T is []byte, f may keep
// and change the value.
func (n Name[T]) On(src Source, f func(ctx context.Context, from ID, v T)) (off func()) {
	on := src.On
	if src, ok := src.(borrowingSource); ok {
		on = src.onBorrowed
	}
	return on(string(n), func(ctx context.Context, ev *Event) {
		v, err := copyAs[T](ctx, ev)
		if err != nil {
			noteUndecodable(ctx, ev, err)
			return
		}
		f(ctx, ev.From, v)
	})
}

// All returns the events of the name as a loop on the caller's goroutine:
//
//	for msg, err := range chat.All(ctx, node.Broadcast()) {
//		if err != nil {
//			continue // this event was bad; the loop goes on
//		}
//		fmt.Println(msg.From, msg.Value)
//	}
//
// All subscribes at once, so events that arrive before the loop begins are not missed.
// The loop ends when ctx ends or the node begins to close. It can be run once.
//
// An event whose argument is not a T gives an error that is ErrUndecodable, and its
// From. Broadcasts that are missing give a Gap as the error, whatever their names were.
//
// While the body of the loop runs, and before the loop begins, the next events wait, as
// they do for a slow handler. If the loop is never run, they wait until ctx ends.
func (n Name[T]) All(ctx context.Context, src Source) iter.Seq2[Message[T], error] {
	type item struct {
		msg Message[T]
		err error
	}
	next, left := make(chan item), make(chan struct{})
	handOver := func(hctx context.Context, it item) {
		select {
		case next <- it:
		case <-left:
		case <-hctx.Done():
		}
	}
	off := src.On(string(n), func(hctx context.Context, ev *Event) {
		v, err := decodeAs[T](ev)
		if err != nil {
			noteUndecodable(hctx, ev, err)
		}
		handOver(hctx, item{Message[T]{ev.From, v}, err})
	})
	offGap := func() {}
	if s, ok := src.(gapSource); ok {
		offGap = s.OnGap(func(hctx context.Context, g Gap) {
			handOver(hctx, item{Message[T]{From: g.From}, g})
		})
	}
	leave := sync.OnceFunc(func() {
		off()
		offGap()
		close(left)
	})
	stopWaiting := context.AfterFunc(ctx, leave)
	var closed <-chan struct{} // stays nil, so that it never ends the loop, if src is not of this package
	if s, ok := src.(closingSource); ok {
		closed = s.closing()
	}
	return func(yield func(Message[T], error) bool) {
		defer stopWaiting()
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

// Broadcast, Direct and Peer have the methods of these interfaces beside those of Emitter
// and Source; typed events use them to save allocations. An application's own Emitter or
// Source need not have them.
type (
	// bytesEmitter sends one []byte without an allocation.
	bytesEmitter interface {
		emitBytes(ctx context.Context, name string, b []byte) error
	}
	// borrowingSource calls handlers with events that are valid only until the handler
	// returns.
	borrowingSource interface {
		onBorrowed(name string, f func(context.Context, *Event)) (off func())
	}
	// gapSource reports missing events.
	gapSource interface {
		OnGap(f func(context.Context, Gap)) (off func())
	}
	// closingSource says when no more events come.
	closingSource interface{ closing() <-chan struct{} }
)

// noteUndecodable counts and logs that ev could not be decoded. ctx is the context of the
// handler that got ev; it leads to the counters of the Broadcast or Direct.
func noteUndecodable(ctx context.Context, ev *Event, err error) {
	if t := dispatch.TurnOf(ctx); t != nil {
		t.Undecodable(ev.Name, ev.From, err)
	}
}

// copyAs is decodeAs for an event that is valid only until the handler returns: a []byte is
// copied, so that the handler may keep it.
func copyAs[T any](ctx context.Context, ev *Event) (T, error) {
	var v T
	if p, ok := any(&v).(*[]byte); ok {
		if b, ok := ev.Bytes(0); ok {
			if t := dispatch.TurnOf(ctx); t != nil {
				*p = t.Copy(b)
			} else {
				*p = bytes.Clone(b)
			}
			return v, nil
		}
	}
	return copyOther[T](ev)
}

// copyOther decodes the argument of ev as copyAs does. It is not part of copyAs, so that the
// variable v of copyAs stays on the stack.
func copyOther[T any](ev *Event) (T, error) {
	v, err := decodeAs[T](ev)
	if p, ok := any(&v).(*any); ok {
		if b, ok := (*p).([]byte); ok {
			*p = bytes.Clone(b)
		}
	}
	return v, err
}

// decodeAs decodes the first argument of ev. If that fails, it returns the zero value, not
// a value of which some fields are set.
func decodeAs[T any](ev *Event) (T, error) {
	var v T
	if _, none := any(v).(struct{}); none {
		return v, nil
	}
	if err := ev.Decode(&v); err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}
