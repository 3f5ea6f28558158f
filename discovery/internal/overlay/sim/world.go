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

// A World is a network of simulated nodes. Everything in it follows from one number, the seed
// of the random numbers. One goroutine at a time may use it.
type World struct {
	// Trace, if not nil, is called for each change of a link or a node.
	Trace func(at time.Duration, text string)
	// Encode makes the world encode and decode every message, as on the wire.
	Encode bool
	// Loss is the probability that a message is lost, so that it has to be sent again.
	Loss float64

	rules Rules
	seed  uint64
	now   time.Duration
	queue queue
	rand  *rand.Rand
	nodes []*node
	ids   strings.Builder
	cuts  int // the number of partitions so far
	// side returns the side of a node in the present split. It is nil if the network is not
	// split.
	side  func(i int32) int8
	finds uint64 // the number of calls of Find so far
	hash  uint64

	stepping *node // the node whose state machine is called at this moment
	// nextInputs has the inputs that the state machine of stepping gets after that call has
	// returned.
	nextInputs []overlay.Input

	Counts
	onLocated func(n *node, o overlay.Located)
	scratch   scratch
}

// A nodeStatus is the state of the process of a node.
type nodeStatus uint8

const (
	absent  nodeStatus = iota // not started, crashed or closed; its computer refuses dials
	running                   // started and not ended
	silent                    // its computer died, and packets to it are lost
)

// A node is one node of the network.
type node struct {
	id          peer.ID
	index       int32
	incarnation uint32 // the number of starts so far
	status      nodeStatus
	startedAt   time.Duration
	machine     Membership // the state machine under test
	seeds       []int32    // the indexes of the nodes that are its seeds
	record      uint64     // the sequence number of its newest record

	asleep      bool
	undialable  bool
	maxLateness time.Duration // a slow node handles messages and timers late, by up to this time
	side        int8          // its side of the partition
	lastFault   time.Duration // the time of the last fault of this node or of a neighbor

	wakeAt     time.Duration // when the state machine wants a Tick; zero for never
	timerAt    time.Duration // the earliest timer event in the queue; zero for none
	lateTurnAt time.Duration // when a slow node handles the deliveries that wait for it; zero for never
	deliveries []delivery

	conns       []connEnd     // in the order of their age, the oldest first
	trimmedAt   time.Duration // when trimConns last closed connections
	dials       []*dial
	activeDials int // dials under way, without those of seeds
	peerStates  []peerState
	endedLinks  []lostLink
	watch       watch
}

// A delivery is a message or another input for a node. While the node is slow or asleep, it
// waits.
type delivery struct {
	from   int32
	in     overlay.Input
	signal *pingSignal
}

// maxDeliveries bounds the messages and other inputs that wait for a node that is slow or
// asleep; later ones are lost.
const maxDeliveries = 1024

// epoch is the time of day at which every simulation begins.
var epoch = time.Unix(1_700_000_000, 0)

// New returns a world without nodes.
func New(rules Rules, seed uint64) *World {
	return &World{rules: rules, seed: seed, rand: rand.New(rand.NewPCG(seed, 0x5347))}
}

// Now returns the virtual time since the simulation began.
func (w *World) Now() time.Duration { return w.now }

// Hash returns a digest of all events so far, by which two simulations can be compared.
func (w *World) Hash() uint64 { return w.hash }

// Len returns the number of nodes that were ever added, whether they run or not.
func (w *World) Len() int { return len(w.nodes) }

// The id of a simulated node begins with its index, in the form n000042. idLen is the length of
// that beginning.
const idLen = 7

// Add adds a node that starts after delay, and returns its index. seeds has the indexes of
// the nodes that are its seeds.
func (w *World) Add(delay time.Duration, seeds ...int32) int32 {
	i := int32(len(w.nodes))
	// The rest of the id is random, since the membership protocol may treat ids differently by
	// their order.
	n := &node{id: w.newID(fmt.Sprintf("n%06d-%08x", i, w.rand.Uint32())), index: i, seeds: seeds}
	w.nodes = append(w.nodes, n)
	if w.side != nil {
		n.side = w.side(i)
	}
	w.Start(i, delay)
	return i
}

// newID returns text as an id. Many ids share one block of memory, so that comparing them,
// which happens very often, uses the cache of the processor well.
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

// Start starts the process of node i after delay, if it does not run. A node that ran before
// has the same id and has forgotten everything else.
func (w *World) Start(i int32, delay time.Duration) {
	w.schedule(delay, simEvent{kind: nodeStart, node: i})
}

// index returns the index of the node with that id. It reports false if there is none.
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

// At makes the simulator call do when the virtual time d has passed.
func (w *World) At(d time.Duration, do func()) { w.schedule(d, simEvent{kind: script, do: do}) }

// Run plays all events of the next d of virtual time, and advances the time by d.
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

// mixHash adds x to the digest of all events.
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
		// The timer event is void if an earlier timer of the node was set after it, or if the
		// node was restarted.
		if e.incarnation == n.incarnation && n.timerAt == w.now {
			n.timerAt = 0
			// The state machine may want its Tick later than when this timer was set.
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
	n.incarnation++ // events that were scheduled for the node's earlier process no longer count
	n.status, n.startedAt = running, w.now
	n.asleep, n.wakeAt, n.timerAt, n.lateTurnAt = false, 0, 0, 0
	for _, c := range n.conns {
		// Messages on a connection of the node's earlier process are answered with a reset.
		c.open[c.side(n)] = false
	}
	n.deliveries, n.conns, n.dials, n.activeDials, n.peerStates, n.endedLinks = nil, nil, nil, 0, nil, nil
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

// deliver gives the message or other input l to the node n. A slow node handles it later, a
// sleeping node when it wakes up.
func (w *World) deliver(n *node, l delivery) {
	if n.status != running {
		return
	}
	if !n.asleep && n.maxLateness == 0 {
		w.handleDelivery(n, l)
		return
	}
	if _, ok := l.in.(overlay.Tick); ok && (n.asleep || len(n.deliveries) > 0) {
		return // the node gets a Tick anyway after it has handled the inputs that wait for it
	}
	if len(n.deliveries) < maxDeliveries {
		n.deliveries = append(n.deliveries, l)
	}
	if !n.asleep && n.lateTurnAt == 0 {
		late := time.Duration(w.rand.Int64N(int64(n.maxLateness)))
		n.lateTurnAt = w.now + late
		w.schedule(late, simEvent{kind: lateDeliveries, node: n.index, incarnation: n.incarnation})
	}
}

// handleLateDeliveries makes a slow node handle all its waiting deliveries.
func (w *World) handleLateDeliveries(n *node) {
	n.lateTurnAt = 0
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
		w.handleSignal(n, l.from, l.signal)
		return
	}
	// A state machine cannot be called while a call of it is running, so this input waits until
	// that call has returned.
	if w.stepping == n {
		w.nextInputs = append(w.nextInputs, l.in)
		return
	}
	w.step(n, l.in)
}

func (w *World) wallClock() time.Time { return epoch.Add(w.now) }

// step feeds the input in to the state machine of the node n, and performs the outputs that the
// state machine returns.
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

// armTimer adds a timer event to the queue for the time at which the state machine of n wants a
// Tick, unless an earlier timer event is there.
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
