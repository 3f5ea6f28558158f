package sim

import (
	"fmt"
	"math"
	"time"
)

// Cases returns all cases, which are the scenarios that the simulator plays, in the order in
// which their results are printed.
func Cases() []Case {
	list := []Case{
		{Name: "burst", Description: "all nodes start within a second, through one seed", play: burst},
		{Name: "paced", Description: "nodes start one by one, through one seed", play: paced},
	}
	for _, p := range []int{10, 30, 50, 80, 90} {
		list = append(list, Crash(p))
	}
	for _, p := range []int{50, 80, 90, 95} {
		list = append(list, Silent(p))
	}
	for _, s := range splits {
		list = append(list, s.splitCase("split", "a minute", time.Minute))
	}
	for _, s := range splits {
		list = append(list, s.splitCase("long-split", "half an hour", 30*time.Minute))
	}
	return append(list,
		Case{Name: "churn", Description: "30 % of the nodes are replaced every minute, half of them silently", MinNodes: 100, play: churn},
		undialable(30), undialable(60),
		Case{Name: "rest", Description: "the cost at rest, with one seed", play: rest},
		Case{Name: "lookup", Description: "nodes look for other nodes", FixedNodes: 100, smokesignalOnly: true, play: lookup},
		Case{Name: "mixed", Description: "all faults, in random order", FixedNodes: 20, play: mixed},
	)
}

func burst(r *run) {
	r.w.At(500*time.Millisecond, func() { r.drawFrame("after half a second") })
	r.w.At(time.Second, func() { r.drawFrame("after a second") })
	r.startBurst(0)
	r.addJoinFigures(0)
}

// pace returns the number of nodes that start per second in the case in which the n nodes of a
// network start one after the other.
func pace(n int) int {
	switch {
	case n >= 10_000:
		return 40
	case n >= 1000:
		return 4
	}
	return 1
}

func paced(r *run) {
	gap := time.Second / time.Duration(pace(r.n))
	for i := range r.n {
		r.w.Add(gap*time.Duration(i), 0)
	}
	last := gap * time.Duration(r.n-1)
	r.w.Run(last)
	r.addJoinFigures(last)
}

// addJoinFigures measures a new network while its nodes join: how soon they are in one part,
// how many links they have, and how many messages and dials that takes. last is the time at
// which the last node starts.
func (r *run) addJoinFigures(last time.Duration) {
	soon := atMost(10)
	soon.Median = 2
	r.addFigure("in one part after", "s", r.timeUntilWhole(last+30*time.Second-r.w.Now()), soon)
	r.drawFrame("gathered")
	degrees := r.w.Degrees()
	low, high, sum := 0, 0, 0
	for d, count := range degrees {
		if d < min(Min, r.n-1) {
			low += count
		}
		if d > Max {
			high += count
		}
		sum += d * count
	}
	r.addFigure("nodes below min after 30 s", "", float64(low), atMost(0))
	r.addFigure("nodes above max after 30 s", "", float64(high), atMost(0))
	diameter := Bar{}
	switch r.n {
	case 10:
		diameter = atMost(4)
	case 100:
		diameter = atMost(7)
	case 1000:
		diameter = atMost(9)
	}
	r.addFigure("diameter", "", float64(r.w.Diameter()), diameter)
	r.addFigure("flaps", "", float64(r.w.Flaps), atMost(0))
	r.addFigure("links per node", "", float64(sum)/float64(r.n), Bar{})
	r.addFigure("messages per node", "", float64(r.w.Total())/float64(r.n), Bar{})
	r.addFigure("dials per node", "", float64(r.w.Dials)/float64(r.n), Bar{})
}

// Crash returns the case, a scenario of the simulator, in which percent of the nodes crash at
// the same time.
func Crash(percent int) Case {
	return Case{
		Name: fmt.Sprint("crash-", percent), Description: fmt.Sprintf("%d %% of the nodes crash at once, the seed among them", percent),
		Percent: percent, play: crash,
	}
}

func crash(r *run) {
	r.startSettled(0)
	for _, i := range r.chooseNodes(r.percent, 0) {
		r.w.Crash(i)
	}
	r.drawFrame("crashed")
	begin := r.startCount()
	if r.isLarge() {
		r.w.Run(2 * time.Second)
		r.addFigure("in one part after 2 s", "%", 100*r.w.Share(0), atLeast(99.9))
		r.addFigure("whole after", "s", 2+r.timeUntilWhole(18*time.Second), Bar{})
	} else {
		r.addFigure("whole after", "s", r.timeUntilWhole(20*time.Second), atMost(2))
	}
	r.drawFrame("after")
	r.addFigure("in one part at the end", "%", 100*r.w.Share(0), atLeast(100))
	r.addCosts(begin)
}

// Silent returns the case, a scenario of the simulator, in which percent of the nodes die at
// the same time, without sending a message or resetting a connection.
func Silent(percent int) Case {
	c := Case{
		Name: fmt.Sprint("silent-", percent), Description: fmt.Sprintf("%d %% of the nodes fall silent at once, the seed among them", percent),
		Percent: percent, play: silence,
	}
	if percent >= 95 {
		c.MinNodes = 100
	}
	return c
}

func silence(r *run) {
	r.startSettled(0)
	for _, i := range r.chooseNodes(r.percent, 0) {
		r.w.Silence(i)
	}
	r.drawFrame("silent")
	begin := r.startCount()
	minute := math.NaN()
	r.w.At(time.Minute, func() { minute = 100 * r.w.Share(0) })
	limit, share := Bar{}, Bar{}
	switch {
	case r.percent <= 50:
		limit = atMost(16)
	case r.percent <= 80:
		limit = atMost(30)
	case r.percent <= 90:
		limit = atMost(45)
	case r.percent <= 95:
		limit, share = atMost(90), atLeast(98)
	}
	r.addFigure("whole after", "s", r.timeUntilWhole(90*time.Second), limit)
	r.drawFrame("after")
	r.addFigure("in one part after a minute", "%", minute, share)
	r.addFigure("in one part at the end", "%", 100*r.w.Share(0), atLeast(100))
	r.addCosts(begin)
}

type split struct {
	name, what string
	seeds      int
	dead       bool
}

var splits = []split{
	{"one", "the seed on one side", 1, false},
	{"both", "a seed on each side", 2, false},
	{"none", "all seeds dead", 1, true},
}

func (s split) splitCase(name, span string, d time.Duration) Case {
	return Case{
		Name: name + "-" + s.name, Description: "halves are cut off from each other for " + span + ", " + s.what,
		play: func(r *run) { r.split(s, d) },
	}
}

func (r *run) split(s split, d time.Duration) {
	seeds := []int32{0, 1}[:s.seeds]
	r.startSettled(seeds...)
	if s.dead {
		r.w.Crash(0)
		r.w.Run(10 * time.Second)
	}
	// Nodes 0 and 1, which may be seeds, are on different sides of the split. The other nodes
	// are divided between the two sides at random.
	sides := make([]int8, r.n)
	for k, i := range r.rand.Perm(r.n - 2) {
		sides[i+2] = int8(k % 2)
	}
	sides[1] = 1
	side := func(i int32) int8 { return sides[i] }
	r.w.Split(side)
	begin := r.startCount()
	r.w.Run(d)
	r.drawFrame("cut")
	r.addCosts(begin)
	r.w.Heal()
	limit := 5.0
	if d > time.Minute {
		limit = 15
	}
	r.addFigure("whole after the heal", "s", r.timeUntilWhole(30*time.Second), atMost(limit))
	r.w.Run(90 * time.Second)
	r.drawFrame("after")
	r.addFigure("links across the old cut after 2 min", "%", 100*r.w.Crossing(side), atLeast(20))
	r.addFigure("in one part at the end", "%", 100*r.w.Share(0), atLeast(100))
}

// churn plays the case in which nodes end and new nodes start all the time. The seed, node 0,
// never ends.
func churn(r *run) {
	// Nodes that run for a shorter time than old may still be joining the network, so they are
	// not measured.
	const old = 15 * time.Second
	r.startSettled(0)
	gap := time.Duration(float64(time.Minute) / (0.3 * float64(r.n)))
	begin := r.startCount()
	end := begin + 2*time.Minute
	var replace func()
	replace = func() {
		for {
			i := int32(1 + r.rand.IntN(r.w.Len()-1))
			if !r.w.Running(i) {
				continue
			}
			if r.rand.IntN(2) == 0 {
				r.w.Crash(i)
			} else {
				r.w.Silence(i)
			}
			break
		}
		r.w.Add(0, 0)
		if r.w.Now() < end {
			r.w.At(gap, replace)
		}
	}
	r.w.At(gap, replace)
	worst, sum, samples := 1.0, 0.0, 0
	for r.w.Now() < end {
		r.w.Run(r.sampleInterval())
		share := r.w.Share(old)
		worst = min(worst, share)
		sum += share
		samples++
		if r.w.Now() == begin+time.Minute {
			r.drawFrame("churn")
		}
	}
	r.addFigure("older than 15 s in one part, worst sample", "%", 100*worst, atLeast(99.9))
	r.addFigure("older than 15 s in one part, mean", "%", 100*sum/float64(samples), Bar{})
	r.addCosts(begin)
	r.w.Run(30 * time.Second)
	r.drawFrame("after")
	r.addFigure("in one part 30 s later", "%", 100*r.w.Share(0), atLeast(100))
}

func undialable(percent int) Case {
	return Case{
		Name: fmt.Sprint("undialable-", percent), Description: fmt.Sprintf("%d %% of the nodes cannot be dialed", percent), Percent: percent,
		play: func(r *run) {
			r.startBurst(0)
			for _, i := range r.chooseNodes(r.percent) {
				if i != 0 {
					r.w.Undialable(i)
				}
			}
			r.addFigure("in one part after", "s", r.timeUntilWhole(time.Minute), atMost(60))
			r.drawFrame("gathered")
			degrees := r.w.Degrees()
			few := 0
			for d := range min(2, len(degrees)) {
				few += degrees[d]
			}
			r.addFigure("nodes without two links after 60 s", "", float64(few), atMost(0))
			begin := r.startCount()
			r.w.Run(time.Minute)
			r.addCosts(begin)
			r.addFigure("in one part at the end", "%", 100*r.w.Share(0), atLeast(100))
		},
	}
}

// rest measures the messages and dials in a network without faults. It counts them for two
// minutes, beginning three minutes after the start.
func rest(r *run) {
	r.startSettled(0)
	r.w.Run(2 * time.Minute)
	r.startCount()
	d := 2 * time.Minute
	r.w.Run(d)
	r.drawFrame("rest")
	per := float64(r.n) * d.Seconds()
	r.addFigure("messages per node per second", "", float64(r.w.Total()-r.before.Total())/per, atMost(3))
	r.addFigure("dials per node per second", "", float64(r.w.Dials-r.before.Dials)/per, atMost(0.1))
	r.addFigure("flaps", "", float64(r.w.Flaps), atMost(0))
	for k, name := range kindNames {
		r.addFigure("of these: "+name, "", float64(r.w.Sent[k]-r.before.Sent[k])/per, Bar{})
	}
	r.addFigure("in one part at the end", "%", 100*r.w.Share(0), atLeast(100))
}

// lookup measures how long one node searches for the address of another, and how many messages
// that takes, for 100 random pairs of nodes, one after the other.
func lookup(r *run) {
	r.startSettled(0)
	slowest, dearest, lost, sum := 0.0, 0.0, 0, 0.0
	const pairs = 100
	for range pairs {
		a, b := r.rand.IntN(r.n), r.rand.IntN(r.n)
		if a == b {
			continue
		}
		found, sent := r.w.Find(int32(a), int32(b), 10*time.Second)
		if found < 0 {
			lost++
			continue
		}
		slowest = max(slowest, found.Seconds())
		dearest = max(dearest, float64(sent))
		sum += float64(sent)
	}
	r.addFigure("not found", "", float64(lost), atMost(0))
	r.addFigure("found after, slowest", "s", slowest, atMost(2))
	r.addFigure("messages, most expensive search", "", dearest, atMost(40))
	r.addFigure("messages, mean", "", sum/pairs, Bar{})
}
