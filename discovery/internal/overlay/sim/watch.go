package sim

import (
	"slices"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// This file is a small model of the watchdog in package health, which this package cannot
// import. The model has the same pauses, so that its messages are counted: one ping of a seed
// serves all nodes, the seed answers with a flood, and a node that hears a ping sends none
// itself for some time. The model leaves out signatures, addresses, restarted seeds, the limit
// of signals per neighbor, and the delay of a verdict when the machine is late.

const (
	pingInterval = 10 * time.Second
	pingTimeout  = 3 * time.Second
)

// A pingSignal is a ping of a seed, or the answer of that seed. Both are flooded over the
// links.
type pingSignal struct {
	overlay.Message // always nil; it makes a pingSignal a Message
	pong            bool
	target          int32  // the seed
	number          uint64 // grows with each ping or answer that any node sends
}

// watch is the watchdog of one simulated node. It watches the seeds of the node, and it
// remembers when other nodes pinged other seeds.
type watch struct {
	list  []seedWatch
	wake  time.Duration // when the watchdog wants to be called; zero for never
	armed time.Duration // the time of the event in the queue that calls the watchdog; zero for none
}

// seedWatch is what the watchdog of a node knows of one seed. Its fields are modeled on those
// of package health.
type seedWatch struct {
	target int32
	// seed is the index of target in the node's list of seeds, or -1 if it is a seed only of
	// other nodes.
	seed        int
	known       bool // the node has reached or heard the seed
	lost        bool // the watchdog has reported that it no longer hears the seed
	lastHeard   time.Duration
	silentSince time.Duration // when the present silence of the seed began
	// pingSince is when the first ping of the seed that has no answer yet was sent; zero for
	// none.
	pingSince time.Duration
	next      time.Duration // when the node sends its next ping
	// lastPing is when the node last sent, passed on or answered a ping of target; -1 for
	// never.
	lastPing   time.Duration
	lastAnswer uint64 // the number of the signal that was the newest answer of the seed
}

// watchedSeed returns what the watchdog of n knows of the seed with the index target. If it
// knows nothing, watchedSeed adds an empty entry.
func (n *node) watchedSeed(target int32) *seedWatch {
	for i := range n.watch.list {
		if n.watch.list[i].target == target {
			return &n.watch.list[i]
		}
	}
	x := seedWatch{target: target, seed: -1, lastPing: -1}
	for i, s := range n.seeds {
		if s == target && s != n.index {
			x.seed = i
		}
	}
	n.watch.list = append(n.watch.list, x)
	return &n.watch.list[len(n.watch.list)-1]
}

// randomBelow returns a random duration below d.
func (w *World) randomBelow(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(w.rand.Uint64N(uint64(d)))
}

// watchNewNeighbor updates the watchdog of n after n has linked to the node with the index
// peer.
func (w *World) watchNewNeighbor(n *node, peer int32) {
	if !w.rules.Watchdog {
		return
	}
	// Before its first link, n could hear no seed through the overlay, so the silence of each
	// seed begins now.
	if n.degree() == 1 {
		w.restartWatch(n, pingInterval/2, pingInterval/2)
	}
	w.noteMessageFrom(n, peer)
	w.armWatch(n)
}

// noteMessageFrom notes that n received a message from the node with the index peer. If that
// node is a neighbor and a seed of n, the seed was heard.
func (w *World) noteMessageFrom(n *node, peer int32) {
	if !w.rules.Watchdog || !slices.Contains(n.seeds, peer) || !n.linkedTo(peer) {
		return
	}
	if x := n.watchedSeed(peer); x.seed >= 0 {
		w.heardSeed(n, x)
		w.armWatch(n)
	}
}

// restartWatch makes the silence of every seed of n begin now. n pings each seed next after
// pause, plus a random time below jitter.
func (w *World) restartWatch(n *node, pause, jitter time.Duration) {
	for _, s := range n.seeds {
		if x := n.watchedSeed(s); x.seed >= 0 {
			x.silentSince, x.pingSince = w.now, 0
			x.next = w.now + pause + w.randomBelow(jitter)
		}
	}
}

// heardSeed notes that n has heard the seed x now. If the watchdog had reported the seed as
// lost, it tells n's state machine that the seed is heard again.
func (w *World) heardSeed(n *node, x *seedWatch) {
	x.known, x.lastHeard = true, w.now
	x.silentSince, x.pingSince = w.now, 0
	x.next = w.now + pingInterval + w.randomBelow(pingInterval/2)
	if x.lost {
		x.lost = false
		w.deliver(n, delivery{in: overlay.SeedHeard{Seed: x.seed}})
	}
}

// foundSeed notes that n has reached, by a dial, the seed with the index seed in its list of
// seeds.
func (w *World) foundSeed(n *node, seed int) {
	if w.rules.Watchdog {
		w.heardSeed(n, n.watchedSeed(n.seeds[seed]))
		w.armWatch(n)
	}
}

// lossDue returns the time at which the watchdog will report that it no longer hears the seed
// x, unless it hears the seed before. Zero means that no report is due.
func (x *seedWatch) lossDue() time.Duration {
	if !x.known || x.lost || x.pingSince == 0 {
		return 0
	}
	return max(x.silentSince+2*pingInterval+pingTimeout, x.pingSince+pingTimeout)
}

// armWatch adds an event to the queue for the time at which the watchdog of n has to act next,
// unless the queue has an earlier event for it.
func (w *World) armWatch(n *node) {
	next := time.Duration(0)
	for i := range n.watch.list {
		x := &n.watch.list[i]
		if x.seed < 0 {
			continue
		}
		for _, t := range [2]time.Duration{x.next, x.lossDue()} {
			if t != 0 && (next == 0 || t < next) {
				next = t
			}
		}
	}
	n.watch.wake = next
	if next == 0 || n.watch.armed != 0 && n.watch.armed <= next {
		return
	}
	n.watch.armed = max(next, w.now+time.Millisecond)
	w.queue.push(n.watch.armed, simEvent{kind: watchdogDue, node: n.index, incarnation: n.incarnation})
}

func (w *World) watchDue(n *node, life uint32) {
	if life != n.incarnation || n.watch.armed != w.now {
		return // the node was restarted, or an earlier event has taken the place of this one
	}
	n.watch.armed = 0
	if n.status != running || n.asleep || n.degree() == 0 {
		n.watch.wake = 0
		return // armWatch is called again for the next neighbor, or on waking up
	}
	for i := range n.watch.list {
		x := &n.watch.list[i]
		if x.seed < 0 {
			continue
		}
		if w.now >= x.next {
			// A ping of the same seed by another node is under way. Its answer is flooded and
			// will reach this node, too.
			if x.lastPing >= 0 && w.now-x.lastPing < pingInterval/2 {
				x.next = x.lastPing + pingInterval/2
			} else {
				w.pings++
				w.notePing(n, x, true)
				w.flood(n, &pingSignal{target: x.target, number: w.pings}, -1)
			}
		}
		if at := x.lossDue(); at != 0 && w.now >= at {
			x.lost = true
			w.trace(n, "misses seed %d", x.target)
			w.deliver(n, delivery{in: overlay.SeedLost{Seed: x.seed}})
		}
	}
	w.armWatch(n)
}

// notePing notes that a ping of the seed x is under way. own means that n itself sent the ping,
// and not another node.
func (w *World) notePing(n *node, x *seedWatch, own bool) {
	x.lastPing = w.now
	// If n has heard the seed a moment ago, the ping of another node does not mean that n may
	// have lost the seed.
	if x.seed < 0 || !own && x.known && w.now-x.lastHeard < pingInterval/2 {
		return
	}
	if x.pingSince == 0 {
		x.pingSince = w.now
	}
	jitter := pingInterval / 16
	if x.lost { // all nodes may miss the seed, and should not all ping it at once
		jitter = pingInterval / 2
	}
	x.next = w.now + pingInterval*33/64 + w.randomBelow(jitter)
}

func (w *World) flood(n *node, s *pingSignal, except int32) {
	for i := range n.peerStates {
		if b := &n.peerStates[i]; b.linked && b.peer != except {
			w.send(n, b.peer, s)
		}
	}
}

func (w *World) handleSignal(n *node, from int32, s *pingSignal) {
	x := n.watchedSeed(s.target)
	if s.pong {
		// An answer of a seed that is not newer than its last one was passed on before.
		// Dropping it ends the flood.
		if s.number <= x.lastAnswer || s.target == n.index {
			return
		}
		x.lastAnswer = s.number
		if x.seed >= 0 {
			w.heardSeed(n, x)
		}
		w.flood(n, s, from)
		w.armWatch(n)
		return
	}
	// A node passes on at most one ping of each seed per half a ping interval, since the answer
	// of the seed reaches all nodes.
	if x.lastPing >= 0 && w.now-x.lastPing < pingInterval/2 {
		return
	}
	if s.target == n.index {
		x.lastPing = w.now
		w.pings++
		w.flood(n, &pingSignal{pong: true, target: n.index, number: w.pings}, -1)
		return
	}
	w.notePing(n, x, false)
	w.flood(n, s, from)
	w.armWatch(n)
}
