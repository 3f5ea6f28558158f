package events

import (
	"log/slog"
	"testing"

	"github.com/go-smokesignal/smokesignal/internal/leaks"
)

// Nothing that the tests started runs when they are done. They make handlers panic,
// which would fill the terminal.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	leaks.Main(m)
}
