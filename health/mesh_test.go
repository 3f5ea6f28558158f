package health

import (
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// A mesh is an overlay in memory: watchdogs and the links between them. It
// runs in a synctest bubble.
type mesh struct {
	t     *testing.T
	nodes []*meshNode

	mu     sync.Mutex
	links  map[[2]int]bool
	silent func(from, to int) bool // reports whether a signal is lost on the way
	sent   int                     // over a link
	floods int                     // begun by a node
	closed chan struct{}
	tasks  sync.WaitGroup
}

// keepalive is how often links speak that have nothing to say.
const keepalive = 5 * time.Second

type meshNode struct {
	signer
	mesh  *mesh
	n     int
	w     *Watchdog
	addr  string
	stuck chan struct{} // Flood waits for it, if it is set

	mu     sync.Mutex
	events []string
}

func (m *mesh) linked(a, b int) bool { return m.links[[2]int{min(a, b), max(a, b)}] }

func (n *meshNode) neighbors() (list []peer.ID) {
	n.mesh.mu.Lock()
	defer n.mesh.mu.Unlock()
	for i, other := range n.mesh.nodes {
		if i != n.n && n.mesh.linked(n.n, i) {
			list = append(list, other.id)
		}
	}
	return list
}

func (n *meshNode) flood(msg []byte, except peer.ID) {
	m := n.mesh
	m.mu.Lock()
	stuck := n.stuck
	if except == "" {
		m.floods++
	}
	for i, other := range m.nodes {
		if i == n.n || other.id == except || !m.linked(n.n, i) {
			continue
		}
		m.sent++
		if m.silent != nil && m.silent(n.n, i) {
			continue
		}
		w, id := other.w, n.id
		time.AfterFunc(latency(), func() {
			w.Heard(id)
			w.Receive(id, msg)
		})
	}
	m.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
}

func latency() time.Duration { return 5*time.Millisecond + mathrand.N(45*time.Millisecond) }

// keepalives lets every link speak now and then, both ways.
func (m *mesh) keepalives() {
	for {
		select {
		case <-time.After(keepalive):
		case <-m.closed:
			return
		}
		m.mu.Lock()
		for i, from := range m.nodes {
			for j, to := range m.nodes {
				if i != j && m.linked(i, j) && (m.silent == nil || !m.silent(i, j)) {
					w, id := to.w, from.id
					time.AfterFunc(latency(), func() { w.Heard(id) })
				}
			}
		}
		m.mu.Unlock()
	}
}

func (n *meshNode) note(event string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, event)
}

// popEvents returns the events since the last call.
func (n *meshNode) popEvents() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	events := n.events
	n.events = nil
	return events
}

// newMesh starts n nodes; the first ones have the seeds' addresses, and all
// have been found by everybody.
func newMesh(t *testing.T, n int, seeds int, edges [][2]int) *mesh {
	m := &mesh{t: t, links: map[[2]int]bool{}, closed: make(chan struct{})}
	var watched []WatchedSeed
	for i := range seeds {
		watched = append(watched, seedOf(fmt.Sprintf("10.0.0.%d:8495", i+1)))
	}
	for i := range n {
		node := &meshNode{signer: newSigner(t), mesh: m, n: i, addr: fmt.Sprintf("/ip4/10.0.%d.%d/tcp/8495", (i+1)/256, (i+1)%256)}
		w, err := New(Config{
			Key: node.key, Session: [8]byte{byte(i)}, PingInterval: interval, PingTimeout: timeout, Seeds: watched,
			Addrs:      func() []ma.Multiaddr { return []ma.Multiaddr{ma.StringCast(node.addr)} },
			Neighbors:  node.neighbors,
			Flood:      node.flood,
			OnNetsplit: func(seed string) { node.note("lost " + seed) },
			OnResolved: func(seed string) { node.note("back " + seed) },
		})
		if err != nil {
			t.Fatal(err)
		}
		node.w = w
		m.nodes = append(m.nodes, node)
	}
	m.setLinks(edges)
	for i, node := range m.nodes {
		node.w.Start()
		for j, seed := range watched {
			if i == j {
				node.w.SeedFound(seed.Text, node.id, nil)
			} else {
				node.w.SeedFound(seed.Text, m.nodes[j].id, []ma.Multiaddr{ma.StringCast(m.nodes[j].addr)})
			}
		}
	}
	m.tasks.Go(m.keepalives)
	return m
}

func (m *mesh) setLinks(edges [][2]int) {
	m.mu.Lock()
	clear(m.links)
	for _, e := range edges {
		m.links[[2]int{min(e[0], e[1]), max(e[0], e[1])}] = true
	}
	m.mu.Unlock()
	for _, n := range m.nodes {
		n.w.NeighborsChanged()
	}
}

func (m *mesh) lose(f func(from, to int) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silent = f
}

func (m *mesh) close() {
	m.lose(func(int, int) bool { return true })
	close(m.closed)
	m.tasks.Wait()
	for _, n := range m.nodes {
		n.w.Close()
	}
}

// want checks what each node has reported since the last time.
func (m *mesh) want(what string, f func(n *meshNode) []string) {
	m.t.Helper()
	for _, n := range m.nodes {
		if got, want := n.popEvents(), f(n); !slices.Equal(got, want) {
			m.t.Errorf("%s: node %d reported %q, want %q", what, n.n, got, want)
		}
	}
}

func nothing(*meshNode) []string { return nil }

func line(n int) (edges [][2]int) {
	for i := 1; i < n; i++ {
		edges = append(edges, [2]int{i - 1, i})
	}
	return edges
}

func ring(n int) [][2]int { return append(line(n), [2]int{0, n - 1}) }

// random returns a connected graph of mean degree near five.
func random(n int, r *mathrand.Rand) [][2]int {
	edges := line(n)
	r.Shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
	for range 3 * n / 2 {
		if a, b := r.IntN(n), r.IntN(n); a != b {
			edges = append(edges, [2]int{a, b})
		}
	}
	return edges
}

// within returns the edges with both ends on one side.
func within(edges [][2]int, side func(int) bool) (kept [][2]int) {
	for _, e := range edges {
		if side(e[0]) == side(e[1]) {
			kept = append(kept, e)
		}
	}
	return kept
}

func degree(edges [][2]int, n int) (d int) {
	for _, e := range edges {
		if e[0] == n || e[1] == n {
			d++
		}
	}
	return d
}
