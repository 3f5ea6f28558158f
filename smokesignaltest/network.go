package smokesignaltest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/testhook"
	"github.com/go-smokesignal/smokesignal/internal/vnet"
)

// Run runs f in virtual time. It is synctest.Test. With the race detector, it also works
// around a bug of Go 1.26 that crashes the process (go.dev/issue/78156).
func Run(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	bubble.Test(t, f)
}

// Timeout is how long a check waits for its condition, and how long Network waits until
// its nodes have found each other. Only a failure takes that long.
const Timeout = time.Minute

// port is the port of every node. Each node has its own IP address.
const port = 8495

// An Option sets a property of a Net. It is an argument of Network.
type Option func(*netOptions)

type netOptions struct {
	seed       uint64
	least      time.Duration
	most       time.Duration
	loss       float64
	node       []smokesignal.Option
	unattended bool
}

// Seed sets the seed of the random ids and of the packet losses (default 1).
func Seed(seed uint64) Option { return func(o *netOptions) { o.seed = seed } }

// Options adds options for every node. This package itself sets Listen, Seeds and IdentityFile.
func Options(opts ...smokesignal.Option) Option {
	return func(o *netOptions) { o.node = append(o.node, opts...) }
}

// Latency sets the range of the one-way latency (default 5 to 50 ms). All packets between
// two nodes have the same latency.
func Latency(least, most time.Duration) Option {
	return func(o *netOptions) { o.least, o.most = least, most }
}

// Loss sets the share of lost packets, from 0 (the default) to 1. It applies once the
// nodes have found each other.
func Loss(share float64) Option { return func(o *netOptions) { o.loss = share } }

// Apart makes Network return when the nodes have started, without waiting until
// they have found each other.
func Apart() Option { return func(o *netOptions) { o.unattended = true } }

// A Net is a network of nodes in the memory of a test. Nodes are numbered from 0. Only
// the goroutine of the test may call its methods. A method that fails ends the test.
type Net struct {
	t       testing.TB
	options netOptions
	packets *vnet.Network
	dir     string // of the identity files
	log     recorder

	nodes  []*smokesignal.Node
	clocks []time.Duration
	dying  sync.WaitGroup

	mu    sync.Mutex
	rand  *rand.Rand // decides which packets are lost
	side  map[netip.Addr]int
	gone  map[netip.Addr]bool // neither sends nor receives
	loss  float64
	delay map[[2]netip.Addr]time.Duration
}

// Network starts n nodes and waits until all of them form one network. The nodes close
// when the test ends.
func Network(t testing.TB, n int, opts ...Option) *Net {
	t.Helper()
	o := netOptions{seed: 1, least: 5 * time.Millisecond, most: 50 * time.Millisecond}
	for _, opt := range opts {
		opt(&o)
	}
	if n < 1 || n > 60_000 || o.least < 0 || o.most < o.least || o.loss < 0 || o.loss > 1 {
		t.Fatalf("smokesignaltest: Network(%d) with a latency of %v to %v and a loss of %v: give 1 to 60,000 nodes, a latency whose least is not above most, and a loss from 0 to 1", n, o.least, o.most, o.loss)
	}
	net := &Net{
		t: t, options: o, dir: t.TempDir(),
		nodes: make([]*smokesignal.Node, n), clocks: make([]time.Duration, n),
		rand: rand.New(rand.NewPCG(o.seed, 1)),
		gone: map[netip.Addr]bool{}, delay: map[[2]netip.Addr]time.Duration{},
	}
	between := vnet.Between(o.least, o.most)
	net.packets = vnet.New(func(from, to netip.Addr) time.Duration {
		net.mu.Lock()
		defer net.mu.Unlock()
		if d, ok := net.delay[[2]netip.Addr{from, to}]; ok {
			return d
		}
		return between(from, to)
	})
	net.packets.Cut(net.dropped)
	t.Cleanup(net.close)
	for i := range n {
		net.writeIdentity(i)
		net.start(i)
	}
	if !o.unattended {
		net.OneComponent()
	}
	net.Loss(o.loss)
	return net
}

// Len returns the number of nodes, including dead ones.
func (n *Net) Len() int { return len(n.nodes) }

// Node returns node i.
func (n *Net) Node(i int) *smokesignal.Node {
	n.t.Helper()
	if i < 0 || i >= len(n.nodes) {
		n.t.Fatalf("smokesignaltest: there is no node %d; the nodes are 0 to %d", i, len(n.nodes)-1)
	}
	return n.nodes[i]
}

// Alive returns the numbers of the living nodes, in ascending order.
func (n *Net) Alive() []int {
	n.mu.Lock()
	defer n.mu.Unlock()
	var alive []int
	for i := range n.nodes {
		if !n.gone[ip(i)] {
			alive = append(alive, i)
		}
	}
	return alive
}

// Cut separates the given nodes from the others: no packet passes between the two groups
// until Heal. A second Cut replaces the first.
func (n *Net) Cut(nodes ...int) {
	n.t.Helper()
	side := map[netip.Addr]int{}
	for _, i := range nodes {
		n.Node(i)
		side[ip(i)] = 1
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = side
}

// Heal ends a Cut.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = nil
}

// Kill ends node i as a power cut does. From now on, no packet to it or from it arrives,
// and the other nodes get no notice.
func (n *Net) Kill(i int) {
	n.t.Helper()
	node := n.Node(i)
	n.setGone(i, true)
	// The goroutines of the node still end, but the other nodes cannot notice.
	n.dying.Go(func() { node.Close() })
}

// Restart kills node i if it is alive, and starts a new node with the same identity and
// address. It returns the new node.
func (n *Net) Restart(i int) *smokesignal.Node {
	n.t.Helper()
	n.Kill(i)
	n.nodes[i].Close() // frees its address
	n.setGone(i, false)
	n.start(i)
	return n.nodes[i]
}

// Sleep simulates that the machine of node i sleeps for d, and returns when it wakes up.
// Meanwhile no packet to it or from it arrives. Unlike on a real machine, the timers of
// the node go on, since virtual time cannot stop for one node.
func (n *Net) Sleep(i int, d time.Duration) {
	n.t.Helper()
	n.Node(i)
	n.setGone(i, true)
	time.Sleep(d)
	n.setGone(i, false)
}

// Latency sets the one-way latency between nodes i and j, in both directions.
func (n *Net) Latency(i, j int, d time.Duration) {
	n.t.Helper()
	n.Node(i)
	n.Node(j)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay[[2]netip.Addr{ip(i), ip(j)}] = d
	n.delay[[2]netip.Addr{ip(j), ip(i)}] = d
}

// Loss sets the share of packets that are lost from now on, from 0 to 1.
func (n *Net) Loss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// Clock makes the wall clock of node i wrong by d from its next Restart on. The other nodes
// order the sessions of a node by their start times, so it matters if the clock was set back.
func (n *Net) Clock(i int, d time.Duration) {
	n.t.Helper()
	n.Node(i)
	n.clocks[i] = d
}

// Emit broadcasts an event from node i. It blocks as the Emit of the node's Broadcast
// does, for at most Timeout.
func (n *Net) Emit(i int, name string, args ...any) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if err := n.Node(i).Broadcast().Emit(ctx, name, args...); err != nil {
		n.t.Fatalf("smokesignaltest: node %d: %v", i, err)
	}
}

func (n *Net) setGone(i int, gone bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone[ip(i)] = gone
}

// dropped reports whether a packet is lost.
func (n *Net) dropped(from, to netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone[from] || n.gone[to] || n.side != nil && n.side[from] != n.side[to] ||
		n.loss > 0 && n.rand.Float64() < n.loss
}

// start makes node i and starts it.
func (n *Net) start(i int) {
	n.t.Helper()
	machine := n.packets.Machine(ip(i).String())
	opts := []smokesignal.Option{
		smokesignal.Listen(addr(i)), smokesignal.Seeds(addr(0)), smokesignal.IdentityFile(n.identityFile(i)),
		testhook.ListenUDP(machine.ListenUDP).(smokesignal.Option),
		testhook.Clock(func() time.Time { return time.Now().Add(n.clocks[i]) }).(smokesignal.Option),
	}
	node, err := smokesignal.New(append(opts, n.options.node...)...)
	if err != nil {
		n.t.Fatalf("smokesignaltest: node %d: %v", i, err)
	}
	n.nodes[i] = node
	n.log.follow(i, node)
	if err := node.Start(context.Background()); err != nil {
		n.t.Fatalf("smokesignaltest: node %d: %v", i, err)
	}
}

func (n *Net) close() {
	var all sync.WaitGroup
	for _, node := range slices.Clone(n.nodes) {
		if node != nil {
			all.Go(func() { node.Close() })
		}
	}
	all.Wait()
	n.dying.Wait()
}

func (n *Net) identityFile(i int) string { return filepath.Join(n.dir, fmt.Sprint("node", i)) }

// writeIdentity writes the identity file of node i. The key follows from the seed of the
// Net.
func (n *Net) writeIdentity(i int) {
	n.t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	binary.LittleEndian.PutUint64(seed, n.options.seed)
	binary.LittleEndian.PutUint64(seed[8:], uint64(i))
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed))
	if err != nil {
		n.t.Fatal("smokesignaltest:", err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		n.t.Fatal("smokesignaltest:", err)
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		n.t.Fatal("smokesignaltest:", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "LIBP2P PRIVATE KEY", Headers: map[string]string{"Peer-Id": id.String()}, Bytes: b})
	if err := os.WriteFile(n.identityFile(i), text, 0o600); err != nil {
		n.t.Fatal("smokesignaltest:", err)
	}
}

// ip returns the IP address of node i.
func ip(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 8, byte(i / 250), byte(i%250 + 1)})
}

// addr returns the address of node i for Listen and Seeds.
func addr(i int) string { return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", ip(i), port) }
