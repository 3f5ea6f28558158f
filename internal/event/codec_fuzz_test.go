package event

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// FuzzDecodeArgument decodes arbitrary bytes into variables of many kinds. A decoded value
// can be encoded again and is then the same.
func FuzzDecodeArgument(f *testing.F) {
	s, _ := structpb.NewStruct(map[string]any{"a": 1.0, "b": []any{"x", nil, true}})
	for _, c := range []Codec{JSON, CBOR} {
		for _, v := range []any{nil, 1, -70000, 0.5, "text", []byte("raw"), []any{1, "a", nil}, map[string]any{"a": []byte{1}}, point{1, 2, "x"}, everything{At: time.Unix(1, 2).UTC()}, s, wrapperspb.String("x")} {
			a, _ := arrived(f, c, v).Args.Next()
			if a.Codec == CodecRaw {
				continue
			}
			f.Add(uint8(a.Codec), a.Data)
		}
	}
	f.Add(uint8(CodecRaw), []byte("raw"))
	f.Add(uint8(CodecCBOR), []byte{0x9f, 0x7f, 0x61, 'a', 0xff, 0xff})
	f.Add(uint8(CodecCBOR), []byte{0x5b, 0x80, 0, 0, 0, 0, 0, 0, 0})
	f.Add(uint8(9), []byte("?"))
	f.Fuzz(func(t *testing.T, codec uint8, data []byte) {
		ev := argument(t, uint32(codec), data)
		before := string(ev.Args)
		for _, ptr := range []any{
			new([]byte), new(any), new(string), new(int), new(float64), new(bool), new([]any), new([]string), new(map[string]any), new(map[string]int),
			new(point), new(everything), new(json.RawMessage), new(cbor.RawMessage), new(*wrapperspb.StringValue), new(structpb.Struct),
		} {
			err := ev.Decode(ptr)
			if err != nil {
				if !errors.Is(err, ErrUndecodable) {
					t.Fatal(err)
				}
				continue
			}
			var v any
			switch p := ptr.(type) {
			case *structpb.Struct:
				v = p
			default:
				v = reflect.ValueOf(ptr).Elem().Interface()
			}
			c := JSON
			if codec == CodecCBOR {
				c = CBOR
			}
			b, err := c.Encode(nil, "e", []any{v}, 1<<20)
			if err != nil {
				// CBOR can say less than Go can hold only by our own limits,
				// which a date outside of RFC 3339 is beyond as well.
				if !errors.Is(err, ErrBadArgument) && !errors.Is(err, ErrTooLarge) {
					t.Fatal(err)
				}
				continue
			}
			again, err := Parse("p", b)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Decode(ptr); err != nil {
				t.Fatalf("%T %v was decoded, and after Emit it is: %v", ptr, v, err)
			}
		}
		if string(ev.Args) != before {
			t.Fatal("decoding changed the event")
		}
	})
}

// BenchmarkArgument: one struct there and back, by codec.
func BenchmarkArgument(b *testing.B) {
	at := time.Unix(1_700_000_000, 0).UTC()
	type reading struct {
		Sensor string
		Value  float64
		At     time.Time
		Data   []byte
	}
	v := reading{"kitchen/temperature", 21.5, at, make([]byte, 64)}
	s, _ := structpb.NewStruct(map[string]any{"sensor": "kitchen/temperature", "value": 21.5})
	for _, tt := range []struct {
		name  string
		codec Codec
		arg   any
		into  any
	}{
		{"raw", JSON, make([]byte, 100), new([]byte)},
		{"json", JSON, &v, new(reading)},
		{"cbor", CBOR, &v, new(reading)},
		{"protobuf", JSON, s, new(structpb.Struct)},
	} {
		args := []any{tt.arg}
		b.Run(tt.name+"/encode", func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf, _ = tt.codec.Encode(buf[:0], "e", args, 1<<20)
			}
			b.ReportMetric(float64(len(buf)), "event-bytes")
		})
		b.Run(tt.name+"/decode", func(b *testing.B) {
			b.ReportAllocs()
			ev := arrived(b, tt.codec, tt.arg)
			for b.Loop() {
				if err := ev.Decode(tt.into); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
