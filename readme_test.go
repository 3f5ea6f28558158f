package smokesignal_test

import (
	"bufio"
	"context"
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

// TestTheProgramOfTheREADME pastes the README's program into a file, as a newcomer
// does, and runs two of it: the second joins with the ticket that the first prints,
// and each prints what the other says.
func TestTheProgramOfTheREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(package main.*?)```").FindSubmatch(readme)
	if program == nil {
		t.Fatal("the README has no program")
	}
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	if err := os.WriteFile(source, program[1], 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", binary, source).CombinedOutput(); err != nil {
		t.Fatalf("it does not compile: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// run starts the program and returns its first line that has the text in it.
	run := func(args ...string) (line func(text string) string) {
		cmd := exec.CommandContext(ctx, binary, args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cancel() // kills it
			io.Copy(io.Discard, out)
			cmd.Wait()
		})
		lines := bufio.NewScanner(out)
		return func(text string) string {
			for lines.Scan() {
				if strings.Contains(lines.Text(), text) {
					return lines.Text()
				}
			}
			t.Fatalf("it ended without a line with %q", text)
			return ""
		}
	}
	first := run()
	words := strings.Fields(first("join with"))
	second := run(words[len(words)-1])
	second("HEYO! I'm here")
	first("HEYO! I'm here")
}

func TestTheREADMEIsShort(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Fields(string(readme))); n > 900 {
		t.Errorf("the README has %d words, at most 900: move something to docs", n)
	}
}

// TestLinksInTheDocuments: every file that a document of the repository links to is there.
func TestLinksInTheDocuments(t *testing.T) {
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```.*?```") // programs, in which the same signs mean something else
	links := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, file := range append(documents, "README.md", "CONTRIBUTING.md", "examples/README.md", "js/README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = blocks.ReplaceAll(text, nil)
		for _, m := range links.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), string(m[1]))); err != nil {
				t.Errorf("%s links to %s, which is not there", file, m[1])
			}
		}
	}
}
