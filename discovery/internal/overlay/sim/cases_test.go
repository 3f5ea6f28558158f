package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestMeasuresStayWithinTheirBounds runs every case and compares each measure with its bound.
// docs/overlay.md has all of them.
func TestMeasuresStayWithinTheirBounds(t *testing.T) {
	for _, c := range Cases() {
		for _, n := range []int{10, 100, 1000, 10_000} {
			if c.FixedNodes != 0 && n != 10 {
				continue
			}
			runs := often(c, n)
			if runs == 0 || !c.Fits(Smokesignal, max(n, c.FixedNodes)) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", c.Name, max(n, c.FixedNodes)), func(t *testing.T) {
				o := Options{Rules: Smokesignal, Nodes: n, Seed: 1}
				rows := Measure(c, o, runs)
				var text strings.Builder
				if err := PrintRows(&text, rows, nil); err != nil {
					t.Fatal(err)
				}
				t.Log("\n" + text.String())
				for _, row := range Missed(rows) {
					t.Errorf("%s misses its bar; repeat it: go run ./discovery/internal/simulate -case %s -n %d -runs 1 -seed %d -v",
						row.Name, c.Name, row.Nodes, row.Seed)
				}
			})
		}
	}
}

// often returns how many times a case is played at a size.
func often(c Case, n int) int {
	runs := DefaultRuns(n)
	hours := strings.HasPrefix(c.Name, "long-")
	switch {
	case c.Name == "mixed":
		return map[size]int{sample: 20, long: 200, full: 1000}[testSize]
	case c.Name == "lookup":
		return map[size]int{sample: 1, long: 5, full: 20}[testSize]
	case testSize == full:
		if hours && n > 100 {
			return 1
		}
		return runs
	case testSize == long:
		switch {
		case n <= 100 && !hours:
			return runs
		case n <= 100:
			return 5
		case n == 1000 && slices.Contains([]string{"burst", "crash-80", "silent-80", "split-none", "churn", "rest"}, c.Name):
			return 1
		}
		return 0
	}
	switch {
	case n == 10 && !hours:
		return 3
	case n == 100 && slices.Contains([]string{"burst", "crash-90", "silent-80", "split-none", "undialable-60", "churn"}, c.Name):
		return 1
	}
	return 0
}

// A missed bar is reported.
func TestMeasureOutsideItsBoundIsReported(t *testing.T) {
	c := Crash(80)
	rows := Measure(c, Options{Rules: Original, Nodes: 100, Seed: 1}, 2)
	if len(Missed(rows)) == 0 {
		t.Fatal("the original meets the bars")
	}
	var text strings.Builder
	if err := PrintRows(&text, rows, nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "| whole after | never | never | ≤ 2 s | **missed**, worst with seed") {
		t.Errorf("the table does not say so:\n%s", text.String())
	}
}
