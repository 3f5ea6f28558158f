package sim

import "time"

// mixed plays random faults of all kinds in a small network for five minutes, and then
// four minutes without faults, in which the network has to heal.
func mixed(r *run) {
	seeds := []int32{0, 1}[:1+r.rand.IntN(2)]
	r.w.Loss = 0.05 * r.rand.Float64()
	if r.rand.IntN(2) == 0 {
		r.startBurst(seeds...)
	} else {
		for i := range r.n {
			r.w.Add(time.Duration(i)*time.Second, seeds...)
		}
	}
	for range r.rand.IntN(4) {
		r.w.Slow(int32(r.rand.IntN(r.n)), time.Second)
	}
	for range r.rand.IntN(r.n / 4) {
		// Nodes 0 and 1 may be seeds, which have to be dialable, so only other nodes become
		// undialable.
		if i := int32(r.rand.IntN(r.n)); i > 1 {
			r.w.Undialable(i)
		}
	}
	half := time.Duration(0)
	watch := func(d time.Duration) {
		for end := r.w.Now() + d; r.w.Now() < end; {
			r.w.Run(time.Second)
			half = max(half, r.w.OldestHalfLink())
		}
	}
	watch(30 * time.Second)
	split := false
	for r.w.Now() < 5*time.Minute {
		r.injectFault(&split)
		watch(time.Duration(1+r.rand.IntN(20)) * time.Second)
	}
	if split {
		r.w.Heal()
	}
	for i := range r.w.Len() {
		r.w.Wake(int32(i))
	}
	r.w.Loss = 0
	watch(4 * time.Minute)
	left := 0
	parts := r.w.Parts(0)
	for _, p := range parts[1:] {
		left += p
	}
	r.addFigure("nodes left out", "", float64(left), atMost(0))
	r.addFigure("oldest half link", "s", half.Seconds(), atMost(10))
	r.addFigure("flaps", "", float64(r.w.Flaps), atMost(0))
	r.addFigure("contract violations", "", float64(r.w.Violations), atMost(0))
}

// injectFault plays one random fault, such as a crash, and schedules its end. The variable
// split says whether the network is split at the moment; injectFault updates it.
func (r *run) injectFault(split *bool) {
	i := int32(r.rand.IntN(r.w.Len()))
	some := func(d time.Duration) time.Duration { return time.Duration(r.rand.Int64N(int64(d))) }
	running := 0
	for j := range r.w.Len() {
		if r.w.Running(int32(j)) {
			running++
		}
	}
	kind := r.rand.IntN(7)
	// If at most half of the nodes run, no further node is ended, since there would be no
	// network left to measure.
	if running <= r.n/2 && kind < 3 {
		return
	}
	switch kind {
	case 0:
		r.w.Crash(i)
		r.w.Start(i, some(time.Minute))
	case 1:
		r.w.Silence(i)
		r.w.Start(i, some(time.Minute))
	case 2:
		r.w.Leave(i)
		r.w.Start(i, time.Second+some(time.Minute))
	case 3:
		r.w.Sleep(i)
		r.w.At(some(2*time.Minute), func() { r.w.Wake(i) })
	case 4:
		if *split {
			return
		}
		*split = true
		sides := r.rand.Uint64()
		r.w.Split(func(i int32) int8 { return int8(sides >> (i % 64) & 1) })
		r.w.At(some(time.Minute), func() {
			r.w.Heal()
			*split = false
		})
	case 5:
		r.w.Add(0, r.w.nodes[0].seeds...)
	case 6: // a minute without faults, in which no link may end and be made again
		r.w.Run(time.Minute)
	}
}
