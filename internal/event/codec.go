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

// A Codec says how a node encodes the arguments of its events that are neither
// a []byte, which goes as it is, nor a proto.Message, which goes as protobuf.
// Each argument carries how it was encoded, so nodes with different codecs
// understand each other.
type Codec uint8

const (
	// JSON is RFC 8259 by the rules of encoding/json: what every language
	// reads. It is the default.
	JSON Codec = iota
	// CBOR is RFC 8949: smaller and faster than JSON, and bytes, integers of 64
	// bits and NaN stay what they are. Struct tags named cbor apply, else those
	// named json; what has MarshalCBOR, MarshalBinary or MarshalText uses it.
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

// Valid reports whether there is such a codec.
func (c Codec) Valid() bool { return c <= CBOR }

// The codec ids of arguments on the wire.
const (
	CodecRaw   = 0 // the bytes themselves: exactly the Go type []byte
	CodecJSON  = 1 // RFC 8259, one value
	CodecProto = 2 // a protobuf message, of which both ends know the type
	CodecCBOR  = 3 // RFC 8949, one data item
)

// appendValue appends v, which is not a []byte, to dst and returns the codec id
// that goes with it.
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

// encoder is an encoder with its buffer. Encoders are pooled, so that Emit leaves no
// garbage behind. The results of its methods share the memory of the buffer.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
}

// maxPooled bounds the buffers that go back into a pool, so that one large
// event does not keep its memory forever.
const maxPooled = 64 << 10

var encoders = sync.Pool{New: func() any {
	e := new(encoder)
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false) // events are not put into web pages by us
	return e
}}

func (e *encoder) encodeJSON(v any) ([]byte, error) {
	if err := e.json.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(e.buf.Bytes(), []byte("\n")), nil // the encoder's
}

// decodeArg stores the argument in the variable that ptr points to. Only raw
// bytes share memory with the argument afterwards.
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

// fitsCodec returns an error if the variable belongs to another codec than the given
// one. A variable of the type raw takes the argument without decoding it.
func fitsCodec(ptr any, codec, raw string) error {
	if _, ok := ptr.(*[]byte); ok {
		return fmt.Errorf("it is %s, not raw bytes (%s takes it as it is)", codec, raw)
	}
	if isProto(ptr) {
		return fmt.Errorf("it is %s, which does not fit %T, only protobuf does", codec, ptr)
	}
	return nil
}
