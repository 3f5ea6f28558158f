package cluster

import (
	"bufio"
	"encoding/json"
	"io"
	"os/exec"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// maxLine is the largest size in bytes of one record on a node's standard output.
const maxLine = 4 << 20

// A Proc is the process of one node. Its methods may be called from several
// goroutines. A method that fails ends the test.
type Proc struct {
	Name string // in the cluster and in its log
	Spec Spec
	c    *Cluster
	cmd  *exec.Cmd
	errs *tail         // standard error
	done chan struct{} // closed once the process has ended and all its records are in the log

	mu         sync.Mutex
	stdin      io.WriteCloser
	no         int
	lastNumber map[string]uint64 // by channel and receiver, the last number that an event of this node was given
}

// follow copies the records of the process into the log until the process ends.
func (p *Proc) follow(stdout io.Reader) {
	defer close(p.done)
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var r checker.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			p.errs.Write([]byte("not a record on standard output: " + lines.Text() + "\n"))
			continue
		}
		r.Proc = p.Name
		p.c.Log.Add(r)
	}
	io.Copy(io.Discard, stdout) // a line above maxLine must not block the node
	p.cmd.Wait()
	p.c.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Exited, Text: p.cmd.ProcessState.String()})
}

// PID returns the process id.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// started waits until the node listens, and returns its Started record.
func (p *Proc) started() checker.Record {
	p.c.t.Helper()
	p.c.wait(30*time.Second, func() string { return p.Name + " does not start: " + p.errs.String() }, func(s *checker.State) bool {
		return s.Proc(p.Name).ID != "" || p.ended()
	})
	rs := p.c.Log.RecordsOf(p.Name, checker.Started)
	if len(rs) == 0 {
		p.c.t.Fatalf("%s ended before it had started: %s", p.Name, p.errs)
	}
	return rs[0]
}

// ID waits until the node listens, and returns its peer id.
func (p *Proc) ID() string { p.c.t.Helper(); return p.started().Peer }

// Addr waits until the node listens, and returns its first address, which ends in its peer id.
func (p *Proc) Addr() string {
	p.c.t.Helper()
	r := p.started()
	if len(r.Addrs) == 0 {
		p.c.t.Fatalf("%s has no address", p.Name)
	}
	return r.Addrs[0]
}

// ended reports whether the process has ended.
func (p *Proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Send sends a command and returns its number. It does not wait for the answer.
func (p *Proc) Send(cmd Command) int {
	p.c.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.no++
	cmd.No = p.no
	if cmd.Do == Emit || cmd.Do == Direct {
		cmd.Seq = p.assignNumbers(cmd)
	}
	line, err := json.Marshal(cmd)
	if err != nil {
		p.c.t.Fatal(err)
	}
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		p.c.t.Fatalf("send %[2]s to %[1]s: %[3]v; %[4]s", p.Name, cmd.Do, err, p.errs)
	}
	return cmd.No
}

// assignNumbers returns the first number for the events of a command, and adds the
// command to the log. The checker reports events with other numbers as invented.
func (p *Proc) assignNumbers(cmd Command) uint64 {
	channel := checker.Broadcast
	if cmd.Do == Direct {
		channel = checker.Direct
	}
	key := channel + cmd.To
	first := p.lastNumber[key] + 1
	p.lastNumber[key] += uint64(cmd.Count)
	p.c.Log.Add(checker.Record{
		Proc: p.Name, Kind: checker.Commanded, Peer: cmd.To, Channel: channel, Name: cmd.Name, Seq: first, To: p.lastNumber[key],
	})
	return first
}

// Answer waits, at most for the time within, for the node's answer to the command with number
// no, and returns it.
func (p *Proc) Answer(no int, within time.Duration) checker.Record {
	p.c.t.Helper()
	var answer checker.Record
	p.c.wait(within, func() string { return p.Name + " does not answer: " + p.errs.String() }, func(s *checker.State) bool {
		r, ok := s.Answered(p.Name, no)
		answer = r
		return ok || p.ended()
	})
	if answer.Cmd != no {
		p.c.t.Fatalf("%s ended without an answer: %s", p.Name, p.errs)
	}
	return answer
}

// Ask sends a command and returns its answer. It waits for the answer at most one minute.
func (p *Proc) Ask(cmd Command) checker.Record {
	p.c.t.Helper()
	return p.Answer(p.Send(cmd), time.Minute)
}

// Broadcast makes the node broadcast count events of that name, of size bytes each. It returns
// the number of the command, for Answer.
func (p *Proc) Broadcast(name string, count, size int) int {
	p.c.t.Helper()
	return p.Send(Command{Do: Emit, Name: name, Count: count, Size: size})
}

// Direct makes the node send count direct events of that name, of size bytes each, to another
// node. It returns the number of the command, for Answer.
func (p *Proc) Direct(to *Proc, name string, count, size int) int {
	p.c.t.Helper()
	return p.Send(Command{Do: Direct, To: to.ID(), Name: name, Count: count, Size: size})
}

// Kill kills the process, as kill -9 does, and waits until it has ended.
func (p *Proc) Kill() {
	p.c.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Fault, Text: checker.FaultKill})
	p.terminate()
}

// terminate kills the process by its id and waits for it.
func (p *Proc) terminate() {
	p.cmd.Process.Kill() // has no effect if the process has ended already
	<-p.done
}

// Close makes the node close, waits until its process has ended, and returns the
// node's answer.
func (p *Proc) Close() checker.Record {
	p.c.t.Helper()
	p.c.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Fault, Text: checker.FaultClose})
	answer := p.Ask(Command{Do: Close})
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.c.t.Fatalf("%s has closed its node, but its process does not end", p.Name)
	}
	return answer
}

// CloseInput closes the standard input of the process, as happens when the test dies.
// The process then ends by itself.
func (p *Proc) CloseInput() {
	p.c.Log.Add(checker.Record{Proc: p.Name, Kind: checker.Fault, Text: checker.FaultClose})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stdin.Close()
}

// Done returns a channel that is closed once the process has ended and all its records
// are in the log.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Stderr returns the output of the process on its standard error. Of long output, it
// returns the beginning and the end.
func (p *Proc) Stderr() string { return p.errs.String() }

// A tail is a writer that keeps the first and the last tailSize bytes.
type tail struct {
	mu          sync.Mutex
	first, last []byte
}

const tailSize = 128 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rest := b
	if room := tailSize - len(t.first); room > 0 {
		n := min(room, len(rest))
		t.first, rest = append(t.first, rest[:n]...), rest[n:]
	}
	t.last = append(t.last, rest...)
	if over := len(t.last) - tailSize; over > 0 {
		t.last = append([]byte(nil), t.last[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.last) == 0 {
		return string(t.first)
	}
	return string(t.first) + "\n[...]\n" + string(t.last)
}
