package integration_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// The semantics tests take the rows of the original's behaviour one by one, as
// far as they still hold, and look at both sides of the link. docs/coverage.md
// names the subtests.

// TestOptions: the options of createNode, and localIp.
func TestOptions(t *testing.T) {
	t.Parallel()
	t.Run("address: the port in use is an error that names it", func(t *testing.T) {
		busy, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer busy.Close()
		l := newLocal(t)
		a := l.create(cluster.Spec{Name: "a", Listen: []string{busy.Addr().String()}})
		_, port, _ := net.SplitHostPort(busy.Addr().String())
		if err := a.Start(t.Context()); err == nil || !strings.Contains(err.Error(), port) {
			t.Fatalf("Start on a port in use returned %v", err)
		}
		busy.Close()
		if err := a.Start(t.Context()); err != nil { // Start that failed can be tried again
			t.Errorf("Start once the port is free: %v", err)
		}
	})
	t.Run("port: the default is a free one", func(t *testing.T) {
		// Listen without a port to choose: loopback, so that nothing else is bound.
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Listen: []string{"127.0.0.1:0"}})
		b := l.start(cluster.Spec{Name: "b", Listen: []string{"127.0.0.1:0"}, Seeds: []string{addr(a)}})
		l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
		tcp, quic := false, false
		for _, m := range b.Addrs() {
			tcp = tcp || strings.Contains(m.String(), "/tcp/")
			quic = quic || strings.Contains(m.String(), "/quic-v1")
		}
		if !tcp || !quic {
			t.Errorf("addresses %v, want TCP and QUIC", b.Addrs())
		}
	})
	t.Run("minPeerNo: a node below it gathers more by itself", func(t *testing.T) {
		l := newLocal(t)
		// A star first: everybody knows the hub alone.
		hub := l.start(cluster.Spec{Name: "hub", Limits: &[2]int{0, 10}})
		for i := range 4 {
			l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Seeds: []string{addr(hub)}})
		}
		took := l.wait(gatherWithin, "everybody has three", func(s *checker.State) bool { return s.Gathered(5) })
		t.Logf("three peers each after %v", took.Round(time.Millisecond))
		for _, n := range l.nodes {
			if !n.Peers().Sufficient() {
				t.Errorf("%s: Sufficient is false with %d peers", l.name(n), n.Peers().Len())
			}
		}
		l.check(checker.Config{Whole: true})
	})
	t.Run("minPeerNo: zero never asks", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		c := l.start(cluster.Spec{Name: "c", Limits: manual})
		l.link(a, b)
		l.link(b, c)
		l.never(2*time.Second, "a node without a minimum looked for peers", func(s *checker.State) bool { return len(s.Proc("a").Peers) > 1 || len(s.Proc("c").Peers) > 1 })
		if !a.Peers().Sufficient() {
			t.Error("Sufficient is false without a minimum")
		}
	})
	t.Run("maxPeerNo: a cap for those who come and for those one adds", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: &[2]int{0, 2}})
		var others []*smokesignal.Node
		for i := range 4 {
			n := l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual})
			if i > 1 { // not alone, so not taken in beyond the maximum
				l.link(n, others[0])
			}
			others = append(others, n)
		}
		l.link(a, others[0])
		l.link(others[1], a)
		if _, err := a.Connect(within(t, soon), addr(others[2])); !errors.Is(err, smokesignal.ErrFull) {
			t.Errorf("a full node added a peer: %v", err)
		}
		if _, err := others[3].Connect(within(t, soon), addr(a)); !errors.Is(err, smokesignal.ErrFull) {
			t.Errorf("a full node was added: %v", err)
		}
		if a.Peers().Len() != 2 || !a.Peers().Full() {
			t.Errorf("%d peers, Full=%v; want 2, true", a.Peers().Len(), a.Peers().Full())
		}
	})
	t.Run("maxPeerNo: Unlimited takes all", func(t *testing.T) {
		l := newLocal(t)
		hub := l.start(cluster.Spec{Name: "hub", Limits: &[2]int{0, smokesignal.Unlimited}})
		for i := range 8 {
			l.link(l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: manual}), hub)
		}
		if hub.Peers().Len() != 8 || hub.Peers().Full() {
			t.Errorf("%d peers, Full=%v; want 8, false", hub.Peers().Len(), hub.Peers().Full())
		}
	})
	t.Run("seeds: without any a node waits", func(t *testing.T) {
		a := newLocal(t).start(cluster.Spec{Name: "a"})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := a.Ready(ctx)
		if !errors.Is(err, smokesignal.ErrNotConnected) || !strings.Contains(err.Error(), "seed") {
			t.Errorf("Ready of a node without seeds: %v", err)
		}
	})
	t.Run("seeds: each way to write one joins", func(t *testing.T) {
		l := newLocal(t)
		port := freePort(t)
		seed := l.start(cluster.Spec{Name: "seed", Listen: []string{hostPort(port)}, Limits: &[2]int{0, smokesignal.Unlimited}})
		for i, text := range []string{
			hostPort(port),
			fmt.Sprintf("localhost:%d", port),
			fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port),
			fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port),
			fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", port, seed.ID()),
			fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1/p2p/%s", port, seed.ID()),
		} {
			name := fmt.Sprintf("n%d", i)
			n := l.start(cluster.Spec{Name: name, Limits: joins, Seeds: []string{text}})
			l.wait(soon, text+" joins", func(s *checker.State) bool {
				return s.Proc(name).Has(seed.ID().String()) && s.Proc("seed").Has(n.ID().String())
			})
			if st := n.Seeds(); len(st) != 1 || st[0].Seed != text || st[0].ID != seed.ID() || !st[0].Linked || st[0].Err != nil {
				t.Errorf("the state of seed %s is %+v", text, st)
			}
		}
	})
	t.Run("seeds: a node without a minimum joins through them too", func(t *testing.T) {
		l := newLocal(t)
		seed := l.start(cluster.Spec{Name: "seed", Limits: manual})
		l.start(cluster.Spec{Name: "n", Limits: manual, Seeds: []string{addr(seed)}})
		l.wait(5*slow*time.Second, "joined", func(s *checker.State) bool { return s.Gathered(2) })
	})
	t.Run("seeds: one that answers is enough", func(t *testing.T) {
		l := newLocal(t)
		seed := l.start(cluster.Spec{Name: "seed"})
		n := l.start(cluster.Spec{Name: "n", Seeds: []string{hostPort(freePort(t)), "no-such-host.invalid:1", addr(seed)}})
		if err := n.Ready(within(t, soon)); err != nil {
			t.Errorf("Ready: %v", err)
		}
		l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	})
	t.Run("logger: it gets what the node logs", func(t *testing.T) {
		l := newLocal(t)
		var log logSink
		a := l.start(cluster.Spec{Name: "a", Limits: manual}, smokesignal.Logger(&log))
		l.link(a, l.start(cluster.Spec{Name: "b", Limits: manual}))
		if text := log.String(); !strings.Contains(text, "linked") {
			t.Errorf("the log of a node that linked is %q", text)
		}
	})
	t.Run("localIp: the first address in the subnet", func(t *testing.T) {
		for _, subnet := range []string{"127.0.0.1/255.0.0.0", "127.0.0.1/8", "127.8.9.10/255.0.0.0"} {
			if ip, err := smokesignal.LocalIP(subnet); err != nil || ip.String() != "127.0.0.1" {
				t.Errorf("LocalIP(%q) returned %v, %v", subnet, ip, err)
			}
		}
		// Nothing is sent there: the documentation range is on no machine.
		_, err := smokesignal.LocalIP("203.0.113.0/24")
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("the error for a subnet without an address does not list what there is: %v", err)
		}
	})
	t.Run("localIp: Subnet binds that address alone", func(t *testing.T) {
		l := newLocal(t)
		a := l.create(cluster.Spec{Name: "a", Listen: []string{":0"}}, smokesignal.Subnet("127.0.0.0/8"))
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, m := range append(a.Host().Network().ListenAddresses(), a.Addrs()...) {
			if !strings.HasPrefix(m.String(), "/ip4/127.0.0.1/") {
				t.Errorf("bound or advertised %s", m)
			}
		}
	})
	t.Run("network: nodes of another name do not link", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual, Network: "one"})
		b := l.start(cluster.Spec{Name: "b", Limits: joins, Network: "two", Seeds: []string{addr(a)}})
		_, err := b.Connect(within(t, soon), addr(a))
		if !errors.Is(err, smokesignal.ErrOtherNetwork) || !strings.Contains(err.Error(), "one") {
			t.Errorf("Connect of a node of network one returned %v", err)
		}
		l.wait(soon, "a seed error that says so", func(s *checker.State) bool { return s.Proc("b").Counts[checker.SeedError] > 0 })
		if r := l.log.RecordsOf("b", checker.SeedError)[0]; r.Code != "ErrOtherNetwork" {
			t.Errorf("the seed error is %v", r)
		}
		l.wantStory(a)
		l.wantStory(b)
	})
	t.Run("identity: a file keeps the id, none gives a new one each time", func(t *testing.T) {
		l := newLocal(t)
		file := filepath.Join(t.TempDir(), "key")
		first := l.start(cluster.Spec{Name: "first", Identity: file})
		id := first.ID()
		if _, err := smokesignal.New(smokesignal.IdentityFile(file)); err == nil {
			t.Error("two nodes at once with one identity file")
		}
		l.close(first)
		if second := l.start(cluster.Spec{Name: "second", Identity: file}); second.ID() != id {
			t.Errorf("id %s, then %s", id, second.ID())
		}
		if x, y := l.create(cluster.Spec{Name: "x"}), l.create(cluster.Spec{Name: "y"}); x.ID() == y.ID() {
			t.Error("two nodes have the same id")
		}
	})
}

// TestTimers: what the original did after a time, and what is bounded now.
func TestTimers(t *testing.T) {
	t.Parallel()
	t.Run("a connection without a handshake is not a peer, and its stream ends", func(t *testing.T) {
		t.Parallel()
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		stranger := rawHost(t)
		connect(t, stranger, a)
		const atMost = 12 * time.Second
		lived := say(t, stranger, a.ID(), protocol.Overlay, []byte{0x7f}, atMost) // the beginning of a frame
		t.Logf("the stream lived %v", lived.Round(time.Millisecond))
		if lived >= atMost {
			t.Errorf("a stream that never says anything lives for more than %v", atMost)
		}
		l.wantStory(a)
	})
	t.Run("a node whose seed comes later joins then", func(t *testing.T) {
		t.Parallel()
		l := newLocal(t)
		at := hostPort(freePort(t))
		a := l.start(cluster.Spec{Name: "a", Seeds: []string{at}})
		l.wait(soon, "the seed error", func(s *checker.State) bool { return s.Proc("a").Counts[checker.SeedError] > 0 })
		if r := l.log.RecordsOf("a", checker.SeedError)[0]; r.Code != "ErrUnreachable" || r.Seed != at {
			t.Errorf("the seed error is %v", r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := a.Ready(ctx); err == nil || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Ready while the seed is down: %v", err)
		}
		seed := l.start(cluster.Spec{Name: "seed", Listen: []string{at}})
		took := l.wait(10*slow*time.Second, "joined", func(s *checker.State) bool { return s.Gathered(2) })
		t.Logf("joined %v after the seed came up", took.Round(time.Millisecond))
		if err := a.Ready(within(t, soon)); err != nil || !seed.Connected() {
			t.Errorf("Ready: %v", err)
		}
	})
	t.Run("keepalive gives the round trip time to both", func(t *testing.T) {
		t.Parallel()
		_, a, b := pair(t)
		for _, side := range []struct{ n, other *smokesignal.Node }{{a, b}, {b, a}} {
			deadline := time.Now().Add(soon)
			p := side.n.Peer(side.other.ID())
			for p.RTT() == 0 && time.Now().Before(deadline) {
				time.Sleep(20 * time.Millisecond) // nothing announces a measurement
			}
			if rtt := p.RTT(); rtt <= 0 || rtt > 5*time.Second {
				t.Errorf("the round trip takes %v", rtt)
			}
		}
	})
}

// logSink gathers the messages of a log.
type logSink struct {
	mu    sync.Mutex
	lines []string
}

func (s *logSink) Enabled(context.Context, slog.Level) bool { return true }
func (s *logSink) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *logSink) WithGroup(string) slog.Handler            { return s }
func (s *logSink) Handle(_ context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, r.Message)
	return nil
}

func (s *logSink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(slices.Clone(s.lines), "\n")
}
