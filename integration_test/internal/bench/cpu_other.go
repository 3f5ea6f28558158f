//go:build !unix

package bench

import "time"

// cpuTime is not known here, and the figures per event are zero.
func cpuTime() time.Duration { return 0 }
