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

// A Namespace is a network namespace. Its methods may be called from several
// goroutines.
type Namespace struct{ file *os.File }

// New makes a namespace with only a loopback interface, which is up. It fails if the
// process may not make namespaces; see [Enter].
func New() (*Namespace, error) {
	runtime.LockOSThread() // each thread has its own namespace
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

// currentNamespace opens the namespace of the calling thread.
func currentNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// joinNamespace moves the calling thread to a namespace. It panics on failure: a thread in
// the wrong namespace must not run other goroutines.
func joinNamespace(file *os.File) {
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("netns: enter %s: %v", file.Name(), err))
	}
}

// Do calls f in the namespace, on the calling goroutine. Sockets and processes that f
// makes belong to the namespace, but not those of goroutines that f starts.
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

// Run runs a command in the namespace and waits for it. An error contains its output.
func (n *Namespace) Run(command ...string) error {
	return n.RunWithInput("", command...)
}

// RunWithInput runs a command in the namespace with the given standard input, and waits for it.
func (n *Namespace) RunWithInput(input string, command ...string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	err := n.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("netns: %s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(output.String()))
	}
	return nil
}

// Close releases the namespace. It exists until its last process has ended.
func (n *Namespace) Close() error { return n.file.Close() }

// Plug connects the namespaces a and b by a cable. It gives the end in each of them the name
// and the address, and brings it up. An address is written as "10.0.0.1/24"; it may be empty.
func Plug(a *Namespace, nameA, addrA string, b *Namespace, nameB, addrB string) error {
	// The end of the cable in b is made inside b. It is not made in a and moved, because a may
	// already have an interface of that name.
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

// enteredEnv is the environment variable that is set in a test process that Enter has started.
const enteredEnv = "SMOKESIGNAL_NETNS"

// Enter returns true if the test may make namespaces. Otherwise, as the test is not
// root, Enter runs the same test in a new process that is root of its own user
// namespace. It then returns false and nil, and the caller should return. It returns an
// error if neither is possible.
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
