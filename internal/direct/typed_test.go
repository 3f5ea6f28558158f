package direct

import (
	"context"
	"log/slog"
	"reflect"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// A typed event whose type is a protobuf message arrives with its value.
func TestTypedEventOfAProtobufMessage(t *testing.T) {
	src := dispatch.New(slog.New(slog.DiscardHandler))
	text := Name[*wrapperspb.StringValue]("e")
	var got []string
	text.On(src, func(_ context.Context, _ peer.ID, m *wrapperspb.StringValue) { got = append(got, m.GetValue()) })
	arrived := func(c event.Codec, arg any) *event.Event {
		b, err := c.Encode(nil, "e", []any{arg}, event.DefaultMaxSize)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := event.Parse("sender", b)
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	broken := arrived(event.JSON, wrapperspb.String("x"))
	broken.Args[len(broken.Args)-1] = 0xff // not UTF-8
	for _, ev := range []*event.Event{
		arrived(event.JSON, wrapperspb.String("one")),
		arrived(event.JSON, `text`),
		arrived(event.CBOR, map[string]string{"Value": "no"}),
		arrived(event.JSON, []byte("\x0a\x02no")),
		broken,
		arrived(event.CBOR, wrapperspb.String("two")),
	} {
		src.Dispatch(t.Context(), ev)
	}
	if want := []string{"one", "two"}; !reflect.DeepEqual(got, want) {
		t.Errorf("handled %q, want %q", got, want)
	}
	if n := src.Undecodable(); n != 4 {
		t.Errorf("%d counted as undecodable, want 4", n)
	}
}
