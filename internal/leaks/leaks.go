// Package leaks finds goroutines that still run after a test.
package leaks

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// patience is how long a check waits for goroutines to end. goleak itself waits only for
// 0.4 s, which is too short on a busy machine.
const patience = 5 * time.Second

// Watch returns a function that fails the test if a goroutine that started after Watch still
// runs five seconds after the function is called. Before the call, the test has to close
// everything, also the hosts at the other end of connections: QUIC continues an incomplete
// handshake for longer than five seconds.
func Watch(t testing.TB, ignore ...goleak.Option) (check func()) {
	return watch(t, patience, ignore...)
}

func watch(t testing.TB, patience time.Duration, ignore ...goleak.Option) (check func()) {
	ignore = append(ignore, goleak.IgnoreCurrent())
	return func() {
		t.Helper()
		if err := find(patience, ignore...); err != nil {
			t.Error(err)
		}
	}
}

// Main runs the tests of a package and exits with status 1 if goroutines still run after them.
// TestMain calls it.
func Main(m *testing.M) {
	code := hosttest.Main(m)
	if code == 0 {
		if err := find(patience); err != nil {
			fmt.Fprintln(os.Stderr, "the tests are done:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func find(within time.Duration, ignore ...goleak.Option) error {
	for began := time.Now(); ; {
		if err := goleak.Find(ignore...); err == nil || time.Since(began) >= within {
			return err
		}
	}
}
