// Package cluster runs nodes as real processes. The test binary starts itself once
// more for each node and sends it commands. A checker.Log collects the reports of all
// nodes, and a test waits until the log meets a condition.
//
//	func TestMain(m *testing.M) {
//		if spec, ok, err := cluster.SpecFromEnv(); ok {
//			os.Exit(program.Main(spec, err)) // this process is a node
//		}
//		os.Exit(m.Run())
//	}
//
//	c := cluster.New(t)
//	seed := c.Start(cluster.Spec{Name: "seed", Listen: []string{cluster.TCP}})
//	c.Start(cluster.Spec{Name: "n1", Listen: []string{cluster.TCP}, Seeds: []string{seed.Addr()}})
//	c.Wait(10*time.Second, "gathered", func(s *checker.State) bool { return s.Gathered(2) })
//	c.Check(checker.Config{Whole: true})
//
// No process outlives its test. The test kills its processes by id when it ends, a
// process ends when its standard input closes, and on Linux the kernel kills it with
// its parent.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// A Cluster holds the processes of one test.
type Cluster struct {
	Log *checker.Log
	t   testing.TB

	mu    sync.Mutex
	procs []*Proc
	names map[string]int
}

// New returns an empty cluster, which ends with the test. If the test fails, New's cleanup
// writes the log and the goroutine stacks of the nodes to the test's artifacts, and the end of
// the log to its output.
func New(t testing.TB) *Cluster {
	c := &Cluster{Log: checker.NewLog(), t: t, names: map[string]int{}}
	t.Cleanup(func() {
		for _, p := range c.processes() {
			if t.Failed() {
				p.dumpGoroutines()
			}
			p.terminate()
		}
		if t.Failed() {
			c.writeLog()
		}
	})
	return c
}

func (c *Cluster) processes() []*Proc {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.procs)
}

// launch returns the channel of the goroutine that starts all processes: it calls the functions
// that are sent to it. It stays on one thread, since Linux kills a child process when the
// thread that started it ends.
var launch = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start starts the process of a node. It does not wait until the node listens.
func (c *Cluster) Start(spec Spec) *Proc {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.names[spec.Name]
	c.names[spec.Name]++
	if n > 0 {
		spec.Name = fmt.Sprintf("%s+%d", spec.Name, n)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		c.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	p := &Proc{Name: spec.Name, Spec: spec, c: c, errs: &tail{}, done: make(chan struct{}), lastNumber: map[string]uint64{}}
	p.cmd = exec.Command(self)
	p.cmd.Env = append(append(os.Environ(), spec.Env...), EnvSpec+"="+string(text))
	p.cmd.Stderr = p.errs
	dieWithParent(p.cmd)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	started := make(chan error)
	launch() <- func() {
		if spec.In != nil {
			started <- spec.In(p.cmd.Start)
			return
		}
		started <- p.cmd.Start()
	}
	if err := <-started; err != nil {
		c.t.Fatalf("start %s: %v", p.Name, err)
	}
	c.procs = append(c.procs, p)
	go p.follow(stdout)
	return p
}

// Restart starts a process with the Spec of p. Its name is that of p with +1 or the next free
// number. It has the same identity only if the Spec names an identity file.
func (c *Cluster) Restart(p *Proc) *Proc {
	c.t.Helper()
	spec := p.Spec
	spec.Name, _, _ = strings.Cut(spec.Name, "+")
	return c.Start(spec)
}

// Kill kills all processes of the cluster at the same time, as kill -9 does, and waits until
// they have ended.
func (c *Cluster) Kill() {
	var wg sync.WaitGroup
	for _, p := range c.processes() {
		if !p.ended() {
			wg.Go(p.Kill)
		}
	}
	wg.Wait()
}

// Wait blocks until done returns true, and returns how long that took. It calls done
// again after every record. If done is still false after the given time, the test ends
// with a message that contains what and the state of all processes.
func (c *Cluster) Wait(within time.Duration, what string, done func(*checker.State) bool) time.Duration {
	c.t.Helper()
	return c.wait(within, func() string { return "wait for " + what }, done)
}

func (c *Cluster) wait(within time.Duration, what func() string, done func(*checker.State) bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.t.Context(), within)
	defer cancel()
	if err := c.Log.Wait(ctx, done); err != nil {
		c.t.Fatalf("%v after %v; %s\n%s", err, time.Since(began).Round(time.Millisecond), what(), c.Summary())
	}
	return time.Since(began)
}

// Never blocks for d. It ends the test as soon as happened returns true. what describes that
// state in the message.
func (c *Cluster) Never(d time.Duration, what string, happened func(*checker.State) bool) {
	c.t.Helper()
	if err := c.Log.Never(d, happened); err != nil {
		c.t.Fatalf("%s: %v\n%s", what, err, c.Summary())
	}
}

// Summary returns one line per process with its peers and its number of events.
func (c *Cluster) Summary() string {
	var b strings.Builder
	c.Log.Inspect(func(s *checker.State) {
		for _, p := range c.processes() {
			st := s.Proc(p.Name)
			var peers []string
			for id := range st.Peers {
				if q := s.ByID(id); q != nil {
					peers = append(peers, q.Name)
				}
			}
			slices.Sort(peers)
			heard := uint64(0)
			for _, n := range st.Heard {
				heard += n
			}
			fmt.Fprintf(&b, "  %-8s up=%v frozen=%v peers=%v heard=%d\n", p.Name, st.Up, st.Frozen, peers, heard)
		}
	})
	return b.String()
}

// Check applies the rules of package checker and fails the test for each violation. Before, it
// asks every running node for its peer list and waits until the log has settled. Output of a
// node on its standard error fails the test too, unless the node's Spec sets environment
// variables, which may turn logging on.
func (c *Cluster) Check(cfg checker.Config) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), checker.SettleWithin)
	defer cancel()
	found := c.Log.Check(ctx, cfg, func() {
		for _, p := range c.processes() {
			var ask bool
			c.Log.Inspect(func(s *checker.State) { st := s.Proc(p.Name); ask = st.Up && !st.Frozen })
			if ask {
				p.Ask(Command{Do: Peers})
			}
		}
	})
	for _, p := range c.processes() {
		if text := p.Stderr(); text != "" && len(p.Spec.Env) == 0 {
			c.t.Errorf("%s wrote to standard error: %s", p.Name, text)
		}
	}
	for _, v := range found {
		c.t.Errorf("%v", v)
	}
}

// writeLog writes the log of a failed test to its artifacts.
func (c *Cluster) writeLog() {
	var b strings.Builder
	for _, r := range c.Log.Records() {
		b.WriteString(r.String() + "\n")
	}
	log := b.String()
	for _, p := range c.processes() {
		if text := p.Stderr(); text != "" {
			fmt.Fprintf(&b, "standard error of %s:\n%s\n", p.Name, text)
		}
	}
	file := filepath.Join(c.t.ArtifactDir(), "cluster.log")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		c.t.Log(err)
	}
	lines := strings.Split(strings.TrimSpace(log), "\n")
	lines = slices.DeleteFunc(lines, func(s string) bool { return strings.Contains(s, string(checker.Received)) })
	if over := len(lines) - 80; over > 0 {
		lines = append([]string{fmt.Sprintf("[%d earlier lines; with -artifacts the whole log is in %s]", over, file)}, lines[over:]...)
	}
	c.t.Logf("the end of the log:\n%s", strings.Join(lines, "\n"))
}
