//go:build !unix

package bench

import "time"

// cpuTime returns zero, as the processor time is not known on this system. The
// tables show a dash.
func cpuTime() time.Duration { return 0 }
