// Simulate plays whole networks of nodes with faults, in one process and in virtual
// time. It prints each measured figure beside its limit, which is called its bar:
//
//	go run ./discovery/internal/simulate                      # all cases, 10 and 100 nodes
//	go run ./discovery/internal/simulate -n 1000 -kill 80     # four in five nodes crash at once
//	go run ./discovery/internal/simulate -case split-none -n 100 -svg /tmp
//	go run ./discovery/internal/simulate -case burst -rules both
//
// It fails when a figure misses its bar. While it runs, it reports its progress on standard
// error. The package documentation of discovery/internal/overlay/sim describes the model
// and its limits.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay/sim"
)

func main() {
	debug.SetGCPercent(400) // the simulation makes much garbage but keeps little memory
	switch err := run(os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

var errMissed = errors.New("a bar was missed")

// run plays the cases that args, the flags of the command line, ask for. It writes the tables
// of results to out, and the trace, the progress and the names of the pictures to log.
func run(args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	flags.SetOutput(log)
	n := flags.String("n", "10,100", "numbers of `nodes`")
	seed := flags.Uint64("seed", 1, "`number` of the first run; the same number gives the same run")
	runs := flags.Int("runs", 0, "how many `times` each case is played (default 20 up to 999 nodes, 5 up to 9,999, then 2; 1 with -v)")
	kill := flags.Int("kill", 0, "play the case in which that `percentage` of the nodes crashes")
	silent := flags.Int("silent", 0, "play the case in which that `percentage` of the nodes falls silent")
	name := flags.String("case", "all", "play this case, or all")
	rules := flags.String("rules", "smokesignal", "smokesignal, original (those of the Node.js library) or both")
	bars := flags.Bool("bars", false, "print only figures that have a bar")
	svg := flags.String("svg", "", "draw the first run of each case, to a file in this `directory`")
	verbose := flags.Bool("v", false, "print what happens in the first run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is not a flag", flags.Arg(0))
	}
	p := player{out: out, log: log, o: sim.Options{Seed: *seed, Rules: sim.Smokesignal}, runs: *runs, bars: *bars, svg: *svg}
	switch *rules {
	case "smokesignal":
	case "original":
		p.o.Rules = sim.Original
	case "both":
		p.yardstick = true
	default:
		return fmt.Errorf("-rules %s: want smokesignal, original or both", *rules)
	}
	cases, err := chooseCases(*name, *kill, *silent)
	if err != nil {
		return err
	}
	sizes, err := sizes(*n)
	if err != nil {
		return err
	}
	if *verbose {
		p.o.Trace = func(at time.Duration, text string) { fmt.Fprintf(log, "%9.3f %s\n", at.Seconds(), text) }
		if p.runs == 0 {
			p.runs = 1
		}
	}
	for _, c := range cases {
		if err := p.play(c, sizes); err != nil {
			return err
		}
	}
	if p.missed {
		return errMissed
	}
	return nil
}

// sizes parses text, a list of numbers of nodes that are separated by commas.
func sizes(text string) (list []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 2 || n > sim.MaxNodes {
			return nil, fmt.Errorf("-n %s: want a number of nodes from 2 to %d, or several separated by commas", text, sim.MaxNodes)
		}
		list = append(list, n)
	}
	return list, nil
}

// progressInterval is the least time between two lines that report the progress of one case.
// A case with many nodes takes minutes.
const progressInterval = 5 * time.Second

// A player plays cases of the simulator and prints the tables of their results.
type player struct {
	out, log  io.Writer
	o         sim.Options
	runs      int
	bars      bool
	yardstick bool
	svg       string
	missed    bool
}

// play plays the case c with networks of different sizes: once for each number of nodes in
// sizes, except those for which the case makes no sense.
func (p *player) play(c sim.Case, sizes []int) error {
	if c.FixedNodes != 0 {
		sizes = []int{c.FixedNodes}
	}
	headed := false
	for _, nodes := range sizes {
		if !c.Fits(p.o.Rules, nodes) {
			continue
		}
		beside := p.yardstick && c.Fits(sim.Original, nodes)
		if !headed {
			headed = true
			if err := sim.PrintHead(p.out, c, beside); err != nil {
				return err
			}
		}
		if err := p.measure(c, nodes, beside); err != nil {
			return err
		}
	}
	return nil
}

// measure plays the case c several times with the given number of nodes, and prints and draws
// the result. If beside is true, it also plays and prints the case with the rules of the
// Node.js library, for comparison.
func (p *player) measure(c sim.Case, nodes int, beside bool) error {
	o := p.o
	o.Nodes = nodes
	var pictures []sim.Picture
	if p.svg != "" {
		o.Frame = func(name string, w *sim.World) { pictures = append(pictures, w.Picture(name)) }
	}
	runs := p.runs
	if runs <= 0 {
		runs = sim.DefaultRuns(nodes)
	}
	rows := p.playRuns(c, o, runs)
	p.missed = p.missed || len(sim.Missed(rows)) > 0
	var others []sim.Row
	if beside {
		o.Rules, o.Trace, o.Frame = sim.Original, nil, nil
		others = p.playRuns(c, o, runs)
	}
	// With the flag -bars, only figures that have a limit are printed.
	if p.bars {
		rows, others = sim.WithBar(rows), sim.WithBar(others)
	}
	if !beside {
		others = nil
	}
	if err := sim.PrintRows(p.out, rows, others); err != nil {
		return err
	}
	if p.svg == "" {
		return nil
	}
	file := filepath.Join(p.svg, fmt.Sprintf("%s-%s-%d.svg", p.o.Rules.Name, c.Name, nodes))
	if err := draw(file, pictures); err != nil {
		return err
	}
	_, err := fmt.Fprintln(p.log, file)
	return err
}

// playRuns plays the case c runs times with the options o, and reports the progress to the log.
// It returns one row of results for each figure.
func (p *player) playRuns(c sim.Case, o sim.Options, runs int) []sim.Row {
	nodes := o.Nodes
	if c.FixedNodes != 0 {
		nodes = c.FixedNodes
	}
	fmt.Fprintf(p.log, "%s with %d nodes and the rules of %s: %d runs\n", c.Name, nodes, o.Rules.Name, runs)
	finished, printed := 0, time.Now()
	o.RunDone = func() {
		finished++
		if time.Since(printed) >= progressInterval {
			printed = time.Now()
			fmt.Fprintf(p.log, "%s with %d nodes: %d of %d runs done\n", c.Name, nodes, finished, runs)
		}
	}
	return sim.Measure(c, o, runs)
}

// chooseCases returns the cases that the flags ask for. name, kill and silent are the values of
// the flags -case, -kill and -silent.
func chooseCases(name string, kill, silent int) (list []sim.Case, err error) {
	for _, percent := range []int{kill, silent} {
		if percent < 0 || percent > 99 {
			return nil, fmt.Errorf("%d %% of the nodes: want 1 to 99", percent)
		}
	}
	if kill > 0 {
		list = append(list, sim.Crash(kill))
	}
	if silent > 0 {
		list = append(list, sim.Silent(silent))
	}
	if len(list) > 0 {
		return list, nil
	}
	var names []string
	for _, c := range sim.Cases() {
		names = append(names, c.Name)
		if name == "all" || name == c.Name {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("-case %s: want all or one of %s", name, strings.Join(names, ", "))
	}
	return list, nil
}

func draw(name string, pictures []sim.Picture) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := sim.Draw(file, pictures); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
