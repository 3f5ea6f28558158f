package sim

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// A Row has one figure, a value that is measured when a case is played, over all plays of the
// case with one number of nodes.
type Row struct {
	Figure
	Nodes  int
	Median float64
	Worst  float64
	Seed   uint64 // the seed of the random numbers in the play with the worst value
}

// Met reports whether the worst value and the median of the row are within the limits that its
// bar sets.
func (r Row) Met() bool {
	switch {
	case !r.Bar.Set:
		return true
	case math.IsNaN(r.Worst):
		return false
	case r.Bar.AtLeast:
		return r.Worst >= r.Bar.Worst
	}
	return r.Worst <= r.Bar.Worst && !(r.Median > r.Bar.Median)
}

// Missed returns the rows whose worst value or median is not within the limits that the bar of
// the row sets.
func Missed(rows []Row) []Row {
	return slices.DeleteFunc(slices.Clone(rows), Row.Met)
}

// DefaultRuns returns how many times a case with that number of nodes is played by default. It
// plays networks of many nodes less often, since they take longer.
func DefaultRuns(nodes int) int {
	switch {
	case nodes >= 10_000:
		return 2
	case nodes >= 1000:
		return 5
	}
	return 20
}

// Measure plays the case c as many times as runs says, with the seeds o.Seed, o.Seed+1 and so
// on, and returns one row for each figure, which is a measured value. It plays on all
// processors at once. Only the first play calls o.Trace and o.Frame.
func Measure(c Case, o Options, runs int) []Row {
	all := make([][]Figure, runs)
	var tasks sync.WaitGroup
	var done sync.Mutex // held while RunDone runs
	places := make(chan struct{}, runtime.GOMAXPROCS(0))
	for k := range all {
		one := o
		one.Seed += uint64(k)
		// The first of several plays of the case is enough for a trace or a drawing.
		if k > 0 {
			one.Trace, one.Frame = nil, nil
		}
		places <- struct{}{}
		tasks.Go(func() {
			all[k], _ = c.Play(one)
			<-places
			if o.RunDone != nil {
				done.Lock()
				defer done.Unlock()
				o.RunDone()
			}
		})
	}
	tasks.Wait()
	rows := make([]Row, len(all[0]))
	for i, f := range all[0] {
		row := Row{Figure: f, Nodes: c.nodes(o), Worst: f.Value, Seed: o.Seed}
		values := make([]float64, runs)
		for k := range all {
			v := all[k][i].Value
			values[k] = v
			if f.Bar.AtLeast && v < row.Worst || !f.Bar.AtLeast && v > row.Worst {
				row.Worst, row.Seed = v, o.Seed+uint64(k)
			}
		}
		slices.Sort(values)
		row.Median = values[runs/2]
		rows[i] = row
	}
	return rows
}

// WithBar returns those of the rows whose figure has a bar, which is a limit for its value.
func WithBar(rows []Row) []Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return !r.Bar.Set })
}

// PrintHead writes to out the title of the case c and the head of its table of results, in
// Markdown. If yardstick is true, the table has two more columns, for the values of the Node.js
// library.
func PrintHead(out io.Writer, c Case, yardstick bool) error {
	head := "| nodes | | median | worst | bar | |\n|---|---|---|---|---|---|"
	if yardstick {
		head = "| nodes | | median | worst | bar | | original: median | worst |\n|---|---|---|---|---|---|---|---|"
	}
	_, err := fmt.Fprintf(out, "\n### %s: %s\n\n%s\n", c.Name, c.Description, head)
	return err
}

// PrintRows writes to out one line of the table of results for each row. yardstick has the rows
// for the Node.js library, which fill the last two columns; nil means that the table has no
// such columns.
func PrintRows(out io.Writer, rows, yardstick []Row) error {
	for i, r := range rows {
		bar, verdict := "", ""
		if r.Bar.Set {
			bar, verdict = r.Bar.text(r.Unit), "met"
			if !r.Met() {
				verdict = fmt.Sprintf("**missed**, worst with seed %d", r.Seed)
			}
		}
		text := fmt.Sprintf("| %d | %s | %s | %s | %s | %s |", r.Nodes, r.Name, number(r.Median, r.Unit), number(r.Worst, r.Unit), bar, verdict)
		if yardstick != nil {
			y := yardstick[i]
			text += fmt.Sprintf(" %s | %s |", number(y.Median, y.Unit), number(y.Worst, y.Unit))
		}
		if _, err := fmt.Fprintln(out, text); err != nil {
			return err
		}
	}
	return nil
}

func (b Bar) text(unit string) string {
	sign := "≤ "
	if b.AtLeast {
		sign = "≥ "
	}
	text := sign + number(b.Worst, unit)
	if !math.IsNaN(b.Median) {
		text += ", median " + sign + number(b.Median, unit)
	}
	return text
}

func number(x float64, unit string) string {
	var text string
	switch {
	case math.IsNaN(x):
		return "none"
	case math.IsInf(x, 0):
		return "never"
	case unit == "":
		text = fmt.Sprintf("%.2f", x)
	default:
		text = fmt.Sprintf("%.1f", x)
	}
	text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	if unit != "" {
		text += " " + unit
	}
	return text
}
