package integration_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

const demoCommand = "go run ./examples/hello -demo"

// buildDemo builds examples/hello.
func buildDemo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hello.exe")
	if out, err := exec.Command("go", "build", "-o", path, "../examples/hello").CombinedOutput(); err != nil {
		t.Fatalf("building examples/hello: %v\n%s", err, out)
	}
	return path
}

// TestDemoIsAsInTheREADME: the demo ends well within ten seconds, and its output
// at the top of the README is real: the same but for the numbers.
func TestDemoIsAsInTheREADME(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
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

	cmd := exec.Command(buildDemo(t), "-demo")
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

// withoutNumbers replaces all numbers, and the blanks before the first of a line.
func withoutNumbers(text string) string {
	text = regexp.MustCompile(`(?m)^ +`).ReplaceAllString(text, "")
	return regexp.MustCompile(`\d+(\.\d+)*`).ReplaceAllString(text, "N")
}

// TestDemoThatIsInterruptedFails: a demo that has not come to its end says how far
// it has come, and exits with 1.
func TestDemoThatIsInterruptedFails(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted there")
	}
	path := buildDemo(t)
	for range 20 {
		code, stderr := interruptDemo(t, path)
		if code == 0 {
			continue // it had come to its end before
		}
		if code != 1 || !strings.HasPrefix(stderr, "hello: ") {
			t.Errorf("it ends with code %d and says %q", code, stderr)
		}
		return
	}
	t.Error("it always ends with code 0")
}

// interruptDemo interrupts the demo after its first line.
func interruptDemo(t *testing.T, path string) (code int, stderr string) {
	t.Helper()
	cmd := exec.Command(path, "-demo")
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
