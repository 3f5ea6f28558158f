package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// patience is how long the tests wait for what takes some seconds.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv("RENDEZVOUS_PROCESS") != "" {
		main() // this process is a node
		return
	}
	os.Exit(m.Run())
}

// process is a running rendezvous.
type process struct {
	t     *testing.T
	name  string
	in    io.WriteCloser
	lines chan string
	seen  []string
	ended chan error
}

// start runs a rendezvous, which ends with the test.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "RENDEZVOUS_PROCESS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: name, in: in, lines: make(chan string, 1000), ended: make(chan error, 1)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
		p.ended <- cmd.Wait()
	}()
	t.Cleanup(func() {
		in.Close()
		select {
		case <-p.ended:
		case <-time.After(patience):
			cmd.Process.Kill()
			t.Errorf("%s did not end with its input", name)
		}
	})
	return p
}

// until waits for a line with the text and returns what follows it.
func (p *process) until(text string) string {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("%s has ended; want %q, it printed %q", p.name, text, p.seen)
			}
			p.seen = append(p.seen, line)
			if _, rest, ok := strings.Cut(line, text); ok {
				return rest
			}
		case <-timeout:
			p.t.Fatalf("%s: waited for %q, it printed %q", p.name, text, p.seen)
		}
	}
}

// TestNodesFindEachOtherInADHT: three processes that know nobody of their network meet in
// the DHT of a fourth, which belongs to another network.
func TestNodesFindEachOtherInADHT(t *testing.T) {
	began := time.Now()
	way := start(t, "way", "-network", "office").until("in the DHT at ")
	var home []*process
	for _, name := range []string{"alice", "bob", "carol"} {
		home = append(home, start(t, name, "-network", "home", "-dht", way))
	}
	for _, p := range home {
		p.until("met ")
	}
	t.Logf("all have met somebody after %v", time.Since(began).Round(time.Millisecond))
	io.WriteString(home[0].in, "hello\n")
	for _, p := range home[1:] {
		p.until(": hello")
	}
}

// TestBadArguments: the error of a bad argument is a sentence that names the mistake.
func TestBadArguments(t *testing.T) {
	for want, args := range map[string][]string{
		"-dht 127.0.0.1:1": {"-dht", "127.0.0.1:1"},
		`Listen`:           {"-listen", "here"},
		`Network("")`:      {"-network", ""},
	} {
		if err := run(t.Context(), args, strings.NewReader(""), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("run %q returned %v, want %q in it", args, err, want)
		}
	}
}
