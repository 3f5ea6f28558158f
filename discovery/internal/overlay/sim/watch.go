package sim

import (
	"slices"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// This file is a small model of the watchdog in package health, which cannot be imported
// here. The model has the same pauses, so that its messages are counted: one ping serves
// all nodes, the seed answers with a flood, and a node that hears a ping sends none
// itself for 10 to 15 seconds. The model leaves out signatures, addresses, restarted
// seeds, the limit of signals per neighbor, and the delay of a verdict when the machine
// is late.

const (
	pingInterval = 10 * time.Second
	pingTimeout  = 3 * time.Second
)

// A pingSignal is a ping for a seed or the answer of the seed. It is flooded.
type pingSignal struct {
	overlay.Message // always nil; it makes a signal a Message
	pong            bool
	target          int32
	number          uint64 // higher than in all signals before
}

// watch is what a node knows of the seeds, its own and those of other nodes.
type watch struct {
	list  []seedWatch
	wake  time.Duration
	armed time.Duration
}

// seedWatch is one seed; its fields are those of package health.
type seedWatch struct {
	target      int32
	seed        int // its index among the seeds of the node, or -1
	known       bool
	lost        bool
	lastHeard   time.Duration
	silentSince time.Duration
	pingSince   time.Duration // when the first unanswered ping was sent; zero if there is none
	next        time.Duration
	lastPing    time.Duration // when a ping was last passed on or answered; -1 for never
	lastAnswer  uint64        // the number of the last answer
}

// watchedSeed returns what n knows of the seed target.
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

// watchNewNeighbor is called when n has a new link to peer.
func (w *World) watchNewNeighbor(n *node, peer int32) {
	if !w.rules.Watchdog {
		return
	}
	// Without links no seed could be heard, so its silence begins now.
	if n.degree() == 1 {
		w.restartWatch(n, pingInterval/2, pingInterval/2)
	}
	w.heardOver(n, peer)
	w.armWatch(n)
}

// heardOver notes a message over the link to a peer, which may be a seed.
func (w *World) heardOver(n *node, peer int32) {
	if !w.rules.Watchdog || !slices.Contains(n.seeds, peer) || !n.linkedTo(peer) {
		return
	}
	if x := n.watchedSeed(peer); x.seed >= 0 {
		w.heardSeed(n, x)
		w.armWatch(n)
	}
}

// restartWatch lets the silence of every seed begin now.
func (w *World) restartWatch(n *node, pause, jitter time.Duration) {
	for _, s := range n.seeds {
		if x := n.watchedSeed(s); x.seed >= 0 {
			x.silentSince, x.pingSince = w.now, 0
			x.next = w.now + pause + w.randomBelow(jitter)
		}
	}
}

func (w *World) heardSeed(n *node, x *seedWatch) {
	x.known, x.lastHeard = true, w.now
	x.silentSince, x.pingSince = w.now, 0
	x.next = w.now + pingInterval + w.randomBelow(pingInterval/2)
	if x.lost {
		x.lost = false
		w.deliver(n, delivery{in: overlay.SeedHeard{Seed: x.seed}})
	}
}

// foundSeed notes that the node has reached a seed by a dial.
func (w *World) foundSeed(n *node, seed int) {
	if w.rules.Watchdog {
		w.heardSeed(n, n.watchedSeed(n.seeds[seed]))
		w.armWatch(n)
	}
}

// verdict returns when x is lost unless it is heard before; zero means never.
func (x *seedWatch) verdict() time.Duration {
	if !x.known || x.lost || x.pingSince == 0 {
		return 0
	}
	return max(x.silentSince+2*pingInterval+pingTimeout, x.pingSince+pingTimeout)
}

func (w *World) armWatch(n *node) {
	next := time.Duration(0)
	for i := range n.watch.list {
		x := &n.watch.list[i]
		if x.seed < 0 {
			continue
		}
		for _, t := range [2]time.Duration{x.next, x.verdict()} {
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
		return
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
			// A ping of another node is under way, and its answer will be heard here,
			// too.
			if x.lastPing >= 0 && w.now-x.lastPing < pingInterval/2 {
				x.next = x.lastPing + pingInterval/2
			} else {
				w.pings++
				w.notePing(n, x, true)
				w.flood(n, &pingSignal{target: x.target, number: w.pings}, -1)
			}
		}
		if at := x.verdict(); at != 0 && w.now >= at {
			x.lost = true
			w.trace(n, "misses seed %d", x.target)
			w.deliver(n, delivery{in: overlay.SeedLost{Seed: x.seed}})
		}
	}
	w.armWatch(n)
}

// notePing records that a ping is under way.
func (w *World) notePing(n *node, x *seedWatch, own bool) {
	x.lastPing = w.now
	// A seed that was heard just now is not under suspicion because another node pings
	// it.
	if x.seed < 0 || !own && x.known && w.now-x.lastHeard < pingInterval/2 {
		return
	}
	if x.pingSince == 0 {
		x.pingSince = w.now
	}
	jitter := pingInterval / 16
	if x.lost {
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

func (w *World) hearSignal(n *node, from int32, s *pingSignal) {
	x := n.watchedSeed(s.target)
	if s.pong {
		// Only a newer answer is passed on, so the flood ends.
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
	// One ping per half an interval is passed on, from whichever node it comes.
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
