package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// A Codec says how a node encodes those arguments of its events that are neither
// []byte, which is sent as it is, nor proto.Message, which is sent as protobuf. Each
// argument says how it was encoded, so nodes with different codecs understand each
// other.
type Codec uint8

const (
	// JSON is RFC 8259 by the rules of encoding/json. Every language can read it. It is
	// the default.
	JSON Codec = iota
	// CBOR is RFC 8949. It is smaller and faster than JSON, and preserves bytes,
	// integers of 64 bits and NaN. Struct tags named cbor apply, or if there are none,
	// those named json. A type with a method MarshalCBOR, MarshalBinary or MarshalText
	// is encoded by it.
	CBOR
)

func (c Codec) String() string {
	switch c {
	case JSON:
		return "JSON"
	case CBOR:
		return "CBOR"
	}
	return fmt.Sprintf("Codec(%d)", uint8(c))
}

// CodecFor returns CBOR or JSON.
func CodecFor(cbor bool) Codec {
	if cbor {
		return CBOR
	}
	return JSON
}

// Ids on the wire that say how an argument is encoded.
const (
	CodecRaw   = 0 // the bytes themselves, for an argument of the Go type []byte
	CodecJSON  = 1 // RFC 8259, one value
	CodecProto = 2 // a protobuf message, whose type both ends must know
	CodecCBOR  = 3 // RFC 8949, one data item
)

// appendValue appends the encoded v, which is not a []byte, to dst and returns the id
// of the codec it used.
func (c Codec) appendValue(dst []byte, v any) (_ []byte, id uint32, err error) {
	if m, ok := v.(proto.Message); ok {
		dst, err = appendProto(dst, m)
		return dst, CodecProto, err
	}
	if s, ok := v.(string); ok && !utf8.ValidString(s) {
		// encoding/json would silently replace the invalid bytes.
		return dst, 0, errNotUTF8
	}
	switch c {
	case JSON:
		id = CodecJSON
	case CBOR:
		id = CodecCBOR
	default:
		return dst, 0, fmt.Errorf("there is no %v", c)
	}
	e := encoders.Get().(*encoder)
	e.buf.Reset()
	var b []byte
	if c == JSON {
		b, err = e.encodeJSON(v)
	} else {
		b, err = e.encodeCBOR(v)
	}
	if err == nil {
		dst = append(dst, b...)
	}
	if e.buf.Cap() <= maxPooled {
		encoders.Put(e)
	}
	return dst, id, err
}

var errNotUTF8 = errors.New("the string is not valid UTF-8 (send other bytes as []byte)")

// encoder is a JSON and CBOR encoder with its buffer. Encoders are pooled, so that Emit
// creates no garbage. The results of its methods share memory with the buffer.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
}

// maxPooled is the largest buffer in bytes that is put back into a pool, so that a
// single large event does not occupy its memory forever.
const maxPooled = 64 << 10

var encoders = sync.Pool{New: func() any {
	e := new(encoder)
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false) // keep characters such as < as they are, since this library does not put events into web pages
	return e
}}

func (e *encoder) encodeJSON(v any) ([]byte, error) {
	if err := e.json.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(e.buf.Bytes(), []byte("\n")), nil // Encode ends with a line break
}

// decodeArg stores the argument in the variable to which ptr points. Only raw bytes
// share memory with the argument afterwards.
func decodeArg(a payload.Arg, ptr any) error {
	switch a.Codec {
	case CodecRaw:
		switch p := ptr.(type) {
		case *[]byte:
			*p = a.Data
		case *any:
			*p = a.Data
		default:
			return fmt.Errorf("raw bytes do not fit %T, only *[]byte", ptr)
		}
		return nil
	case CodecJSON:
		if err := fitsCodec(ptr, "JSON", "*json.RawMessage"); err != nil {
			return err
		}
		return json.Unmarshal(a.Data, ptr)
	case CodecProto:
		return decodeProto(a.Data, ptr)
	case CodecCBOR:
		if err := fitsCodec(ptr, "CBOR", "*cbor.RawMessage"); err != nil {
			return err
		}
		return cborDecoding.Unmarshal(a.Data, ptr)
	}
	return fmt.Errorf("unknown codec %d", a.Codec)
}

// fitsCodec returns an error if ptr points to a variable of a type that only another
// codec than the argument's can fill. codec is the name of the argument's codec. raw
// names the type of variable that takes the argument without decoding it.
func fitsCodec(ptr any, codec, raw string) error {
	if _, ok := ptr.(*[]byte); ok {
		return fmt.Errorf("it is %s, not raw bytes (%s takes it as it is)", codec, raw)
	}
	if isProto(ptr) {
		return fmt.Errorf("it is %s, which does not fit %T, only protobuf does", codec, ptr)
	}
	return nil
}
