package bench

import (
	"fmt"
	"math"
	"strings"
)

// Table formats the results of a case as a Markdown table with aligned columns.
func (c Case) Table(results []Result) string {
	rows := [][]string{c.head()}
	for _, r := range results {
		rows = append(rows, c.row(r))
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var b strings.Builder
	for at, row := range rows {
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(&b, "| %-*s |", widths[i], cell)
			} else {
				fmt.Fprintf(&b, " %*s |", widths[i], cell)
			}
		}
		b.WriteByte('\n')
		if at == 0 {
			for i, w := range widths {
				if i == 0 {
					b.WriteString("|" + strings.Repeat("-", w+2) + "|")
				} else {
					b.WriteString(strings.Repeat("-", w+1) + ":|")
				}
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func (c Case) head() []string {
	if c.Kind == Latency {
		return []string{"", "p50 us", "p99 us", "x " + c.Against + " p50", "x " + c.Against + " p99", "arrived", "CPU us/event", "allocs/event"}
	}
	return []string{"", "events/s", "(min to max)", "x " + c.Against, "arrived", "inversions", "CPU us/event", "allocs/event", "burst"}
}

func (c Case) row(r Result) []string {
	cpu := formatNumber(r.CPU.Median)
	if r.CPU.Max == 0 {
		cpu = "-" // not known on this system
	}
	if c.Kind == Latency {
		return []string{r.Entrant, formatNumber(r.P50.Median), formatNumber(r.P99.Median), formatFactor(r.FactorP50), formatFactor(r.FactorP99),
			formatShare(r.Delivered), cpu, formatNumber(r.Allocs.Median)}
	}
	return []string{r.Entrant, formatNumber(r.Rate.Median), fmt.Sprintf("%s to %s", formatNumber(r.Rate.Min), formatNumber(r.Rate.Max)), formatFactor(r.Factor),
		formatShare(r.Delivered), formatNumber(r.Inversions), cpu, formatNumber(r.Allocs.Median), formatNumber(float64(r.Events))}
}

// formatFactor formats a factor, the quotient of the figures of two entrants, for the table.
// The yardstick has no factor, so it gets the empty string.
func formatFactor(s Spread) string {
	if s.Max == 0 {
		return ""
	}
	if s.Median >= 10 {
		return formatNumber(s.Median)
	}
	return fmt.Sprintf("%.2f", s.Median)
}

// formatShare formats f, the part of the events that arrived. It rounds down, so that "1" means
// that no event was lost.
func formatShare(f float64) string {
	if f == 1 {
		return "1"
	}
	return fmt.Sprintf("%.3f", math.Floor(f*1000)/1000)
}

// formatNumber writes a number with three significant digits and with spaces
// between the thousands.
func formatNumber(f float64) string {
	switch {
	case f == math.Trunc(f) && f < 1000:
		return fmt.Sprint(int(f))
	case f < 0.995:
		return fmt.Sprintf("%.2g", f)
	case f < 9.995:
		return fmt.Sprintf("%.2f", f)
	case f < 99.95:
		return fmt.Sprintf("%.1f", f)
	}
	unit := math.Pow(10, max(0, math.Floor(math.Log10(f))-2))
	text := fmt.Sprintf("%.0f", math.Round(f/unit)*unit)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + " " + text[i:]
	}
	return text
}
