package engine

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

var seed = flag.Uint64("seed", 0, "run only this seed of the simulations")

// seeds runs f with n seeds, twenty times as many with SMOKESIGNAL_FULL, or with
// the one of -seed.
func seeds(t *testing.T, n uint64, f func(seed uint64)) {
	first := uint64(1)
	if os.Getenv("SMOKESIGNAL_FULL") != "" {
		n *= 20
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	for i := first; i < first+n && !t.Failed(); i++ {
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("repeat with -run '%s' -seed %d", t.Name(), i)
				}
			}()
			f(i)
		}()
	}
}

// play runs a scenario to its end and checks what came of it.
func play(t *testing.T, seed uint64, o scenario) *sim {
	o.size = max(o.size, 1000)
	if o.answer == 0 {
		o.answer = 1 << 20
	}
	s := newSim(t, seed, o)
	s.run(2 * time.Second) // all are linked
	for _, n := range s.nodes[:o.publishers] {
		for i := range o.batches {
			s.after(time.Duration(i)*o.every, func() {
				if n.life != nil {
					s.on(n.life, 0, func() { n.life.publish(1) })
				}
			})
		}
	}
	if o.faults != nil {
		o.faults(s)
	}
	s.run(time.Duration(o.batches)*o.every + 200*time.Second)
	s.check()
	return s
}

// check checks a network in which nothing happens any more.
func (s *sim) check() {
	t := s.t
	before := s.count
	s.run(2 * time.Minute)
	if s.count.asks != before.asks || s.count.marks != before.marks {
		t.Errorf("the idle network asked %d times and told %d marks", s.count.asks-before.asks, s.count.marks-before.marks)
	}
	// Up to where all have to know: what the sender says if it lives; of a dead one
	// what anybody has got. What nobody has got of that is hearsay and does not spread.
	known := make(map[session]uint64)
	now := make(map[peer.ID]order.SessionKey)
	ended := func(key session) bool { // by a later session of the sender
		_, ok := now[key.sender]
		return ok && now[key.sender] != key.SessionKey
	}
	for _, n := range s.nodes {
		p := n.life
		if p.pending != 0 {
			t.Errorf("%s still has %d batches to publish", p, p.pending)
		}
		now[p.id] = p.session
		known[p.key()] = s.sent[p.key()].end
		for key, tr := range p.tracks {
			known[key] = max(known[key], tr.last)
		}
	}
	for _, n := range s.nodes {
		p := n.life
		for key, tr := range p.tracks {
			if tr.delivered+tr.lost != tr.next-tr.begin {
				t.Errorf("%s: of %v %d delivered and %d lost, from %d to %d", p, key, tr.delivered, tr.lost, tr.begin, tr.next)
			}
			if tr.next < known[key] && !ended(key) {
				t.Errorf("%s has %v up to %d, others up to %d", p, key, tr.next, known[key])
			}
			if first, ok := p.first[key]; ok && tr.begin > first {
				t.Errorf("%s has %v from %d on, but the first mark said %d", p, key, tr.begin, first)
			}
		}
		for key, first := range p.first {
			if m, ok := p.e.Mark(key.sender); p.tracks[key] == nil && first < known[key] && !ended(key) && (!ok || m.Session == key.SessionKey && m.Next < known[key]) {
				t.Errorf("%s knows that %v is at %d of %d and has nothing of it", p, key, first, known[key])
			}
		}
		if s.opts.complete {
			for _, m := range s.nodes[:s.opts.publishers] {
				key := m.life.key()
				if tr := p.tracks[key]; m != n && (tr == nil || tr.begin != 1 || tr.delivered != s.sent[key].end-1) {
					t.Errorf("%s has %v, not all %d", p, tr, s.sent[key].end-1)
				}
			}
		}
		s.checkEmpty(p)
	}
}

// checkEmpty checks that an engine keeps nothing that it does not need.
func (s *sim) checkEmpty(p *life) {
	if n := p.e.store.Bytes(); n != 0 {
		s.t.Errorf("%s still stores %d bytes", p, n)
	}
	if n := p.e.order.HeldBytes(); n != 0 {
		s.t.Errorf("%s still holds back %d bytes", p, n)
	}
	if len(p.e.holes) != 0 || len(p.e.hintHoleSince) != 0 || p.e.repair.HoleCount() != 0 {
		s.t.Errorf("%s still needs %d, gaps %v, heard %v", p, p.e.repair.HoleCount(), p.e.holes, p.e.hintHoleSince)
	}
	if next := p.e.Next(); !next.IsZero() {
		s.t.Errorf("%s still has something to do at %v", p, next.Sub(s.start))
	}
}

// Each scenario of failures ends with every event delivered once or reported as lost.
func TestScenarios(t *testing.T) {
	for _, o := range []scenario{
		{name: "pair", nodes: 2, graph: "line", publishers: 2, batches: 300, every: time.Millisecond, lossless: true, complete: true},
		{name: "line", nodes: 5, graph: "line", publishers: 1, batches: 200, every: time.Millisecond, lossless: true, complete: true},
		{name: "line that drops", nodes: 5, graph: "line", publishers: 1, batches: 100, every: time.Millisecond, drop: 0.1, lossless: true, complete: true},
		{name: "ring", nodes: 8, graph: "ring", publishers: 3, batches: 60, every: 5 * time.Millisecond, drop: 0.05, failTell: 0.1, failAsk: 0.1, lossless: true, complete: true},
		{name: "regular", nodes: 20, graph: "regular", publishers: 2, batches: 50, every: 5 * time.Millisecond, drop: 0.3, failTell: 0.1, failAsk: 0.2, lossless: true, complete: true},
		{name: "everybody speaks", nodes: 30, graph: "regular", publishers: 30, batches: 5, every: 50 * time.Millisecond, drop: 0.1, lossless: true, complete: true},
		{name: "small answers", nodes: 4, graph: "line", publishers: 1, batches: 60, every: time.Millisecond, drop: 0.3, answer: 1, lossless: true, complete: true},
		{name: "silent cuts", nodes: 8, graph: "ring", publishers: 2, batches: 200, every: 100 * time.Millisecond, drop: 0.02, detect: 10 * time.Second, faults: cuts(4, 20*time.Second), lossless: true},
		{name: "links change", nodes: 12, graph: "regular", publishers: 3, batches: 100, every: 100 * time.Millisecond, drop: 0.05, failTell: 0.1, failAsk: 0.1, detect: 100 * time.Millisecond, faults: cuts(40, 10*time.Second), lossless: true},
		{name: "frozen", nodes: 6, graph: "ring", publishers: 2, batches: 300, every: 50 * time.Millisecond, drop: 0.02, faults: freezes(3, 15*time.Second), lossless: true, complete: true},
		{name: "frozen end", nodes: 4, graph: "line", publishers: 1, batches: 300, every: 50 * time.Millisecond, faults: freezeLast(20 * time.Second), lossless: true, complete: true},
		{name: "relays restart", nodes: 10, graph: "regular", publishers: 1, batches: 200, every: 100 * time.Millisecond, drop: 0.05, detect: time.Second, faults: restarts(1, 6, 20*time.Second)},
		{name: "senders restart", nodes: 8, graph: "regular", publishers: 3, batches: 100, every: 100 * time.Millisecond, drop: 0.05, detect: time.Second, faults: restarts(0, 6, 10*time.Second)},
		{name: "a cut too long", nodes: 6, graph: "line", publishers: 2, batches: 1000, every: 100 * time.Millisecond, detect: 5 * time.Second, faults: partition(80 * time.Second)},
	} {
		t.Run(o.name, func(t *testing.T) {
			seeds(t, 3, func(seed uint64) {
				s := play(t, seed, o)
				t.Logf("%+v", s.count)
			})
		})
	}
}

// cuts cuts some links at random within the time d.
func cuts(n int, d time.Duration) func(*sim) {
	return func(s *sim) {
		for range n {
			s.after(s.between(0, d), func() { s.cut(s.edges[s.rnd.IntN(len(s.edges))]) })
		}
	}
}

// freezes freezes some nodes at random, for up to eight seconds.
func freezes(n int, d time.Duration) func(*sim) {
	return func(s *sim) {
		for range n {
			s.after(s.between(0, d), func() { s.freeze(s.nodes[s.rnd.IntN(len(s.nodes))], s.between(0, 8*time.Second)) })
		}
	}
}

func freezeLast(d time.Duration) func(*sim) {
	return func(s *sim) { s.freeze(s.nodes[len(s.nodes)-1], d) }
}

// restarts restarts nodes from the first on, at random.
func restarts(first, n int, d time.Duration) func(*sim) {
	return func(s *sim) {
		for range n {
			s.after(s.between(0, d), func() {
				if n := s.nodes[first+s.rnd.IntN(len(s.nodes)-first)]; n.life != nil {
					s.restart(n, s.rnd.IntN(2) == 0)
				}
			})
		}
	}
}

// partition cuts the network in two for a while.
func partition(d time.Duration) func(*sim) {
	return func(s *sim) {
		e := s.edges[len(s.edges)/2]
		s.after(time.Second, func() {
			e.forbid = true
			s.cut(e)
		})
		s.after(d, func() { e.forbid = false })
	}
}

// Whatever happens to the network, what is delivered and what is reported as lost
// add up to what was sent, and nothing is left behind.
func TestRandomScenario(t *testing.T) {
	seeds(t, 12, func(seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		o := scenario{
			nodes: 2 + rnd.IntN(14), graph: []string{"line", "ring", "regular"}[rnd.IntN(3)],
			batches: 20 + rnd.IntN(150), every: time.Duration(1+rnd.IntN(200)) * time.Millisecond,
			size: 1 << (8 + rnd.IntN(7)), drop: max(0, rnd.Float64()*0.4-0.1),
			failTell: max(0, rnd.Float64()*0.4-0.2), failAsk: max(0, rnd.Float64()*0.4-0.2),
			answer: 1 << (15 + rnd.IntN(6)), detect: time.Duration(rnd.IntN(10_000)) * time.Millisecond,
		}
		// Who hears nothing of the first event for five seconds begins with a later one.
		o.complete = o.failAsk == 0 && o.failTell == 0
		o.publishers = 1 + rnd.IntN(min(4, o.nodes))
		span := time.Duration(o.batches) * o.every
		var faults []func(*sim)
		if rnd.IntN(2) == 0 {
			o.complete = false
			faults = append(faults, freezes(rnd.IntN(5), span))
		}
		if rnd.IntN(2) == 0 {
			o.complete = false // what is new to a node in a cut begins after the cut
			faults = append(faults, cuts(rnd.IntN(10), span))
		}
		o.lossless = true
		if rnd.IntN(2) == 0 {
			o.lossless, o.complete = false, false // what dies with its sender is lost
			faults = append(faults, restarts(0, rnd.IntN(6), span))
		}
		o.faults = func(s *sim) {
			for _, f := range faults {
				f(s)
			}
		}
		defer func() {
			if t.Failed() {
				t.Logf("%+v", o)
			}
		}()
		play(t, seed, o)
	})
}

// A neighbor that claims what does not exist cannot silence a sender, nor make the
// others ask without end or remember without bounds.
func TestLyingNeighbor(t *testing.T) {
	ghosts := 0
	lies := func(s *sim, marks []Mark) []Mark {
		for i := range marks {
			m := &marks[i]
			switch s.rnd.IntN(6) {
			case 0: // further than it is
				m.Next, m.Above, m.Through, m.Floor = 1<<60, 1<<60, 1<<60, 1
			case 1: // a session of the future
				m.Session.Start += 1 << 40
			case 2:
				m.Begin, m.Next, m.Above = 1, 1+s.rnd.Uint64N(1000), 1<<61
			case 3:
				m.Floor, m.Through, m.Ask = 1<<60, 0, true
			}
		}
		for range s.rnd.IntN(4) {
			ghosts++
			m := Mark{Progress: order.Progress{Sender: peer.ID(fmt.Sprint("ghost ", ghosts)), Session: order.SessionKey{Start: s.rnd.Uint64()}, Begin: 1, Next: 1 << 60, Above: 1 << 60}, Floor: 1, Ask: true}
			if s.rnd.IntN(2) == 0 {
				m.Sender = s.nodes[0].life.id
			}
			marks = append(marks, m)
		}
		return marks
	}
	for _, graph := range []string{"line", "regular"} {
		seeds(t, 2, func(seed uint64) {
			o := scenario{nodes: 8, graph: graph, publishers: 2, batches: 100, every: 50 * time.Millisecond, size: 1000, answer: 1 << 20, drop: 0.05, liar: lies}
			s := newSim(t, seed, o)
			s.run(2 * time.Second)
			for range o.batches {
				for _, n := range s.nodes[:o.publishers] {
					n.life.publish(1)
				}
				s.run(o.every)
			}
			asks := s.count.asks
			s.kill(s.nodes[7])
			s.edges = slices.DeleteFunc(s.edges, func(e *edge) bool { e.forbid = true; return e.a.i == 7 || e.b.i == 7 })
			s.run(3 * time.Minute)
			before := s.count
			s.run(time.Minute)
			if s.count.asks != before.asks {
				t.Errorf("%d questions a minute after the liar has gone", s.count.asks-before.asks)
			}
			for _, n := range s.nodes[:7] {
				p := n.life
				for _, m := range s.nodes[:o.publishers] {
					tr, sent := p.tracks[m.life.key()], s.sent[m.life.key()]
					if m == n {
						continue
					}
					for k := uint64(1); k < sent.end; k++ {
						if tr == nil || !tr.got[k] {
							t.Fatalf("%s never got %d of %v", p, k, m.life.key())
						}
					}
				}
				if len(p.e.holes) != 0 || len(p.e.hintHoleSince) != 0 || p.e.repair.HoleCount() != 0 {
					t.Errorf("%s still needs %d, %d gaps, %d heard", p, p.e.repair.HoleCount(), len(p.e.holes), len(p.e.hintHoleSince))
				}
			}
			if most := 10 * s.count.drops; asks > most {
				t.Errorf("%d questions to honest nodes, expected at most %d", asks, most)
			}
		})
	}
}
