// Plot measures what docs/benchmarks.md shows, and writes its tables and plots.
// Run it at the root of the module, on a machine that does nothing else:
//
//	go run ./integration_test/internal/plot          # measures, some ten minutes
//	go run ./integration_test/internal/plot -draw    # draws again what was measured last
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, progress io.Writer) error {
	fs := flag.NewFlagSet("plot", flag.ContinueOnError)
	fs.SetOutput(progress)
	docs := fs.String("docs", "docs", "`directory` of benchmarks.md and of plots")
	turns := fs.Int("turns", 5, "`number` of rounds of which the medians are taken")
	short := fs.Bool("short", false, "measure with a hundredth of the events, to see that it works")
	draw := fs.Bool("draw", false, "do not measure, draw the figures of the last time")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case *turns < 1:
		return fmt.Errorf("-turns %d: at least one is needed", *turns)
	}
	if !*draw {
		f := here(*turns)
		if err := f.measure(ctx, bench.Cases(*short), bench.Curves(*short), progress); err != nil {
			return err
		}
		if err := f.save(*docs); err != nil {
			return err
		}
	}
	f, err := load(*docs) // so that it is the same whenever it is drawn
	if err != nil {
		return err
	}
	return f.write(*docs)
}

// figures is all that was measured, as it is kept beside the plots.
type figures struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Turns    int               `json:"turns"`
	Others   *float64          `json:"others,omitempty"` // the part of the processor time that went to other processes
	Cases    []measured        `json:"cases"`
	Curves   []curve           `json:"curves"`
}

// measured is one case with its results.
type measured struct {
	bench.Case
	Results []bench.Result `json:"results"`
}

// curve is one plot.
type curve struct {
	Name   string  `json:"name"`
	Title  string  `json:"title"`
	Axis   string  `json:"axis"`
	Points []point `json:"points"`
}

type point struct {
	X    int    `json:"x"`
	Text string `json:"text"`
	measured
}

// here begins figures of this machine.
func here(turns int) *figures {
	f := &figures{
		Date:     time.Now().Format(time.DateOnly),
		Machine:  fmt.Sprintf("%d cores, %s, %s/%s", runtime.GOMAXPROCS(0), processor(), runtime.GOOS, runtime.GOARCH),
		Versions: map[string]string{"go": strings.TrimPrefix(runtime.Version(), "go")},
		Turns:    turns,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if _, name, found := strings.Cut(dep.Path, "github.com/libp2p/"); found && (name == "go-libp2p" || name == "go-libp2p-pubsub") {
				f.Versions[name] = dep.Version
			}
		}
	}
	return f
}

// processor is the name of the processor where the system tells it.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor unknown"
}

func (f *figures) measure(ctx context.Context, cases []bench.Case, curves []bench.Curve, progress io.Writer) error {
	watch := bench.Observe()
	for _, c := range cases {
		m, err := f.play(ctx, c, progress)
		if err != nil {
			return err
		}
		f.Cases = append(f.Cases, m)
	}
	for _, c := range curves {
		drawn := curve{Name: c.Name, Title: c.Title, Axis: c.Axis}
		for _, p := range c.Points {
			m, err := f.play(ctx, p.Case, progress)
			if err != nil {
				return err
			}
			drawn.Points = append(drawn.Points, point{p.X, p.Text, m})
		}
		f.Curves = append(f.Curves, drawn)
	}
	if part, ok := watch.Others(); ok {
		f.Others = &part
	}
	return nil
}

// play measures one case.
func (f *figures) play(ctx context.Context, c bench.Case, progress io.Writer) (measured, error) {
	m, err := c.Open(ctx)
	if err != nil {
		return measured{}, err
	}
	defer m.Close()
	for range f.Turns {
		if err := m.Turn(ctx); err != nil {
			return measured{}, err
		}
	}
	results := m.Results()
	fmt.Fprintf(progress, "%s\n\n%s\n", c.Text, c.Table(results))
	return measured{c, results}, nil
}

const figuresFile = "plots/figures.json"

func (f *figures) save(docs string) error {
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(docs, "plots"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(docs, figuresFile), append(b, '\n'), 0o644)
}

func load(docs string) (*figures, error) {
	b, err := os.ReadFile(filepath.Join(docs, figuresFile))
	if err != nil {
		return nil, err
	}
	f := new(figures)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%s: %w; measure again", figuresFile, err)
	}
	return f, nil
}

// write puts the tables and the plots where they are shown.
func (f *figures) write(docs string) error {
	page := filepath.Join(docs, "benchmarks.md")
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text, err := between(old, f.tables())
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	if err := os.WriteFile(page, text, 0o644); err != nil {
		return err
	}
	for _, c := range f.Curves {
		if err := os.WriteFile(filepath.Join(docs, "plots", c.Name+".svg"), c.svg(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The marks in benchmarks.md around what is written.
const (
	markB = "<!-- figures: what stands between these marks is written by the plot command -->\n"
	markE = "<!-- end of figures -->\n"
)

// between replaces what stands between the marks.
func between(page []byte, text string) ([]byte, error) {
	before, rest, ok := bytes.Cut(page, []byte(markB))
	_, after, closed := bytes.Cut(rest, []byte(markE))
	if !ok || !closed {
		return nil, fmt.Errorf("the lines %q and %q are not both there, in this order", strings.TrimSpace(markB), strings.TrimSpace(markE))
	}
	return fmt.Appendf(nil, "%s%s\n%s\n%s%s", before, markB, text, markE, after), nil
}

// tables is the Markdown between the marks.
func (f *figures) tables() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s: %s; Go %s, go-libp2p %s, go-libp2p-pubsub %s. Medians of %d turns.\n",
		f.Date, f.Machine, f.Versions["go"], f.Versions["go-libp2p"], f.Versions["go-libp2p-pubsub"], f.Turns)
	if f.Others != nil {
		fmt.Fprintf(&b, "Other processes took %.0f %% of the processor time.\n", 100**f.Others)
	}
	for _, c := range f.Cases {
		title := strings.ToUpper(c.Text[:1]) + c.Text[1:]
		fmt.Fprintf(&b, "\n### %s\n\n%s", title, c.Table(c.Results))
	}
	for _, c := range f.Curves {
		fmt.Fprintf(&b, "\n![%s](plots/%s.svg)\n", c.Title, c.Name)
	}
	return b.String()
}
