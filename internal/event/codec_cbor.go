package event

import (
	"encoding/binary"
	"reflect"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Limits of CBOR, sent or received. The event's size bounds the rest: the
// decoder sees that all that is announced has come before it allocates.
const (
	// maxCBORDepth bounds arrays, maps and tags inside each other, each a frame
	// of the decoder's stack: a tree of thirty levels.
	maxCBORDepth = 64
	// maxCBORElements bounds what one array or map has: an element can be a
	// single byte and become a large struct. It is the library's default.
	maxCBORElements = 128 << 10
)

var cborEncoding, cborDecoding = cborModes()

func cborModes() (cbor.UserBufferEncMode, cbor.DecMode) {
	// Core Deterministic Encoding (RFC 8949 section 4.2.1) as encoding/json does
	// it: equal values are equal bytes, maps sorted. It loses nothing, since a
	// float is shortened only if it stays the same number.
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeRFC3339Nano // like JSON; the default cuts to seconds
	eo.TimeTag = cbor.EncTagRequired
	eo.TextMarshaler = cbor.TextMarshalerTextString // like JSON; else a type that hides its fields becomes an empty map
	enc, err := eo.UserBufferEncMode()
	if err != nil {
		panic(err) // options that contradict each other
	}
	do := cbor.DecOptions{
		MaxNestedLevels:  maxCBORDepth,
		MaxArrayElements: maxCBORElements,
		MaxMapPairs:      maxCBORElements,
		// Two readers of a key that comes twice could read different values.
		DupMapKey: cbor.DupMapKeyEnforcedAPF,
		UTF8:      cbor.UTF8RejectInvalid,
		// An any has what JSON has for the same value, but for its numbers.
		DefaultMapType:  reflect.TypeFor[map[string]any](),
		IntDec:          cbor.IntDecConvertSignedOrBigInt,
		TextUnmarshaler: cbor.TextUnmarshalerTextString,
	}
	dec, err := do.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// encodeCBOR encodes v. It refuses values that the receiver would refuse: values beyond
// the limits, text that is not UTF-8, and invalid CBOR from a MarshalCBOR method.
func (e *encoder) encodeCBOR(v any) ([]byte, error) {
	if err := cborEncoding.MarshalToBuffer(v, &e.buf); err != nil {
		return nil, err
	}
	b := e.buf.Bytes()
	if err := cborDecoding.Wellformed(b); err != nil {
		return nil, err
	}
	if !textIsUTF8(b) {
		return nil, errNotUTF8
	}
	return b, nil
}

// textIsUTF8 reports whether each text string in b, which is well-formed CBOR,
// is UTF-8. It goes from head to head (RFC 8949 section 3): the items inside an
// array, a map or a tag simply follow its head. Indefinite lengths do not occur, as
// the encoding is deterministic.
func textIsUTF8(b []byte) bool {
	for len(b) > 0 {
		major, n := b[0]>>5, uint64(b[0]&31)
		b = b[1:]
		switch n {
		case 24:
			n, b = uint64(b[0]), b[1:]
		case 25:
			n, b = uint64(binary.BigEndian.Uint16(b)), b[2:]
		case 26:
			n, b = uint64(binary.BigEndian.Uint32(b)), b[4:]
		case 27:
			n, b = binary.BigEndian.Uint64(b), b[8:]
		}
		switch major {
		case 2:
			b = b[n:]
		case 3:
			if !utf8.Valid(b[:n]) {
				return false
			}
			b = b[n:]
		}
	}
	return true
}
