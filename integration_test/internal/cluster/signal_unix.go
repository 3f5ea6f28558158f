//go:build unix

package cluster

import (
	"syscall"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// Stop freezes the process: the kernel goes on acknowledging for it, it does
// nothing itself.
func (p *Proc) Stop() { p.signal(syscall.SIGSTOP, checker.FaultStop) }

// Continue wakes a frozen process.
func (p *Proc) Continue() { p.signal(syscall.SIGCONT, checker.FaultContinue) }

// dumpGoroutines makes the process write to its standard error what each of its
// goroutines is doing, and end.
func (p *Proc) dumpGoroutines() {
	if p.ended() || p.cmd.Process.Signal(syscall.SIGQUIT) != nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGCONT) // it may be frozen
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
