package cluster

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel kill the child if the test dies without cleanup. A
// frozen child needs this: it does not notice that its input has closed.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
