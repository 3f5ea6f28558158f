package events

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// An Emitter sends events: a broadcast, or one peer. Emit encodes the
// arguments before it returns, so the caller may change them afterwards.
type Emitter interface {
	Emit(ctx context.Context, name string, args ...any) error
}

// A Source calls f for every event of a name that arrives, or for every event
// at all if the name is "*". Events of one sender arrive one after the other;
// f may run for several senders at once. off ends it: no call of f begins
// after off has returned, one that runs is not waited for.
type Source interface {
	On(name string, f func(context.Context, *Event)) (off func())
}

const (
	maxName = 128 // bytes of an event's name
	maxArgs = 64  // arguments of an event
)

// An Event is one event that arrived. All its handlers share it and may use
// it at the same time and keep it; nobody may change its bytes.
type Event struct {
	From peer.ID // who sent it, proven by the transport or a signature
	Name string

	body []byte // the message it came in, or what follows the name there
}

// Len returns the number of arguments.
func (e *Event) Len() (n int) {
	for b := e.body; len(b) > 0; {
		var f frame.Field
		if f, b, _ = frame.Cut(b); f.Num == fieldArgs && f.Type == protowire.BytesType {
			n++
		}
	}
	return n
}

// next returns the first argument in b, a part of the body, and what follows
// it. There is one, and it is good: parse has seen it.
func next(b []byte) (a arg, rest []byte) {
	if tag, short, rest := cutShort(b); tag == tagArgs {
		a, _ = parseArg(short)
		return a, rest
	}
	for len(b) > 0 {
		var f frame.Field
		f, b, _ = frame.Cut(b)
		if f.Num == fieldArgs && f.Type == protowire.BytesType {
			a, _ = parseArg(f.Bytes)
			break
		}
	}
	return a, b
}

// Decode stores the arguments in the variables that ptrs point to, the first
// in the first and so on. There may be fewer pointers than arguments, a nil
// pointer skips one.
//
// An argument is decoded as its sender encoded it, whatever this node's
// [Codec]. A []byte goes into a *[]byte or an *any and stays the event's: it may
// be kept but not changed. A protobuf message goes into a message of its type,
// such as a *wrapperspb.StringValue, or into a variable of that type, which
// gets a new one. JSON follows the rules of encoding/json. CBOR does the same,
// by its own rules: an integer is an int64 in an any, or a big.Int if it needs
// more, and keys of maps there are strings. Arrays and maps of CBOR may have
// 131,072 elements and be nested 64 deep; a key that comes twice is an error.
//
// The error wraps [ErrUndecodable] and names the argument, counted from 1; the
// variables before it are then set.
func (e *Event) Decode(ptrs ...any) error {
	if n := e.Len(); len(ptrs) > n {
		return fmt.Errorf("%w: event %s: argument %d asked for, it has %d", ErrUndecodable, quote(e.Name), n+1, n)
	}
	rest := e.body
	for i, ptr := range ptrs {
		var a arg
		if a, rest = next(rest); ptr == nil {
			continue
		}
		if err := a.decode(ptr); err != nil {
			return fmt.Errorf("%w: event %s: argument %d: %w", ErrUndecodable, quote(e.Name), i+1, err)
		}
	}
	return nil
}

// Bytes returns argument i, counted from 0, if it was emitted as a []byte. The
// bytes may be kept but not changed.
func (e *Event) Bytes(i int) ([]byte, bool) {
	if tag, first, _ := cutShort(e.body); i == 0 && tag == tagArgs {
		a, _ := parseArg(first)
		return a.data, a.codec == codecRaw
	}
	if i < 0 || i >= e.Len() {
		return nil, false
	}
	a, rest := next(e.body)
	for range i {
		a, rest = next(rest)
	}
	return a.data, a.codec == codecRaw
}

// undecodable counts and logs that a handler could not read the event.
// ctx is the handler's.
func (e *Event) undecodable(ctx context.Context, err error) {
	r, ok := ctx.Value(runningKey{}).(*running)
	if !ok {
		return
	}
	r.m.nUndecodable.Add(1)
	// The message may repeat what the sender wrote.
	r.m.log.Debug("undecodable event", "event", quote(e.Name), "from", e.From, "error", cut(err.Error(), 256))
}

// The protobuf messages, as in docs/wire.md:
//
//	message Event { string name = 1; repeated Arg args = 2; }
//	message Arg   { uint32 codec = 1; bytes data = 2; }
const (
	fieldName = 1
	fieldArgs = 2

	fieldCodec = 1
	fieldData  = 2
)

func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrBadName)
	case len(name) > maxName:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBadName, len(name), maxName)
	case name == "*":
		return fmt.Errorf("%w: %q stands for every name", ErrBadName, name)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: %s is not UTF-8", ErrBadName, quote(name))
	}
	return nil
}

// encodeEvent appends the event's message to dst. The message may have max
// bytes; after an error dst is returned as it was given.
func (c Codec) encodeEvent(dst []byte, name string, args []any, max int) ([]byte, error) {
	start := len(dst)
	if err := checkName(name); err != nil {
		return dst, err
	}
	if len(args) > maxArgs {
		return dst, fmt.Errorf("%w: event %s has %d arguments, at most %d", ErrTooLarge, quote(name), len(args), maxArgs)
	}
	dst = frame.AppendBytes(dst, fieldName, name)
	for i, a := range args {
		var err error
		if raw, ok := a.([]byte); ok {
			if len(raw) <= max { // else do not copy what cannot be sent
				dst = appendRaw(dst, raw)
			} else {
				err = errTooLong(name, len(raw), max)
			}
		} else if dst, err = c.appendArg(dst, a); err != nil {
			err = fmt.Errorf("%w: event %s: argument %d (%T): %w", ErrBadArgument, quote(name), i+1, a, err)
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
	return fmt.Errorf("%w: event %s of at least %d bytes, at most %d", ErrTooLarge, quote(name), n, max)
}

// rawSize returns the size of the event's message if all its arguments are raw
// bytes.
func rawSize(name string, args []any) (n int, ok bool) {
	n = 1 + protowire.SizeBytes(len(name)) // the tags are of one byte
	for _, a := range args {
		raw, ok := a.([]byte)
		if !ok {
			return 0, false
		}
		n += 1 + protowire.SizeBytes(rawArgSize(raw))
	}
	return n, true
}

// lone checks an event with raw as the only argument, and returns its size.
func lone(name string, raw []byte, max int) (size int, err error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	size = 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeBytes(rawArgSize(raw))
	if size > max {
		return 0, errTooLong(name, size, max)
	}
	return size, nil
}

func rawArgSize(raw []byte) int {
	if len(raw) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(raw))
}

func appendRaw(dst, raw []byte) []byte {
	dst = appendHeader(dst, fieldArgs, rawArgSize(raw))
	if len(raw) == 0 {
		return dst
	}
	return append(appendHeader(dst, fieldData, len(raw)), raw...)
}

// appendArg appends the Arg of v, which is no []byte.
func (c Codec) appendArg(dst []byte, v any) ([]byte, error) {
	// The value's length is known only afterwards, so it is written a little
	// to the right of its place, and its headers put in front of it.
	var room [maxArgHeader]byte
	start := len(dst)
	dst, id, err := c.appendValue(append(dst, room[:]...), v)
	if err != nil {
		return dst[:start], err
	}
	value := dst[start+maxArgHeader:]
	size := protowire.SizeTag(fieldCodec) + protowire.SizeVarint(uint64(id))
	if len(value) > 0 {
		size += protowire.SizeTag(fieldData) + protowire.SizeBytes(len(value))
	}
	h := appendHeader(room[:0], fieldArgs, size)
	h = frame.AppendUint(h, fieldCodec, uint64(id))
	if len(value) > 0 { // only a protobuf message can be empty
		h = appendHeader(h, fieldData, len(value))
	}
	dst = append(dst[:start], h...)
	return append(dst, value...), nil
}

// maxArgHeader is room for the headers of an Arg and of its data, and its codec.
const maxArgHeader = 2*(1+binary.MaxVarintLen64) + 2

// appendHeader begins a length-delimited field of n bytes.
func appendHeader(dst []byte, num protowire.Number, n int) []byte {
	return appendLen(append(dst, byte(num<<3)|byte(protowire.BytesType)), n) // no tag of ours is longer
}

func appendLen(dst []byte, n int) []byte {
	if n < 0x80 {
		return append(dst, byte(n))
	}
	return protowire.AppendVarint(dst, uint64(n))
}

// decodeEvent reads an event's message. It copies nothing: the event keeps b,
// which nobody may change from now on. The error wraps [ErrMalformed].
func decodeEvent(from peer.ID, b []byte) (*Event, error) {
	e := &Event{From: from}
	if err := e.parse(b, ""); err != nil {
		return nil, err
	}
	return e, nil
}

// parse fills in an event. If the name is the same as last, which must
// be a good name or empty, it shares that string.
func (e *Event) parse(b []byte, last string) error {
	// Nearly every event begins with its name, and that is the last one's.
	if n := 2 + len(last); n <= len(b) && b[0] == tagName && b[1] < 0x80 && string(b[2:n]) == last && int(b[1]) == len(last) {
		if e.Name != last {
			e.Name = last
		}
		b = b[n:]
	} else {
		e.Name = ""
	}
	e.body = b
	for n := 0; len(b) > 0; {
		tag, short, rest := cutShort(b)
		if tag == tagArgs && n < maxArgs {
			if _, err := parseArg(short); err == nil {
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
			// Not a field of ours; a later version may have put it there.
		case f.Num == fieldName:
			if len(f.Bytes) > maxName {
				return fmt.Errorf("%w event: a name of %d bytes", ErrMalformed, len(f.Bytes))
			}
			if e.Name = last; string(f.Bytes) != last {
				e.Name = string(f.Bytes)
			}
		case f.Num == fieldArgs:
			if n == maxArgs {
				return fmt.Errorf("%w event: more than %d arguments", ErrMalformed, maxArgs)
			}
			n++
			if _, err := parseArg(f.Bytes); err != nil {
				return fmt.Errorf("%w event: argument %d: %w", ErrMalformed, n, err)
			}
		}
	}
	if e.Name == "" || e.Name != last {
		if err := checkName(e.Name); err != nil {
			return fmt.Errorf("%w event: %w", ErrMalformed, err)
		}
	}
	return nil
}

// The tags of the fields that nearly every event is made of.
const (
	tagName = fieldName<<3 | byte(protowire.BytesType)
	tagArgs = fieldArgs<<3 | byte(protowire.BytesType)
	tagData = fieldData<<3 | byte(protowire.BytesType)
)

// cutShort is frame.Cut for a length-delimited field with a tag of one byte
// and less than 16 KiB. For another one it returns a tag of 0.
func cutShort(b []byte) (tag byte, field, rest []byte) {
	if len(b) < 3 {
		return 0, nil, nil
	}
	at, n := 2, int(b[1])
	if n >= 0x80 {
		at, n = 3, n&0x7f|int(b[2])<<7
	}
	if n > len(b)-at || n >= 1<<14 {
		return 0, nil, nil
	}
	return b[0], b[at : at+n], b[at+n:]
}

func parseArg(b []byte) (arg, error) {
	var a arg
	if tag, short, rest := cutShort(b); tag == tagData && len(rest) == 0 {
		a.data = short[:len(short):len(short)]
		return a, nil
	}
	for len(b) > 0 {
		f, rest, err := frame.Cut(b)
		b = rest
		switch {
		case err != nil:
			return a, err
		case f.Num == fieldCodec && f.Type == protowire.VarintType:
			if f.Uint > math.MaxUint32 {
				return a, fmt.Errorf("codec %d", f.Uint)
			}
			a.codec = uint32(f.Uint)
		case f.Num == fieldData && f.Type == protowire.BytesType:
			a.data = f.Bytes[:len(f.Bytes):len(f.Bytes)] // so that append copies
		}
	}
	return a, nil
}

// quote makes text of a stranger fit for a log line: quoted, 64 runes at most.
func quote(s string) string { return strconv.Quote(cut(s, 64)) }

// cut returns the first most runes of s.
func cut(s string, most int) string {
	for i := range s {
		if most--; most < 0 {
			return s[:i] + "..."
		}
	}
	return s
}
