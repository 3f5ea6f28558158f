package integration_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// TestVirtualEveryCutIsReportedOnce: three cuts of a minute, a minute apart, are three
// netsplits of the seed on the other side for everybody, and three ends of them.
func TestVirtualEveryCutIsReportedOnce(t *testing.T) {
	needs(t, long)
	virtually(t, func(t *testing.T, v *virtual, n int) {
		seeds := []int{0, 1}
		v.gather(n, seeds)
		for range 3 {
			v.part()
			time.Sleep(60 * time.Second)
			for _, seed := range seeds {
				v.wantSplits("at the end of the cut", seed, func(i int) (int, int) { return v.cuts(i, seed), max(0, v.cuts(i, seed)-1) })
			}
			v.heal()
			time.Sleep(60 * time.Second)
			for _, seed := range seeds {
				v.wantSplits("after the heal", seed, func(i int) (int, int) { return v.cuts(i, seed), v.cuts(i, seed) })
			}
		}
		v.finish()
	})
}

// TestVirtualShortPingsReportALostSeedInTime: with pings every two seconds and a second for the
// answer, a netsplit is reported within six seconds, whether the seed crashed or was cut off.
// Neighbors of the seed report it in that time, too, although their links to it stand 12.5 s longer.
func TestVirtualShortPingsReportALostSeedInTime(t *testing.T) {
	testLostSeedIsReported(t, 6*time.Second, smokesignal.PingInterval(2*time.Second), smokesignal.PingTimeout(time.Second))
}

// TestVirtualDefaultPingsReportALostSeedInTime: as TestVirtualShortPingsReportALostSeedInTime,
// within 25 s, with the default options.
func TestVirtualDefaultPingsReportALostSeedInTime(t *testing.T) {
	needs(t, long)
	testLostSeedIsReported(t, 25*time.Second)
}

// testLostSeedIsReported fails unless every other node reports once and in time that the seed is
// lost, whether it crashed or was cut off.
func testLostSeedIsReported(t *testing.T, within time.Duration, more ...smokesignal.Option) {
	for _, crash := range []bool{true, false} {
		t.Run(fmt.Sprint("crash ", crash), func(t *testing.T) {
			virtually(t, func(t *testing.T, v *virtual, n int) {
				v.gather(n, []int{0}, more...)
				neighbors := map[*virtualNode]bool{}
				v.log.Inspect(func(s *checker.State) {
					for _, m := range v.nodes {
						neighbors[m] = s.Proc("n0").Has(m.ID().String())
					}
				})
				began := time.Now()
				if crash {
					v.crash([]int{0})
				} else {
					v.part()
				}
				time.Sleep(2 * within)
				near, far := time.Duration(0), time.Duration(0)
				for i, m := range v.nodes {
					if i == 0 || !crash && v.cuts(i, 0) == 0 {
						continue
					}
					records := v.log.RecordsOf(m.name, checker.Netsplit)
					if len(records) != 1 {
						t.Errorf("%s reported %d netsplits", m.name, len(records))
						continue
					}
					after := records[0].Time().Sub(began)
					if after > within {
						t.Errorf("%s reported it after %v, want within %v", m.name, after, within)
					}
					if neighbors[m] {
						near = max(near, after)
					} else {
						far = max(far, after)
					}
				}
				t.Logf("the last neighbor of the seed reported it after %v, the last other after %v", tenth(near), tenth(far))
			})
		})
	}
}

// TestVirtualEventsOfBothSidesArriveAfterACut: the events that both sides broadcast during a
// cut of half a minute are kept for longer than that, so every node gets them after it, once and
// in order.
func TestVirtualEventsOfBothSidesArriveAfterACut(t *testing.T) {
	virtually(t, func(t *testing.T, v *virtual, n int) {
		seeds := []int{0, 1}
		v.join(n, seeds)
		senders := v.nodes[2:4] // one on each side
		var tallies []*tally
		for _, m := range v.nodes {
			for _, s := range senders {
				if s != m {
					tallies = append(tallies, newTally(t, m.name+" from "+s.name, m.Node, s.ID(), nil))
				}
			}
		}
		v.wait(60*time.Second, "all gathered", func(s *checker.State) bool { return s.Gathered(n) })
		var sent uint64
		during := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
				for _, s := range senders {
					if err := emitNumbered(t.Context(), s.Node, sent+1, sent+2, 100); err != nil {
						t.Fatal(s.name, err)
					}
				}
				sent++
			}
		}
		during(5 * time.Second)
		v.part()
		during(30 * time.Second)
		v.heal()
		during(5 * time.Second)
		began := time.Now()
		for _, y := range tallies {
			y.all(sent+1, 30*time.Second)
		}
		t.Logf("%d broadcasts of either side everywhere %v after the last", sent, tenth(time.Since(began)))
		v.finish()
	})
}

// TestVirtualCutPairLosesItsPeerAndReportsNoNetsplit: two nodes that are cut from each other run
// OnDisconnect, and OnConnect when they are linked again, in the promised order. Neither reports
// a netsplit: a node without peers has not lost the seed but everybody.
func TestVirtualCutPairLosesItsPeerAndReportsNoNetsplit(t *testing.T) {
	virtually(t, func(t *testing.T, v *virtual, _ int) {
		v.join(2, []int{0})
		v.wait(10*time.Second, "linked", func(s *checker.State) bool { return s.Gathered(2) })
		for range 3 {
			v.part()
			took := v.wait(15*time.Second, "each is alone", func(s *checker.State) bool { return len(s.Proc("n0").Peers)+len(s.Proc("n1").Peers) == 0 })
			t.Log("each is alone after", tenth(took))
			time.Sleep(45 * time.Second)
			v.heal()
			took = v.wait(10*time.Second, "linked again", func(s *checker.State) bool { return s.Gathered(2) })
			t.Log("linked again after", tenth(took))
			time.Sleep(30 * time.Second)
		}
		for i, other := range []string{"n1", "n0"} {
			up := []string{"connect", "peer added " + other, "add " + other}
			down := []string{"disconnect", "peer removed " + other, "remove " + other, "close " + other}
			var want []string
			for range 3 {
				want = append(append(want, up...), down...)
			}
			v.wantStory(v.nodes[i].Node, append(want, up...)...)
			if n, r := v.splits(v.nodes[i], 0); n+r > 0 {
				t.Errorf("n%d reported %d netsplits and %d ends", i, n, r)
			}
		}
		v.check(checker.Config{Whole: true})
	})
}
