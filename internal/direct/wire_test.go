package direct

import (
	"bytes"
	"testing"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// The two ways to encode an event of raw bytes give the same frame.
func TestBothEncodersOfRawEventsAgree(t *testing.T) {
	for _, args := range [][]any{
		{}, {[]byte{}}, {[]byte(nil)}, {make([]byte, 1)}, {make([]byte, 123)}, {make([]byte, 124)}, {make([]byte, 125)}, {make([]byte, 126)}, {make([]byte, 127)}, {make([]byte, 128)},
		{make([]byte, 20000), []byte("x"), []byte{}},
	} {
		size, buf, err := event.Prepare(event.JSON, "name", args, event.DefaultMaxSize)
		if err != nil || buf != nil {
			t.Fatal(buf, err)
		}
		got := appendFrame(nil, &event.Outgoing{Name: "name", Args: args, Size: size}, nil)
		ev := eventtest.Encoded(t, "name", args...)
		want := frame.Append(nil, frame.AppendMessage(nil, fieldEvent, ev))
		if !bytes.Equal(got, want) {
			t.Errorf("%d arguments: %x, want %x", len(args), got, want)
		}
		if other := appendFrame(nil, &event.Outgoing{Size: len(ev), Buf: &event.Buffer{B: ev}}, nil); !bytes.Equal(other, want) {
			t.Errorf("%d arguments, encoded: %x, want %x", len(args), other, want)
		}
	}
}
