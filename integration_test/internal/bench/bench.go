// Package bench measures smokesignal beside its alternatives: raw floodsub, raw gossipsub and
// one raw libp2p stream. The benchmarks of integration_test run it.
//
// A [Case] asks one question, such as how fast a burst of events crosses a line of five nodes.
// Its entrants are the ways to send events that it compares. They are set up side by side, and
// in each turn every entrant runs one round, so that a machine that is slow for a while slows
// all of them. Figures are medians over the turns. A factor compares two entrants: it is the
// quotient of their figures in the same turn, and its median over the turns is reported.
package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// A Round holds the figures of one measurement of one entrant, that is, of one way to send
// events. Fields that do not apply are zero.
type Round struct {
	Sent       int           // number of events
	Arrived    int           // number of different events that arrived at the receiver that got the fewest
	Elapsed    time.Duration // time from the first Emit to the last arrival
	CPU        time.Duration // processor time that the process, in which all nodes run, used during the round
	Allocs     uint64        // number of memory allocations of the process during the round
	Inversions int           // number of events that arrived after an event that was sent later, summed over the receivers
	P50, P99   time.Duration // median and 99th percentile of the latency of single events, or of the duration of requests
}

// rate returns how many events per second arrived at the receiver that got the fewest.
func (r Round) rate() float64 {
	return float64(r.Arrived) / r.Elapsed.Seconds()
}

// A Kind says what the rounds of a Case send, and decides which figures are reported.
type Kind string

const (
	Burst   Kind = "burst"   // events sent as fast as they are accepted
	Latency Kind = "latency" // single events, or requests and their answers
)

// A Case compares several ways to send events, its entrants, in one situation.
type Case struct {
	Name string // the name of the benchmark, with slashes
	Text string // describes the case to a reader
	Kind Kind
	// Yardstick is the name of the entrant that the other entrants are compared with.
	Yardstick string
	// Against is the short name of the yardstick in the unit of a factor, as in "x-floodsub".
	Against string

	entrants []entrant
}

// An entrant is one of the ways to send events that a Case compares, such as raw floodsub.
type entrant struct {
	name  string
	count int // events per round
	open  func(context.Context) (*rig, error)
}

// A rig is an entrant (a way to send events) whose nodes or hosts have been started, so that
// rounds can be run.
type rig struct {
	round func(ctx context.Context, count int) (Round, error)
	close func()
}

// A Match is a Case whose entrants (the ways to send events that it compares) have been
// started. One goroutine at a time may use it.
type Match struct {
	Case
	rigs   []*rig
	rounds [][]Round // by entrant
	turns  int
}

// Open starts all entrants of the case, and warms up each of them with a round of a hundredth
// of its events. The caller has to close the match.
func (c Case) Open(ctx context.Context) (*Match, error) {
	m := &Match{Case: c, rounds: make([][]Round, len(c.entrants))}
	for _, e := range c.entrants {
		r, err := e.open(ctx)
		if err == nil {
			m.rigs = append(m.rigs, r)
			_, err = r.round(ctx, max(1, e.count/100))
		}
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("bench: %s: open %s: %w", c.Name, e.name, err)
		}
	}
	return m, nil
}

// Turn runs one round of every entrant of the match. Each turn begins with a different entrant,
// so that none has the advantage of always being first.
func (m *Match) Turn(ctx context.Context) error {
	for i := range m.rigs {
		i = (i + m.turns) % len(m.rigs)
		runtime.GC() // so that no entrant pays for the garbage of the entrant before it
		r, err := m.rigs[i].round(ctx, m.entrants[i].count)
		if err != nil {
			return fmt.Errorf("bench: %s: %s: %w", m.Name, m.entrants[i].name, err)
		}
		m.rounds[i] = append(m.rounds[i], r)
	}
	m.turns++
	return nil
}

// Turns returns how many turns have been run.
func (m *Match) Turns() int { return m.turns }

// Close closes all entrants.
func (m *Match) Close() {
	for _, r := range m.rigs {
		r.close()
	}
}

// Entrants returns the names of the ways to send events that the case compares, in the order of
// the results of Match.Results.
func (c Case) Entrants() (names []string) {
	for _, e := range c.entrants {
		names = append(names, e.name)
	}
	return names
}

// A Spread holds the median of some values, the smallest value and the largest.
type Spread struct {
	Median, Min, Max float64
}

// spread returns the Spread of values, or the zero Spread if there are no values.
func spread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// A Result holds the figures of one entrant (one way to send events) over all turns of a match.
type Result struct {
	Entrant string
	Rounds  int
	Events  int // sent per round

	Rate   Spread // events per second at the receiver that got the fewest
	CPU    Spread // processor time per event sent, in microseconds, of all nodes together
	Allocs Spread // memory allocations per event sent, of all nodes together
	P50    Spread // microseconds
	P99    Spread // microseconds

	// Delivered is the part of all events sent, from 0 to 1, that reached the receiver that
	// got the fewest. It is 1 only if no event was lost.
	Delivered float64
	// Inversions is the mean number per round of events that arrived after an event that was
	// sent later.
	Inversions float64

	// The rate and the latencies of this entrant divided by those of the yardstick, the entrant
	// that all are compared with. They are zero for the yardstick itself.
	Factor    Spread // quotient of the rates
	FactorP50 Spread
	FactorP99 Spread
}

// Results returns the figures of all turns so far, one Result for each entrant.
func (m *Match) Results() []Result {
	at := slices.Index(m.Entrants(), m.Yardstick)
	results := make([]Result, len(m.entrants))
	for i, e := range m.entrants {
		rounds := m.rounds[i]
		r := Result{Entrant: e.name, Rounds: len(rounds)}
		sent, arrived, inversions := 0, 0, 0
		for _, x := range rounds {
			r.Events = max(r.Events, x.Sent)
			sent, arrived, inversions = sent+x.Sent, arrived+x.Arrived, inversions+x.Inversions
		}
		if len(rounds) == 0 {
			results[i] = r
			continue
		}
		r.Delivered = float64(arrived) / float64(sent)
		r.Inversions = float64(inversions) / float64(len(rounds))
		r.CPU = over(rounds, func(x Round) float64 { return micros(x.CPU) / float64(x.Sent) })
		r.Allocs = over(rounds, func(x Round) float64 { return float64(x.Allocs) / float64(x.Sent) })
		r.Rate = over(rounds, Round.rate)
		r.P50 = over(rounds, func(x Round) float64 { return micros(x.P50) })
		r.P99 = over(rounds, func(x Round) float64 { return micros(x.P99) })
		if at >= 0 && at != i {
			other := m.rounds[at]
			r.Factor = factors(rounds, other, Round.rate)
			r.FactorP50 = factors(rounds, other, func(x Round) float64 { return float64(x.P50) })
			r.FactorP99 = factors(rounds, other, func(x Round) float64 { return float64(x.P99) })
		}
		results[i] = r
	}
	return results
}

// over returns the Spread (median, smallest and largest) of the values that f returns for the
// rounds.
func over(rounds []Round, f func(Round) float64) Spread {
	var values []float64
	for _, r := range rounds {
		values = append(values, f(r))
	}
	return spread(values)
}

// factors divides the value of f for each of the rounds by its value for the other entrant's
// round in the same turn, and returns the Spread of the quotients. It skips turns in which the
// other entrant's value is zero.
func factors(rounds, other []Round, f func(Round) float64) Spread {
	var values []float64
	for i, r := range rounds {
		if i < len(other) && f(other[i]) > 0 {
			values = append(values, f(r)/f(other[i]))
		}
	}
	return spread(values)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// A meter measures the processor time and the allocations of the process between
// start and stop.
type meter struct {
	cpu    time.Duration
	allocs uint64
}

func start() meter {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return meter{cpuTime(), m.Mallocs}
}

func (m meter) stop(r *Round) {
	r.CPU = cpuTime() - m.cpu
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	r.Allocs = now.Mallocs - m.allocs
}

// errNothing is returned when no event arrived in a round, so that the round has no figures.
var errNothing = errors.New("nothing arrived")
