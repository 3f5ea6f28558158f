//go:build unix

package cluster

import (
	"syscall"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// Stop freezes the process. The kernel still acknowledges packets for it, but the
// process does nothing.
func (p *Proc) Stop() { p.signal(syscall.SIGSTOP, checker.FaultStop) }

// Continue resumes a frozen process.
func (p *Proc) Continue() { p.signal(syscall.SIGCONT, checker.FaultContinue) }

// dumpGoroutines makes the process write its goroutine stacks to its standard error and
// end.
func (p *Proc) dumpGoroutines() {
	if p.ended() || p.cmd.Process.Signal(syscall.SIGQUIT) != nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGCONT) // a frozen process handles SIGQUIT only once it runs again
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
}

func (p *Proc) signal(sig syscall.Signal, text string) {
	p.c.t.Helper()
	p.c.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Fault, Text: text})
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.c.t.Fatalf("%v to %s: %v", sig, p.Name, err)
	}
}
