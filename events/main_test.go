package events

import (
	"testing"

	"github.com/go-smokesignal/smokesignal/internal/leaks"
)

// Nothing that the tests started runs when they are done.
func TestMain(m *testing.M) { leaks.Main(m) }
