package cluster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// TestMain lets this binary act as a node that answers every command without using
// smokesignal, so that the kit is tested by itself.
func TestMain(m *testing.M) {
	if spec, ok, err := SpecFromEnv(); ok {
		standIn(spec, err)
		return
	}
	os.Exit(m.Run())
}

func standIn(spec Spec, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := json.NewEncoder(os.Stdout)
	report := func(r checker.Record) {
		r.At = time.Now().UnixNano()
		out.Encode(r)
	}
	report(checker.Record{Kind: checker.Started, Peer: "id-of-" + spec.Name, Addrs: []string{"nowhere"}})
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var cmd Command
		if json.Unmarshal(in.Bytes(), &cmd) != nil {
			continue
		}
		if cmd.Do == Emit {
			for i := range uint64(cmd.Count) {
				report(checker.Record{Kind: checker.Sent, Channel: checker.Broadcast, Name: cmd.Name, Seq: cmd.Seq + i})
			}
		}
		if cmd.Do == Flush {
			fmt.Fprintln(os.Stderr, "unexpected output")
		}
		report(checker.Record{Kind: checker.Answer, Cmd: cmd.No, Text: string(cmd.Do)})
		if cmd.Do == Close {
			return
		}
	}
}

// A process answers each command.
func TestCommandsAreAnswered(t *testing.T) {
	c := New(t)
	a, b := c.Start(Spec{Name: "a"}), c.Start(Spec{Name: "b"})
	if a.ID() != "id-of-a" || b.ID() != "id-of-b" || a.Addr() != "nowhere" {
		t.Fatalf("ids %q and %q, address %q", a.ID(), b.ID(), a.Addr())
	}
	if got := a.Ask(Command{Do: Ready}); got.Text != "ready" {
		t.Errorf("answer %v", got)
	}
	a.Answer(a.Broadcast("x", 1000, 10), 10*time.Second)
	a.Answer(a.Broadcast("x", 1000, 10), 10*time.Second)
	if rs := c.Log.RecordsOf("a", checker.Sent); len(rs) != 2 || rs[0].To != 1000 || rs[1].Seq != 1001 || rs[1].To != 2000 {
		t.Errorf("two commands of 1000 events are recorded as %v, want one record each", rs)
	}
	if rs := c.Log.RecordsOf("a", checker.Commanded); len(rs) != 2 || rs[1].Seq != 1001 || rs[1].To != 2000 {
		t.Errorf("commanded %v, want 1 to 1000 and 1001 to 2000", rs)
	}
}

// A stopped process goes on when it is continued.
func TestStopAndContinue(t *testing.T) {
	c := New(t)
	a := c.Start(Spec{Name: "a"})
	a.ID()
	a.Stop()
	no := a.Send(Command{Do: Ready})
	if err := c.Log.Never(100*time.Millisecond, func(s *checker.State) bool { _, ok := s.Answered("a", no); return ok }); err != nil {
		t.Error("a frozen process answered:", err)
	}
	a.Continue()
	a.Answer(no, 10*time.Second)
}

// A killed process can be started again.
func TestKillAndRestart(t *testing.T) {
	c := New(t)
	a := c.Start(Spec{Name: "a"})
	a.ID()
	a.Stop() // Kill must work on a frozen process too
	a.Kill()
	c.Log.Inspect(func(s *checker.State) {
		if s.Proc("a").Up {
			t.Error("still up after Kill")
		}
	})
	again := c.Restart(c.Restart(a))
	if again.Name != "a+2" || again.ID() != "id-of-a+2" {
		t.Errorf("restarted as %s with %s", again.Name, again.ID())
	}
	if answer := again.Close(); answer.Text != "close" {
		t.Errorf("answer %v", answer)
	}
	third := c.Restart(again)
	third.ID()
	third.CloseInput()
	select {
	case <-third.Done():
	case <-time.After(10 * time.Second):
		t.Error("a process does not end when its input closes")
	}
}

// After a test all its processes have ended, also frozen ones.
func TestNoProcessIsLeft(t *testing.T) {
	var pids []int
	t.Run("a test that cleans nothing up", func(t *testing.T) {
		c := New(t)
		for i := range 4 {
			p := c.Start(Spec{Name: "n" + strconv.Itoa(i)})
			p.ID()
			pids = append(pids, p.PID())
		}
		c.processes()[2].Stop()
	})
	for _, pid := range pids {
		state, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err == nil && strings.Contains(string(state), filepath.Base(os.Args[0])) {
			t.Errorf("process %d is still there", pid)
		}
	}
}

// Output on the standard error of a node fails Check.
func TestCheckReportsStandardError(t *testing.T) {
	rec := &recorder{TB: t}
	c := New(rec)
	a := c.Start(Spec{Name: "a"})
	a.Ask(Command{Do: Ready})
	c.Check(checker.Config{})
	if len(rec.errors) > 0 {
		t.Fatalf("a quiet run fails: %v", rec.errors)
	}
	a.Ask(Command{Do: Flush})
	a.Close() // waits until all its output has been read
	c.Check(checker.Config{})
	if len(rec.errors) != 1 || !strings.Contains(rec.errors[0], "unexpected output") {
		t.Errorf("errors %q", rec.errors)
	}
}

// A recorder collects the errors of a test instead of failing it.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
