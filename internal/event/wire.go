package event

import (
	"encoding/binary"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// Encode appends the encoded event to dst. It returns ErrTooLarge if the encoded event
// would have more than max bytes. After an error it returns dst unchanged.
func (c Codec) Encode(dst []byte, name string, args []any, max int) ([]byte, error) {
	start := len(dst)
	if err := CheckName(name); err != nil {
		return dst, err
	}
	if len(args) > maxArgs {
		return dst, fmt.Errorf("%w: event %s has %d arguments, at most %d", ErrTooLarge, Quote(name), len(args), maxArgs)
	}
	dst = frame.AppendBytes(dst, payload.FieldName, name)
	for i, a := range args {
		var err error
		if raw, ok := a.([]byte); ok {
			if len(raw) <= max { // larger bytes cannot be sent, so they are not copied
				dst = appendRaw(dst, raw)
			} else {
				err = errTooLong(name, len(raw), max)
			}
		} else if dst, err = c.appendArg(dst, a); err != nil {
			err = fmt.Errorf("%w: event %s: argument %d (%T): %w", ErrBadArgument, Quote(name), i+1, a, err)
		}
		if err == nil && len(dst)-start > max {
			err = errTooLong(name, len(dst)-start, max)
		}
		if err != nil {
			return dst[:start], err
		}
	}
	if len(dst)-start > max {
		return dst[:start], errTooLong(name, len(dst)-start, max)
	}
	return dst, nil
}

func errTooLong(name string, n, max int) error {
	return fmt.Errorf("%w: event %s of at least %d bytes, at most %d", ErrTooLarge, Quote(name), n, max)
}

// rawSize returns the size of the encoded event and true if all its arguments are raw
// bytes; otherwise ok is false.
func rawSize(name string, args []any) (n int, ok bool) {
	n = 1 + protowire.SizeBytes(len(name)) // each tag is one byte
	for _, a := range args {
		raw, ok := a.([]byte)
		if !ok {
			return 0, false
		}
		n += 1 + protowire.SizeBytes(rawArgSize(raw))
	}
	return n, true
}

// CheckRaw checks an event with raw as its only argument, and returns its encoded size.
func CheckRaw(name string, raw []byte, max int) (size int, err error) {
	if err := CheckName(name); err != nil {
		return 0, err
	}
	size = 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeBytes(rawArgSize(raw))
	if size > max {
		return 0, errTooLong(name, size, max)
	}
	return size, nil
}

// RawOverhead returns how many bytes an encoded event with the given name and at most
// max bytes can have besides the bytes of its only argument.
func RawOverhead(name string, max int) int {
	return 1 + protowire.SizeBytes(len(name)) + 2*(1+protowire.SizeVarint(uint64(max)))
}

// rawArgSize returns the size of the encoded argument raw, without its header.
func rawArgSize(raw []byte) int {
	if len(raw) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(raw))
}

// appendRaw appends the encoded argument raw.
func appendRaw(dst, raw []byte) []byte {
	dst = frame.AppendHeader(dst, payload.FieldArgs, rawArgSize(raw))
	if len(raw) == 0 {
		return dst
	}
	return append(frame.AppendHeader(dst, payload.FieldData, len(raw)), raw...)
}

// appendArg appends to dst the encoded argument v, which is not a []byte, and returns
// the extended dst.
func (c Codec) appendArg(dst []byte, v any) ([]byte, error) {
	// The length of the value is known only after it was encoded. So the value is
	// written a little behind its place, and then moved there, behind its header.
	var room [maxArgHeader]byte
	start := len(dst)
	dst, id, err := c.appendValue(append(dst, room[:]...), v)
	if err != nil {
		return dst[:start], err
	}
	value := dst[start+maxArgHeader:]
	size := protowire.SizeTag(payload.FieldCodec) + protowire.SizeVarint(uint64(id))
	if len(value) > 0 {
		size += protowire.SizeTag(payload.FieldData) + protowire.SizeBytes(len(value))
	}
	h := frame.AppendHeader(room[:0], payload.FieldArgs, size)
	h = frame.AppendUint(h, payload.FieldCodec, uint64(id))
	if len(value) > 0 { // only a protobuf message can be empty
		h = frame.AppendHeader(h, payload.FieldData, len(value))
	}
	dst = append(dst[:start], h...)
	return append(dst, value...), nil
}

// maxArgHeader is the most bytes of an argument besides its data: the headers of both,
// and the codec id.
const maxArgHeader = 2*(1+binary.MaxVarintLen64) + 2

// Parse decodes an event. It does not copy b: the event uses it, so nobody may change b
// from then on. The error wraps [ErrMalformed].
func Parse(from peer.ID, b []byte) (*Event, error) { return ParseNamed(from, b, "") }

// ParseNamed is Parse for an event that is expected to have the given name. If it has,
// it shares that string, which saves an allocation.
func ParseNamed(from peer.ID, b []byte, name string) (*Event, error) {
	e := &Event{From: from}
	if err := e.parse(b, name); err != nil {
		return nil, err
	}
	return e, nil
}

// parse fills in e from the encoded event b. If the name of the event equals last,
// e.Name shares the memory of last. last must be empty or a valid name.
func (e *Event) parse(b []byte, last string) error {
	// Nearly every event begins with its name, and has the same name as the last one.
	if n := 2 + len(last); n <= len(b) && b[0] == payload.TagName && b[1] < 0x80 && string(b[2:n]) == last && int(b[1]) == len(last) {
		if e.Name != last {
			e.Name = last
		}
		b = b[n:]
	} else {
		e.Name = ""
	}
	e.Args = b
	for n := 0; len(b) > 0; {
		tag, short, rest := frame.CutShort(b)
		if tag == payload.TagArgs && n < maxArgs {
			if _, err := payload.ParseArg(short); err == nil {
				n++
				b = rest
				continue
			}
		}
		f, rest, err := frame.Cut(b)
		b = rest
		switch {
		case err != nil:
			return fmt.Errorf("%w event: %w", ErrMalformed, err)
		case f.Type != protowire.BytesType:
			// This version of the protocol does not know the field; a later version may
			// have added it.
		case f.Num == payload.FieldName:
			if len(f.Bytes) > maxName {
				return fmt.Errorf("%w event: a name of %d bytes", ErrMalformed, len(f.Bytes))
			}
			if e.Name = last; string(f.Bytes) != last {
				e.Name = string(f.Bytes)
			}
		case f.Num == payload.FieldArgs:
			if n == maxArgs {
				return fmt.Errorf("%w event: more than %d arguments", ErrMalformed, maxArgs)
			}
			n++
			if _, err := payload.ParseArg(f.Bytes); err != nil {
				return fmt.Errorf("%w event: argument %d: %w", ErrMalformed, n, err)
			}
		}
	}
	if e.Name == "" || e.Name != last {
		if err := CheckName(e.Name); err != nil {
			return fmt.Errorf("%w event: %w", ErrMalformed, err)
		}
	}
	return nil
}
