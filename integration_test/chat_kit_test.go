package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// chatDir holds the chat that buildChat built.
var chatDir string

// buildChat builds examples/chat once a run and returns its path.
var buildChat = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "smokesignal-chat-")
	if err != nil {
		return "", err
	}
	chatDir = dir
	path := filepath.Join(dir, "chat.exe")
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "../examples/chat").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building examples/chat: %w\n%s", err, out)
	}
	return path, nil
})

func removeChat() {
	if chatDir != "" {
		os.RemoveAll(chatDir)
	}
}

// chatProc is a chat as a real process, its terminal replaced by pipes.
type chatProc struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	done  chan struct{}

	mu      sync.Mutex
	lines   []chatLine
	changed chan struct{}
}

// chatLine is a line that a chat has shown.
type chatLine struct {
	at    time.Time
	text  string
	found bool // by want, which looks for others from then on
}

func startChat(t *testing.T, name string, args ...string) *chatProc {
	t.Helper()
	path, err := buildChat()
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, name, path, append([]string{"-name", name}, args...)...)
}

// startProgram starts a program that shows lines.
func startProgram(t *testing.T, name, path string, args ...string) *chatProc {
	t.Helper()
	var err error
	c := &chatProc{t: t, name: name, done: make(chan struct{}), changed: make(chan struct{})}
	c.cmd = exec.Command(path, args...)
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stdout, c.cmd.Stderr = in, in // what a person would see
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	go func() {
		defer close(c.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			c.mu.Lock()
			c.lines = append(c.lines, chatLine{at: time.Now(), text: lines.Text()})
			close(c.changed)
			c.changed = make(chan struct{})
			c.mu.Unlock()
		}
		c.cmd.Wait()
		out.Close()
	}()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			var b strings.Builder
			for _, line := range c.lines {
				fmt.Fprintf(&b, "\n%s %s", line.at.Format("15:04:05.000"), line.text)
			}
			t.Logf("%s showed:%s", name, b.String())
		}
	})
	return c
}

// kill ends the process at once, by its id.
func (c *chatProc) kill() {
	c.cmd.Process.Kill()
	<-c.done
}

// enter writes a line as if typed.
func (c *chatProc) enter(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.stdin, text+"\n"); err != nil {
		c.t.Fatalf("typing %q into %s: %v", text, c.name, err)
	}
}

// want waits for a line that is, or contains, that text, after those a want
// has found already, and returns it.
func (c *chatProc) want(within time.Duration, text string) string {
	c.t.Helper()
	timeout := time.After(within)
	for {
		c.mu.Lock()
		changed := c.changed
		for i, line := range c.lines {
			if !line.found && strings.Contains(line.text, text) {
				c.lines[i].found = true
				c.mu.Unlock()
				return line.text
			}
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			c.t.Fatalf("%s does not show %q within %v", c.name, text, within)
		}
	}
}
