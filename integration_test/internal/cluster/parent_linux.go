package cluster

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel kill the child process if the test's process dies without
// cleanup. A frozen child needs this: it does not notice that its input has closed.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
