package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/outputtest"
)

// patient bounds what a loaded machine may take.
const patient = 60 * time.Second

// said is what the programs say on standard error.
var said outputtest.Printed

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(&said, nil)))
	os.Exit(hosttest.Main(m))
}

// program is a run of the example, with its two ends and the wire it is reached through.
type program struct {
	t    *testing.T
	name string
	wire *wire
	in   io.Writer
	out  <-chan string // its lines
}

// start runs the example on the loopback interface, where it is reached through a wire
// alone. It ends with the test.
func start(t *testing.T, name string, opts ...smokesignal.Option) *program {
	t.Helper()
	for range 10 {
		if p := launch(t, name, opts); p != nil {
			return p
		}
	}
	t.Fatal("no port is free")
	return nil
}

// launch returns nil if another program has just bound the port.
func launch(t *testing.T, name string, opts []smokesignal.Option) *program {
	t.Helper()
	port := 20000 + rand.IntN(10000) // none that the system gives away by itself
	w := newWire(t, port)
	opts = append(opts[:len(opts):len(opts)], smokesignal.Listen(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)), smokesignal.Advertise(w.addr()))
	fromTest, in := io.Pipe()
	toTest, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	ended, lines := make(chan error, 1), make(chan string)
	go func() {
		ended <- run(ctx, bufio.NewScanner(fromTest), log.New(out, "", 0), opts...)
		close(ended)
	}()
	go func() {
		for s := bufio.NewScanner(toTest); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		in.Close()
		toTest.Close()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s ended with %v", name, err)
			}
		case <-time.After(patient):
			t.Errorf("%s does not end", name)
		}
	})
	p := &program{t, name, w, in, lines}
	for end := time.Now().Add(patient); !strings.Contains(p.ask("help"), "smoke1"); { // a ticket, once it listens
		select {
		case err := <-ended:
			if !strings.Contains(fmt.Sprint(err), "address already in use") {
				t.Fatalf("%s ended with %v", name, err)
			}
			return nil
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not say where others can join", name)
		}
	}
	return p
}

// sendCommands returns when the program has obeyed commands that it does not answer.
func (p *program) sendCommands(commands ...string) {
	p.t.Helper()
	p.ask(strings.Join(commands, "\n") + "\nget nothing")
}

// ask returns the line with which the program answers the command.
func (p *program) ask(command string) string {
	p.t.Helper()
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		p.t.Fatalf("ask %s to %s: %v", p.name, command, err)
	}
	select {
	case line := <-p.out:
		return line
	case <-time.After(patient):
		p.t.Fatalf("%s does not answer %q", p.name, command)
		return ""
	}
}

// want asks until the answer is as wanted.
func (p *program) want(command, answer string) {
	p.t.Helper()
	for end := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		got := p.ask(command)
		if got == answer {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s answers %q with %q, want %q", p.name, command, got, answer)
		}
	}
}

// cut cuts the programs from each other, and returns when they have noticed: when somebody
// tries to come back through each wire. The wires pass nothing until they are mended.
func cut(programs ...*program) {
	for _, p := range programs {
		p.wire.refuse(true)
	}
	for _, p := range programs {
		p.wire.cut()
	}
	for _, p := range programs {
		select {
		case <-p.wire.refused:
		case <-time.After(patient):
			p.t.Fatalf("nobody tries to come back to %s", p.name)
		}
	}
}

func mend(programs ...*program) {
	for _, p := range programs {
		p.wire.refuse(false)
	}
}

// TestThreeNodes: all write while they are cut from each other, the same keys too. When they
// are linked again all have the same, and so has a node that starts later.
func TestThreeNodes(t *testing.T) {
	for _, tc := range []struct {
		name string
		keep smokesignal.Option
	}{
		{"the cut is shorter than KeepFor", smokesignal.KeepFor(time.Minute)},
		{"the cut is longer than KeepFor", smokesignal.KeepFor(0)}, // nothing is kept
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := start(t, "a", tc.keep)
			b := start(t, "b", tc.keep, smokesignal.Seeds(a.wire.addr()))
			c := start(t, "c", tc.keep, smokesignal.Seeds(a.wire.addr()))
			all := []*program{a, b, c}
			for _, p := range all {
				p.sendCommands("set "+p.name+" is here", "set shared by "+p.name)
			}
			a.sendCommands("set old value")
			for _, p := range all {
				p.want("list", "map[a:is here b:is here c:is here old:value shared:by c]")
			}

			cut(all...)
			a.sendCommands("set a is alone", "set shared a", "del old")
			b.sendCommands("set b is alone", "set shared b", "set new b's")
			c.sendCommands("set c is alone", "set shared c", "del c")
			for p, want := range map[*program]string{
				a: "map[a:is alone b:is here c:is here shared:a]",
				b: "map[a:is here b:is alone c:is here new:b's old:value shared:b]",
				c: "map[a:is here b:is here old:value shared:c]",
			} {
				if got := p.ask("list"); got != want {
					t.Errorf("%s, cut off, has %s, want %s", p.name, got, want)
				}
			}

			mend(all...)
			began := time.Now()
			const healed = "map[a:is alone b:is alone new:b's shared:c]"
			for _, p := range all {
				p.want("list", healed)
			}
			t.Logf("the same content %v after the cut was mended", time.Since(began).Round(time.Millisecond))

			d := start(t, "d", tc.keep, smokesignal.Seeds(b.wire.addr()))
			d.want("list", healed)
			d.sendCommands("set a is known to d", "del b")
			for _, p := range append(all, d) {
				p.want("list", "map[a:is known to d new:b's shared:c]")
			}
		})
	}
}

// TestFarAway: a node whose own links were never cut also gets the writes that it missed.
func TestFarAway(t *testing.T) {
	t.Parallel()
	// a - b - c; b is reached by c through a wire of its own, a by nobody.
	forget, one := smokesignal.KeepFor(0), smokesignal.PeerLimits(1, 1)
	b := start(t, "b", forget)
	toB := newWire(t, b.wire.port)
	a := start(t, "a", forget, one, smokesignal.Seeds(b.wire.addr()))
	a.wire.refuse(true)
	b.sendCommands("set b 1")
	a.want("list", "map[b:1]")
	b.wire.refuse(true)
	c := start(t, "c", forget, one, smokesignal.Seeds(toB.addr()))
	c.want("list", "map[b:1]")
	c.wire.refuse(true)

	toB.refuse(true)
	toB.cut()
	c.sendCommands("set c 1")
	a.sendCommands("set a 1")
	b.want("list", "map[a:1 b:1]")
	if got := c.ask("list"); got != "map[b:1 c:1]" {
		t.Errorf("c, cut off, has %s", got)
	}
	toB.refuse(false)
	for _, p := range []*program{a, b, c} {
		p.want("list", "map[a:1 b:1 c:1]")
	}
}

// TestWriteBeforeAnybodyIsThere: what could not be broadcast is not lost.
func TestWriteBeforeAnybodyIsThere(t *testing.T) {
	t.Parallel()
	a := start(t, "a")
	a.sendCommands("set early bird")
	a.want("get early", "bird")
	b := start(t, "b", smokesignal.Seeds(a.wire.addr()))
	b.want("get early", "bird")
}

// Each command of the map gives its answer.
func TestCommands(t *testing.T) {
	t.Parallel()
	p := start(t, "a")
	p.sendCommands("set k a value  of words", "set gone 1", "del gone", "set bad \xff")
	for command, want := range map[string]string{
		"get k": "a value  of words", "get gone": "", "get none": "",
		"list": "map[bad:? k:a value  of words]",
	} {
		if got := p.ask(command); got != want {
			t.Errorf("%s: got %q, want %q", command, got, want)
		}
	}
	if help := p.ask("help"); !strings.HasPrefix(help, "set KEY VALUE, get KEY, del KEY or list; others join with: map smoke1") {
		t.Errorf("help is %q", help)
	}
}

// TestTooLarge: a map that does not fit into an answer is not so in silence.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	a := start(t, "a")
	for i := range smokesignal.DefaultMaxEventSize>>15 + 1 {
		a.sendCommands(fmt.Sprintf("set %d %s", i, strings.Repeat("x", 1<<15)))
	}
	start(t, "b", smokesignal.Seeds(a.wire.addr()))
	const want = `msg="a call's results cannot be sent"`
	said.WaitText(t, want)
}

// TestMergeInAnyOrder: whatever comes first, twice, or together, the result is the same.
func TestMergeInAnyOrder(t *testing.T) {
	t.Parallel()
	writes := []map[string]entry{
		{"k": {"1", 1}}, {"k": {"2", 2}}, {"k": {"", 3}}, {"gone": {"x", 5}}, {"gone": {"", 6}},
		{"tie": {"a", 4}, "k": {"1", 1}}, {"tie": {"b", 4}}, {"tie": {"", 4}},
	}
	want := map[string]entry{"k": {"", 3}, "gone": {"", 6}, "tie": {"b", 4}}
	for range 200 {
		r := &replica{entries: map[string]entry{}}
		for range 2 {
			for _, i := range rand.Perm(len(writes)) {
				r.merge(t.Context(), "", writes[i])
			}
		}
		if !maps.Equal(r.entries, want) {
			t.Fatalf("got %v, want %v", r.entries, want)
		}
	}
}

// TestSlowClock: a node that has seen a write can replace it, even if the write has a later time.
func TestSlowClock(t *testing.T) {
	t.Parallel()
	a := start(t, "a")
	fast, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Network("map"), smokesignal.Seeds(a.wire.addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Close()
	heard := make(chan map[string]entry, 1)
	written.On(fast.Broadcast(), func(_ context.Context, _ smokesignal.ID, news map[string]entry) { heard <- news })
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if err := errors.Join(fast.Start(ctx), fast.Ready(ctx)); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour).UnixNano()
	if err := written.Emit(ctx, fast.Broadcast(), map[string]entry{"k": {"future", later}}); err != nil {
		t.Fatal(err)
	}
	a.want("get k", "future")
	a.sendCommands("set k present")
	a.want("get k", "present")
	select {
	case news := <-heard:
		if got := news["k"]; got.Value != "present" || got.Time <= later {
			t.Errorf("heard %+v, want a write after %d", got, later)
		}
	case <-ctx.Done():
		t.Error("the write was not broadcast")
	}
}

// TestEightyLines: as the README of the examples says.
func TestEightyLines(t *testing.T) {
	text, err := os.ReadFile("map.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && !bytes.HasPrefix(line, []byte("//")) {
			n++
		}
	}
	if n > 80 {
		t.Errorf("map.go has %d lines of Go", n)
	}
}

// wire passes TCP connections on to a port of the loopback interface, until it is cut.
type wire struct {
	port     int // it leads to
	listener net.Listener
	refused  chan struct{} // has one element when a connection was refused

	mu       sync.Mutex
	refusing bool
	conns    map[net.Conn]bool
}

func newWire(t *testing.T, port int) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{port: port, listener: l, refused: make(chan struct{}, 1), conns: map[net.Conn]bool{}}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() { w.pass(near) })
		}
	})
	t.Cleanup(func() {
		w.refuse(true)
		l.Close()
		w.cut()
		tasks.Wait()
	})
	return w
}

func (w *wire) addr() string { return w.listener.Addr().String() }

// refuse says whether new connections are closed at once.
func (w *wire) refuse(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusing = yes
}

// cut closes the connections that stand.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.Close()
	}
}

// pass copies between the two ends of a connection until one is closed.
func (w *wire) pass(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.port))
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	if w.refusing {
		w.mu.Unlock()
		select {
		case w.refused <- struct{}{}:
		default:
		}
		return
	}
	w.conns[near], w.conns[far] = true, true
	w.mu.Unlock()
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{near: far, far: near} {
		both.Go(func() {
			io.Copy(to, from)
			near.Close()
			far.Close()
		})
	}
	both.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, near)
	delete(w.conns, far)
}
