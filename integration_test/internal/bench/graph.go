package bench

// An edge links two nodes, given by their numbers.
type edge [2]int

// A graph has n nodes and the links between them.
type graph struct {
	n     int
	edges []edge
}

// line returns a graph of n nodes in which each node is linked to the next.
func line(n int) graph {
	g := graph{n: n}
	for i := range n - 1 {
		g.edges = append(g.edges, edge{i, i + 1})
	}
	return g
}

// degree4 returns a graph in which each of n nodes is linked to four others. The nodes form a
// ring. Each node is linked to its two neighbors in the ring and to the two nodes that are a
// third of the ring away. With five nodes or fewer, every node is linked to all others.
func degree4(n int) graph {
	g := graph{n: n}
	if n <= 5 {
		for i := range n {
			for j := range i {
				g.edges = append(g.edges, edge{j, i})
			}
		}
		return g
	}
	for i := range n {
		g.edges = append(g.edges, edge{i, (i + 1) % n}, edge{i, (i + (n+1)/3) % n})
	}
	return g
}

// neighbors returns the nodes linked to node i.
func (g graph) neighbors(i int) (list []int) {
	for _, e := range g.edges {
		switch i {
		case e[0]:
			list = append(list, e[1])
		case e[1]:
			list = append(list, e[0])
		}
	}
	return list
}
