package bench

// An edge links two nodes, given by their numbers.
type edge [2]int

// A graph has n nodes and the links between them.
type graph struct {
	n     int
	edges []edge
}

// line links each node to the next. Two nodes are a pair.
func line(n int) graph {
	g := graph{n: n}
	for i := range n - 1 {
		g.edges = append(g.edges, edge{i, i + 1})
	}
	return g
}

// degree4 links each of n nodes to four others. The nodes stand in a ring, and a
// link spans one step or a third of the ring. With five nodes or fewer, every
// node is linked to all others.
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
