package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

const demoCommand = "go run ./examples/hello -demo"

// TestMain lets the test binary be the program, for the tests that run it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("HELLO_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(hosttest.Main(m))
}

// demoProcess returns the command that runs the demo as a process.
func demoProcess(t *testing.T) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-demo")
	cmd.Env = append(os.Environ(), "HELLO_TEST_MAIN=1")
	return cmd
}

// TestDemoPrintsWhatTheREADMEShows: the demo ends within ten seconds, and its output is
// the one at the top of the README, apart from the numbers.
func TestDemoPrintsWhatTheREADMEShows(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```\n\\$ " + regexp.QuoteMeta(demoCommand) + "\n(.*?)```\n").FindSubmatchIndex(readme)
	if m == nil {
		t.Fatalf("the README has no block that begins with $ %s", demoCommand)
	}
	if before := bytes.Count(readme[:m[0]], []byte("\n")); before > 20 {
		t.Errorf("the output stands in line %d of the README, not at its top", before)
	}
	want := withoutNumbers(string(readme[m[2]:m[3]]))

	cmd := demoProcess(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	began := time.Now()
	out, err := cmd.Output()
	took := time.Since(began)
	t.Logf("after %v:\n%s", took.Round(time.Millisecond), out)
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v: %s", err, &stderr)
	}
	if took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if got := withoutNumbers(string(out)); got != want {
		t.Errorf("put the new output into the README; the one there, without numbers, is\n%s", want)
	}
}

// withoutNumbers replaces all numbers, and removes the blanks at the start of each line.
func withoutNumbers(text string) string {
	text = regexp.MustCompile(`(?m)^ +`).ReplaceAllString(text, "")
	return regexp.MustCompile(`\d+(\.\d+)*`).ReplaceAllString(text, "N")
}

// TestInterruptedDemoFails: a demo that is interrupted before its end reports how far it
// came, and exits with 1.
func TestInterruptedDemoFails(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted there")
	}
	for range 20 {
		code, stderr := interruptDemo(t)
		if code == 0 {
			continue // the demo ended before the interrupt reached it
		}
		if code != 1 || !strings.HasPrefix(stderr, "hello: ") {
			t.Errorf("it ends with code %d and says %q", code, stderr)
		}
		return
	}
	t.Error("it always ends with code 0")
}

// interruptDemo interrupts the demo after its first line.
func interruptDemo(t *testing.T) (code int, stderr string) {
	t.Helper()
	cmd := demoProcess(t)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := out.Read(first); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	return cmd.ProcessState.ExitCode(), said.String()
}
