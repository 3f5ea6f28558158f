package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The size of a plot and of what is around the area of its lines, in pixels.
const (
	width, height            = 760, 460
	left, right, top, bottom = 70, 24, 84, 52
)

// styles holds for light and dark pages: the background is the page's, the
// colours of the lines stand out from both.
const styles = `text{font:13px system-ui,sans-serif;fill:#3b4048}
.title{font-size:15px;font-weight:600}
.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:#808890;stroke-opacity:.28}
.fine{stroke:#808890;stroke-opacity:.12}
.line{fill:none;stroke-width:2}
.range{stroke-width:1;stroke-opacity:.7}
@media(prefers-color-scheme:dark){text{fill:#c9d1d9}}
`

// colours of the lines, in the order of the entrants.
var colours = []string{"#2f81f7", "#d9822b", "#9a6fe0", "#2da44e", "#d1477a"}

// legend says what an entrant is, in a few words.
var legend = map[string]string{
	"smokesignal":      "smokesignal",
	"floodsub-raised":  "floodsub, raised queues",
	"gossipsub-raised": "gossipsub, raised queues",
	"stream":           "one raw libp2p stream",
}

// plane maps figures to pixels; both axes are logarithmic.
type plane struct {
	x0, x1, y0, y1 float64 // log10 of the ends
}

func (p plane) x(v float64) float64 {
	return left + (math.Log10(v)-p.x0)/(p.x1-p.x0)*(width-left-right)
}

func (p plane) y(v float64) float64 {
	return height - bottom - (math.Log10(v)-p.y0)/(p.y1-p.y0)*(height-top-bottom)
}

// plane leaves a little room beside the first and the last point.
func (c curve) plane() plane {
	low, high := math.Inf(1), 0.0
	for _, p := range c.Points {
		for _, r := range p.Results {
			low, high = min(low, r.Rate.Min), max(high, r.Rate.Max)
		}
	}
	x0, x1 := math.Log10(float64(c.Points[0].X)), math.Log10(float64(c.Points[len(c.Points)-1].X))
	room := (x1 - x0) / 30
	return plane{x0 - room, x1 + room, math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))}
}

// svg draws the rates of the points, one line an entrant.
func (c curve) svg() []byte {
	p := c.plane()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n<style>%s</style>\n", html.EscapeString(c.Title), styles)
	fmt.Fprintf(&b, `<text class="title" x="%d" y="24">%s</text>`+"\n", left, html.EscapeString(c.Title))
	c.axes(&b, p)
	at := left
	for i, r := range c.Points[0].Results {
		text := legend[r.Entrant]
		if text == "" {
			text = r.Entrant
		}
		b.WriteString(mark(i, float64(at+6), 50))
		fmt.Fprintf(&b, `<text x="%d" y="54">%s</text>`+"\n", at+18, html.EscapeString(text))
		at += 40 + 7*len(text)
	}
	for i := range slices.Backward(c.Points[0].Results) {
		c.line(&b, p, i) // the first, which is what the plot is about, over the others
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func (c curve) axes(b *strings.Builder, p plane) {
	const x0, x1, y0 = left, width - right, height - bottom
	for decade := p.y0; decade <= p.y1; decade++ {
		value := math.Pow(10, decade)
		fmt.Fprintf(b, `<line class="grid" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/>`, x0, p.y(value), x1, p.y(value))
		fmt.Fprintf(b, `<text class="end" x="%d" y="%.1f">%s</text>`+"\n", x0-8, p.y(value)+4, thousands(value))
		for i := 2.0; i < 10 && decade < p.y1; i++ {
			fmt.Fprintf(b, `<line class="fine" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/>`+"\n", x0, p.y(i*value), x1, p.y(i*value))
		}
	}
	for _, q := range c.Points {
		x := p.x(float64(q.X))
		fmt.Fprintf(b, `<line class="grid" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`, x, top, x, y0)
		fmt.Fprintf(b, `<text class="mid" x="%.1f" y="%d">%s</text>`+"\n", x, y0+18, html.EscapeString(q.Text))
	}
	fmt.Fprintf(b, `<text class="mid" x="%d" y="%d">%s</text>`+"\n", (x0+x1)/2, height-12, html.EscapeString(c.Axis))
	fmt.Fprintf(b, `<text x="%d" y="%d">events/s</text>`+"\n", 8, top-12)
}

// line draws entrant i: from median to median, with a stroke from the slowest
// round to the fastest.
func (c curve) line(b *strings.Builder, p plane, i int) {
	colour := colours[i%len(colours)]
	var path, marks strings.Builder
	for at, q := range c.Points {
		rate := q.Results[i].Rate
		x, y := p.x(float64(q.X)), p.y(rate.Median)
		command := "L"
		if at == 0 {
			command = "M"
		}
		fmt.Fprintf(&path, "%s%.1f %.1f", command, x, y)
		fmt.Fprintf(&marks, `<line class="range" stroke="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, colour, x, p.y(rate.Min), x, p.y(rate.Max))
		marks.WriteString(mark(i, x, y))
		marks.WriteByte('\n')
	}
	fmt.Fprintf(b, `<path class="line" stroke="%s" d="%s"/>`+"\n%s", colour, path.String(), marks.String())
}

// mark is the sign of entrant i; its form tells it apart without colours.
func mark(i int, x, y float64) string {
	colour := colours[i%len(colours)]
	switch i % 4 {
	case 1:
		return fmt.Sprintf(`<rect fill="%s" x="%.1f" y="%.1f" width="8" height="8"/>`, colour, x-4, y-4)
	case 2:
		return fmt.Sprintf(`<path fill="%s" d="M%.1f %.1fl5 9h-10z"/>`, colour, x, y-5)
	case 3:
		return fmt.Sprintf(`<path fill="%s" d="M%.1f %.1fl5 5l-5 5l-5 -5z"/>`, colour, x, y-5)
	}
	return fmt.Sprintf(`<circle fill="%s" cx="%.1f" cy="%.1f" r="4.5"/>`, colour, x, y)
}

// thousands writes a power of ten.
func thousands(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.0f M", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.0f k", v/1e3)
	}
	return fmt.Sprintf("%g", v)
}
