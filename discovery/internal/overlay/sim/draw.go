package sim

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
)

// A Picture is the state of a simulated network at one moment, from which Draw makes a drawing.
type Picture struct {
	Title string
	// parts has, for each node, the number of its part of the network. The largest part is 0; a
	// node that does not run has the number gone.
	parts []int32
	links [][2]int32
	seeds []int32
}

const gone = -1

// Picture returns a picture of the simulated network at the present time. The title of the
// picture begins with name.
func (w *World) Picture(name string) Picture {
	p := Picture{parts: make([]int32, w.Len())}
	s := w.components()
	size := map[int32]int{}
	for i, n := range w.nodes {
		p.parts[i] = gone
		if n.status == running {
			p.parts[i] = s.root(int32(i))
			size[p.parts[i]]++
		}
	}
	var order []int32
	for i := range p.parts {
		if size[int32(i)] > 0 {
			order = append(order, int32(i))
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int { return size[b] - size[a] })
	rank := map[int32]int32{gone: gone}
	for k, root := range order {
		rank[root] = int32(k)
	}
	for i := range p.parts {
		p.parts[i] = rank[p.parts[i]]
	}
	w.eachLink(func(a, b int32) { p.links = append(p.links, [2]int32{a, b}) })
	for _, n := range w.nodes {
		for _, i := range n.seeds {
			if !slices.Contains(p.seeds, i) {
				p.seeds = append(p.seeds, i)
			}
		}
	}
	running := 0
	for _, n := range size {
		running += n
	}
	parts := "1 part"
	if len(order) != 1 {
		parts = fmt.Sprintf("%d parts", len(order))
	}
	p.Title = fmt.Sprintf("%s: %d nodes, %d links, %s", name, running, len(p.links), parts)
	return p
}

const (
	canvas = 640 // the width and the height of one picture
	header = 40
	// A network with more than maxForceNodes nodes is drawn on a circle. In smaller networks,
	// forces between the nodes determine their places; to compute them takes a time that grows
	// with the square of the number of nodes.
	maxForceNodes = 2000
)

// colors has the colors in which a picture shows the parts of the network, the largest part
// first. If there are more parts than colors, the smallest parts all have the last color.
var colors = []string{"#1f4e9c", "#d1495b", "#2a9d60", "#e08e1b", "#7b4ab5", "#00848c", "#8a6d3b"}

// Draw writes the pictures of a network to out, side by side, as SVG. A node has the same place
// in all pictures. The places follow from the picture in which the network is in the most
// parts, so that the parts do not overlap.
func Draw(out io.Writer, pictures []Picture) error {
	if len(pictures) == 0 {
		return nil
	}
	nodes := 0
	for _, p := range pictures {
		nodes = max(nodes, len(p.parts))
	}
	at := place(pictures, nodes)
	radius := math.Max(1, math.Min(7, 60/math.Sqrt(float64(nodes))))
	width := math.Max(0.2, math.Min(1.2, 12/math.Sqrt(float64(nodes))))
	b := bufio.NewWriter(out)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="18">`+"\n",
		canvas*len(pictures), canvas+header)
	fmt.Fprintf(b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for k, p := range pictures {
		fmt.Fprintf(b, `<g transform="translate(%d 0)"><text x="%d" y="26" text-anchor="middle">%s</text>`+"\n", k*canvas, canvas/2, p.Title)
		fmt.Fprintf(b, `<g transform="translate(0 %d)"><g stroke-width="%.2f" stroke-opacity="0.5" fill="none">`+"\n", header, width)
		for part, color := range colors {
			path := ""
			for _, l := range p.links {
				if int(min(p.parts[l[0]], int32(len(colors)-1))) == part {
					x, y := at[l[0]], at[l[1]]
					path += fmt.Sprintf("M%.1f %.1fL%.1f %.1f", x.x, x.y, y.x, y.y)
				}
			}
			if path != "" {
				fmt.Fprintf(b, `<path stroke="%s" d="%s"/>`+"\n", color, path)
			}
		}
		fmt.Fprint(b, "</g>\n")
		for i, part := range p.parts {
			color := "#d8d8d8"
			if part != gone {
				color = colors[min(int(part), len(colors)-1)]
			}
			ring := ""
			if slices.Contains(p.seeds, int32(i)) {
				ring = fmt.Sprintf(` stroke="black" stroke-width="%.1f"`, radius/2)
			}
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s"%s/>`+"\n", at[i].x, at[i].y, radius, color, ring)
		}
		fmt.Fprint(b, "</g></g>\n")
	}
	fmt.Fprint(b, "</svg>\n")
	return b.Flush()
}

type point struct{ x, y float64 }

// place returns the position of each of the nodes, which is the same in all pictures. Every two
// nodes repel each other, and links pull their two nodes together (Fruchterman and Reingold,
// 1991). More than maxForceNodes nodes are placed on a circle.
func place(pictures []Picture, nodes int) []point {
	at := make([]point, nodes)
	if nodes > maxForceNodes {
		for i := range at {
			sin, cos := math.Sincos(2 * math.Pi * float64(i) / float64(nodes))
			at[i] = point{canvas/2 + 0.47*canvas*cos, canvas/2 + 0.47*canvas*sin}
		}
		return at
	}
	model := pictures[0]
	for _, p := range pictures {
		if slices.Max(p.parts) > slices.Max(model.parts) {
			model = p
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range at {
		at[i] = point{r.Float64(), r.Float64()}
	}
	length := 0.8 / math.Sqrt(float64(nodes)) // the length of a link, in a square with sides of 1
	move := make([]point, nodes)
	rounds := max(60, min(300, 200_000/nodes))
	for round := range rounds {
		for i := range move {
			move[i] = point{(0.5 - at[i].x) * 0.3, (0.5 - at[i].y) * 0.3}
		}
		for i := range at {
			for j := range i {
				dx, dy := at[i].x-at[j].x, at[i].y-at[j].y
				push := length * length / math.Max(dx*dx+dy*dy, 1e-6)
				move[i].x += dx * push
				move[i].y += dy * push
				move[j].x -= dx * push
				move[j].y -= dy * push
			}
		}
		for _, l := range model.links {
			a, b := l[0], l[1]
			dx, dy := at[b].x-at[a].x, at[b].y-at[a].y
			pull := math.Hypot(dx, dy) / length
			move[a].x += dx * pull
			move[a].y += dy * pull
			move[b].x -= dx * pull
			move[b].y -= dy * pull
		}
		most := 0.1 * (1 - float64(round)/float64(rounds))
		for i := range at {
			far := math.Hypot(move[i].x, move[i].y)
			if far > most {
				move[i].x *= most / far
				move[i].y *= most / far
			}
			at[i].x += move[i].x
			at[i].y += move[i].y
		}
	}
	low, high := at[0], at[0]
	for _, p := range at {
		low = point{math.Min(low.x, p.x), math.Min(low.y, p.y)}
		high = point{math.Max(high.x, p.x), math.Max(high.y, p.y)}
	}
	scale := 0.94 * canvas / math.Max(math.Max(high.x-low.x, high.y-low.y), 1e-9)
	for i := range at {
		at[i].x = canvas/2 + (at[i].x-(low.x+high.x)/2)*scale
		at[i].y = canvas/2 + (at[i].y-(low.y+high.y)/2)*scale
	}
	return at
}
