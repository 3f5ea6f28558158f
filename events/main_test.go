package events

import (
	"testing"

	"go.uber.org/goleak"
)

// Nothing that the tests started runs when they are done.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
