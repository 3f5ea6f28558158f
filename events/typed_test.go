package events

import (
	"context"
	"log/slog"
	"reflect"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestNameOfAMessage: a typed event whose type is a protobuf message.
func TestNameOfAMessage(t *testing.T) {
	src := newDispatcher(slog.New(slog.DiscardHandler))
	text := Name[*wrapperspb.StringValue]("e")
	var got []string
	text.On(muxSource{src}, func(_ context.Context, _ peer.ID, m *wrapperspb.StringValue) { got = append(got, m.GetValue()) })
	for _, ev := range []*Event{
		arrived(t, JSON, wrapperspb.String("one")),
		arrived(t, JSON, `text`),
		arrived(t, CBOR, map[string]string{"Value": "no"}),
		arrived(t, JSON, []byte("\x0a\x02no")),
		argument(t, codecProto, []byte{0xff}),
		arrived(t, CBOR, wrapperspb.String("two")),
	} {
		src.dispatch(t.Context(), ev)
	}
	if want := []string{"one", "two"}; !reflect.DeepEqual(got, want) {
		t.Errorf("handled %q, want %q", got, want)
	}
	if n := src.undecodable(); n != 4 {
		t.Errorf("%d counted as undecodable, want 4", n)
	}
}

type muxSource struct{ *dispatcher }

func (s muxSource) On(name string, f func(context.Context, *Event)) func() { return s.on(name, f) }
