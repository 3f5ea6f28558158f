package event

import (
	"encoding/binary"
	"reflect"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Limits of CBOR, sent or received. Everything else is limited by the size of the
// event: the decoder allocates nothing before the data for it has arrived.
const (
	// maxCBORDepth is how deep arrays, maps and tags may be nested. Each level takes a
	// frame of the decoder's stack. It is enough for a tree of thirty levels.
	maxCBORDepth = 64
	// maxCBORElements is how many elements one array or map may have. An element can be
	// a single byte that becomes a large struct. This is the default of the CBOR
	// library.
	maxCBORElements = 128 << 10
)

var cborEncoding, cborDecoding = cborModes()

func cborModes() (cbor.UserBufferEncMode, cbor.DecMode) {
	// Core Deterministic Encoding (RFC 8949 section 4.2.1) encodes equal values as
	// equal bytes, with sorted maps, as encoding/json does. It loses nothing, since a
	// float is shortened only if its value stays the same.
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeRFC3339Nano // as in JSON; the default cuts times to seconds
	eo.TimeTag = cbor.EncTagRequired
	eo.TextMarshaler = cbor.TextMarshalerTextString // as in JSON; otherwise a type without exported fields becomes an empty map
	enc, err := eo.UserBufferEncMode()
	if err != nil {
		panic(err) // only if the options contradict each other
	}
	do := cbor.DecOptions{
		MaxNestedLevels:  maxCBORDepth,
		MaxArrayElements: maxCBORElements,
		MaxMapPairs:      maxCBORElements,
		// Refuse a map in which a key occurs twice: two readers could take different
		// values for that key.
		DupMapKey: cbor.DupMapKeyEnforcedAPF,
		UTF8:      cbor.UTF8RejectInvalid,
		// An any gets the same types as from JSON, except for numbers.
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

// textIsUTF8 reports whether each text string in b is UTF-8. b must be well-formed CBOR
// of the deterministic encoding, which has no indefinite lengths. The function reads
// one head (type and length, RFC 8949 section 3) after the other: the items inside an
// array, a map or a tag simply follow its head.
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
