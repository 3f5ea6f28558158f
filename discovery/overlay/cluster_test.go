package overlay

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// cluster runs many states against one queue of timed messages. The same seed
// gives the same run.
type cluster struct {
	t     *testing.T
	rand  *rand.Rand
	now   time.Time
	queue events
	count int
	nodes []*simNode
	byID  map[peer.ID]*simNode
	sent  int
	flaps int
	last  map[[2]peer.ID]time.Time // when a pair parted
}

type simNode struct {
	id       peer.ID
	state    *State
	seeds    []peer.ID
	dead     bool
	silent   bool // dead without anybody being told
	admitted map[peer.ID]bool
	topic    map[peer.ID]bool
	linked   map[peer.ID]bool
	timer    time.Time
	lastAt   map[peer.ID]time.Time // arrival of the last message to a peer: streams are in order
	log      []string
}

type timed struct {
	at time.Time
	n  int
	do func()
}

type events []timed

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || (e[i].at.Equal(e[j].at) && e[i].n < e[j].n)
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(timed)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func newCluster(t *testing.T, seed uint64) *cluster {
	return &cluster{
		t: t, rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0),
		byID: map[peer.ID]*simNode{}, last: map[[2]peer.ID]time.Time{},
	}
}

func (c *cluster) after(d time.Duration, do func()) {
	c.count++
	heap.Push(&c.queue, timed{c.now.Add(d), c.count, do})
}

// run plays the events of the next d.
func (c *cluster) run(d time.Duration) {
	end := c.now.Add(d)
	for len(c.queue) > 0 && !c.queue[0].at.After(end) {
		ev := heap.Pop(&c.queue).(timed)
		c.now = ev.at
		ev.do()
	}
	c.now = end
}

func (c *cluster) latency() time.Duration {
	return 5*time.Millisecond + time.Duration(c.rand.Int64N(int64(45*time.Millisecond)))
}

// add makes a node that starts after d.
func (c *cluster) add(d time.Duration, minPeers, maxPeers int, seeds ...peer.ID) *simNode {
	id := peer.ID(fmt.Sprintf("node-%04d", len(c.nodes)))
	n := &simNode{
		id: id, seeds: seeds,
		admitted: map[peer.ID]bool{}, topic: map[peer.ID]bool{}, linked: map[peer.ID]bool{}, lastAt: map[peer.ID]time.Time{},
	}
	var session Session
	copy(session[:], id)
	n.state = New(Config{
		Self: id, Session: session, Network: "n", Min: minPeers, Max: maxPeers, Seeds: len(seeds),
		Rand: rand.New(rand.NewPCG(c.rand.Uint64(), 2)),
	})
	c.nodes = append(c.nodes, n)
	c.byID[id] = n
	n.dead = true
	c.after(d, func() { n.dead = false; c.seal(n) })
	return n
}

func (c *cluster) step(n *simNode, in Input) {
	if n.dead {
		return
	}
	for _, o := range slices.Clone(n.state.Step(c.now, in)) {
		c.perform(n, o)
	}
	next := n.state.Next(c.now)
	if next.IsZero() || (!n.timer.IsZero() && n.timer.After(c.now) && !next.Before(n.timer)) {
		return
	}
	n.timer = next
	c.after(max(next.Sub(c.now), time.Millisecond), func() {
		if n.timer.Equal(next) {
			n.timer = time.Time{}
			c.step(n, Tick{})
		}
	})
}

func (c *cluster) seal(n *simNode) {
	seq := uint64(c.now.UnixNano())
	c.step(n, Sealed{Record: fmt.Appendf(nil, "%s %d", string(n.id), seq), Seq: seq})
}

func (c *cluster) perform(n *simNode, o Output) {
	switch o := o.(type) {
	case Send:
		c.sent++
		to, from := c.byID[o.To.ID], n.id
		msg := c.wire(o.Message)
		at := c.now.Add(c.latency())
		if !n.admitted[o.To.ID] && len(n.lastAt) == 0 {
			at = at.Add(2 * c.latency()) // a dial
		}
		if last := n.lastAt[o.To.ID]; at.Before(last) {
			at = last
		}
		n.lastAt[o.To.ID] = at
		c.after(at.Sub(c.now), func() {
			if to.dead {
				if !to.silent {
					c.after(c.latency(), func() { c.step(n, Unreachable{Peer: to.id, Reason: ReasonUnreachable}) })
				} else {
					c.after(5*time.Second, func() { c.step(n, Unreachable{Peer: to.id, Reason: ReasonUnreachable}) })
				}
				return
			}
			from := Contact{ID: from}
			switch m := msg.(type) {
			case Request:
				from.Record = m.Record
			case Accept:
				from.Record = m.Record
			}
			c.step(to, Received{From: from, Message: msg})
		})
	case Pending:
		n.admitted[o.Peer] = true
		c.topics(n, o.Peer)
	case Unlinked:
		delete(n.admitted, o.Peer)
		delete(n.linked, o.Peer)
		c.last[[2]peer.ID{n.id, o.Peer}] = c.now
		if !o.Was || o.Reason.fault() {
			delete(c.last, [2]peer.ID{n.id, o.Peer})
		}
		n.log = append(n.log, fmt.Sprintf("%s - %s %v", c.now.Format("05.000"), o.Peer, o.Reason))
		c.topics(n, o.Peer)
	case Linked:
		n.linked[o.Peer] = true
		n.log = append(n.log, fmt.Sprintf("%s + %s", c.now.Format("05.000"), o.Peer))
		if at, ok := c.last[[2]peer.ID{n.id, o.Peer}]; ok && c.now.Sub(at) < apart {
			c.flaps++
		}
	case Renew:
		c.after(0, func() { c.seal(n) })
	case AskSeed:
		id := n.seeds[o.Seed]
		c.after(3*c.latency(), func() {
			if c.byID[id].dead {
				c.step(n, SeedFailed{Seed: o.Seed})
			} else {
				c.step(n, SeedFound{Seed: o.Seed, Contact: Contact{ID: id, Addrs: []ma.Multiaddr{nil}}})
			}
		})
	}
}

// topics plays pubsub: both see each other on the topic a while after both gates
// are open, and no more when one is closed.
func (c *cluster) topics(n *simNode, other peer.ID) {
	o := c.byID[other]
	for _, pair := range [][2]*simNode{{n, o}, {o, n}} {
		c.after(2*c.latency(), func() {
			a, b := pair[0], pair[1]
			want := a.admitted[b.id] && b.admitted[a.id] && !a.dead && !b.dead
			if a.topic[b.id] != want {
				a.topic[b.id] = want
				c.step(a, OnTopic{Peer: b.id, Present: want})
			}
		})
	}
}

// wire sends the message through its encoding; the record is the id here.
func (c *cluster) wire(m Message) Message {
	m, err := Decode(Append(nil, m))
	if err != nil {
		c.t.Fatal(err)
	}
	name := func(c *Contact) {
		if len(c.Record) > 0 {
			id, seq, _ := strings.Cut(string(c.Record), " ")
			c.ID = peer.ID(id)
			c.Seq, _ = strconv.ParseUint(seq, 10, 64)
		}
	}
	names := func(list []Contact) {
		for i := range list {
			name(&list[i])
		}
	}
	switch v := m.(type) {
	case Request:
		name(&v.Leaving)
		m = v
	case Accept:
		names(v.Contacts)
	case Reject:
		names(v.Contacts)
	case Leave:
		names(v.Contacts)
	case Walk:
		name(&v.Origin)
		m = v
	case Handover:
		name(&v.To)
		m = v
	case Shuffle:
		name(&v.Origin)
		names(v.Contacts)
		m = v
	case ShuffleReply:
		names(v.Contacts)
	case Beacon:
		name(&v.Owner)
		m = v
	case Lookup:
		name(&v.Origin)
		m = v
	case Found:
		name(&v.Target)
		m = v
	}
	return m
}

// kill ends a node; loud tells its neighbours, as a reset connection does.
func (c *cluster) kill(n *simNode, loud bool) {
	n.dead, n.silent = true, !loud
	for id := range n.admitted {
		if o := c.byID[id]; loud && !o.dead {
			c.after(c.latency(), func() { c.step(o, Gone{Peer: n.id}) })
		}
	}
}

// components returns the sizes of the parts the living nodes form.
func (c *cluster) components() (sizes []int) {
	seen := map[peer.ID]bool{}
	for _, n := range c.nodes {
		if n.dead || seen[n.id] {
			continue
		}
		size, todo := 0, []peer.ID{n.id}
		seen[n.id] = true
		for len(todo) > 0 {
			x := c.byID[todo[0]]
			todo = todo[1:]
			size++
			for id := range x.linked {
				if o := c.byID[id]; !seen[id] && !o.dead && o.linked[x.id] {
					seen[id] = true
					todo = append(todo, id)
				}
			}
		}
		sizes = append(sizes, size)
	}
	return sizes
}

func (c *cluster) degrees() (least, most int) {
	least = 1 << 30
	for _, n := range c.nodes {
		if !n.dead {
			least, most = min(least, len(n.linked)), max(most, len(n.linked))
		}
	}
	return least, most
}

// TestBurstJoin: any number of nodes that start at once or one by one through one
// seed form one component within ten seconds, with everybody between min and
// max after thirty, nobody flapping and no half link.
func TestBurstJoin(t *testing.T) {
	for _, n := range []int{2, 5, 10, 30, 100, 300} {
		for _, gap := range []time.Duration{0, 100 * time.Millisecond, time.Second} {
			for seed := range uint64(max(1, 300/n)) {
				c := newCluster(t, seed)
				first := c.add(0, 3, 5)
				for i := range n - 1 {
					c.add(time.Duration(i)*gap, 3, 5, first.id)
				}
				c.run(time.Duration(n)*gap + 10*time.Second)
				name := fmt.Sprintf("n=%d gap=%v seed=%d", n, gap, seed)
				want := min(3, n-1)
				if parts := c.components(); len(parts) != 1 {
					t.Fatalf("%s: after 10 s the components are %v", name, parts)
				}
				if least, _ := c.degrees(); least < want {
					t.Errorf("%s: after 10 s the least degree is %d, want %d", name, least, want)
				}
				c.run(20 * time.Second)
				least, most := c.degrees()
				if least < want || most > 5 {
					t.Errorf("%s: after 30 s the degrees are %d to %d", name, least, most)
				}
				if c.flaps > 0 {
					t.Errorf("%s: %d flaps", name, c.flaps)
				}
				sent := c.sent
				c.run(30 * time.Second)
				if rate := float64(c.sent-sent) / 30 / float64(n); rate > 2.6 {
					t.Errorf("%s: %.2f messages per node and second at rest", name, rate)
				}
			}
		}
	}
}
