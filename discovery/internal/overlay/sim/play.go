package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// A Case is a scenario with faults, and the figures to measure in it. It is played many
// times, each time with another seed of the random numbers.
type Case struct {
	Name        string
	Description string
	// Percent is the share of the nodes that the fault of the case hits, in percent. Zero means
	// that the case has no such share.
	Percent int
	// MinNodes is the smallest number of nodes for which the case makes sense. FixedNodes, if
	// not zero, is the number of nodes in every play of the case, whatever the user asks for.
	MinNodes, FixedNodes int

	smokesignalOnly bool // the case makes no sense with the rules of the Node.js library
	play            func(r *run)
}

// MaxNodes is the largest number of nodes in a World.
const MaxNodes = 500_000

// Fits reports whether the case makes sense with the given membership rules and number of
// nodes.
func (c Case) Fits(rules Rules, nodes int) bool {
	return nodes >= c.MinNodes && (!c.smokesignalOnly || rules.Name == Smokesignal.Name)
}

// A Figure is one value that was measured in a play of a case. If it is the time until
// something happens, it is infinite if that did not happen.
type Figure struct {
	Name  string
	Unit  string // "s", "%", or empty
	Value float64
	Bar   Bar
}

// A Bar is the limit of a figure, a value that is measured when a case is played. It applies to
// the worst value of all plays of the case, and there may be a second limit for the median. The
// zero Bar means that there is no limit.
type Bar struct {
	Set     bool
	AtLeast bool // the limits Worst and Median are lower limits, not upper ones
	Worst   float64
	Median  float64 // NaN means no limit
}

func atMost(x float64) Bar  { return Bar{Set: true, Worst: x, Median: math.NaN()} }
func atLeast(x float64) Bar { return Bar{Set: true, AtLeast: true, Worst: x, Median: math.NaN()} }

// Options say how a case is played.
type Options struct {
	Rules Rules
	Nodes int
	Seed  uint64
	// Encode makes the world encode and decode every message, as on the wire.
	Encode bool
	// Trace is called for each change of a node or a link, and Frame at each moment of the case
	// of which a picture can be drawn. Both may be nil.
	Trace func(at time.Duration, text string)
	Frame func(name string, w *World)
	// RunDone, if not nil, is called by Measure each time that it has played the case once, one
	// call at a time.
	RunDone func()
}

// Play plays a case once with the options o. It returns the figures that were measured, and a
// hash of all events, by which two plays of a case can be compared.
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
	before  Counts // the counts when startCount was last called
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

// isLarge reports whether the simulated network has so many nodes that it would take too long
// to measure it often.
func (r *run) isLarge() bool { return r.n >= 10_000 }

func (r *run) sampleInterval() time.Duration {
	if r.isLarge() {
		return time.Second
	}
	return 200 * time.Millisecond
}

// timeUntilWhole plays the simulated network for the time d. It returns the time in seconds
// after which the network stayed in one part, measured once per sampleInterval. It returns
// infinity if the network is in several parts at the end.
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

// startBurst starts all nodes within one second. seeds has the indexes of the seeds, which must
// be the first nodes; they start without a delay.
func (r *run) startBurst(seeds ...int32) {
	for i := range r.n {
		delay := r.w.randomBelow(time.Second)
		if i < len(seeds) {
			delay = 0
		}
		r.w.Add(delay, seeds...)
	}
}

// startSettled starts all nodes, and returns after a minute, in which they have linked to each
// other and swapped links. seeds has the indexes of the seeds, which must be the first nodes.
func (r *run) startSettled(seeds ...int32) {
	r.startBurst(seeds...)
	r.w.Run(time.Minute)
	r.drawFrame("before")
}

// chooseNodes returns the indexes of percent of all nodes, chosen at random. The nodes in among
// are always chosen.
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

// startCount stores the numbers of messages and dials up to now, from which addCosts begins to
// count, and returns the present time.
func (r *run) startCount() time.Duration {
	r.before = r.w.Counts
	return r.w.Now()
}

// addCosts adds two figures: the messages and the dials per running node per second since
// begin, which is the time that startCount returned.
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
