package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/bench"
)

const docs = "../../../docs"

// What the page shows is what figures.json says; who changes one by hand, or how
// it is drawn, draws it again.
func TestDocsShowTheFigures(t *testing.T) {
	f, err := load(docs)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	copyFile(t, dir, "benchmarks.md")
	if err := os.Mkdir(filepath.Join(dir, "plots"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.write(dir); err != nil {
		t.Fatal(err)
	}
	names := []string{"benchmarks.md"}
	for _, c := range f.Curves {
		names = append(names, "plots/"+c.Name+".svg")
	}
	if len(names) < 3 {
		t.Errorf("the figures have the plots %v alone", names[1:])
	}
	for _, name := range names {
		if read(t, dir, name) != read(t, docs, name) {
			t.Errorf("docs/%s is not what is drawn of docs/%s: go run ./integration_test/internal/plot -draw", name, figuresFile)
		}
	}
}

func copyFile(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(read(t, docs, name)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// From measuring to the page, with one case of each kind and a plot of two points.
func TestMeasureSaveWrite(t *testing.T) {
	cases := map[string]bench.Case{}
	for _, c := range bench.Cases(true) {
		cases[c.Name] = c
	}
	direct, call := cases["Direct/tcp/64B"], cases["Call/tcp/64B"]
	curves := []bench.Curve{{Name: "two", Title: "a < b", Axis: "x", Points: []bench.Point{{X: 64, Text: "64", Case: direct}, {X: 1024, Text: "1024", Case: direct}}}}
	dir := t.TempDir()
	copyFile(t, dir, "benchmarks.md")
	f := here(2)
	if err := f.measure(t.Context(), []bench.Case{direct, call}, curves, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := f.save(dir); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-draw", "-docs", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	page := read(t, dir, "benchmarks.md")
	if f.Others != nil && !strings.Contains(page, "Other processes took ") {
		t.Error("the page does not say how busy the machine was")
	}
	for _, want := range []string{"### Direct, TCP, 64 B", "| smokesignal-answer |", "x stream p50", "Medians of 2 turns", "(plots/two.svg)", "# Benchmarks", f.Date, f.Versions["go"]} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not contain %q", want)
		}
	}
	if strings.Contains(page, "rate-size") {
		t.Error("the old figures are still there")
	}
	wellFormed(t, read(t, dir, "plots/two.svg"))
}

func wellFormed(t *testing.T, svg string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
}

// A rate ten times as high is one decade higher, and the points stand above
// their texts.
func TestPointsAreWhereTheAxesSay(t *testing.T) {
	at := func(x int, rates ...float64) point {
		p := point{X: x, Text: strconv.Itoa(x)}
		for _, r := range rates {
			p.Results = append(p.Results, bench.Result{Entrant: "smokesignal", Rate: bench.Spread{Median: r, Min: r, Max: r}})
		}
		return p
	}
	svg := string(curve{Title: "t", Points: []point{at(1, 10), at(10, 100), at(100, 1000)}}.svg())
	wellFormed(t, svg)
	number := func(pattern string) float64 {
		m := regexp.MustCompile(pattern).FindStringSubmatch(svg)
		if m == nil {
			t.Fatalf("no %s in\n%s", pattern, svg)
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if got, want := number(`<text class="end" x="\d+" y="([\d.]+)">10<`), float64(height-bottom+4); got != want {
		t.Errorf("the lowest decade is at y=%v, want %v", got, want)
	}
	for i, text := range []string{"10", "100", "1 k"} {
		label := number(`<text class="end" x="\d+" y="([\d.]+)">` + text + `<`)
		point := number(`d="M` + strings.Repeat(`[\d.]+ [\d.]+L`, i) + `[\d.]+ ([\d.]+)`)
		if d := label - 4 - point; d < -0.2 || d > 0.2 {
			t.Errorf("the point of %s is at y=%v, its line at %v", text, point, label-4)
		}
	}
	for i, text := range []string{"1", "10", "100"} {
		label := number(`<text class="mid" x="([\d.]+)" y="\d+">` + text + `<`)
		point := number(`d="M` + strings.Repeat(`[\d.]+ [\d.]+L`, i) + `([\d.]+) `)
		if d := label - point; d < -0.2 || d > 0.2 {
			t.Errorf("the point of %s is at x=%v, its text at %v", text, point, label)
		}
	}
}

func TestBetweenNeedsBothMarks(t *testing.T) {
	got, err := between([]byte("a\n"+markB+"old\n"+markE+"z\n"), "new\n")
	if want := "a\n" + markB + "\nnew\n\n" + markE + "z\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for _, page := range []string{"", markB, markE, markE + markB} {
		if _, err := between([]byte(page), "new"); err == nil {
			t.Errorf("a page of %q is taken", page)
		}
	}
}

func TestRunSaysWhatIsWrong(t *testing.T) {
	if err := run(t.Context(), []string{"-turns", "0"}, io.Discard); err == nil || !strings.Contains(err.Error(), "-turns 0") {
		t.Errorf("got %v", err)
	}
	if err := run(t.Context(), []string{"-draw", "-docs", t.TempDir()}, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that there are no figures", err)
	}
}
