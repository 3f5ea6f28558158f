// Package integration_test runs whole nodes over real transports: in this
// process over the loopback interface, and as real processes that are killed
// and frozen. There are three sizes:
//
//	go test ./integration_test                          the default, about a minute
//	SMOKESIGNAL_LONG=1 go test ./integration_test       some minutes, before a change goes in
//	SMOKESIGNAL_FULL=1 go test -timeout 90m ./integration_test   the bars, by hand
package integration_test

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/program"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

func TestMain(m *testing.M) {
	if spec, ok, err := cluster.SpecFromEnv(); ok {
		os.Exit(program.Main(spec, err)) // this process is a node
	}
	flag.Parse()
	if slow > 1 && !isSet("test.parallel") {
		// With the race detector, connecting takes so much of a core that more tests at
		// the same time run into the timeouts of the library.
		flag.Set("test.parallel", "4")
	}
	if !isSet("test.benchtime") {
		flag.Set("test.benchtime", fmt.Sprintf("%dx", benchTurns()))
	}
	code := hosttest.Main(m)
	sideBySide.print(os.Stdout)
	removeChat()
	skipped.report()
	os.Exit(code)
}

func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// size is how much of the tests is run.
type size int

const (
	byDefault size = iota
	long
	full
)

func (s size) String() string {
	return [...]string{"default", "SMOKESIGNAL_LONG=1", "SMOKESIGNAL_FULL=1"}[s]
}

// chosen is the size this run was asked for.
var chosen = sync.OnceValue(func() size {
	switch {
	case os.Getenv("SMOKESIGNAL_FULL") != "":
		return full
	case os.Getenv("SMOKESIGNAL_LONG") != "":
		return long
	}
	return byDefault
})

// needs skips the test, loudly, unless this run is at least of size s.
func needs(t *testing.T, s size) {
	t.Helper()
	if chosen() < s {
		skipped.add(s)
		t.Skipf("SKIPPED: %s runs with %v only", t.Name(), s)
	}
}

// cannot skips the test, as loudly, where this machine does not allow it.
func cannot(t *testing.T, why error) {
	t.Helper()
	skipped.mu.Lock()
	skipped.cannot++
	skipped.mu.Unlock()
	t.Skipf("SKIPPED: %v", why)
}

// skipCount counts what this run left out, for lines at its end.
type skipCount struct {
	mu     sync.Mutex
	count  map[size]int
	cannot int
}

var skipped = skipCount{count: map[size]int{}}

func (c *skipCount) add(s size) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[s]++
}

func (c *skipCount) report() {
	for _, s := range []size{long, full} {
		if n := c.count[s]; n > 0 {
			fmt.Printf("integration_test: SKIPPED %d tests that run with %v only\n", n, s)
		}
	}
	if c.cannot > 0 {
		fmt.Printf("integration_test: SKIPPED %d tests that this machine does not allow\n", c.cannot)
	}
}
