package event

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/payload"
)

const (
	maxName = 128 // bytes of an event's name
	maxArgs = 64  // arguments of an event
)

// An Event is one event that arrived. All its handlers share it. They may use
// it concurrently and keep it, but must not change its bytes.
type Event struct {
	From peer.ID      // its sender, proven by the connection or by a signature
	Name string       // as the sender gave it to Emit
	Args payload.Args // encoded; read them with Decode or Bytes
}

// Len returns the number of arguments.
func (e *Event) Len() int { return e.Args.Len() }

// Decode stores the arguments in the variables that ptrs point to, in order.
// There may be fewer pointers than arguments. A nil pointer skips an argument.
//
// An argument is decoded as its sender encoded it, whatever this node's
// [Codec]. A []byte goes into a *[]byte or an *any and shares the event's
// memory: it may be kept but not changed. A protobuf message goes into a message
// of its type, such as a *wrapperspb.StringValue, or into a variable of that
// type, which gets a new message. JSON follows the rules of encoding/json. CBOR
// does the same, with these differences: an integer becomes an int64 in an any,
// or a big.Int if it needs more bits, and keys of maps in an any are strings.
// Arrays and maps of CBOR may have 131,072 elements and be nested 64 deep; a
// duplicate key is an error.
//
// The error wraps [ErrUndecodable] and names the argument, counted from 1; the
// variables before that argument are set.
func (e *Event) Decode(ptrs ...any) error {
	if n := e.Len(); len(ptrs) > n {
		return fmt.Errorf("%w: event %s: argument %d asked for, it has %d", ErrUndecodable, Quote(e.Name), n+1, n)
	}
	rest := e.Args
	for i, ptr := range ptrs {
		var a payload.Arg
		if a, rest = rest.Next(); ptr == nil {
			continue
		}
		if err := decodeArg(a, ptr); err != nil {
			return fmt.Errorf("%w: event %s: argument %d: %w", ErrUndecodable, Quote(e.Name), i+1, err)
		}
	}
	return nil
}

// Bytes returns argument i, counted from 0, and whether it was emitted as a
// []byte. The bytes may be kept but not changed.
func (e *Event) Bytes(i int) ([]byte, bool) {
	a, ok := e.Args.At(i)
	if !ok {
		return nil, false
	}
	return a.Data, a.Codec == CodecRaw
}

func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrBadName)
	case len(name) > maxName:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBadName, len(name), maxName)
	case name == "*":
		return fmt.Errorf("%w: %q stands for every name", ErrBadName, name)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: %s is not UTF-8", ErrBadName, Quote(name))
	}
	return nil
}

// Quote makes text of a stranger fit for a log line: quoted, 64 runes at most.
func Quote(s string) string { return strconv.Quote(Cut(s, 64)) }

// Cut returns the first most runes of s.
func Cut(s string, most int) string {
	for i := range s {
		if most--; most < 0 {
			return s[:i] + "..."
		}
	}
	return s
}
