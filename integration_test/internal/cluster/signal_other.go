//go:build !unix

package cluster

// Stop skips the test, because this system cannot freeze a process.
func (p *Proc) Stop() { p.c.t.Skip("SKIPPED: this system cannot freeze a process") }

// Continue skips the test as Stop does.
func (p *Proc) Continue() { p.c.t.Skip("SKIPPED: this system cannot freeze a process") }

func (p *Proc) confess() {}
