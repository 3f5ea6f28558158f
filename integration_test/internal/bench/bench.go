// Package bench measures smokesignal beside what one would use in its place:
// raw floodsub, raw gossipsub, one raw libp2p stream. The benchmarks of
// integration_test and the command that writes docs/benchmarks.md share it.
//
// A [Case] is a question, such as how fast a burst crosses a line of five
// nodes. Its entrants are set up side by side and take turns, so that a machine
// which is slow for a while is slow for all of them. Figures are medians over
// the turns; a factor is the median of the factors within each turn.
package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// A Round is one measurement of one entrant. What does not apply is zero.
type Round struct {
	Sent       int           // events
	Arrived    int           // distinct events at the receiver that got the fewest
	Elapsed    time.Duration // from the first Emit to the last arrival
	CPU        time.Duration // of the whole process, so of all nodes together
	Allocs     uint64        // by the same
	Inversions int           // events that came behind a later one, at all receivers together
	P50, P99   time.Duration // of single events
}

// rate is how many events arrived in a second.
func (r Round) rate() float64 {
	return float64(r.Arrived) / r.Elapsed.Seconds()
}

// Kind says which figures of a case mean something.
type Kind string

const (
	Burst   Kind = "burst"   // events as fast as they are accepted
	Latency Kind = "latency" // single events, or questions and answers
)

// A Case compares its entrants in one situation.
type Case struct {
	Name string `json:"name"` // as a benchmark's, with slashes
	Text string `json:"text"` // for people
	Kind Kind   `json:"kind"`
	// Yardstick is the entrant to which the others are compared.
	Yardstick string `json:"yardstick"`
	// Against names the yardstick in the unit of a factor: x-floodsub.
	Against string `json:"against"`

	entrants []entrant
}

// An entrant is one way to pass events.
type entrant struct {
	name  string
	count int // events in a round
	open  func(context.Context) (*rig, error)
}

// A rig is an entrant that is set up.
type rig struct {
	round func(ctx context.Context, count int) (Round, error)
	close func()
}

// A Match is a case that is set up. One goroutine at a time may use it.
type Match struct {
	Case
	rigs   []*rig
	rounds [][]Round // by entrant
	turns  int
}

// Open sets up all entrants and warms them with a small round. The caller has
// to close the match.
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

// Turn takes one round of every entrant. Each turn begins with another one, and
// the garbage of one is not left to the next.
func (m *Match) Turn(ctx context.Context) error {
	for i := range m.rigs {
		i = (i + m.turns) % len(m.rigs)
		runtime.GC()
		r, err := m.rigs[i].round(ctx, m.entrants[i].count)
		if err != nil {
			return fmt.Errorf("bench: %s: %s: %w", m.Name, m.entrants[i].name, err)
		}
		m.rounds[i] = append(m.rounds[i], r)
	}
	m.turns++
	return nil
}

// Turns is how many turns have been taken.
func (m *Match) Turns() int { return m.turns }

// Close ends all entrants.
func (m *Match) Close() {
	for _, r := range m.rigs {
		r.close()
	}
}

// Entrants returns the names in the order of the results.
func (c Case) Entrants() (names []string) {
	for _, e := range c.entrants {
		names = append(names, e.name)
	}
	return names
}

// A Spread is a median and what it was taken from.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// MarshalJSON leaves out the digits that are noise.
func (s Spread) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"median":%.4g,"min":%.4g,"max":%.4g}`, s.Median, s.Min, s.Max), nil
}

// spread returns the zero Spread for no values.
func spread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// A Result is what the turns of a match say about one entrant.
type Result struct {
	Entrant string `json:"entrant"`
	Rounds  int    `json:"rounds"`
	Events  int    `json:"events"` // sent in a round

	Rate   Spread `json:"rate,omitzero"`   // events per second, at the receiver that got the fewest
	CPU    Spread `json:"cpu,omitzero"`    // microseconds per event sent, all nodes together
	Allocs Spread `json:"allocs,omitzero"` // per event sent, all nodes together
	P50    Spread `json:"p50,omitzero"`    // microseconds
	P99    Spread `json:"p99,omitzero"`    // microseconds

	// Delivered is the part of what was sent, in all rounds together, that came
	// to the receiver which got the fewest. It is 1 only if nothing was lost.
	Delivered float64 `json:"delivered"`
	// Inversions is the mean of the rounds. It is 0 only if there were none.
	Inversions float64 `json:"inversions"`

	// How often the yardstick's rate, or latencies, this is. Zero for the
	// yardstick itself.
	Factor    Spread `json:"factor,omitzero"` // of the rate
	FactorP50 Spread `json:"factorP50,omitzero"`
	FactorP99 Spread `json:"factorP99,omitzero"`
}

// Results returns the figures so far, one per entrant.
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

func over(rounds []Round, f func(Round) float64) Spread {
	var values []float64
	for _, r := range rounds {
		values = append(values, f(r))
	}
	return spread(values)
}

// factors divides f of each round by f of the round with the same index in other. An
// index at which other has no figure is left out.
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

// meter measures what the process uses between start and stop.
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

// errNothing ends a round in which no event arrived, of which no rate can be
// told.
var errNothing = errors.New("nothing arrived")
