//go:build !unix

package bench

import "time"

// cpuTime returns zero, because the program cannot read its processor time on this system.
// Tables show a dash instead.
func cpuTime() time.Duration { return 0 }
