//go:build unix

package cluster

import (
	"syscall"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// Stop freezes the process: the kernel goes on acknowledging for it, it does
// nothing itself.
func (p *Proc) Stop() { p.signal(syscall.SIGSTOP, checker.FaultStop) }

// Continue wakes a frozen process.
func (p *Proc) Continue() { p.signal(syscall.SIGCONT, checker.FaultContinue) }

func (p *Proc) signal(sig syscall.Signal, text string) {
	p.c.t.Helper()
	p.c.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Fault, Text: text})
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.c.t.Fatalf("%v to %s: %v", sig, p.Name, err)
	}
}
