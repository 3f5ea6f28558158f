package integration_test

import (
	"crypto/tls"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/testhook"
	"github.com/go-smokesignal/smokesignal/internal/vnet"
)

// A virtual is a network of whole nodes in virtual time: all of a node is real,
// down to QUIC, whose packets go through memory. Each node has a machine of its
// own; the tests know it by its number, from 0.
type virtual struct {
	*local
	net    *vnet.Network
	rand   *rand.Rand
	nodes  []*virtualNode
	parted int            // how often
	ending sync.WaitGroup // of machines that died

	mu   sync.Mutex
	side func(ip netip.Addr) int // packets pass only between machines of one side
	deaf map[netip.Addr]bool     // nothing arrives there
	mute map[netip.Addr]bool     // nothing that it sends arrives
}

// A virtualNode is the machine of one node's.
type virtualNode struct {
	*vnet.Machine
	*smokesignal.Node
	name string
	dead bool
}

// parallelInVirtualTime is t.Parallel for a test that runs few nodes in virtual time. With
// the race detector such a test runs alone, because a bubble then leaves the process one
// processor.
func parallelInVirtualTime(t *testing.T) {
	if slow == 1 {
		t.Parallel()
	}
}

// virtually runs f in virtual time, with the number of nodes and the number of runs
// of this run's size. A test that calls it is not parallel, since it needs all of a core.
func virtually(t *testing.T, f func(t *testing.T, v *virtual, n int)) {
	t.Helper()
	scale := []struct{ nodes, runs int }{byDefault: {10, 1}, long: {50, 1}, full: {50, 5}}[chosen()]
	for run := range scale.runs {
		t.Run(fmt.Sprint("run ", run), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { f(t, newVirtual(t, uint64(run)), scale.nodes) })
		})
	}
}

// inVirtualTime runs f once, in virtual time. f starts the nodes that it needs with
// startOn. Unlike virtually, it is for few nodes and may run beside other tests.
func inVirtualTime(t *testing.T, f func(t *testing.T, v *virtual)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) { f(t, newVirtual(t, 0)) })
}

// startOn starts a node on machine i. It replaces a node that ran there before.
func (v *virtual) startOn(i int, spec cluster.Spec, more ...smokesignal.Option) *smokesignal.Node {
	v.t.Helper()
	m := &virtualNode{Machine: v.net.Machine(machineIP(i)), name: spec.Name}
	spec.Listen = []string{at(i)}
	m.Node = v.start(spec, append(more, testhook.ListenUDP(m.ListenUDP).(smokesignal.Option))...)
	for len(v.nodes) <= i {
		v.nodes = append(v.nodes, nil)
	}
	v.nodes[i] = m
	return m.Node
}

// pair starts two nodes on machines 0 and 1 and links them.
func (v *virtual) pair() (a, b *smokesignal.Node) {
	v.t.Helper()
	a = v.startOn(0, cluster.Spec{Name: "a", Limits: manual})
	b = v.startOn(1, cluster.Spec{Name: "b", Limits: manual})
	v.link(a, b)
	return a, b
}

// newVirtual has latencies of 5 to 50 ms each way. What the test itself draws by
// lot is the same for the same seed; the nodes draw lots of their own.
func newVirtual(t *testing.T, seed uint64) *virtual {
	v := &virtual{
		net:  vnet.New(vnet.Between(5*time.Millisecond, 50*time.Millisecond)),
		rand: rand.New(rand.NewPCG(seed, 0)),
		deaf: map[netip.Addr]bool{}, mute: map[netip.Addr]bool{},
	}
	v.net.Cut(func(from, to netip.Addr) bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.mute[from] || v.deaf[to] || v.side != nil && v.side(from) != v.side(to)
	})
	v.local = newLocal(t)
	t.Cleanup(func() {
		if t.Failed() {
			file := filepath.Join(t.ArtifactDir(), "virtual.log")
			if err := os.WriteFile(file, []byte(v.tail(math.MaxInt)), 0o644); err != nil {
				t.Log(err)
			}
		}
	})
	t.Cleanup(v.ending.Wait)
	return v
}

// at is the address of the machine number i, as Listen and Seeds take it.
func at(i int) string { return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", machineIP(i), virtualPort) }

const virtualPort = 8495

func machineIP(i int) string { return fmt.Sprintf("10.7.%d.%d", i/250, i%250+1) }

// join starts n nodes within a second, in a random order, those with the numbers
// in seeds first. Everybody has these as seeds, also they themselves.
func (v *virtual) join(n int, seeds []int, more ...smokesignal.Option) {
	v.t.Helper()
	order := v.rand.Perm(n)
	slices.SortStableFunc(order, func(a, b int) int {
		isSeed := func(i int) int { return slices.Index(append(slices.Clone(seeds), i), i) }
		return isSeed(a) - isSeed(b)
	})
	delays := make([]time.Duration, n)
	for i := range delays {
		delays[i] = time.Duration(v.rand.Int64N(int64(time.Second)))
	}
	slices.Sort(delays)
	v.nodes = make([]*virtualNode, n)
	began := time.Now()
	for turn, i := range order {
		time.Sleep(time.Until(began.Add(delays[turn])))
		spec := cluster.Spec{Name: fmt.Sprint("n", i)}
		for _, s := range seeds {
			spec.Seeds = append(spec.Seeds, at(s))
		}
		v.startOn(i, spec, more...)
	}
}

// gather is join, and everybody has found enough peers, and heard of the seeds.
func (v *virtual) gather(n int, seeds []int, more ...smokesignal.Option) {
	v.t.Helper()
	v.join(n, seeds, more...)
	v.wait(60*time.Second, "all gathered", func(s *checker.State) bool { return s.Gathered(n) })
	time.Sleep(30 * time.Second)
	v.wantQuiet("before anything happened")
}

// wantQuiet fails if any node reported a netsplit or the loss of its last peer.
func (v *virtual) wantQuiet(when string) {
	v.t.Helper()
	v.log.Inspect(func(s *checker.State) {
		for _, p := range s.Running() {
			if n := p.Counts[checker.Netsplit] + p.Counts[checker.Disconnect]; n > 0 {
				v.t.Errorf("%s: %s reported %d netsplits, and disconnected %d times", when, p.Name, p.Counts[checker.Netsplit], p.Counts[checker.Disconnect])
			}
		}
	})
}

// some draws so many numbers of n by lot; first are among them.
func (v *virtual) some(count, n int, first ...int) []int {
	list := slices.Clone(first)
	for _, i := range v.rand.Perm(n) {
		if len(list) < count && !slices.Contains(list, i) {
			list = append(list, i)
		}
	}
	return list
}

// crash ends nodes at once, and their machines say so: connections are closed with
// an error, new ones are refused. That is what the system does over TCP for a process
// that was killed. Over QUIC, as here, it does not, and others would see silence.
func (v *virtual) crash(numbers []int) {
	v.t.Helper()
	v.buried(numbers, func(m *virtualNode) {
		v.set(v.deaf, m.IP, true) // from now on it ignores commands
		m.Host().Close()
		v.set(v.deaf, m.IP, false)
		v.refuse(m.Machine, func() {})
	})
}

// silence ends nodes at once, and nothing of theirs arrives anywhere any more.
func (v *virtual) silence(numbers []int) {
	v.t.Helper()
	v.buried(numbers, func(m *virtualNode) {
		v.set(v.deaf, m.IP, true)
		v.set(v.mute, m.IP, true)
	})
}

func (v *virtual) buried(numbers []int, die func(*virtualNode)) {
	v.t.Helper()
	var dying sync.WaitGroup
	for _, i := range numbers {
		m := v.nodes[i]
		m.dead = true
		v.fault(m.Node, checker.FaultKill)
		dying.Go(func() { die(m) })
	}
	dying.Wait()
	for _, i := range numbers {
		v.ending.Go(func() { v.nodes[i].Close() }) // a dead node need not cost time
	}
}

// refuse makes a machine without a node refuse all connections. It calls dialed for each.
func (v *virtual) refuse(m *vnet.Machine, dialed func()) {
	conn, err := m.ListenUDP("udp4", &net.UDPAddr{Port: virtualPort})
	if err != nil {
		v.t.Error(err)
		return
	}
	transport := &quic.Transport{Conn: conn}
	_, err = transport.Listen(&tls.Config{}, &quic.Config{
		GetConfigForClient: func(*quic.ClientInfo) (*quic.Config, error) {
			dialed()
			return nil, syscall.ECONNREFUSED
		},
	})
	if err != nil {
		v.t.Error(err)
	}
	v.t.Cleanup(func() { transport.Close(); conn.Close() })
}

func (v *virtual) set(what map[netip.Addr]bool, ip netip.Addr, is bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	what[ip] = is
}

// part cuts the machines with even numbers off those with odd ones; heal ends that.
func (v *virtual) part() {
	v.parted++
	v.sides(func(ip netip.Addr) int { return int(ip.As4()[3]+1) % 2 })
}

func (v *virtual) heal() { v.sides(nil) }

func (v *virtual) sides(side func(ip netip.Addr) int) {
	for _, m := range v.alive() {
		v.fault(m.Node, checker.FaultLink)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.side = side
}

// cuts is how often machine number i was cut off from that of the seed.
func (v *virtual) cuts(i, seed int) int {
	if i%2 == seed%2 {
		return 0
	}
	return v.parted
}

func (v *virtual) alive() (list []*virtualNode) {
	for _, m := range v.nodes {
		if !m.dead {
			list = append(list, m)
		}
	}
	return list
}

// whole reports whether the running nodes are one component.
func whole(s *checker.State) bool { return len(s.Components()) == 1 }

// splits counts the netsplits of one seed that a node reported, and their ends.
func (v *virtual) splits(m *virtualNode, seed int) (netsplits, resolved int) {
	for _, r := range v.log.RecordsOf(m.name, checker.Netsplit, checker.Resolved) {
		if r.Seed != at(seed) {
			continue
		}
		if r.Kind == checker.Netsplit {
			netsplits++
		} else {
			resolved++
		}
	}
	return netsplits, resolved
}

// wantSplits fails unless every running node reported the seed lost and heard again as
// often as want says. A node that should report nothing may, if it also reported the end
// of it: while the seed's side of a cut has not come together, the seed is lost to
// some of that side too.
func (v *virtual) wantSplits(when string, seed int, want func(i int) (netsplits, resolved int)) {
	v.t.Helper()
	for i, m := range v.nodes {
		if m.dead || i == seed {
			continue
		}
		wantN, wantR := want(i)
		n, r := v.splits(m, seed)
		if n == wantN && r == wantR {
			continue
		}
		if wantN == 0 && n == r && n <= v.parted {
			v.t.Logf("%s: %s reported %d netsplits of the seed n%d, which is on its side, and their ends", when, m.name, n, seed)
			continue
		}
		v.t.Errorf("%s: %s reported %d netsplits of the seed n%d and %d ends, want %d and %d", when, m.name, n, seed, r, wantN, wantR)
	}
}

// finish checks the rules over all that happened, when everybody has got enough
// peers again.
func (v *virtual) finish() {
	v.t.Helper()
	n := len(v.alive())
	v.wait(60*time.Second, "all have enough peers, nobody too many", func(s *checker.State) bool {
		return s.Gathered(n) && len(s.AboveMax()) == 0
	})
	v.check(checker.Config{Whole: true})
}

func tenth(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
