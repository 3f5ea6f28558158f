package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// A Case is a plot that is played again and again, each time with another seed, and
// what is measured in it.
type Case struct {
	Name        string
	Description string
	// Percent of the nodes is what the plot is about, if it is about some of them.
	Percent int
	// MinNodes is the smallest network that it makes sense with, FixedNodes the size if it
	// is always the same.
	MinNodes, FixedNodes int

	smokesignalOnly bool // about something that the original cannot do
	play            func(r *run)
}

// MaxNodes is the most a world can hold.
const MaxNodes = 500_000

// Fits tells whether the case makes sense with these rules and so many nodes.
func (c Case) Fits(rules Rules, nodes int) bool {
	return nodes >= c.MinNodes && (!c.smokesignalOnly || rules.Name == Smokesignal.Name)
}

// A Figure is what one run measured; what never happened is infinite.
type Figure struct {
	Name  string
	Unit  string // "s", "%", or nothing
	Value float64
	Bar   Bar
}

// A Bar is what a figure is held to: the worst of all runs, and sometimes their
// median too. The zero Bar holds it to nothing.
type Bar struct {
	Set     bool
	AtLeast bool // Worst is the least that will do, instead of the most
	Worst   float64
	Median  float64 // NaN for none
}

func atMost(x float64) Bar  { return Bar{Set: true, Worst: x, Median: math.NaN()} }
func atLeast(x float64) Bar { return Bar{Set: true, AtLeast: true, Worst: x, Median: math.NaN()} }

// Options are how a case is played.
type Options struct {
	Rules Rules
	Nodes int
	Seed  uint64
	// Encode sends every message through its encoding.
	Encode bool
	// Trace is told what happens to nodes and links, Frame what there is to be
	// drawn. Both may be nil.
	Trace func(at time.Duration, text string)
	Frame func(name string, w *World)
}

// Play plays a case once. The hash is that of all events.
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
	before  Counts // at mark
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

// isLarge networks are looked at less often.
func (r *run) isLarge() bool { return r.n >= 10_000 }

func (r *run) sampleInterval() time.Duration {
	if r.isLarge() {
		return time.Second
	}
	return 200 * time.Millisecond
}

// timeUntilWhole runs for d and returns after how many seconds the network was in one part
// for good, seen at the end of a step; infinite if it ends in parts.
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

// startBurst starts all nodes within a second. The seeds, which are the first ones,
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

// startSettled returns after the network has gathered and mixed for a minute.
func (r *run) startSettled(seeds ...int32) {
	r.startBurst(seeds...)
	r.w.Run(time.Minute)
	r.drawFrame("before")
}

// chooseNodes returns a random percentage of the nodes, those named among them.
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

// startCount begins to count anew and returns the time.
func (r *run) startCount() time.Duration {
	r.before = r.w.Counts
	return r.w.Now()
}

// addCosts adds what the nodes that are left did since begin, the time of mark.
func (r *run) addCosts(begin time.Duration) {
	alive := 0
	for i := range r.w.Len() {
		if r.w.Running(int32(i)) {
			alive++
		}
	}
	per := float64(alive) * (r.w.Now() - begin).Seconds()
	r.addFigure("messages a node and second", "", float64(r.w.Total()-r.before.Total())/per, Bar{})
	r.addFigure("dials a node and second", "", float64(r.w.Dials-r.before.Dials)/per, Bar{})
}
