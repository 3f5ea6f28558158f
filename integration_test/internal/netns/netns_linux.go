package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A Namespace is a machine as far as its network goes. All methods may be called
// from several goroutines.
type Namespace struct{ file *os.File }

// New makes a namespace with nothing but a loopback interface that is up. It fails
// where that is not allowed, see [Enter].
func New() (*Namespace, error) {
	runtime.LockOSThread() // a namespace is a thread's
	defer runtime.UnlockOSThread()
	home, err := currentNamespace()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("netns: make a network namespace: %w", err)
	}
	file, err := currentNamespace()
	joinNamespace(home)
	if err != nil {
		return nil, err
	}
	n := &Namespace{file}
	if err := n.Run("ip", "link", "set", "lo", "up"); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// currentNamespace returns the namespace of the calling thread.
func currentNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// joinNamespace takes the calling thread to a namespace. A thread that does not find back
// must not run anything else.
func joinNamespace(file *os.File) {
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("netns: enter %s: %v", file.Name(), err))
	}
}

// Do calls f in the namespace, on the calling goroutine. Sockets that f itself makes
// and processes that it starts are in it, not what other goroutines do for f.
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := currentNamespace()
	if err != nil {
		return err
	}
	defer home.Close()
	joinNamespace(n.file)
	defer joinNamespace(home)
	return f()
}

// Run runs a command in the namespace and waits for it. The error has what it said.
func (n *Namespace) Run(command ...string) error {
	return n.RunWithInput("", command...)
}

// RunWithInput is Run with something to read on standard input.
func (n *Namespace) RunWithInput(input string, command ...string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("netns: %s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}

// Close gives the namespace back. It lives on while a process is in it.
func (n *Namespace) Close() error { return n.file.Close() }

// Plug connects two namespaces by a cable and names its ends, which are up. An
// address, as "10.0.0.1/24", may be empty.
func Plug(a *Namespace, nameA, addrA string, b *Namespace, nameB, addrB string) error {
	// The ends must not meet an interface of the same name before they are apart.
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.file.Fd())
	if err := a.Run("ip", "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", path); err != nil {
		return err
	}
	for _, end := range []struct {
		at         *Namespace
		name, addr string
	}{{a, nameA, addrA}, {b, nameB, addrB}} {
		if end.addr != "" {
			if err := end.at.Run("ip", "addr", "add", end.addr, "dev", end.name); err != nil {
				return err
			}
		}
		if err := end.at.Run("ip", "link", "set", end.name, "up"); err != nil {
			return err
		}
	}
	return nil
}

// enteredEnv tells a test that it was started by Enter.
const enteredEnv = "SMOKESIGNAL_NETNS"

// Enter returns true where the test may make namespaces. Where it may not, as it is
// not root, it runs the test once more, in a process that is root of a user namespace
// of its own, and returns false with nil: the caller returns. The error says why
// neither can be.
func Enter(t *testing.T) (inside bool, err error) {
	t.Helper()
	n, err := New()
	if err == nil {
		return true, n.Close()
	}
	if os.Getenv(enteredEnv) != "" || !errors.Is(err, syscall.EPERM) {
		return false, err
	}
	exe, err := os.Executable()
	if err != nil {
		return false, err
	}
	runtime.LockOSThread() // Linux kills the child when this thread ends
	defer runtime.UnlockOSThread()
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), exe, "-test.run="+pattern, "-test.v", "-test.count=1", "-test.timeout=0")
	cmd.Env = append(os.Environ(), enteredEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return false, fmt.Errorf("netns: make a user namespace: %w", err)
	}
	t.Logf("in a user namespace:\n%s", out)
	switch text := string(out); {
	case err != nil:
		t.Errorf("in a user namespace: %v", err)
	case strings.Contains(text, "--- SKIP: "+t.Name()+" "):
		return false, errors.New("netns: skipped in a user namespace too")
	case !strings.Contains(text, "--- PASS: "+t.Name()+" "):
		t.Error("the test did not run in the user namespace")
	}
	return false, nil
}
