package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// A World is a network of simulated nodes. All it does follows from its seed. One
// goroutine at a time may use it.
type World struct {
	// Trace, if set, is told what happens to links and nodes.
	Trace func(at time.Duration, text string)
	// Encode sends every message through its encoding.
	Encode bool
	// Loss is the probability that a message has to be sent again.
	Loss float64

	rules Rules
	seed  uint64
	now   time.Duration
	queue queue
	rand  *rand.Rand
	nodes []*node
	ids   strings.Builder
	cuts  int                // partitions so far
	side  func(i int32) int8 // of the partition, if there is one
	finds uint64             // searches so far
	hash  uint64

	stepping *node           // whose machine is at work
	more     []overlay.Input // what it has to be told next

	Counts
	located func(n *node, o overlay.Located)
	scratch scratch
}

type status uint8

const (
	absent  status = iota // not started, crashed or left: its machine refuses dials
	running               //
	silent                // gone without a word
)

// A node is one node of the network.
type node struct {
	id     peer.ID
	index  int32
	life   uint32 // how often it was started
	status status
	born   time.Duration
	rules  Machine
	seeds  []int32
	record uint64 // sequence number of its record

	asleep     bool
	undialable bool
	slow       time.Duration // how late it looks at what has come, at most
	side       int8          // of the partition
	fault      time.Duration // the last one that hit it

	wake   time.Duration // when the machine wants to be called; zero for never
	armed  time.Duration // the earliest timer in the queue; zero for none
	turnAt time.Duration
	inbox  []letter

	conns   []end         // the oldest first
	trimmed time.Duration // when there were too many of them
	dials   []*dial
	busy    int // dials under way
	bonds   []bond
	parted  []parting
	watch   watch
}

// A letter waits until a slow or sleeping node looks at it.
type letter struct {
	from int32
	in   overlay.Input
	sign *signal
}

// maxInbox bounds the letters.
const maxInbox = 1024

// epoch is the time of day at which every run begins.
var epoch = time.Unix(1_700_000_000, 0)

// New returns a world without nodes.
func New(rules Rules, seed uint64) *World {
	return &World{rules: rules, seed: seed, rand: rand.New(rand.NewPCG(seed, 0x5347))}
}

// Now returns the time since the run began.
func (w *World) Now() time.Duration { return w.now }

// Hash returns a digest of all that has happened.
func (w *World) Hash() uint64 { return w.hash }

// Len returns the number of nodes there ever were.
func (w *World) Len() int { return len(w.nodes) }

// idLen is the length of the part of an id that tells the number of the node.
const idLen = 7

// Add makes a node that starts at once, or later by delay. Its seeds are nodes.
func (w *World) Add(delay time.Duration, seeds ...int32) int32 {
	i := int32(len(w.nodes))
	// What follows the number is random, since rules may prefer some ids.
	n := &node{id: w.newID(fmt.Sprintf("n%06d-%08x", i, w.rand.Uint32())), index: i, seeds: seeds}
	w.nodes = append(w.nodes, n)
	if w.side != nil {
		n.side = w.side(i)
	}
	w.Start(i, delay)
	return i
}

// newID returns text as an id. The ids of neighbours lie beside each other, as they
// are compared all the time.
func (w *World) newID(text string) peer.ID {
	const block = 1024
	if w.ids.Len()+len(text) > w.ids.Cap() || w.ids.Cap() == 0 {
		w.ids = strings.Builder{}
		w.ids.Grow(block * len(text))
	}
	begin := w.ids.Len()
	w.ids.WriteString(text)
	return peer.ID(w.ids.String()[begin:])
}

// Start starts a node that was not started yet, or has crashed. It has the same
// id and knows nothing.
func (w *World) Start(i int32, delay time.Duration) {
	w.after(delay, event{kind: start, node: i})
}

func (w *World) index(id peer.ID) (int32, bool) {
	if len(id) < idLen {
		return 0, false
	}
	i, err := strconv.Atoi(string(id[1:idLen]))
	if err != nil || i >= len(w.nodes) {
		return 0, false
	}
	return int32(i), true
}

func (w *World) after(d time.Duration, e event) { w.queue.add(w.now+d, e) }

// At lets do happen at d from now.
func (w *World) At(d time.Duration, do func()) { w.after(d, event{kind: script, do: do}) }

// Run plays the events of the next d.
func (w *World) Run(d time.Duration) {
	end := w.now + d
	for {
		at, ok := w.queue.next()
		if !ok || at > end {
			break
		}
		w.now = at
		w.play(w.queue.take())
	}
	w.now = end
}

func (w *World) mix(x uint64) {
	w.hash = (w.hash ^ x) * 0x9e3779b97f4a7c15
	w.hash ^= w.hash >> 29
}

func (w *World) play(e event) {
	w.Events++
	w.mix(uint64(w.now)<<8 | uint64(e.kind))
	w.mix(uint64(e.node)<<32 | uint64(e.peer))
	if e.kind == script {
		e.do()
		return
	}
	n := w.nodes[e.node]
	switch e.kind {
	case start:
		w.begin(n)
	case timer:
		if e.life == n.life && n.armed == w.now {
			n.armed = 0
			if n.wake != 0 && n.wake <= w.now {
				n.wake = 0
				w.give(n, letter{in: overlay.Tick{}})
			} else {
				w.arm(n)
			}
		}
	case watchdog:
		w.watchDue(n, e.life)
	case arrival:
		w.arrive(n, e.conn, e.msg)
	case dialed:
		if e.life == n.life {
			w.dialEnded(n, e.dial)
		}
	case hungUp:
		w.hearHangUp(n, e.conn)
	case deadLine:
		w.lineDead(n, e)
	case retry:
		w.sendAgain(n, e.conn)
	case topic:
		w.topicSeen(n, e.peer)
	case turn:
		if e.life == n.life {
			w.takeTurn(n)
		}
	}
}

func (w *World) begin(n *node) {
	if n.status == running {
		return
	}
	n.life++
	n.status, n.born = running, w.now
	n.asleep, n.wake, n.armed, n.turnAt = false, 0, 0, 0
	for _, c := range n.conns {
		c.open[c.side(n)] = false // the kernel answers for the dead with a reset
	}
	n.inbox, n.conns, n.dials, n.busy, n.bonds, n.parted = nil, nil, nil, 0, nil, nil
	n.watch = watch{}
	seeds := make([]peer.ID, len(n.seeds))
	for i, s := range n.seeds {
		seeds[i] = w.nodes[s].id
	}
	r := rand.New(rand.NewPCG(w.seed, uint64(n.index)<<32|uint64(n.life)))
	n.rules = w.rules.New(n.id, uint64(n.life), seeds, r)
	w.trace(n, "starts")
	w.step(n, w.sealed(n))
	w.step(n, overlay.Tick{})
}

// give hands an input to a node: at once, or when it wakes up or gets round to it.
func (w *World) give(n *node, l letter) {
	if n.status != running {
		return
	}
	if !n.asleep && n.slow == 0 {
		w.open(n, l)
		return
	}
	if _, ok := l.in.(overlay.Tick); ok && (n.asleep || len(n.inbox) > 0) {
		return // it gets one in any case
	}
	if len(n.inbox) < maxInbox {
		n.inbox = append(n.inbox, l)
	}
	if !n.asleep && n.turnAt == 0 {
		late := time.Duration(w.rand.Int64N(int64(n.slow)))
		n.turnAt = w.now + late
		w.after(late, event{kind: turn, node: n.index, life: n.life})
	}
}

// takeTurn lets a slow node look at all that has come.
func (w *World) takeTurn(n *node) {
	n.turnAt = 0
	if n.asleep || n.status != running {
		return
	}
	inbox := n.inbox
	n.inbox = nil
	for _, l := range inbox {
		w.open(n, l)
	}
	w.step(n, overlay.Tick{})
}

func (w *World) open(n *node, l letter) {
	if l.sign != nil {
		w.hearSignal(n, l.from, l.sign)
		return
	}
	if w.stepping == n {
		w.more = append(w.more, l.in)
		return
	}
	w.step(n, l.in)
}

func (w *World) time() time.Time { return epoch.Add(w.now) }

// step feeds one input to a node's machine and does what that wants done.
func (w *World) step(n *node, in overlay.Input) {
	if n.status != running || n.asleep {
		return
	}
	now := w.time()
	w.stepping = n
	for {
		for _, o := range n.rules.Step(now, in) {
			w.perform(n, o)
		}
		if len(w.more) == 0 {
			break
		}
		in = w.more[0]
		w.more = w.more[:copy(w.more, w.more[1:])]
	}
	w.stepping = nil
	n.wake = 0
	if next := n.rules.Next(now); !next.IsZero() {
		n.wake = max(next.Sub(epoch), w.now+time.Millisecond)
	}
	w.arm(n)
}

// arm sees to it that there is a timer when the node has to be woken.
func (w *World) arm(n *node) {
	if n.wake == 0 || n.armed != 0 && n.armed <= n.wake {
		return
	}
	n.armed = max(n.wake, w.now)
	w.queue.add(n.armed, event{kind: timer, node: n.index, life: n.life})
}

func (w *World) trace(n *node, format string, args ...any) {
	if w.Trace != nil {
		w.Trace(w.now, string(n.id)+" "+fmt.Sprintf(format, args...))
	}
}
