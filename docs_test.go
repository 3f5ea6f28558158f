package smokesignal_test

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The programs of the README and of the package documentation compile as they stand, and
// run on any machine: the second one joins with the ticket that the first prints, and both
// have one line to say.
func TestProgramsOfTheDocumentsRun(t *testing.T) {
	t.Parallel()
	replace := map[string]string{} // files that exist for the compiler only
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"readme": readmeProgram(t), "doc": docProgram(t)} {
		file := filepath.Join(dir, name+".go")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, "program_of_"+name, "main.go")] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin") + string(filepath.Separator)
	build := exec.Command("go", "build", "-ldflags=-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", bin, "./program_of_readme", "./program_of_doc")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first := startProgram(t, bin+"program_of_doc")
	ticket := regexp.MustCompile("smoke1[a-z0-9]+").FindString(first.line(t, "smoke1"))
	second := startProgram(t, bin+"program_of_readme", ticket)
	first.line(t, "HEYO! I'm here")
	second.line(t, "HEYO! I'm here")
}

// readmeProgram returns the first block of Go in the README.
func readmeProgram(t *testing.T) string {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```go\n")
	program, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("the README has no program")
	}
	return program
}

// docProgram returns the first program in the documentation of the package.
func docProgram(t *testing.T) string {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var program strings.Builder
	for line := range strings.Lines(string(text)) {
		switch code, ok := strings.CutPrefix(line, "//\t"); {
		case ok:
			program.WriteString(code)
		case line == "//\n":
			program.WriteString("\n")
		case strings.Contains(program.String(), "func main"):
			return program.String()
		}
	}
	t.Fatal("the documentation has no program")
	return ""
}

// A docProcess is a program that runs until the test ends.
type docProcess struct{ lines chan string }

func startProgram(t *testing.T, path string, args ...string) *docProcess {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	p := &docProcess{make(chan string, 100)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
	}()
	return p
}

// line returns the next line that contains text.
func (p *docProcess) line(t *testing.T, text string) string {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("the program ended before it wrote %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-late:
			t.Fatalf("no line with %q", text)
		}
	}
}
