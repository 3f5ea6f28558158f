// Package bubble runs tests in virtual time, those of a build with the race detector
// too.
package bubble

import (
	"testing"
	"testing/synctest"
)

// Test is [synctest.Test], which it calls while the process has the processors that
// a bubble may have. It may be called from several tests at once.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	defer confine()()
	synctest.Test(t, f)
}
