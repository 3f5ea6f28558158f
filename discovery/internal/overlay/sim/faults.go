package sim

import (
	"slices"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// Crash ends a process: its connections are reset, and who dials it is refused.
func (w *World) Crash(i int32) {
	n := w.nodes[i]
	if n.status != running {
		return
	}
	w.trace(n, "crashes")
	w.hit(n)
	n.status = absent
	w.resetAll(n)
}

func (w *World) resetAll(n *node) {
	for _, c := range slices.Clone(n.conns) {
		w.hangUp(n, c.conn)
	}
	n.bonds, n.dials, n.inbox = nil, nil, nil
}

// Silence ends a machine: nobody is told, and packets to it are lost.
func (w *World) Silence(i int32) {
	n := w.nodes[i]
	if n.status != running {
		return
	}
	w.trace(n, "falls silent")
	w.hit(n)
	n.status = silent
	n.bonds, n.dials, n.inbox = nil, nil, nil
	w.after(w.line(), event{kind: deadLine, node: n.index, life: n.life})
}

// Leave closes a node as its user does, and then ends it.
func (w *World) Leave(i int32) {
	n := w.nodes[i]
	if n.status != running || n.asleep {
		return
	}
	w.trace(n, "leaves")
	w.hit(n)
	w.step(n, overlay.Close{})
	life := n.life
	w.At(time.Second, func() {
		if n.status == running && n.life == life {
			n.status = absent
			w.resetAll(n)
		}
	})
}

// Split divides the network: side tells for every node on which side it is. No
// packet gets across until Heal.
func (w *World) Split(side func(i int32) int8) {
	w.cuts++
	w.side = side
	for _, n := range w.nodes {
		n.side = side(n.index)
		w.hit(n)
	}
	for _, n := range w.nodes {
		for _, c := range n.conns {
			if c.ends[0] == n && c.ends[1].side != n.side {
				w.after(w.line(), event{kind: deadLine, node: n.index, life: uint32(w.cuts), conn: c.conn})
			}
		}
	}
}

// Heal ends a partition.
func (w *World) Heal() {
	w.side = nil
	for _, n := range w.nodes {
		n.side = 0
		w.hit(n)
	}
}

// Sleep suspends a node: its connections stay, what is sent to it waits, up to a
// bound, and no timer runs.
func (w *World) Sleep(i int32) {
	n := w.nodes[i]
	if n.status == running && !n.asleep {
		w.trace(n, "falls asleep")
		w.hit(n)
		n.asleep = true
	}
}

// Wake ends the sleep.
func (w *World) Wake(i int32) {
	n := w.nodes[i]
	if n.status != running || !n.asleep {
		return
	}
	w.trace(n, "wakes up")
	w.hit(n)
	n.asleep = false
	if w.rules.Watchdog {
		w.restartWatch(n, 0, pingInterval/2)
		w.armWatch(n)
	}
	w.step(n, overlay.Woke{})
	inbox := n.inbox
	n.inbox = nil
	for _, l := range inbox {
		w.open(n, l)
	}
}

// Undialable has nobody reach a node; its own dials work.
func (w *World) Undialable(i int32) { w.nodes[i].undialable = true }

// Slow has a node look at what has come, and at the clock, late by up to d.
func (w *World) Slow(i int32, d time.Duration) { w.nodes[i].slow = d }

// hit notes that a fault explains what happens to the links of n and its neighbours.
func (w *World) hit(n *node) {
	n.fault = max(w.now, 1)
	for i := range n.bonds {
		w.nodes[n.bonds[i].peer].fault = n.fault
	}
}

// Running tells whether a node runs.
func (w *World) Running(i int32) bool { return w.nodes[i].status == running }
