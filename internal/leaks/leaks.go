// Package leaks finds the goroutines that a test leaves behind.
package leaks

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// goleak itself looks for 0.4 s, in which a busy machine may not come to a goroutine
// that is about to end.
const patience = 5 * time.Second

// Watch returns a check that fails the test unless every goroutine that began after
// Watch ends within five seconds. The test has to close everything by then, also the
// host at the other end: QUIC goes on with half a handshake for that long and more.
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

// Main is the TestMain of a package whose tests leave nothing behind.
func Main(m *testing.M) {
	code := m.Run()
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
