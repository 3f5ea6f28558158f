package integration_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// TestArgumentsArriveOneByOne shows that an event with four arguments of different
// types arrives with four arguments.
func TestArgumentsArriveOneByOne(t *testing.T) {
	t.Parallel()
	type point struct{ X, Y int }
	_, a, b := pair(t)
	for name, way := range map[string]struct {
		to   smokesignal.Emitter
		from smokesignal.Source
	}{
		"direct":    {a.Peer(b.ID()), b.Direct()},
		"broadcast": {a.Broadcast(), b.Broadcast()},
	} {
		in := listen(t, way.from, "move")
		if err := way.to.Emit(t.Context(), "move", 7, "seven", point{3, 4}, []byte{0, 255}); err != nil {
			t.Fatal(name, err)
		}
		ev := in.wait(1, soon)[0].Ev
		var n int
		var s string
		var p point
		var raw []byte
		if err := ev.Decode(&n, &s, &p, &raw); err != nil || ev.Len() != 4 {
			t.Fatalf("%s: %d arguments, %v", name, ev.Len(), err)
		}
		if n != 7 || s != "seven" || p != (point{3, 4}) || !slices.Equal(raw, []byte{0, 255}) {
			t.Errorf("%s: got %v %q %v %v", name, n, s, p, raw)
		}
	}
}

// TestAllJSONValuesArrive shows that each kind of JSON value and raw bytes arrive
// unchanged.
func TestAllJSONValuesArrive(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	in := listen(t, b.Direct(), "x")
	long := strings.Repeat("ключ 漢字 🔑 ", 16_000) // about 400 kB
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	raw := []byte("\x00\xff not JSON {")
	if err := a.Peer(b.ID()).Emit(t.Context(), "x", nil, true, -0.5, long, when, []string{"a", "b"}, map[string]int{"k": 1}, raw); err != nil {
		t.Fatal(err)
	}
	ev := in.wait(1, soon)[0].Ev
	var (
		null    *int
		yes     bool
		half    float64
		text    string
		date    time.Time
		list    []string
		dict    map[string]int
		rawBack []byte
	)
	if err := ev.Decode(&null, &yes, &half, &text, &date, &list, &dict, &rawBack); err != nil {
		t.Fatal(err)
	}
	if null != nil || !yes || half != -0.5 || text != long || !date.Equal(when) || !slices.Equal(list, []string{"a", "b"}) || dict["k"] != 1 || !slices.Equal(rawBack, raw) {
		t.Errorf("got %v %v %v %d bytes %v %v %v %q", null, yes, half, len(text), date, list, dict, rawBack)
	}
}

// TestTooLargeEventIsAnError shows that Emit returns ErrTooLarge beyond the limit, and
// that an event just below it arrives.
func TestTooLargeEventIsAnError(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	direct, broadcast := listen(t, b.Direct(), "x"), listen(t, b.Broadcast(), "x")
	for _, to := range []smokesignal.Emitter{a.Peer(b.ID()), a.Broadcast()} {
		if err := to.Emit(t.Context(), "x", make([]byte, smokesignal.DefaultMaxEventSize+1)); !errors.Is(err, smokesignal.ErrTooLarge) {
			t.Errorf("%T: Emit of 512 KiB and a byte returned %v, want ErrTooLarge", to, err)
		}
		if err := to.Emit(t.Context(), "x", make([]byte, smokesignal.DefaultMaxEventSize-64)); err != nil {
			t.Errorf("%T: Emit of almost 512 KiB returned %v", to, err)
		}
	}
	for _, in := range []*inbox{direct, broadcast} {
		if b, ok := in.wait(1, soon)[0].Ev.Bytes(0); !ok || len(b) != smokesignal.DefaultMaxEventSize-64 {
			t.Errorf("%d bytes arrived", len(b))
		}
	}
}

// TestBadNameIsAnError shows that Emit returns ErrBadName for names that are empty, too
// long, reserved or not UTF-8.
func TestBadNameIsAnError(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	for _, name := range []string{"", "*", strings.Repeat("n", 129), "\xff"} {
		for _, to := range []smokesignal.Emitter{a.Peer(b.ID()), a.Broadcast()} {
			if err := to.Emit(t.Context(), name); !errors.Is(err, smokesignal.ErrBadName) {
				t.Errorf("%T: Emit %q returned %v, want ErrBadName", to, name, err)
			}
		}
	}
}
