package event

import (
	"errors"
	"fmt"
	"reflect"

	"google.golang.org/protobuf/proto"
)

// appendProto appends the encoded m to dst. A nil pointer counts as an empty message.
func appendProto(dst []byte, m proto.Message) ([]byte, error) {
	// These are protobuf's default options, which are not deterministic: the bytes of
	// one message may differ between processes. Nothing here compares them.
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

// decodeProto decodes a message into ptr. ptr is a message, or points to a variable for
// a message, which then gets a new one.
func decodeProto(data []byte, ptr any) error {
	switch p := ptr.(type) {
	case proto.Message:
		if reflect.ValueOf(p).IsNil() {
			return fmt.Errorf("it is protobuf, and the %T is nil", ptr)
		}
		return proto.Unmarshal(data, p)
	case *[]byte:
		return errors.New("it is protobuf, not raw bytes")
	}
	if !isProto(ptr) {
		return fmt.Errorf("it is protobuf, which fits a proto.Message, not %T", ptr)
	}
	to := reflect.ValueOf(ptr)
	if to.IsNil() {
		return fmt.Errorf("it is protobuf, and the %T is nil", ptr)
	}
	m := reflect.New(to.Type().Elem().Elem())
	if err := proto.Unmarshal(data, m.Interface().(proto.Message)); err != nil {
		return err
	}
	to.Elem().Set(m)
	return nil
}

var protoMessage = reflect.TypeFor[proto.Message]()

// isProto reports whether ptr is a protobuf message, or points to a variable for one.
func isProto(ptr any) bool {
	if _, ok := ptr.(proto.Message); ok {
		return true
	}
	t := reflect.TypeOf(ptr)
	return t != nil && t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Pointer && t.Elem().Implements(protoMessage)
}
