package sim

import (
	"slices"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// Crash ends the process of node i. Its connections are reset, and dials to it are refused.
func (w *World) Crash(i int32) {
	n := w.nodes[i]
	if n.status != running {
		return
	}
	w.trace(n, "crashes")
	w.noteFault(n)
	n.status = absent
	w.resetAll(n)
}

// resetAll closes all connections of n, whose process has ended.
func (w *World) resetAll(n *node) {
	for _, c := range slices.Clone(n.conns) {
		w.hangUp(n, c.conn)
	}
	n.peerStates, n.dials, n.deliveries = nil, nil, nil
}

// Silence ends node i like a power cut of its computer: its connections are not reset, and
// packets to it are lost.
func (w *World) Silence(i int32) {
	n := w.nodes[i]
	if n.status != running {
		return
	}
	w.trace(n, "falls silent")
	w.noteFault(n)
	n.status = silent
	n.peerStates, n.dials, n.deliveries = nil, nil, nil
	w.schedule(w.connTimeout(), simEvent{kind: connTimedOut, node: n.index, incarnation: n.incarnation})
}

// Leave closes node i in an orderly way, and ends its process a second later.
func (w *World) Leave(i int32) {
	n := w.nodes[i]
	if n.status != running || n.asleep {
		return
	}
	w.trace(n, "leaves")
	w.noteFault(n)
	w.step(n, overlay.Close{})
	life := n.incarnation
	w.At(time.Second, func() {
		// The node may have crashed or been restarted in the second since it was closed.
		if n.status == running && n.incarnation == life {
			n.status = absent
			w.resetAll(n)
		}
	})
}

// Split divides the network until Heal is called. The function side returns the side of each
// node. Packets between nodes on different sides are lost.
func (w *World) Split(side func(i int32) int8) {
	w.cuts++
	w.side = side
	for _, n := range w.nodes {
		n.side = side(n.index)
		w.noteFault(n)
	}
	for _, n := range w.nodes {
		for _, c := range n.conns {
			// Each connection between the two sides is in the lists of both of its nodes, but
			// needs only one timeout.
			if c.ends[0] == n && c.ends[1].side != n.side {
				w.schedule(w.connTimeout(), simEvent{kind: connTimedOut, node: n.index, incarnation: uint32(w.cuts), conn: c.conn})
			}
		}
	}
}

// Heal ends the partition that Split began.
func (w *World) Heal() {
	w.side = nil
	for _, n := range w.nodes {
		n.side = 0
		w.noteFault(n)
	}
}

// Sleep suspends the computer of node i. The connections of the node stay, its timers stop, and
// up to maxDeliveries messages to it wait.
func (w *World) Sleep(i int32) {
	n := w.nodes[i]
	if n.status == running && !n.asleep {
		w.trace(n, "falls asleep")
		w.noteFault(n)
		n.asleep = true
	}
}

// Wake ends the sleep of node i, which then handles the messages that have waited.
func (w *World) Wake(i int32) {
	n := w.nodes[i]
	if n.status != running || !n.asleep {
		return
	}
	w.trace(n, "wakes up")
	w.noteFault(n)
	n.asleep = false
	if w.rules.Watchdog { // the silence of seeds during the sleep does not count
		w.restartWatch(n, 0, pingInterval/2)
		w.armWatch(n)
	}
	w.step(n, overlay.Woke{})
	inbox := n.deliveries
	n.deliveries = nil
	for _, l := range inbox {
		w.handleDelivery(n, l)
	}
}

// Undialable makes all dials to node i fail, while the node's own dials work.
func (w *World) Undialable(i int32) { w.nodes[i].undialable = true }

// Slow makes node i handle messages and timers late, each time by a random time below d.
func (w *World) Slow(i int32, d time.Duration) { w.nodes[i].maxLateness = d }

// noteFault notes that n has a fault now, such as a crash. The fault may explain why links of n
// and of its neighbors end.
func (w *World) noteFault(n *node) {
	n.lastFault = max(w.now, 1)
	for i := range n.peerStates {
		w.nodes[n.peerStates[i].peer].lastFault = n.lastFault
	}
}

// Running reports whether a node runs.
func (w *World) Running(i int32) bool { return w.nodes[i].status == running }
