package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/go-smokesignal/smokesignal/internal/outputtest"
)

// openTerminal returns the two ends of a terminal: what a person has before
// them, and what the program gets.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// TestTerminal is the real program in a real terminal, ended in every way there
// is. Afterwards the terminal is as it was.
func TestTerminal(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		end  func(person io.Writer, p *os.Process)
	}{
		{"ctrl-c", func(w io.Writer, _ *os.Process) { io.WriteString(w, "half a line\x03") }},
		{"ctrl-d", func(w io.Writer, _ *os.Process) { io.WriteString(w, "\x04") }},
		{"quit", func(w io.Writer, _ *os.Process) { io.WriteString(w, "/quit\r") }},
		{"SIGTERM", func(_ io.Writer, p *os.Process) { p.Signal(syscall.SIGTERM) }},
		{"SIGHUP", func(_ io.Writer, p *os.Process) { p.Signal(syscall.SIGHUP) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			person, program := openTerminal(t)
			before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe, "-listen", "127.0.0.1:0", "-name", "alice")
			cmd.Env = append(os.Environ(), "CHAT_TEST_MAIN=1", "TERM=xterm", "NO_COLOR=1")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			k := &talker{t: t, name: "alice", in: person, out: new(outputtest.Printed), done: make(chan error, 1)}
			go func() { k.done <- cmd.Wait() }()
			k.cleanup(func() { cmd.Process.Kill() })
			go io.Copy(k.out, person)

			k.wait(`.*\* not looking for others on the local network,.*\r`, patient)
			io.WriteString(person, "hello\r/nonsense\r")
			k.wait(`.*\* not sent: nobody is here.*\r`, patient)
			k.wait(`.*\* unknown command /nonsense.*\r`, patient)
			raw, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil || raw.Lflag&unix.ICANON != 0 {
				t.Errorf("the terminal is not in raw mode: %v", err)
			}
			tc.end(person, cmd.Process)
			if err := k.end(); err != nil {
				t.Errorf("ended with %v", err)
			}
			after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal was %+v, is %+v, %v", before, after, err)
			}
			k.wait(".*"+regexp.QuoteMeta(noPasteMode), patient)
		})
	}
}
