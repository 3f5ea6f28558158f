// Simulate plays the overlay of many nodes in one process, with faults, prints what
// it measured beside the bars it is held to, and draws it:
//
//	go run ./discovery/overlay/simulate                      # all cases, 10 and 100 nodes
//	go run ./discovery/overlay/simulate -n 1000 -kill 80     # four in five crash at once
//	go run ./discovery/overlay/simulate -case split-none -n 100 -svg /tmp
//	go run ./discovery/overlay/simulate -case burst -rules original
//
// It fails when a bar is missed. What a case is, and what the simulation leaves out,
// is told in discovery/overlay/internal/sim.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/overlay/internal/sim"
)

func main() {
	debug.SetGCPercent(400) // there is much garbage and little that lives
	switch err := run(os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

var errMissed = errors.New("a bar was missed")

// run plays what args ask for. The tables go to out, the trace and the names of
// the pictures to log.
func run(args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	flags.SetOutput(log)
	n := flags.Int("n", 0, "number of `nodes` (10, and then 100)")
	seed := flags.Uint64("seed", 1, "the first run's; the same one gives the same run")
	runs := flags.Int("runs", 0, "how often each case is played (20 times up to 999 nodes, 5 up to 9,999, then twice; once with -v)")
	kill := flags.Int("kill", 0, "play the case in which so many `percent` crash")
	silent := flags.Int("silent", 0, "play the case in which so many `percent` fall silent")
	name := flags.String("case", "all", "play this case, or all")
	rules := flags.String("rules", "smokesignal", "smokesignal, or original: those of the Node.js library")
	svg := flags.String("svg", "", "draw the first run of each case, to a file in this `directory`")
	verbose := flags.Bool("v", false, "tell what happens in the first run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	o := sim.Options{Seed: *seed}
	switch *rules {
	case sim.Smokesignal.Name:
		o.Rules = sim.Smokesignal
	case sim.Original.Name:
		o.Rules = sim.Original
	default:
		return fmt.Errorf("-rules %s: there are %s and %s", *rules, sim.Smokesignal.Name, sim.Original.Name)
	}
	cases, err := choose(*name, *kill, *silent)
	if err != nil {
		return err
	}
	sizes := []int{10, 100}
	if *n != 0 {
		sizes = []int{*n}
	}
	if slices.Min(sizes) < 2 || slices.Max(sizes) > sim.MaxNodes {
		return fmt.Errorf("-n %d: 2 to %d nodes", *n, sim.MaxNodes)
	}
	if *verbose {
		o.Trace = func(at time.Duration, text string) { fmt.Fprintf(log, "%9.3f %s\n", at.Seconds(), text) }
	}
	good := true
	for _, c := range cases {
		if !c.Fits(o.Rules, slices.Max(sizes)) {
			continue
		}
		if err := sim.Head(out, c); err != nil {
			return err
		}
		for i, nodes := range sizes {
			if !c.Fits(o.Rules, nodes) || c.Size != 0 && i > 0 {
				continue
			}
			o.Nodes = nodes
			var pictures []sim.Picture
			if *svg != "" {
				o.Frame = func(name string, w *sim.World) { pictures = append(pictures, w.Picture(name)) }
			}
			rows := sim.Measure(c, o, times(*runs, nodes, *verbose))
			if err := sim.Print(out, rows); err != nil {
				return err
			}
			good = good && len(sim.Missed(rows)) == 0
			if *svg != "" {
				file := filepath.Join(*svg, fmt.Sprintf("%s-%s-%d.svg", o.Rules.Name, c.Name, rows[0].Nodes))
				if err := draw(file, pictures); err != nil {
					return err
				}
				fmt.Fprintln(log, file)
			}
		}
	}
	if !good {
		return errMissed
	}
	return nil
}

func times(runs, nodes int, verbose bool) int {
	switch {
	case runs > 0:
		return runs
	case verbose:
		return 1
	}
	return sim.Runs(nodes)
}

// choose returns the cases that are asked for.
func choose(name string, kill, silent int) (list []sim.Case, err error) {
	for _, percent := range []int{kill, silent} {
		if percent < 0 || percent > 99 {
			return nil, fmt.Errorf("%d %% of the nodes: 1 to 99", percent)
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
		return nil, fmt.Errorf("-case %s: there are %s", name, strings.Join(names, ", "))
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
