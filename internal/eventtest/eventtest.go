// Package eventtest helps tests that need the bytes of an event, or the event that
// arrives with them.
package eventtest

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Encoded returns the encoded bytes of an event with the given name and arguments. The
// arguments are encoded as JSON.
func Encoded(t testing.TB, name string, args ...any) []byte {
	t.Helper()
	b, err := event.JSON.Encode(nil, name, args, event.DefaultMaxSize)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Decoded returns an event with the given name and arguments, as it arrives from a peer
// whose id is "sender".
func Decoded(t testing.TB, name string, args ...any) *event.Event {
	t.Helper()
	ev, err := event.Parse("sender", Encoded(t, name, args...))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// LogTo returns a logger that writes lines of every level to b.
func LogTo(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
