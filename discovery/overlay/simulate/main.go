// Simulate runs the overlay in the simulator.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/overlay/internal/sim"
)

func main() {
	n := flag.Int("n", 100, "nodes")
	seed := flag.Uint64("seed", 1, "seed")
	runs := flag.Int("runs", 0, "runs")
	name := flag.String("case", "all", "case")
	rules := flag.String("rules", "smokesignal", "rules")
	verbose := flag.Bool("v", false, "trace")
	flag.Parse()
	o := sim.Options{Rules: sim.Smokesignal, Nodes: *n, Seed: *seed}
	if *rules == "original" {
		o.Rules = sim.Original
	}
	if *verbose {
		o.Trace = func(at time.Duration, text string) { fmt.Printf("%10.3f %s\n", at.Seconds(), text) }
	}
	good := true
	for _, c := range sim.Cases() {
		if *name != "all" && c.Name != *name || *n < c.Least {
			continue
		}
		k := *runs
		if k == 0 {
			k = sim.Runs(*n)
		}
		began := time.Now()
		good = sim.Print(os.Stdout, sim.Measure(c, o, k)) && good
		fmt.Fprintln(os.Stderr, "took", time.Since(began).Round(time.Millisecond))
	}
	if !good {
		os.Exit(1)
	}
}
