package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
)

// encodeEvent is that of a node without options.
func encodeEvent(dst []byte, name string, args []any, max int) ([]byte, error) {
	return JSON.Encode(dst, name, args, max)
}

// encoded returns the event's message.
func encoded(t testing.TB, name string, args ...any) []byte {
	t.Helper()
	b, err := encodeEvent(nil, name, args, DefaultMaxSize)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// decoded returns the event as it arrives.
func decoded(t testing.TB, name string, args ...any) *Event {
	t.Helper()
	ev, err := Parse("sender", encoded(t, name, args...))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

type point struct {
	X, Y int
	Note string `json:",omitempty"`
}

// An argument of each supported type is decoded to the value that was sent.
func TestEveryArgumentIsDecodedAsItWasSent(t *testing.T) {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	ev := decoded(t, "all", 7, -2.5, "text <&> \u2028", true, nil, []int{1, 2}, map[string]int{"a": 1}, point{1, 2, "x"}, &point{3, 4, ""}, []byte{0, 255}, when, json.RawMessage(`{"raw":1}`))
	if ev.Name != "all" || ev.From != "sender" || ev.Len() != 12 {
		t.Errorf("%q from %q with %d arguments", ev.Name, ev.From, ev.Len())
	}
	var (
		i    int
		f    float64
		s    string
		b    bool
		null = new(int)
		list []int
		m    map[string]int
		p, q point
		raw  []byte
		at   time.Time
		msg  json.RawMessage
	)
	if err := ev.Decode(&i, &f, &s, &b, &null, &list, &m, &p, &q, &raw, &at, &msg); err != nil {
		t.Fatal(err)
	}
	if i != 7 || f != -2.5 || s != "text <&> \u2028" || !b || null != nil || len(list) != 2 || list[1] != 2 || m["a"] != 1 ||
		p != (point{1, 2, "x"}) || q != (point{3, 4, ""}) || !bytes.Equal(raw, []byte{0, 255}) || !at.Equal(when) || string(msg) != `{"raw":1}` {
		t.Error(i, f, s, b, null, list, m, p, q, raw, at, string(msg))
	}
}

// Arguments are decoded whole at sizes around those where the length prefix grows by a
// byte.
func TestArgumentsOfEverySize(t *testing.T) {
	for _, n := range []int{0, 1, 2, 123, 124, 125, 126, 127, 128, 129, 16370, 16377, 16378, 16379, 16380, 16381, 16383, 16384, 16385, 20000, 40000} {
		raw := bytes.Repeat([]byte{0x80, 1, 'x'}, n)[:n]
		ev := decoded(t, "e", raw, string(raw[:0]), raw, "end")
		var a, b []byte
		var s, end string
		if err := ev.Decode(&a, &s, &b, &end); err != nil || !bytes.Equal(a, raw) || s != "" || !bytes.Equal(b, raw) || end != "end" {
			t.Errorf("%d bytes: %d, %q, %d, %q, %v", n, len(a), s, len(b), end, err)
		}
	}
}

// Decode skips arguments for nil pointers and at the end, and decodes into an any.
func TestDecodeSkipsArguments(t *testing.T) {
	ev := decoded(t, "move", 1, []byte("two"), "three")
	var s string
	if err := ev.Decode(nil, nil, &s); err != nil || s != "three" {
		t.Error("skipping:", s, err)
	}
	var i int
	if err := ev.Decode(&i); err != nil || i != 1 {
		t.Error("fewer than there are:", i, err)
	}
	if err := ev.Decode(); err != nil {
		t.Error("none:", err)
	}
	var x, y, z any
	if err := ev.Decode(&x, &y, &z); err != nil || x != 1.0 || string(y.([]byte)) != "two" || z != "three" {
		t.Error("any:", x, y, z, err)
	}
	if b, ok := ev.Bytes(1); !ok || string(b) != "two" {
		t.Errorf("Bytes(1) = %q, %v", b, ok)
	}
	for _, i := range []int{-1, 0, 2, 3} {
		if b, ok := ev.Bytes(i); ok {
			t.Errorf("Bytes(%d) = %q", i, b)
		}
	}
}

// An error of Decode names the argument that failed.
func TestDecodeErrorsNameTheArgument(t *testing.T) {
	ev := decoded(t, "e", []byte("raw"), "text", 3)
	var (
		raw []byte
		s   string
		i   int
		x   any
	)
	for _, c := range []struct {
		ptrs []any
		want string
	}{
		{[]any{&s}, "argument 1: raw bytes do not fit *string"},
		{[]any{&raw, &raw}, "argument 2: it is JSON, not raw bytes"},
		{[]any{&raw, &i}, "argument 2: json: cannot unmarshal string"},
		{[]any{&raw, &s, i}, "argument 3: json: Unmarshal(non-pointer int)"},
		{[]any{&raw, &s, &i, &x}, "argument 4 asked for, it has 3"},
	} {
		err := ev.Decode(c.ptrs...)
		if !errors.Is(err, ErrUndecodable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// Appending to the bytes of an argument copies them, so the next argument does not change.
func TestAppendingToAnArgumentCopies(t *testing.T) {
	ev := decoded(t, "e", []byte("one"), []byte("two"))
	b, _ := ev.Bytes(0)
	_ = append(b, "xxxxxxxx"...)
	if b, _ := ev.Bytes(1); string(b) != "two" {
		t.Errorf("%q", b)
	}
}

// An event with an invalid name or argument, or that is too large, is refused with an
// error that names the fault.
func TestInvalidEventsAreNotEncoded(t *testing.T) {
	const max = 1000
	fits := max - len(encoded(t, "n", make([]byte, 200))) + 200
	many := make([]any, maxArgs+1)
	for _, c := range []struct {
		what string
		name string
		args []any
		want error
		text string
	}{
		{"no name", "", nil, ErrBadName, "empty"},
		{"long name", strings.Repeat("n", 129), nil, ErrBadName, "129 bytes"},
		{"the name of all", "*", nil, ErrBadName, `"*"`},
		{"bad name", "a\xff", nil, ErrBadName, "UTF-8"},
		{"NaN", "n", []any{1, math.NaN()}, ErrBadArgument, "argument 2 (float64)"},
		{"infinity", "n", []any{math.Inf(-1)}, ErrBadArgument, "argument 1 (float64)"},
		{"channel", "n", []any{make(chan int)}, ErrBadArgument, "argument 1 (chan int)"},
		{"function", "n", []any{"a", "b", func() {}}, ErrBadArgument, "argument 3 (func())"},
		{"function inside", "n", []any{struct{ F func() }{}}, ErrBadArgument, "argument 1"},
		{"bad text", "n", []any{"a\xff"}, ErrBadArgument, "argument 1 (string): the string is not valid UTF-8"},
		{"bad raw JSON", "n", []any{json.RawMessage("{")}, ErrBadArgument, "argument 1"},
		{"many arguments", "n", many, ErrTooLarge, "65 arguments"},
		{"raw bytes", "n", []any{make([]byte, fits+1)}, ErrTooLarge, "1001 bytes"},
		{"more raw bytes", "n", []any{make([]byte, 1<<20)}, ErrTooLarge, ""},
		{"text", "n", []any{strings.Repeat("x", max)}, ErrTooLarge, ""},
		{"together", "n", []any{make([]byte, 600), make([]byte, 600)}, ErrTooLarge, ""},
	} {
		b, err := encodeEvent([]byte("before"), c.name, c.args, max)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || string(b) != "before" {
			t.Errorf("%s: %q, %v", c.what, b, err)
		}
		if _, buf, err2 := Prepare(JSON, c.name, c.args, max); buf != nil || err2 == nil || err2.Error() != err.Error() {
			t.Errorf("%s: prepare says %v", c.what, err2)
		}
	}
	for _, name := range []string{"a", strings.Repeat("n", 128), "*x", "räum/lampe", "\x00"} {
		if _, err := encodeEvent(nil, name, nil, max); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if b, err := encodeEvent(nil, "n", []any{make([]byte, fits)}, max); err != nil || len(b) != max {
		t.Errorf("the largest event: %d bytes, %v", len(b), err)
	}
}

// Parse refuses malformed events.
func TestMalformedEventsAreNotParsed(t *testing.T) {
	field := func(num protowire.Number, b string) []byte { return frame.AppendMessage(nil, num, b) }
	long := bytes.Repeat(field(payload.FieldArgs, ""), maxArgs+1)
	for name, b := range map[string][]byte{
		"nothing":          {},
		"no name":          field(payload.FieldArgs, ""),
		"empty name":       field(payload.FieldName, ""),
		"long name":        field(payload.FieldName, strings.Repeat("n", 129)),
		"name of all":      field(payload.FieldName, "*"),
		"bad UTF-8":        field(payload.FieldName, "\xff"),
		"65 arguments":     append(field(payload.FieldName, "n"), long...),
		"cut argument":     append(field(payload.FieldName, "n"), field(payload.FieldArgs, "\x12\x05x")...),
		"codec above 32 b": append(field(payload.FieldName, "n"), field(payload.FieldArgs, "\x08\xff\xff\xff\xff\xff\x01")...),
		"cut field":        append(field(payload.FieldName, "n"), 0x12, 5),
		"group":            append(field(payload.FieldName, "n"), 0x0b),
	} {
		if _, err := Parse("p", b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Fields that a later version adds are skipped, before and after the known ones.
func TestUnknownFieldsAreSkipped(t *testing.T) {
	b := frame.AppendUint(nil, 9, 5)
	b = append(b, encoded(t, "e", 1)...)
	b = frame.AppendMessage(b, 10, "new")
	a := frame.AppendUint(nil, 7, 1)
	a = frame.AppendUint(a, payload.FieldCodec, CodecJSON)
	a = frame.AppendMessage(a, payload.FieldData, "2")
	a = frame.AppendMessage(a, 8, "new")
	b = frame.AppendMessage(b, payload.FieldArgs, a)
	b = frame.AppendMessage(b, payload.FieldArgs, frame.AppendMessage(frame.AppendUint(nil, payload.FieldCodec, 77), payload.FieldData, "?"))
	ev, err := Parse("p", b)
	if err != nil {
		t.Fatal(err)
	}
	var x, y int
	if err := ev.Decode(&x, &y); err != nil || x != 1 || y != 2 || ev.Len() != 3 {
		t.Error(x, y, ev.Len(), err)
	}
	if err := ev.Decode(nil, nil, &x); !errors.Is(err, ErrUndecodable) || !strings.Contains(err.Error(), "unknown codec 77") {
		t.Error("a codec of a later version:", err)
	}
}

// Text from other nodes is quoted and shortened before it goes into an error or a log.
func TestTextOfOtherNodesIsQuotedAndCut(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  `"plain"`,
		"a\nb\x1b[31m":           `"a\nb\x1b[31m"`,
		"\xff":                   `"\xff"`,
		strings.Repeat("ä", 64):  `"` + strings.Repeat("ä", 64) + `"`,
		strings.Repeat("ä", 100): `"` + strings.Repeat("ä", 64) + `..."`,
	} {
		if got := Quote(in); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// FuzzEvent parses arbitrary bytes. A parsed event stays within the limits, and encoding
// it again gives the same event.
func FuzzEvent(f *testing.F) {
	f.Add(encoded(f, "move", 1, "two", []byte("three"), nil))
	f.Add(encoded(f, "e"))
	f.Add(encoded(f, strings.Repeat("n", 128), make([]byte, 300)))
	f.Add([]byte{0x0a, 1, 'x', 0x12, 2, 8, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := Parse("p", b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if CheckName(ev.Name) != nil || ev.Len() > maxArgs || len(ev.Name) > len(b) {
			t.Fatalf("accepted: %q, %d arguments", ev.Name, ev.Len())
		}
		// Emit the same again.
		var args, ptrs []any
		for i := range ev.Len() {
			if raw, ok := ev.Bytes(i); ok {
				if cap(raw) != len(raw) || len(raw) > len(b) {
					t.Fatalf("%d bytes of capacity %d out of %d", len(raw), cap(raw), len(b))
				}
				args = append(args, append([]byte{}, raw...))
				continue
			}
			var v json.RawMessage
			if ev.Decode(append(make([]any, i), &v)...) != nil {
				return
			}
			args = append(args, v)
		}
		m, err := encodeEvent(nil, ev.Name, args, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("p", m)
		if err != nil || again.Name != ev.Name || again.Len() != ev.Len() {
			t.Fatalf("%v after %v: %v", again, ev, err)
		}
		for i := range ev.Len() {
			var x, y any
			ptrs = make([]any, i, i+1)
			err1, err2 := ev.Decode(append(ptrs, &x)...), again.Decode(append(ptrs, &y)...)
			if (err1 == nil) != (err2 == nil) {
				t.Fatalf("argument %d: %v, then %v", i, err1, err2)
			}
		}
	})
}
