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

// A World is a network of simulated nodes. Everything in it follows from its seed. One
// goroutine at a time may use it.
type World struct {
	// Trace, if set, is called with what happens to links and nodes.
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
	cuts  int                // number of partitions so far
	side  func(i int32) int8 // the side of each node in the present partition, or nil
	finds uint64             // number of searches so far
	hash  uint64

	stepping   *node           // the node whose machine is called at this moment
	nextInputs []overlay.Input // inputs for that machine when the call has returned

	Counts
	onLocated func(n *node, o overlay.Located)
	scratch   scratch
}

// A nodeStatus is the state of the process of a node.
type nodeStatus uint8

const (
	absent  nodeStatus = iota // not started, crashed or left: its machine refuses dials
	running                   //
	silent                    // dead, and no peer was told
)

// A node is one node of the network.
type node struct {
	id          peer.ID
	index       int32
	incarnation uint32 // number of starts
	status      nodeStatus
	startedAt   time.Duration
	machine     Membership
	seeds       []int32
	record      uint64 // sequence number of its record

	asleep      bool
	undialable  bool
	maxLateness time.Duration // the most that it handles messages and timers too late
	side        int8          // of the partition
	lastFault   time.Duration // the time of the last fault that hit it

	wakeAt     time.Duration // when the machine wants to be called; zero for never
	timerAt    time.Duration // the earliest timer in the queue; zero for none
	turnAt     time.Duration
	deliveries []delivery

	conns       []connEnd     // the oldest first
	trimmedAt   time.Duration // when connections were trimmed last
	dials       []*dial
	activeDials int // dials that count against the bound
	peerStates  []peerState
	partings    []pastLink
	watch       watch
}

// A delivery is a message or another input for a node. It waits while the node is slow or
// asleep.
type delivery struct {
	from   int32
	in     overlay.Input
	signal *pingSignal
}

// maxDeliveries bounds the waiting deliveries of a node.
const maxDeliveries = 1024

// epoch is the time of day at which every run begins.
var epoch = time.Unix(1_700_000_000, 0)

// New returns a world without nodes.
func New(rules Rules, seed uint64) *World {
	return &World{rules: rules, seed: seed, rand: rand.New(rand.NewPCG(seed, 0x5347))}
}

// Now returns the time since the run began.
func (w *World) Now() time.Duration { return w.now }

// Hash returns a digest of all events so far.
func (w *World) Hash() uint64 { return w.hash }

// Len returns the number of nodes that were ever added.
func (w *World) Len() int { return len(w.nodes) }

// idLen is the length of the part of an id that holds the number of the node.
const idLen = 7

// Add adds a node that starts after delay. Its seeds are the nodes with those numbers.
func (w *World) Add(delay time.Duration, seeds ...int32) int32 {
	i := int32(len(w.nodes))
	// The rest of the id is random, since the rules may prefer some ids.
	n := &node{id: w.newID(fmt.Sprintf("n%06d-%08x", i, w.rand.Uint32())), index: i, seeds: seeds}
	w.nodes = append(w.nodes, n)
	if w.side != nil {
		n.side = w.side(i)
	}
	w.Start(i, delay)
	return i
}

// newID returns text as an id. Ids share blocks of memory, as they are compared very
// often.
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

// Start starts a node that was not started yet, or has crashed. It has the same id and
// has forgotten everything.
func (w *World) Start(i int32, delay time.Duration) {
	w.schedule(delay, simEvent{kind: nodeStart, node: i})
}

// index returns the number of the node with that id.
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

func (w *World) schedule(d time.Duration, e simEvent) { w.queue.push(w.now+d, e) }

// At calls do after d.
func (w *World) At(d time.Duration, do func()) { w.schedule(d, simEvent{kind: script, do: do}) }

// Run plays the events of the next d.
func (w *World) Run(d time.Duration) {
	end := w.now + d
	for {
		at, ok := w.queue.nextTime()
		if !ok || at > end {
			break
		}
		w.now = at
		w.handle(w.queue.pop())
	}
	w.now = end
}

func (w *World) mixHash(x uint64) {
	w.hash = (w.hash ^ x) * 0x9e3779b97f4a7c15
	w.hash ^= w.hash >> 29
}

func (w *World) handle(e simEvent) {
	w.Events++
	w.mixHash(uint64(w.now)<<8 | uint64(e.kind))
	w.mixHash(uint64(e.node)<<32 | uint64(e.peer))
	if e.kind == script {
		e.do()
		return
	}
	n := w.nodes[e.node]
	switch e.kind {
	case nodeStart:
		w.startNode(n)
	case timerDue:
		// An earlier timer has taken the place of this one, or the node was restarted.
		if e.incarnation == n.incarnation && n.timerAt == w.now {
			n.timerAt = 0
			// The machine may have put off its timer since.
			if n.wakeAt != 0 && n.wakeAt <= w.now {
				n.wakeAt = 0
				w.deliver(n, delivery{in: overlay.Tick{}})
			} else {
				w.armTimer(n)
			}
		}
	case watchdogDue:
		w.watchDue(n, e.incarnation)
	case messageArrival:
		w.arrive(n, e.conn, e.msg)
	case dialEnd:
		if e.incarnation == n.incarnation {
			w.dialEnded(n, e.dial)
		}
	case connClosed:
		w.handleHangUp(n, e.conn)
	case connTimedOut:
		w.handleConnTimeout(n, e)
	case resendDue:
		w.resendHeld(n, e.conn)
	case topicUpdate:
		w.updateTopic(n, e.peer)
	case lateDeliveries:
		if e.incarnation == n.incarnation {
			w.handleLateDeliveries(n)
		}
	}
}

func (w *World) startNode(n *node) {
	if n.status == running {
		return
	}
	n.incarnation++
	n.status, n.startedAt = running, w.now
	n.asleep, n.wakeAt, n.timerAt, n.turnAt = false, 0, 0, 0
	for _, c := range n.conns {
		c.open[c.side(n)] = false // the kernel answers messages for the dead process with a reset
	}
	n.deliveries, n.conns, n.dials, n.activeDials, n.peerStates, n.partings = nil, nil, nil, 0, nil, nil
	n.watch = watch{}
	seeds := make([]peer.ID, len(n.seeds))
	for i, s := range n.seeds {
		seeds[i] = w.nodes[s].id
	}
	r := rand.New(rand.NewPCG(w.seed, uint64(n.index)<<32|uint64(n.incarnation)))
	n.machine = w.rules.New(n.id, uint64(n.incarnation), seeds, r)
	w.trace(n, "starts")
	w.step(n, w.newRecord(n))
	w.step(n, overlay.Tick{})
}

// deliver gives an input to a node: at once, or when a slow or sleeping node gets to it.
func (w *World) deliver(n *node, l delivery) {
	if n.status != running {
		return
	}
	if !n.asleep && n.maxLateness == 0 {
		w.handleDelivery(n, l)
		return
	}
	if _, ok := l.in.(overlay.Tick); ok && (n.asleep || len(n.deliveries) > 0) {
		return // the node gets a Tick after its deliveries in any case
	}
	if len(n.deliveries) < maxDeliveries {
		n.deliveries = append(n.deliveries, l)
	}
	if !n.asleep && n.turnAt == 0 {
		late := time.Duration(w.rand.Int64N(int64(n.maxLateness)))
		n.turnAt = w.now + late
		w.schedule(late, simEvent{kind: lateDeliveries, node: n.index, incarnation: n.incarnation})
	}
}

// handleLateDeliveries lets a slow node handle all its deliveries.
func (w *World) handleLateDeliveries(n *node) {
	n.turnAt = 0
	if n.asleep || n.status != running {
		return
	}
	inbox := n.deliveries
	n.deliveries = nil
	for _, l := range inbox {
		w.handleDelivery(n, l)
	}
	w.step(n, overlay.Tick{})
}

func (w *World) handleDelivery(n *node, l delivery) {
	if l.signal != nil {
		w.hearSignal(n, l.from, l.signal)
		return
	}
	// The machine cannot be called while it is called: the input waits until it has
	// returned.
	if w.stepping == n {
		w.nextInputs = append(w.nextInputs, l.in)
		return
	}
	w.step(n, l.in)
}

func (w *World) wallClock() time.Time { return epoch.Add(w.now) }

// step feeds one input to a node's machine and carries out the outputs.
func (w *World) step(n *node, in overlay.Input) {
	if n.status != running || n.asleep {
		return
	}
	now := w.wallClock()
	w.stepping = n
	for {
		for _, o := range n.machine.Step(now, in) {
			w.perform(n, o)
		}
		if len(w.nextInputs) == 0 {
			break
		}
		in = w.nextInputs[0]
		w.nextInputs = w.nextInputs[:copy(w.nextInputs, w.nextInputs[1:])]
	}
	w.stepping = nil
	n.wakeAt = 0
	if next := n.machine.Next(now); !next.IsZero() {
		n.wakeAt = max(next.Sub(epoch), w.now+time.Millisecond)
	}
	w.armTimer(n)
}

// armTimer makes sure that there is a timer event when the node wants to be woken.
func (w *World) armTimer(n *node) {
	if n.wakeAt == 0 || n.timerAt != 0 && n.timerAt <= n.wakeAt {
		return
	}
	n.timerAt = max(n.wakeAt, w.now)
	w.queue.push(n.timerAt, simEvent{kind: timerDue, node: n.index, incarnation: n.incarnation})
}

func (w *World) trace(n *node, format string, args ...any) {
	if w.Trace != nil {
		w.Trace(w.now, string(n.id)+" "+fmt.Sprintf(format, args...))
	}
}
