// Package payload holds the encoded arguments of an event, as they are sent. The Event types
// of package events and of the module's root both have a field of this type, so that a pointer
// to one can be converted to a pointer to the other without a copy.
package payload

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// The field numbers of these protobuf messages, which docs/wire.md describes:
//
//	message Event { string name = 1; repeated Arg args = 2; }
//	message Arg   { uint32 codec = 1; bytes data = 2; }
const (
	FieldName = 1
	FieldArgs = 2

	FieldCodec = 1
	FieldData  = 2
)

// The tags (field number and type in one byte) of the fields that nearly every event has.
const (
	TagName = FieldName<<3 | byte(protowire.BytesType)
	TagArgs = FieldArgs<<3 | byte(protowire.BytesType)
	TagData = FieldData<<3 | byte(protowire.BytesType)
)

// Args are the encoded arguments of an event: its protobuf message, or the part of it after
// the name. The methods return no errors, because the code that makes Args has checked that
// the message is well-formed.
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

// Next returns the first argument and the rest of the message after it. There must be at
// least one argument.
func (a Args) Next() (first Arg, rest Args) {
	if tag, short, rest := frame.CutShort(a); tag == TagArgs {
		first, _ = ParseArg(short)
		return first, rest
	}
	b := []byte(a)
	for len(b) > 0 {
		var f frame.Field
		f, b, _ = frame.Cut(b)
		// Fields with other numbers belong to a later version of the format and are skipped.
		if f.Num == FieldArgs && f.Type == protowire.BytesType {
			first, _ = ParseArg(f.Bytes)
			break
		}
	}
	return first, b
}

// At returns the argument with index i, which counts from 0. It returns false if there is none.
func (a Args) At(i int) (Arg, bool) {
	if i == 0 {
		// Most events have one argument, so the first one is returned without counting them.
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

// ParseArg decodes an Arg message. The Arg shares the memory of b.
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
			// The capacity is limited, so that a caller who appends to Data gets a copy and
			// does not write into the next argument.
			a.Data = f.Bytes[:len(f.Bytes):len(f.Bytes)]
		}
	}
	return a, nil
}
