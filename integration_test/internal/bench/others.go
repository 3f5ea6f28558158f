package bench

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// A Watch tells how much of the machine's processor time others took, who then
// had a part in the figures.
type Watch struct {
	then machineTime
	own  time.Duration
	ok   bool
}

// machineTime is what all processors together have spent so far.
type machineTime struct{ busy, all time.Duration }

// Observe begins to watch.
func Observe() Watch {
	text, err := os.ReadFile("/proc/stat")
	then, ok := parseStat(string(text))
	return Watch{then, cpuTime(), ok && err == nil}
}

// Others returns the part of the processor time since Observe that went
// neither to this process nor to nobody, from 0 to 1. It is not known on every
// system.
func (w Watch) Others() (part float64, ok bool) {
	now := Observe()
	all := now.then.all - w.then.all
	if !w.ok || !now.ok || all <= 0 {
		return 0, false
	}
	others := now.then.busy - w.then.busy - (now.own - w.own)
	return max(0, float64(others)/float64(all)), true
}

// tick is the unit of /proc/stat on every Linux.
const tick = 10 * time.Millisecond

// parseStat reads the first line of /proc/stat: user, nice, system, idle, waiting
// for a disk, two kinds of interrupts, and what a hypervisor took away.
func parseStat(text string) (m machineTime, ok bool) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return m, false
	}
	for i, field := range fields[1:9] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return m, false
		}
		m.all += time.Duration(n) * tick
		if i != 3 && i != 4 {
			m.busy += time.Duration(n) * tick
		}
	}
	return m, true
}
