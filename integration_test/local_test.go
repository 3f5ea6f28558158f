package integration_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/program"
)

// soon is how long a test waits for what should take milliseconds. It is only
// used up by a failure, so it leaves room for a machine that is busy.
const soon = 60 * time.Second

// many is n, or less where everything is slow.
func many(n int) int { return n / slow }

// local is a network of nodes within the test's process. What their handlers
// are told goes to one log, as with a cluster of processes.
type local struct {
	t   testing.TB
	log *checker.Log

	mu    sync.Mutex
	names map[string]string // by id
	nodes []*smokesignal.Node
}

func newLocal(t testing.TB) *local {
	l := &local{t: t, log: checker.NewLog(), names: map[string]string{}}
	t.Cleanup(func() {
		var end string
		if t.Failed() {
			end = l.tail(80) // without what closing adds
		}
		l.closeAll()
		if t.Failed() {
			if end == "" {
				end = l.tail(80)
			}
			t.Logf("the end of the log:\n%s", end)
		}
	})
	return l
}

func (l *local) closeAll() {
	var wg sync.WaitGroup
	for _, n := range l.nodes {
		wg.Go(func() { n.Close() })
	}
	wg.Wait()
}

func (l *local) tail(n int) string {
	rs := l.log.Records()
	var lines []string
	for _, r := range rs[max(0, len(rs)-n):] {
		lines = append(lines, r.String())
	}
	return strings.Join(lines, "\n")
}

// create makes a node that is observed and not started. Its listen address is
// a free port of the loopback interface unless the spec says otherwise.
func (l *local) create(spec cluster.Spec, more ...smokesignal.Option) *smokesignal.Node {
	l.t.Helper()
	if spec.Listen == nil {
		spec.Listen = []string{"127.0.0.1:0"}
	}
	node, err := smokesignal.New(append(program.Options(spec), more...)...)
	if err != nil {
		l.t.Fatalf("New %s: %v", spec.Name, err)
	}
	program.Observe(node, spec.Name, l.log.Add)
	min, max := 3, 5
	if spec.Limits != nil {
		min, max = spec.Limits[0], spec.Limits[1]
	}
	l.mu.Lock()
	l.names[node.ID().String()] = spec.Name
	l.nodes = append(l.nodes, node)
	l.mu.Unlock()
	l.log.Add(checker.Record{Proc: spec.Name, Kind: checker.Started, Peer: node.ID().String(), Min: min, Max: max})
	return node
}

// start makes a node and starts it.
func (l *local) start(spec cluster.Spec, more ...smokesignal.Option) *smokesignal.Node {
	l.t.Helper()
	node := l.create(spec, more...)
	if err := node.Start(l.t.Context()); err != nil {
		l.t.Fatalf("Start %s: %v", spec.Name, err)
	}
	return node
}

// manual are the limits of a node that takes whom it is given, up to ten, and
// looks for nobody: with them a test lays the links itself.
var manual = &[2]int{0, 10}

// joins are those of one that is content with the first peer its seeds give it.
var joins = &[2]int{1, 10}

// pair is two linked nodes, a and b, and nothing else.
func pair(t *testing.T) (l *local, a, b *smokesignal.Node) {
	t.Helper()
	l = newLocal(t)
	a = l.start(cluster.Spec{Name: "a", Limits: manual})
	b = l.start(cluster.Spec{Name: "b", Limits: manual})
	l.link(a, b)
	return l, a, b
}

// addr is the first address of a node, with its id.
func addr(n *smokesignal.Node) string { return n.Addrs()[0].String() }

// link makes a add b, and waits until both have told their handlers.
func (l *local) link(a, b *smokesignal.Node) *smokesignal.Peer {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), soon)
	defer cancel()
	p, err := a.Connect(ctx, addr(b))
	if err != nil {
		l.t.Fatalf("%s adds %s: %v", l.name(a), l.name(b), err)
	}
	l.wait(soon, fmt.Sprintf("%s and %s have each other", l.name(a), l.name(b)), func(s *checker.State) bool {
		return s.Proc(l.name(a)).Has(b.ID().String()) && s.Proc(l.name(b)).Has(a.ID().String())
	})
	return p
}

func (l *local) name(n *smokesignal.Node) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.names[n.ID().String()]
}

// close closes a node and tells the checker.
func (l *local) close(n *smokesignal.Node) error {
	l.fault(n, checker.FaultClose)
	err := n.Close()
	l.log.Add(checker.Record{Proc: l.name(n), Kind: checker.Exited})
	return err
}

// fault tells the checker what the test did on purpose.
func (l *local) fault(n *smokesignal.Node, text string) {
	l.log.Add(checker.Record{Proc: l.name(n), Kind: checker.Fault, Text: text})
}

// wait blocks until done holds of the log and ends the test if it does not in
// time.
func (l *local) wait(within time.Duration, what string, done func(*checker.State) bool) time.Duration {
	l.t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	if err := l.log.Wait(ctx, done); err != nil {
		l.t.Fatalf("not within %v: %s", within, what)
	}
	return time.Since(began)
}

// never lets d pass and ends the test if happened holds meanwhile.
func (l *local) never(d time.Duration, what string, happened func(*checker.State) bool) {
	l.t.Helper()
	if err := l.log.Never(d, happened); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

// check applies the rules to all that happened, once what is happening has come to its
// end.
func (l *local) check(cfg checker.Config) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), checker.SettleWithin)
	defer cancel()
	for _, v := range l.log.Check(ctx, cfg, func() {}) {
		l.t.Errorf("%v", v)
	}
}

// story is what the handlers of a node were told, in short: "connect",
// "peer added b", "add b" ...
func (l *local) story(n *smokesignal.Node) []string {
	var story []string
	for _, r := range l.log.RecordsOf(l.name(n), checker.Connect, checker.Disconnect, checker.PeerAdded,
		checker.PeerRemoved, checker.ListAdd, checker.ListRemove, checker.PeerClose) {
		line := string(r.Kind)
		if r.Peer != "" {
			l.mu.Lock()
			line += " " + l.names[r.Peer]
			l.mu.Unlock()
		}
		story = append(story, line)
	}
	return story
}

// wantStory fails unless the handlers of the node were told exactly this so far.
func (l *local) wantStory(n *smokesignal.Node, want ...string) {
	l.t.Helper()
	if got := l.story(n); !slices.Equal(got, want) {
		l.t.Errorf("%s was told %q, want %q", l.name(n), got, want)
	}
}

// heard is one event that arrived.
type heard struct {
	From smokesignal.ID
	Name string
	Ev   *smokesignal.Event
	At   time.Time
}

// inbox gathers the events of one name. Methods may be used from any goroutine.
type inbox struct {
	t       *testing.T
	what    string
	mu      sync.Mutex
	got     []heard
	changed chan struct{}
}

// listen gathers the events of a name that come from a source, "*" for all.
func listen(t *testing.T, src smokesignal.Source, name string) *inbox {
	in := &inbox{t: t, what: name, changed: make(chan struct{})}
	src.On(name, func(_ context.Context, ev *smokesignal.Event) {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.got = append(in.got, heard{ev.From, ev.Name, ev, time.Now()})
		close(in.changed)
		in.changed = make(chan struct{})
	})
	return in
}

// wait blocks until n events have come and returns all there are.
func (in *inbox) wait(n int, within time.Duration) []heard {
	in.t.Helper()
	timeout := time.After(within)
	for {
		in.mu.Lock()
		got, changed := slices.Clone(in.got), in.changed
		in.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-changed:
		case <-timeout:
			in.t.Fatalf("%d of %d events %q within %v", len(got), n, in.what, within)
		}
	}
}

// count is how many have come so far.
func (in *inbox) count() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.got)
}

// numbers decodes the first argument of the events as a number.
func numbers(t *testing.T, got []heard) []int {
	t.Helper()
	ns := make([]int, len(got))
	for i, h := range got {
		if err := h.Ev.Decode(&ns[i]); err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

// upTo is 0, 1 ... n-1.
func upTo(n int) []int {
	ns := make([]int, n)
	for i := range ns {
		ns[i] = i
	}
	return ns
}

// wantNumbers fails unless exactly 0 to n-1 came, in order.
func wantNumbers(t *testing.T, who string, got []heard, n int) {
	t.Helper()
	if ns := numbers(t, got); !slices.Equal(ns, upTo(n)) {
		at := 0
		for at < len(ns) && at < n && ns[at] == at {
			at++
		}
		t.Errorf("%s got %d events of %d, the first wrong one at %d: %v", who, len(ns), n, at, ns[at:min(at+5, len(ns))])
	}
}

// emitNumbers emits 0 to n-1 under that name. Any goroutine may call it.
func emitNumbers(t *testing.T, to smokesignal.Emitter, name string, n int) {
	t.Helper()
	for i := range n {
		if err := to.Emit(t.Context(), name, i); err != nil {
			t.Errorf("emit %s %d: %v", name, i, err)
			return
		}
	}
}

// within bounds a call of the library; the test ends if it takes longer.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var nextPort atomic.Int32

// freePort returns a port of the loopback interface that is free for TCP and
// UDP, below the range from which the system takes ports by itself: a node that
// comes back finds its port as it left it.
func freePort(t testing.TB) int {
	t.Helper()
	nextPort.CompareAndSwap(0, 20000+int32(time.Now().UnixNano()%8000))
	for range 1000 {
		port := int(nextPort.Add(1))
		tcp, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		udp.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

func hostPort(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
