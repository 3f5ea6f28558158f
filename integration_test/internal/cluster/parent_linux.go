package cluster

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the child when the test dies without
// clean-up, also a child that is frozen and so cannot see its input close.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
