package sim

import (
	"slices"
	"time"
)

// scratch is memory that all measurements of a simulated network share, since the network is
// measured several times a second.
type scratch struct {
	parent []int32
	size   []int32
	queue  []int32
	dist   []int32
}

// eachLink calls f with the indexes of the two nodes of each link, once for each link. It
// leaves out links that only one of the two nodes knows of, and links across a split.
func (w *World) eachLink(f func(a, b int32)) {
	for _, n := range w.nodes {
		if n.status != running {
			continue
		}
		for i := range n.peerStates {
			b := &n.peerStates[i]
			if b.linked && b.peer > n.index && w.linkStands(n, b.peer) {
				f(n.index, b.peer)
			}
		}
	}
}

// linkStands reports whether the link of n to the node with the index peer exists for both:
// that node runs, has the link as well, and is on the same side of a split as n.
func (w *World) linkStands(n *node, peer int32) bool {
	p := w.nodes[peer]
	return p.status == running && p.side == n.side && p.linkedTo(n.index)
}

// root returns the node that represents the part of the network in which node i is: all nodes
// of a part have the same root. Like every union-find, it shortens the path to the root for
// later calls.
func (s *scratch) root(i int32) int32 {
	for s.parent[i] != i {
		s.parent[i] = s.parent[s.parent[i]]
		i = s.parent[i]
	}
	return i
}

// components finds the parts of the network. The method root of the result returns
// the same node for all nodes of one part. Links that only one of their two nodes knows of, and
// links across a split, do not count.
func (w *World) components() *scratch {
	s := &w.scratch
	s.parent, s.size = s.parent[:0], s.size[:0]
	for i := range w.nodes {
		s.parent, s.size = append(s.parent, int32(i)), append(s.size, 0)
	}
	w.eachLink(func(a, b int32) {
		if x, y := s.root(a), s.root(b); x != y {
			s.parent[max(x, y)] = min(x, y)
		}
	})
	return s
}

// Parts returns the number of nodes in each part of the network, the largest part first. It
// counts only running nodes that were started at least age ago.
func (w *World) Parts(age time.Duration) []int {
	s := w.components()
	for _, n := range w.nodes {
		if n.status == running && w.now-n.startedAt >= age {
			s.size[s.root(n.index)]++
		}
	}
	var parts []int
	for _, size := range s.size {
		if size > 0 {
			parts = append(parts, int(size))
		}
	}
	slices.SortFunc(parts, func(a, b int) int { return b - a })
	return parts
}

// Share returns the fraction of the running nodes that are in the largest part of the network,
// from 0 to 1. It counts only nodes that were started at least age ago.
func (w *World) Share(age time.Duration) float64 {
	parts := w.Parts(age)
	if len(parts) == 0 {
		return 1
	}
	all := 0
	for _, p := range parts {
		all += p
	}
	return float64(parts[0]) / float64(all)
}

// Whole reports whether all running nodes are in one part of the network, so that links connect
// all of them.
func (w *World) Whole() bool {
	s := w.components()
	first := int32(-1)
	for _, n := range w.nodes {
		if n.status != running {
			continue
		}
		switch r := s.root(n.index); {
		case first < 0:
			first = r
		case r != first:
			return false
		}
	}
	return true
}

// Degrees returns a list with, at each index d, the number of running nodes that have d links.
// It counts only links that both nodes know of.
func (w *World) Degrees() []int {
	counts := make([]int, w.Len())
	w.eachLink(func(a, b int32) {
		counts[a]++
		counts[b]++
	})
	var degrees []int
	for _, n := range w.nodes {
		if n.status != running {
			continue
		}
		for len(degrees) <= counts[n.index] {
			degrees = append(degrees, 0)
		}
		degrees[counts[n.index]]++
	}
	return degrees
}

// Diameter returns the longest distance between two running nodes, in hops. With more than
// 2,000 nodes it measures the distances from only 64 of them, so the result may be too
// small.
func (w *World) Diameter() int {
	adjacent := make([][]int32, w.Len())
	w.eachLink(func(a, b int32) {
		adjacent[a] = append(adjacent[a], b)
		adjacent[b] = append(adjacent[b], a)
	})
	var from []int32
	for _, n := range w.nodes {
		if n.status == running {
			from = append(from, n.index)
		}
	}
	if len(from) > 2000 {
		var some []int32
		for i := range 64 {
			some = append(some, from[i*len(from)/64])
		}
		from = some
	}
	s := &w.scratch
	s.dist = slices.Grow(s.dist[:0], w.Len())[:w.Len()]
	longest := int32(0)
	for _, start := range from {
		for i := range s.dist {
			s.dist[i] = -1
		}
		s.dist[start] = 0
		s.queue = append(s.queue[:0], start)
		for i := 0; i < len(s.queue); i++ {
			x := s.queue[i]
			for _, y := range adjacent[x] {
				if s.dist[y] < 0 {
					s.dist[y] = s.dist[x] + 1
					longest = max(longest, s.dist[y])
					s.queue = append(s.queue, y)
				}
			}
		}
	}
	return int(longest)
}

// Crossing returns the fraction of all links whose two nodes are on different sides. The
// function side returns the side of a node.
func (w *World) Crossing(side func(i int32) int8) float64 {
	all, cross := 0, 0
	w.eachLink(func(a, b int32) {
		all++
		if side(a) != side(b) {
			cross++
		}
	})
	return float64(cross) / float64(max(all, 1))
}

// OldestHalfLink returns the age of the oldest link that only one of its two nodes knows of. It
// notices changes only when it is called, so it should be called about once a second. Links to
// nodes that are dead, asleep or cut off do not count, since no message can reach those nodes.
func (w *World) OldestHalfLink() (oldest time.Duration) {
	for _, n := range w.nodes {
		if n.status != running {
			continue
		}
		for i := range n.peerStates {
			b := &n.peerStates[i]
			p := w.nodes[b.peer]
			if !b.linked || p.status != running || n.asleep || p.asleep || p.side != n.side || p.linkedTo(n.index) {
				b.halfSince = 0
				continue
			}
			if b.halfSince == 0 {
				b.halfSince = w.now
			}
			oldest = max(oldest, w.now-b.halfSince)
		}
	}
	return oldest
}
