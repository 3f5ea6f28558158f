package integration_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

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

// local is a network of nodes in the process of the test. The calls of their handlers
// and callbacks go to one log, as with a cluster of processes.
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
			end = l.tail(80) // before Close adds lines of its own
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

// create makes a node whose callbacks are logged, and does not start it. The node listens
// on a free port of the loopback interface unless spec says otherwise.
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

// start makes a node as create does, and starts it.
func (l *local) start(spec cluster.Spec, more ...smokesignal.Option) *smokesignal.Node {
	l.t.Helper()
	node := l.create(spec, more...)
	if err := node.Start(l.t.Context()); err != nil {
		l.t.Fatalf("Start %s: %v", spec.Name, err)
	}
	return node
}

// manual are the limits of a node that accepts up to ten peers and never looks for any:
// with them, a test makes the links itself.
var manual = &[2]int{0, 10}

// joins are the limits of a node that looks for only one peer, at its seeds.
var joins = &[2]int{1, 10}

// pair starts two nodes, a and b, and links them.
func pair(t *testing.T) (l *local, a, b *smokesignal.Node) {
	t.Helper()
	l = newLocal(t)
	a = l.start(cluster.Spec{Name: "a", Limits: manual})
	b = l.start(cluster.Spec{Name: "b", Limits: manual})
	l.link(a, b)
	return l, a, b
}

// line starts n nodes, n0 and so on, and links each to the next.
func line(t testing.TB, n int, more ...smokesignal.Option) (*local, []*smokesignal.Node) {
	t.Helper()
	l := newLocal(t)
	var nodes []*smokesignal.Node
	for i := range n {
		nodes = append(nodes, l.start(cluster.Spec{Name: fmt.Sprint("n", i), Limits: manual}, more...))
		if i > 0 {
			l.link(nodes[i-1], nodes[i])
		}
	}
	return l, nodes
}

// unknownID returns the id of a node that does not exist.
func unknownID(t testing.TB) smokesignal.ID {
	t.Helper()
	_, pub, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// addr is the first address of a node, with its id.
func addr(n *smokesignal.Node) string { return n.Addrs()[0].String() }

// link connects a to b and waits until the callbacks of both have run.
func (l *local) link(a, b *smokesignal.Node) *smokesignal.Peer {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), soon)
	defer cancel()
	p, err := a.Connect(ctx, addr(b))
	if err != nil {
		l.t.Fatalf("%s connects to %s: %v", l.name(a), l.name(b), err)
	}
	l.wait(soon, fmt.Sprintf("%s and %s are linked", l.name(a), l.name(b)), func(s *checker.State) bool {
		return s.Proc(l.name(a)).Has(b.ID().String()) && s.Proc(l.name(b)).Has(a.ID().String())
	})
	return p
}

func (l *local) name(n *smokesignal.Node) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.names[n.ID().String()]
}

// close closes a node and logs that the test did so.
func (l *local) close(n *smokesignal.Node) error {
	l.fault(n, checker.FaultClose)
	err := n.Close()
	l.log.Add(checker.Record{Proc: l.name(n), Kind: checker.Exited})
	return err
}

// fault logs what the test did to a node, so that the checker expects its effects.
func (l *local) fault(n *smokesignal.Node, text string) {
	l.log.Add(checker.Record{Proc: l.name(n), Kind: checker.Fault, Text: text})
}

// wait blocks until done reports true, and returns how long that took. It ends the test
// if that takes longer than within.
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

// never waits for d and ends the test if happened reports true in that time.
func (l *local) never(d time.Duration, what string, happened func(*checker.State) bool) {
	l.t.Helper()
	if err := l.log.Never(d, happened); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

// check applies the rules of the checker to the whole log, once nothing changes any more.
func (l *local) check(cfg checker.Config) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), checker.SettleWithin)
	defer cancel()
	for _, v := range l.log.Check(ctx, cfg, func() {}) {
		l.t.Errorf("%v", v)
	}
}

// story lists the callbacks of a node that have run, in order: "connect", "peer added b",
// "add b" and so on.
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

// wantStory fails unless exactly these callbacks of the node have run, in this order.
func (l *local) wantStory(n *smokesignal.Node, want ...string) {
	l.t.Helper()
	if got := l.story(n); !slices.Equal(got, want) {
		l.t.Errorf("the callbacks of %s were %q, want %q", l.name(n), got, want)
	}
}

// heard is an event that arrived.
type heard struct {
	From smokesignal.ID
	Name string
	Ev   *smokesignal.Event
	At   time.Time
}

// inbox gathers the events of one name. Any goroutine may call its methods.
type inbox struct {
	t       *testing.T
	what    string
	mu      sync.Mutex
	got     []heard
	changed chan struct{}
}

// listen gathers the events of a source with this name, or all if the name is "*".
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

// wait blocks until n events have arrived, and returns all events so far.
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

// count returns the number of events that have arrived so far.
func (in *inbox) count() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.got)
}

// numbers returns the first argument of each event, a number.
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

// wantNumbers fails unless the numbers 0 to n-1 arrived, in order and nothing else.
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

// emitNumbers emits the numbers 0 to n-1 in events of that name. Any goroutine may call it.
func emitNumbers(t *testing.T, to smokesignal.Emitter, name string, n int) {
	t.Helper()
	for i := range n {
		if err := to.Emit(t.Context(), name, i); err != nil {
			t.Errorf("emit %s %d: %v", name, i, err)
			return
		}
	}
}

// next receives a value from c. It ends the test if none arrives in time.
func next[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(soon):
		t.Fatalf("no %T within %v", *new(T), soon)
		panic("unreachable")
	}
}

// within returns a context that ends after d, to bound a call of the library.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func hostPort(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
