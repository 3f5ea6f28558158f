package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"
)

// The codec ids of arguments on the wire.
const (
	codecRaw  = 0 // the bytes themselves: exactly the Go type []byte
	codecJSON = 1 // RFC 8259, one value
)

// arg is one argument as it is on the wire.
type arg struct {
	codec uint32
	data  []byte
}

// jsonEncoder is an encoder with its buffer; they are pooled, as an Emit
// should leave no garbage behind.
type jsonEncoder struct {
	buf bytes.Buffer
	enc *json.Encoder
}

// maxPooled bounds the buffers that go back into a pool, so that one large
// event does not keep its memory for ever.
const maxPooled = 64 << 10

var jsonEncoders = sync.Pool{New: func() any {
	e := new(jsonEncoder)
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false) // events are not put into web pages by us
	return e
}}

// appendJSON appends v as JSON to dst.
func appendJSON(dst []byte, v any) ([]byte, error) {
	if s, ok := v.(string); ok && !utf8.ValidString(s) {
		// encoding/json would replace the bad bytes without a word.
		return dst, errors.New("the string is not valid UTF-8 (send other bytes as []byte)")
	}
	e := jsonEncoders.Get().(*jsonEncoder)
	e.buf.Reset()
	err := e.enc.Encode(v)
	if err == nil {
		b := e.buf.Bytes()
		dst = append(dst, b[:len(b)-1]...) // without the encoder's newline
	}
	if e.buf.Cap() <= maxPooled {
		jsonEncoders.Put(e)
	}
	return dst, err
}

// decode puts the argument into the variable that ptr points to.
func (a *arg) decode(ptr any) error {
	switch a.codec {
	case codecRaw:
		switch p := ptr.(type) {
		case *[]byte:
			*p = a.data
		case *any:
			*p = a.data
		default:
			return fmt.Errorf("raw bytes do not fit %T, only *[]byte", ptr)
		}
		return nil
	case codecJSON:
		if _, ok := ptr.(*[]byte); ok {
			return errors.New("it is JSON, not raw bytes (*json.RawMessage takes it as it is)")
		}
		return json.Unmarshal(a.data, ptr)
	}
	return fmt.Errorf("unknown codec %d", a.codec)
}
