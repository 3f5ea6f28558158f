package event

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// arrived returns the event as it arrives from a node with the codec.
func arrived(t testing.TB, c Codec, args ...any) *Event {
	t.Helper()
	b, err := c.Encode(nil, "e", args, DefaultMaxSize)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := Parse("sender", b)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// argument returns an event with one argument of any codec and data, as an attacker could
// send it.
func argument(t testing.TB, codec uint32, data []byte) *Event {
	t.Helper()
	a := frame.AppendUint(nil, payload.FieldCodec, uint64(codec))
	a = frame.AppendBytes(a, payload.FieldData, data)
	ev, err := Parse("stranger", frame.AppendMessage(frame.AppendBytes(nil, payload.FieldName, "e"), payload.FieldArgs, a))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// codecsOf returns the codec ids of the event's arguments.
func codecsOf(ev *Event) (ids []uint32) {
	rest := ev.Args
	for range ev.Len() {
		var a payload.Arg
		a, rest = rest.Next()
		ids = append(ids, a.Codec)
	}
	return ids
}

// Raw and protobuf arguments have the same encoding with every codec, and a node decodes
// the arguments of nodes with another codec.
func TestEachArgumentSaysItsCodec(t *testing.T) {
	for _, tt := range []struct {
		codec Codec
		ids   []uint32
	}{
		{JSON, []uint32{CodecRaw, CodecProto, CodecJSON, CodecJSON, CodecJSON}},
		{CBOR, []uint32{CodecRaw, CodecProto, CodecCBOR, CodecCBOR, CodecCBOR}},
	} {
		ev := arrived(t, tt.codec, []byte("raw"), wrapperspb.String("proto"), point{1, 2, "x"}, "text", nil)
		if got := codecsOf(ev); !reflect.DeepEqual(got, tt.ids) {
			t.Errorf("%v: codecs %v, want %v", tt.codec, got, tt.ids)
		}
		var (
			raw []byte
			m   *wrapperspb.StringValue
			p   point
			s   string
			x   any = 1
		)
		if err := ev.Decode(&raw, &m, &p, &s, &x); err != nil || string(raw) != "raw" || m.GetValue() != "proto" || p != (point{1, 2, "x"}) || s != "text" || x != nil {
			t.Errorf("%v: %q, %v, %v, %q, %v, %v", tt.codec, raw, m, p, s, x, err)
		}
	}
}

// The error of an event with a codec that does not exist names the codec.
func TestUnknownCodecIsRefused(t *testing.T) {
	_, err := Codec(9).Encode(nil, "e", []any{1}, 100)
	if !errors.Is(err, ErrBadArgument) || !strings.Contains(err.Error(), "argument 1 (int): there is no Codec(9)") {
		t.Error(err)
	}
}

type everything struct {
	B    bool
	I    int64
	U    uint64
	F    float64
	F32  float32
	S    string
	Raw  []byte
	List []int
	Map  map[string]point
	Keys map[int]string
	Ptr  *int
	At   time.Time
	Big  *big.Int
	Addr netip.AddrPort
	Lvl  slog.Level
	Tag  string `json:"renamed"`
	None string `json:",omitempty"`
	Any  any
}

// CBOR keeps all values, also those that JSON would change.
func TestCBORKeepsValues(t *testing.T) {
	seven := 7
	for _, v := range []everything{
		{},
		{
			B: true, I: math.MinInt64, U: math.MaxUint64, F: math.Pi, F32: 0.1, S: "text <&> \u2028 ä", Raw: []byte{0, 255},
			List: []int{1, -2, 3}, Map: map[string]point{"a": {1, 2, "x"}}, Keys: map[int]string{-1: "a", 2: "b"}, Ptr: &seven,
			At:  time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("", 3600)),
			Big: new(big.Int).Lsh(big.NewInt(1), 100), Addr: netip.MustParseAddrPort("[::1]:8495"), Lvl: slog.LevelWarn, Tag: "t", None: "n", Any: "any",
		},
		{F: math.Inf(-1), F32: math.MaxFloat32, I: math.MaxInt64, List: []int{}, Any: []any{int64(1), "two", nil, 0.5}},
	} {
		var got everything
		if err := arrived(t, CBOR, v).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if !got.At.Equal(v.At) || got.At.Format(time.RFC3339Nano) != v.At.Format(time.RFC3339Nano) {
			t.Errorf("%v, want %v", got.At, v.At)
		}
		got.At = v.At
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", v) && got.Ptr == nil || !sameBut(got, v) {
			t.Errorf("got  %+v\nwant %+v", got, v)
		}
	}
	var f float64
	if err := arrived(t, CBOR, math.NaN()).Decode(&f); err != nil || !math.IsNaN(f) {
		t.Error(f, err)
	}
}

// sameBut compares all but the pointers, whose targets it compares.
func sameBut(a, b everything) bool {
	if (a.Ptr == nil) != (b.Ptr == nil) || a.Ptr != nil && *a.Ptr != *b.Ptr {
		return false
	}
	if (a.Big == nil) != (b.Big == nil) || a.Big != nil && a.Big.Cmp(b.Big) != 0 {
		return false
	}
	a.Ptr, b.Ptr, a.Big, b.Big = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}

// An argument decoded into an any has the same shape with CBOR as with JSON.
func TestCBORIntoAnyHasTheShapesOfJSON(t *testing.T) {
	for _, tt := range []struct{ in, want any }{
		{nil, nil},
		{true, true},
		{7, int64(7)},
		{uint64(math.MaxInt64), int64(math.MaxInt64)},
		{int64(math.MinInt64), int64(math.MinInt64)},
		{0.5, 0.5},
		{"text", "text"},
		{[]any{1, []byte{2}}, []any{int64(1), []byte{2}}},
		{point{X: 1}, map[string]any{"X": int64(1), "Y": int64(0)}},
		{map[string]any{"a": map[string]int{"b": 1}}, map[string]any{"a": map[string]any{"b": int64(1)}}},
	} {
		var got any
		if err := arrived(t, CBOR, tt.in).Decode(&got); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%v: got %#v, want %#v, %v", tt.in, got, tt.want, err)
		}
	}
	var got any
	if err := arrived(t, CBOR, uint64(math.MaxUint64)).Decode(&got); err != nil {
		t.Error(err)
	} else if n, ok := got.(big.Int); !ok || n.Uint64() != math.MaxUint64 {
		t.Errorf("%T %v", got, got)
	}
	indefinite := []byte{0x9f, 0x7f, 0x61, 'a', 0x61, 'b', 0xff, 0x5f, 0x41, 1, 0xff, 0xbf, 0x61, 'k', 1, 0xff, 0xff}
	want := []any{"ab", []byte{1}, map[string]any{"k": int64(1)}}
	if err := argument(t, CodecCBOR, indefinite).Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("what other languages may send: got %#v, %v", got, err)
	}
	if err := arrived(t, CBOR, map[int]int{1: 2}).Decode(&got); !errors.Is(err, ErrUndecodable) {
		t.Errorf("a map whose keys are numbers became %#v, %v", got, err)
	}
}

// Equal values have equal bytes with CBOR as with JSON: the keys of maps are sorted.
func TestEqualValuesAreEqualBytes(t *testing.T) {
	m := map[string]int{}
	for i := range 50 {
		m[fmt.Sprint("key", i)] = i
	}
	first := arrived(t, CBOR, m, 0.5).Args
	for range 10 {
		if again := arrived(t, CBOR, m, float32(0.5)).Args; !bytes.Equal(first, again) {
			t.Fatal("the same values have other bytes")
		}
	}
}

// A protobuf argument is decoded into a message or a pointer to one, which shares no bytes
// with the event.
func TestProtobufMessages(t *testing.T) {
	s, err := structpb.NewStruct(map[string]any{"a": 1.0, "b": []any{"x", nil}})
	if err != nil {
		t.Fatal(err)
	}
	var missing *wrapperspb.StringValue
	for name, tt := range map[string]struct{ in, want, into proto.Message }{
		"a value":  {wrapperspb.String("x"), wrapperspb.String("x"), wrapperspb.String("old")},
		"a struct": {s, s, new(structpb.Struct)},
		"empty":    {wrapperspb.String(""), wrapperspb.String(""), wrapperspb.String("old")},
		"nil":      {missing, wrapperspb.String(""), wrapperspb.String("old")},
	} {
		ev := arrived(t, JSON, 1, tt.in, "after")
		var after string
		if err := ev.Decode(nil, tt.into, &after); err != nil || !proto.Equal(tt.into, tt.want) || after != "after" {
			t.Errorf("%s: %v, want %v; %v", name, tt.into, tt.want, err)
		}
	}
	// A variable of the message's type gets a message of its own.
	ev := arrived(t, JSON, wrapperspb.String("x"))
	var a *wrapperspb.StringValue
	old := wrapperspb.String("old")
	b := old
	if err := errors.Join(ev.Decode(&a), ev.Decode(&b)); err != nil || a.GetValue() != "x" || b.GetValue() != "x" || a == b || old.GetValue() != "old" {
		t.Error(a, b, old, err)
	}
	// Protobuf's rule: fields of a later version stay in the message.
	later := arrived(t, JSON, wrapperspb.String("x"))
	var unknown *emptypb.Empty
	if err := later.Decode(&unknown); err != nil || len(unknown.ProtoReflect().GetUnknown()) == 0 {
		t.Error(unknown, err)
	}
	// Bytes of a message are its own.
	blob := arrived(t, JSON, wrapperspb.Bytes([]byte("bytes")))
	var m wrapperspb.BytesValue
	if err := blob.Decode(&m); err != nil {
		t.Fatal(err)
	}
	before := string(blob.Args)
	clear(m.Value)
	if string(blob.Args) != before {
		t.Error("the message shares the event's bytes")
	}
}

// An argument whose codec does not fit the variable is an error that names the codec and
// the types that fit.
func TestDecodeErrorNamesTheCodec(t *testing.T) {
	var (
		raw   []byte
		s     string
		x     any
		m     *wrapperspb.StringValue
		null  *wrapperspb.StringValue
		nulls **wrapperspb.StringValue
		any2  proto.Message
		value wrapperspb.StringValue
	)
	asRaw := arrived(t, JSON, []byte("raw"))
	asJSON := arrived(t, JSON, "text")
	asCBOR := arrived(t, CBOR, "text")
	asProto := arrived(t, JSON, wrapperspb.String("x"))
	for _, tt := range []struct {
		ev   *Event
		ptr  any
		want string
	}{
		{asRaw, &s, "raw bytes do not fit *string, only *[]byte"},
		{asRaw, &m, "raw bytes do not fit **wrapperspb.StringValue, only *[]byte"},
		{asJSON, &raw, "it is JSON, not raw bytes (*json.RawMessage takes it as it is)"},
		{asJSON, &m, "it is JSON, which does not fit **wrapperspb.StringValue, only protobuf does"},
		{asJSON, &value, "it is JSON, which does not fit *wrapperspb.StringValue, only protobuf does"},
		{asCBOR, &raw, "it is CBOR, not raw bytes (*cbor.RawMessage takes it as it is)"},
		{asCBOR, &m, "it is CBOR, which does not fit **wrapperspb.StringValue, only protobuf does"},
		{asCBOR, new(int), "cbor: cannot unmarshal UTF-8 text string into Go value of type int"},
		{asCBOR, s, "cbor: Unmarshal(non-pointer string)"},
		{asCBOR, (*string)(nil), "cbor: Unmarshal(nil *string)"},
		{asProto, &raw, "it is protobuf, not raw bytes"},
		{asProto, &s, "it is protobuf, which fits a proto.Message, not *string"},
		{asProto, &x, "it is protobuf, which fits a proto.Message, not *interface {}"},
		{asProto, &any2, "it is protobuf, which fits a proto.Message, not *protoreflect.ProtoMessage"},
		{asProto, s, "it is protobuf, which fits a proto.Message, not string"},
		{asProto, null, "it is protobuf, and the *wrapperspb.StringValue is nil"},
		{asProto, nulls, "it is protobuf, and the **wrapperspb.StringValue is nil"},
		{argument(t, 4, nil), &x, "unknown codec 4"},
	} {
		err := tt.ev.Decode(tt.ptr)
		if !errors.Is(err, ErrUndecodable) || !strings.HasSuffix(err.Error(), "argument 1: "+tt.want) {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
	var asIs cbor.RawMessage
	if err := asCBOR.Decode(&asIs); err != nil || hex.EncodeToString(asIs) != "6474657874" {
		t.Errorf("%x, %v", asIs, err)
	}
	asIs[1] = 'n' // a copy
	if err := asCBOR.Decode(&s); err != nil || s != "text" {
		t.Error(s, err)
	}
	var sub struct{ B []byte }
	inside := arrived(t, CBOR, sub)
	inside = arrived(t, CBOR, struct{ B []byte }{[]byte("bytes")}, inside.Name)
	before := string(inside.Args)
	if err := inside.Decode(&sub); err != nil || string(sub.B) != "bytes" {
		t.Fatal(sub, err)
	}
	if clear(sub.B); string(inside.Args) != before {
		t.Error("what CBOR was decoded into shares the event's bytes")
	}
}

type badCBOR string // what its MarshalCBOR returns

func (b badCBOR) MarshalCBOR() ([]byte, error) { return []byte(b), nil }

func nested(levels int) (v any) {
	for range levels {
		v = []any{v}
	}
	return v
}

// An argument whose CBOR no receiver could decode is refused by Emit.
func TestCBORThatCannotBeDecodedIsRefused(t *testing.T) {
	for _, tt := range []struct {
		what string
		arg  any
		want string
	}{
		{"bad text", "a\xff", "the string is not valid UTF-8"},
		{"bad text inside", map[string]any{"a": []string{"fine", "b\xff"}}, "the string is not valid UTF-8"},
		{"a bad key", map[string]int{"\xff": 1}, "the string is not valid UTF-8"},
		{"bad text after bytes", struct {
			A []byte
			B string
		}{bytes.Repeat([]byte{0xff}, 70000), "\xff"}, "the string is not valid UTF-8"},
		{"function", func() {}, "unsupported type"},
		{"channel inside", struct{ C chan int }{}, "unsupported type"},
		{"too deep", nested(maxCBORDepth + 1), "max nested level 64"},
		{"too many", make([]bool, maxCBORElements+1), "max number of elements 131072"},
		{"raw CBOR that ends early", cbor.RawMessage{0x82, 1}, "EOF"},
		{"two values", cbor.RawMessage{1, 2}, "extraneous"},
		{"a MarshalCBOR of nothing", badCBOR(""), ""},
		{"a MarshalCBOR of rubbish", badCBOR("\xff"), ""},
		{"an array of indefinite length", []any{badCBOR("\x9f\x61a\xff")}, "indefinite-length"},
	} {
		b, err := CBOR.Encode([]byte("before"), "n", []any{"fine", tt.arg}, 1<<20)
		if !errors.Is(err, ErrBadArgument) || !strings.Contains(err.Error(), "argument 2 (") || !strings.Contains(err.Error(), tt.want) || string(b) != "before" {
			t.Errorf("%s: %d bytes, %v; want %q", tt.what, len(b), err, tt.want)
		}
	}
	for what, v := range map[string]any{
		"as deep as may be":    nested(maxCBORDepth - 1),
		"as many as may be":    make([]bool, maxCBORElements),
		"bytes that look bad":  []byte{0xff, 0x61},
		"text of every length": []string{"", strings.Repeat("ä", 11), strings.Repeat("ä", 100), strings.Repeat("ä", 200), strings.Repeat("ä", 40000)},
		"numbers of any size":  []any{1, 24, 256, 1 << 16, 1 << 32, -1 << 40, 0.1, float32(0.1), 1.5, math.MaxFloat64},
	} {
		var got []any
		if err := arrived(t, CBOR, []any{v}).Decode(&got); err != nil || len(got) != 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := CBOR.Encode(nil, "n", []any{strings.Repeat("x", 1000)}, 1000)
	if !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	bad := &wrapperspb.StringValue{Value: "\xff"}
	if _, err := CBOR.Encode(nil, "n", []any{bad}, 1000); !errors.Is(err, ErrBadArgument) {
		t.Error("protobuf with bad text:", err)
	}
}

// allocated returns how many bytes f allocates. The runtime may allocate
// meanwhile, so what is more than most is measured again.
func allocated(most uint64, f func()) (n uint64) {
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		if n = after.TotalAlloc - before.TotalAlloc; n <= most {
			break
		}
	}
	return n
}

// Arguments that are made to crash the decoder, or to make it allocate much for a few
// bytes, are errors and allocate almost nothing.
func TestHostileArguments(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	message := func(depth int) []byte { // a ListValue in a Value in a ListValue ...
		var b []byte
		for range depth {
			b = frame.AppendMessage(nil, 1, frame.AppendMessage(nil, 6, b))
		}
		return b
	}
	for _, tt := range []struct {
		what  string
		codec uint32
		data  []byte
		into  []any // instead of the usual
	}{
		{"nothing", CodecCBOR, nil, nil},
		{"2^63 bytes announced", CodecCBOR, unhex("5b 8000000000000000"), nil},
		{"2^64-1 bytes announced", CodecCBOR, unhex("5b ffffffffffffffff"), nil},
		{"2 GB of text announced", CodecCBOR, unhex("7a 7fffffff 61"), nil},
		{"2^32 elements announced", CodecCBOR, unhex("9a ffffffff"), nil},
		{"131072 elements announced", CodecCBOR, unhex("9a 00020000"), nil},
		{"2^63 pairs announced", CodecCBOR, unhex("bb 8000000000000000"), nil},
		{"131072 pairs announced", CodecCBOR, unhex("ba 00020000 61 61"), nil},
		{"arrays inside arrays", CodecCBOR, bytes.Repeat([]byte{0x81}, 100_000), nil},
		{"endless arrays inside arrays", CodecCBOR, bytes.Repeat([]byte{0x9f}, 100_000), nil},
		{"maps inside maps", CodecCBOR, bytes.Repeat([]byte{0xa1, 0x61, 'a'}, 100_000), nil},
		{"tags inside tags", CodecCBOR, bytes.Repeat([]byte{0xc6}, 100_000), nil},
		{"a key twice", CodecCBOR, unhex("a2 6161 01 6161 02"), nil},
		{"an array as key", CodecCBOR, unhex("a1 80 01"), nil},
		{"bad UTF-8", CodecCBOR, unhex("62 c3 28"), nil},
		{"bad UTF-8 in a key", CodecCBOR, unhex("a1 61 ff 01"), nil},
		{"more behind", CodecCBOR, unhex("01 02"), nil},
		{"reserved length", CodecCBOR, unhex("1c"), nil},
		{"a lone break", CodecCBOR, unhex("ff"), nil},
		{"a date that is none", CodecCBOR, unhex("c0 63 6f6f70"), []any{new(any), new(time.Time), new(everything)}},
		{"a bignum of text", CodecCBOR, unhex("c2 61 31"), nil},
		{"arrays inside arrays", CodecJSON, bytes.Repeat([]byte("["), 100_000), nil},
		{"nothing", CodecJSON, nil, nil},
		{"a message that is cut", CodecProto, unhex("0a 05 61"), nil},
		{"a huge field announced", CodecProto, unhex("0a ffffffff07"), nil},
		{"bad UTF-8", CodecProto, unhex("0a 02 c3 28"), []any{new(*wrapperspb.StringValue)}},
		{"lists inside lists", CodecProto, message(6_000), []any{new(structpb.ListValue)}},
		{"groups inside groups", CodecProto, bytes.Repeat([]byte{0x1b}, 100_000), nil},
	} {
		ev := argument(t, tt.codec, tt.data)
		ptrs := tt.into
		switch {
		case ptrs != nil:
		case tt.codec == CodecProto:
			ptrs = []any{new(*wrapperspb.StringValue), new(structpb.ListValue)}
		default:
			ptrs = []any{new(any), new([]any), new(map[string]any), new([]point), new(everything), new([]everything), new(string), new([]string)}
		}
		for _, ptr := range ptrs {
			var err error
			most := uint64(16<<10 + 200*len(tt.data))
			used := allocated(most, func() { err = ev.Decode(ptr) })
			if !errors.Is(err, ErrUndecodable) {
				t.Errorf("codec %d, %s: decoded into a %T: %v", tt.codec, tt.what, ptr, err)
			}
			if used > most {
				t.Errorf("codec %d, %s into a %T: %d bytes allocated for %d", tt.codec, tt.what, ptr, used, len(tt.data))
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("codec %d, %s: an error of %d bytes", tt.codec, tt.what, len(err.Error()))
			}
		}
	}
}
