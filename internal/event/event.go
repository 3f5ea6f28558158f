package event

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/payload"
)

const (
	maxName = 128 // most bytes of an event's name
	maxArgs = 64  // most arguments of an event
)

// An Event is an event that arrived. All its handlers share it. They may use it
// concurrently and keep it, but must not change its bytes.
type Event struct {
	From peer.ID      // the sender, proven by the connection or by a signature
	Name string       // the name that the sender gave to Emit
	Args payload.Args // encoded arguments; read them with Decode or Bytes
}

// Len returns the number of arguments.
func (e *Event) Len() int { return e.Args.Len() }

// Decode stores the arguments in the variables that ptrs point to, in order. There may
// be fewer pointers than arguments. A nil pointer skips an argument.
//
// Each argument is decoded with the codec with which its sender encoded it. A []byte
// can be stored in a *[]byte or an *any and shares the event's memory: it may be kept
// but not changed. A protobuf message can be stored in a message of its type, such as a
// *wrapperspb.StringValue, or in a variable of that type, which gets a new message.
// JSON follows the rules of encoding/json. CBOR does the same, with these differences:
// an integer becomes an int64 in an any, or a big.Int if it needs more bits, and keys
// of maps in an any are strings. Arrays and maps of CBOR may have 131,072 elements and
// be nested 64 deep; a duplicate key is an error.
//
// The error wraps [ErrUndecodable] and gives the number of the argument, counted from
// 1. The variables before that argument are set.
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

// Bytes returns argument i, counted from 0, and whether it was emitted as a []byte. The
// bytes may be kept but not changed.
func (e *Event) Bytes(i int) ([]byte, bool) {
	a, ok := e.Args.At(i)
	if !ok {
		return nil, false
	}
	return a.Data, a.Codec == CodecRaw
}

// CheckName returns an error that wraps [ErrBadName] if no event can have the name.
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

// Quote returns a text that comes from a peer as it can be logged: quoted, and cut
// after 64 runes.
func Quote(s string) string { return strconv.Quote(Cut(s, 64)) }

// Cut returns s, cut after its first most runes.
func Cut(s string, most int) string {
	for i := range s {
		if most--; most < 0 {
			return s[:i] + "..."
		}
	}
	return s
}
