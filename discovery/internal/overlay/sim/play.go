package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// A Case is a scenario that is played many times, each time with another seed, and the
// figures that are measured in it.
type Case struct {
	Name        string
	Description string
	// Percent is the share of the nodes that the scenario is about; zero if it is about
	// all.
	Percent int
	// MinNodes is the smallest network that the case makes sense with. FixedNodes is its
	// size if that never varies.
	MinNodes, FixedNodes int

	smokesignalOnly bool // the original cannot do this
	play            func(r *run)
}

// MaxNodes is the largest number of nodes in a World.
const MaxNodes = 500_000

// Fits reports whether the case makes sense with these rules and that number of nodes.
func (c Case) Fits(rules Rules, nodes int) bool {
	return nodes >= c.MinNodes && (!c.smokesignalOnly || rules.Name == Smokesignal.Name)
}

// A Figure is a value that one run measured. A duration is infinite if the event never
// happened.
type Figure struct {
	Name  string
	Unit  string // "s", "%", or empty
	Value float64
	Bar   Bar
}

// A Bar is the limit of a figure: for the worst of all runs, and sometimes for their
// median too. The zero Bar has no limit.
type Bar struct {
	Set     bool
	AtLeast bool // Worst and Median are lower limits instead of upper ones
	Worst   float64
	Median  float64 // NaN for no limit
}

func atMost(x float64) Bar  { return Bar{Set: true, Worst: x, Median: math.NaN()} }
func atLeast(x float64) Bar { return Bar{Set: true, AtLeast: true, Worst: x, Median: math.NaN()} }

// Options say how a case is played.
type Options struct {
	Rules Rules
	Nodes int
	Seed  uint64
	// Encode sends every message through its encoding.
	Encode bool
	// Trace is called with what happens to nodes and links, and Frame when there is
	// something to draw. Both may be nil.
	Trace func(at time.Duration, text string)
	Frame func(name string, w *World)
}

// Play plays a case once. It returns the figures and a hash of all events.
func (c Case) Play(o Options) (figures []Figure, hash uint64) {
	w := New(o.Rules, o.Seed)
	w.Trace, w.Encode = o.Trace, o.Encode
	r := &run{w: w, n: c.nodes(o), percent: c.Percent, rand: rand.New(rand.NewPCG(o.Seed, 0x706c6f74)), draw: o.Frame}
	c.play(r)
	return r.figures, w.Hash()
}

func (c Case) nodes(o Options) int {
	if c.FixedNodes != 0 {
		return c.FixedNodes
	}
	return o.Nodes
}

// A run is one play of a case.
type run struct {
	w       *World
	n       int
	percent int
	rand    *rand.Rand
	before  Counts // the counts at the time of startCount
	figures []Figure
	draw    func(name string, w *World)
}

func (r *run) drawFrame(name string) {
	if r.draw != nil {
		r.draw(name, r.w)
	}
}

func (r *run) addFigure(name, unit string, value float64, bar Bar) {
	r.figures = append(r.figures, Figure{name, unit, value, bar})
}

// isLarge reports whether the network is so large that it is measured less often.
func (r *run) isLarge() bool { return r.n >= 10_000 }

func (r *run) sampleInterval() time.Duration {
	if r.isLarge() {
		return time.Second
	}
	return 200 * time.Millisecond
}

// timeUntilWhole runs for d. It returns the seconds until the network was in one part and
// stayed so, measured once per sampleInterval; infinity if it ends in several parts.
func (r *run) timeUntilWhole(d time.Duration) float64 {
	begin, last := r.w.Now(), time.Duration(0)
	parted := !r.w.Whole()
	if parted {
		last = r.sampleInterval()
	}
	for r.w.Now() < begin+d {
		r.w.Run(r.sampleInterval())
		if parted = !r.w.Whole(); parted {
			last = r.w.Now() - begin + r.sampleInterval()
		}
	}
	if parted {
		return math.Inf(1)
	}
	return last.Seconds()
}

// startBurst starts all nodes within a second. The seeds, which are the first nodes,
// start at once.
func (r *run) startBurst(seeds ...int32) {
	for i := range r.n {
		delay := r.w.randomBelow(time.Second)
		if i < len(seeds) {
			delay = 0
		}
		r.w.Add(delay, seeds...)
	}
}

// startSettled starts all nodes, and returns after they have gathered and mixed for a
// minute.
func (r *run) startSettled(seeds ...int32) {
	r.startBurst(seeds...)
	r.w.Run(time.Minute)
	r.drawFrame("before")
}

// chooseNodes returns a random share of the nodes in percent, which includes those in
// among.
func (r *run) chooseNodes(percent int, among ...int32) []int32 {
	picked := make([]bool, r.n)
	list := append([]int32(nil), among...)
	for _, i := range among {
		picked[i] = true
	}
	for _, i := range r.rand.Perm(r.n) {
		if len(list) >= (r.n*percent+50)/100 {
			break
		}
		if !picked[i] {
			list = append(list, int32(i))
		}
	}
	return list
}

// startCount begins to count messages and dials anew, and returns the time.
func (r *run) startCount() time.Duration {
	r.before = r.w.Counts
	return r.w.Now()
}

// addCosts adds what the running nodes did per second since begin, the time of
// startCount.
func (r *run) addCosts(begin time.Duration) {
	alive := 0
	for i := range r.w.Len() {
		if r.w.Running(int32(i)) {
			alive++
		}
	}
	per := float64(alive) * (r.w.Now() - begin).Seconds()
	r.addFigure("messages per node per second", "", float64(r.w.Total()-r.before.Total())/per, Bar{})
	r.addFigure("dials per node per second", "", float64(r.w.Dials-r.before.Dials)/per, Bar{})
}
