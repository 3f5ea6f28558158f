// Package payload holds the arguments of an event in the form in which they
// travel. The events of package events and of the module's root carry them in
// a field of the same type, so that one converts into the other for free.
package payload

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// The fields of the protobuf messages, as in docs/wire.md:
//
//	message Event { string name = 1; repeated Arg args = 2; }
//	message Arg   { uint32 codec = 1; bytes data = 2; }
const (
	FieldName = 1
	FieldArgs = 2

	FieldCodec = 1
	FieldData  = 2
)

// The tags of the fields that nearly every event consists of.
const (
	TagName = FieldName<<3 | byte(protowire.BytesType)
	TagArgs = FieldArgs<<3 | byte(protowire.BytesType)
	TagData = FieldData<<3 | byte(protowire.BytesType)
)

// Args are the encoded arguments of an event: its protobuf message, or the part
// of it after the name. Whoever makes Args has parsed the message, so the
// methods do not report errors.
type Args []byte

// An Arg is one argument: the id of its codec and its bytes.
type Arg struct {
	Codec uint32
	Data  []byte
}

// Len returns the number of arguments.
func (a Args) Len() (n int) {
	for b := []byte(a); len(b) > 0; {
		var f frame.Field
		if f, b, _ = frame.Cut(b); f.Num == FieldArgs && f.Type == protowire.BytesType {
			n++
		}
	}
	return n
}

// Next returns the first argument and the rest of the message after it. The Args
// must have an argument.
func (a Args) Next() (first Arg, rest Args) {
	if tag, short, rest := frame.CutShort(a); tag == TagArgs {
		first, _ = ParseArg(short)
		return first, rest
	}
	b := []byte(a)
	for len(b) > 0 {
		var f frame.Field
		f, b, _ = frame.Cut(b)
		// Other fields are of a later version of the format.
		if f.Num == FieldArgs && f.Type == protowire.BytesType {
			first, _ = ParseArg(f.Bytes)
			break
		}
	}
	return first, b
}

// At returns argument i, counted from 0, and whether there is one.
func (a Args) At(i int) (Arg, bool) {
	if i == 0 {
		// Most events have one argument: do not count them first.
		if tag, short, _ := frame.CutShort(a); tag == TagArgs {
			first, _ := ParseArg(short)
			return first, true
		}
	}
	if i < 0 || i >= a.Len() {
		return Arg{}, false
	}
	arg, rest := a.Next()
	for range i {
		arg, rest = rest.Next()
	}
	return arg, true
}

// ParseArg reads an Arg message. It copies nothing.
func ParseArg(b []byte) (Arg, error) {
	var a Arg
	if tag, short, rest := frame.CutShort(b); tag == TagData && len(rest) == 0 {
		a.Data = short[:len(short):len(short)]
		return a, nil
	}
	for len(b) > 0 {
		f, rest, err := frame.Cut(b)
		b = rest
		switch {
		case err != nil:
			return a, err
		case f.Num == FieldCodec && f.Type == protowire.VarintType:
			if f.Uint > math.MaxUint32 {
				return a, fmt.Errorf("codec %d", f.Uint)
			}
			a.Codec = uint32(f.Uint)
		case f.Num == FieldData && f.Type == protowire.BytesType:
			// The capacity ends here, so that a caller's append copies the bytes
			// and does not write into the next argument.
			a.Data = f.Bytes[:len(f.Bytes):len(f.Bytes)]
		}
	}
	return a, nil
}
