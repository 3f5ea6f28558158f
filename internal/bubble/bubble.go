// Package bubble runs tests in the virtual time of testing/synctest, also in builds with the
// race detector.
package bubble

import (
	"testing"
	"testing/synctest"
)

// Test calls [synctest.Test]. In builds with the race detector, the process uses only one
// processor meanwhile, see confine. Several tests may call Test at the same time.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	defer confine()()
	synctest.Test(t, f)
}
