package sim

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// A Row is one figure over all runs of a case at one size.
type Row struct {
	Case   Case
	Nodes  int
	Runs   int
	Name   string
	Unit   string
	Median float64
	Worst  float64
	Seed   uint64 // of the worst run
	Bar    Bar
}

// Met tells whether the row keeps to its bar.
func (r Row) Met() bool {
	switch {
	case !r.Bar.Set:
		return true
	case math.IsNaN(r.Worst):
		return false
	case r.Bar.Least:
		return r.Worst >= r.Bar.Worst
	default:
		return r.Worst <= r.Bar.Worst && !(r.Median > r.Bar.Median)
	}
}

// Measure plays a case several times, with seeds from the one given on, and
// gathers the figures.
func Measure(c Case, o Options, runs int) (rows []Row) {
	var values [][]float64
	for k := range runs {
		one := o
		one.Seed = o.Seed + uint64(k)
		if k > 0 {
			one.Frame = nil
		}
		figures, _ := c.Play(one)
		for i, f := range figures {
			if k == 0 {
				n := o.Nodes
				if c.Size != 0 {
					n = c.Size
				}
				rows = append(rows, Row{Case: c, Nodes: n, Runs: runs, Name: f.Name, Unit: f.Unit, Bar: f.Bar, Worst: f.Value, Seed: one.Seed})
				values = append(values, nil)
			}
			values[i] = append(values[i], f.Value)
			if worse := f.Value > rows[i].Worst; worse != f.Bar.Least && f.Value != rows[i].Worst {
				rows[i].Worst, rows[i].Seed = f.Value, one.Seed
			}
		}
	}
	for i := range rows {
		slices.Sort(values[i])
		rows[i].Median = values[i][len(values[i])/2]
	}
	return rows
}

// Runs is how often a case is played at a size, for the worst of all to mean
// something.
func Runs(nodes int) int {
	switch {
	case nodes >= 10_000:
		return 2
	case nodes >= 1000:
		return 5
	}
	return 20
}

// Print writes rows as a table in Markdown and reports whether all bars are met.
func Print(out io.Writer, rows []Row) bool {
	good := true
	last := ""
	for _, r := range rows {
		head := fmt.Sprintf("**%s**, %d nodes, %d runs: %s", r.Case.Name, r.Nodes, r.Runs, r.Case.What)
		if head != last {
			fmt.Fprintf(out, "\n%s\n\n| | median | worst | bar | |\n|---|---|---|---|---|\n", head)
			last = head
		}
		bar, verdict := "", ""
		if r.Bar.Set {
			sign := "≤"
			if r.Bar.Least {
				sign = "≥"
			}
			bar = sign + " " + number(r.Bar.Worst, r.Unit)
			if !math.IsNaN(r.Bar.Median) {
				bar += ", median " + sign + " " + number(r.Bar.Median, r.Unit)
			}
			verdict = "met"
			if !r.Met() {
				verdict = fmt.Sprintf("**missed** (seed %d)", r.Seed)
				good = false
			}
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", strings.TrimSpace(r.Name), number(r.Median, r.Unit), number(r.Worst, r.Unit), bar, verdict)
	}
	return good
}

func number(x float64, unit string) string {
	text := ""
	switch {
	case math.IsNaN(x):
		return "none"
	case math.IsInf(x, 0):
		return "never"
	case x == math.Trunc(x) && unit == "":
		text = fmt.Sprint(int64(x))
	case unit == "s":
		text = time.Duration(x * float64(time.Second)).Round(10 * time.Millisecond).String()
		if x < 60 {
			text = strings.TrimSuffix(fmt.Sprintf("%.1f", x), ".0")
		} else {
			return text
		}
	case unit == "%":
		text = strings.TrimSuffix(fmt.Sprintf("%.1f", x), ".0")
	default:
		text = fmt.Sprintf("%.2f", x)
	}
	if unit != "" {
		text += " " + unit
	}
	return text
}
