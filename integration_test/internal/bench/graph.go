package bench

// An edge links two nodes, given by their numbers.
type edge [2]int

// A graph is which of n nodes are linked.
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

// degree4 links each of n nodes to four others: around a ring, one step and a
// third of the ring away. Up to five nodes are each linked to all others.
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

// neighbours returns the nodes linked to i.
func (g graph) neighbours(i int) (list []int) {
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
