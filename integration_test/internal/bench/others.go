package bench

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// A Watch measures how much of the machine's processor time other processes use.
// If they use much, the figures of a benchmark mean little.
type Watch struct {
	then machineTime
	own  time.Duration
	ok   bool
}

// machineTime holds how long all processors of the machine together have worked, and how long
// they have run, since the machine started.
type machineTime struct{ busy, all time.Duration }

// Observe starts a Watch.
func Observe() Watch {
	text, err := os.ReadFile("/proc/stat")
	then, ok := parseStat(string(text))
	return Watch{then, cpuTime(), ok && err == nil}
}

// Others returns the share of the machine's processor time since Observe was called that other
// processes used, from 0 to 1. ok is false on systems that do not report it.
func (w Watch) Others() (part float64, ok bool) {
	now := Observe()
	all := now.then.all - w.then.all
	if !w.ok || !now.ok || all <= 0 {
		return 0, false
	}
	others := now.then.busy - w.then.busy - (now.own - w.own)
	return max(0, float64(others)/float64(all)), true
}

// tick is the unit of time in /proc/stat on Linux.
const tick = 10 * time.Millisecond

// parseStat reads the first line of text, the content of /proc/stat: the processor time in
// user, nice, system, idle, iowait, irq, softirq and steal. ok is false if the line has another
// form.
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
		if i != 3 && i != 4 { // neither idle nor waiting for a disk
			m.busy += time.Duration(n) * tick
		}
	}
	return m, true
}
