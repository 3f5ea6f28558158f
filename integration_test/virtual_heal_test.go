package integration_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// TestVirtualJoin: nodes that start within one second, all with the same seed, are
// one network soon, and later none has too few peers, or too many.
func TestVirtualJoin(t *testing.T) {
	virtually(t, func(t *testing.T, v *virtual, n int) {
		began := time.Now()
		v.join(n, []int{0})
		v.wait(time.Until(began.Add(20*time.Second)), "one component", whole)
		t.Log("one component after", tenth(time.Since(began)))
		v.wait(time.Until(began.Add(60*time.Second)), "enough peers for everybody, and not too many", func(s *checker.State) bool {
			return s.Gathered(n) && len(s.AboveMax()) == 0
		})
		t.Log("enough peers for everybody after", tenth(time.Since(began)))
		time.Sleep(time.Until(began.Add(60 * time.Second)))
		// One more than max for a moment is a link that takes the place of another.
		const moment = time.Second
		above := map[string]time.Time{}
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			v.log.Inspect(func(s *checker.State) {
				now := map[string]time.Time{}
				for _, name := range s.AboveMax() {
					now[name] = time.Now()
					if since, ok := above[name]; ok {
						now[name] = since
					}
					if time.Since(now[name]) > moment {
						t.Errorf("%s has %d peers for %v", name, len(s.Proc(name).Peers), moment)
					}
				}
				above = now
				for _, p := range s.Running() {
					if len(p.Peers) < p.Want(n) {
						t.Errorf("%s has %d peers after %v", p.Name, len(p.Peers), time.Since(began))
					}
				}
			})
			if t.Failed() {
				return
			}
		}
		v.wantQuiet("after joining")
		v.log.Inspect(func(s *checker.State) { t.Log("degrees", s.Degrees(), v.net.Stats()) })
		v.finish()
	})
}

// TestVirtualCrash: some of the nodes crash at once, the seed among them. Those left
// find each other.
func TestVirtualCrash(t *testing.T) {
	for _, tt := range []struct {
		percent int
		least   size
	}{{10, full}, {30, full}, {50, long}, {80, byDefault}, {90, full}} {
		t.Run(fmt.Sprint(tt.percent, " percent"), func(t *testing.T) {
			needs(t, tt.least)
			virtually(t, func(t *testing.T, v *virtual, n int) {
				v.gather(n, []int{0})
				began := time.Now()
				v.crash(v.some(n*tt.percent/100, n, 0))
				v.wait(time.Until(began.Add(4*time.Second)), "the rest is one component", whole)
				t.Logf("%d of %d are one component after %v", len(v.alive()), n, tenth(time.Since(began)))
				v.finish()
			})
		})
	}
}

// TestVirtualSilentDeath: as TestVirtualCrash, but the remaining nodes notice it only because
// the others are silent.
func TestVirtualSilentDeath(t *testing.T) {
	for _, tt := range []struct {
		percent int
		within  time.Duration
		least   size
	}{{50, 32 * time.Second, long}, {80, 60 * time.Second, byDefault}, {90, 90 * time.Second, full}} {
		t.Run(fmt.Sprint(tt.percent, " percent"), func(t *testing.T) {
			needs(t, tt.least)
			virtually(t, func(t *testing.T, v *virtual, n int) {
				v.gather(n, []int{0})
				v.silence(v.some(n*tt.percent/100, n, 0))
				took := v.wait(tt.within, "the rest is one component", whole)
				t.Logf("%d of %d are one component after %v", len(v.alive()), n, tenth(took))
				v.finish()
			})
		})
	}
}

// TestVirtualPartition: the network is cut into halves for a minute and is whole soon
// after, wherever its seeds are. A node that was cut off a seed reports so once, and once
// that it is back.
func TestVirtualPartition(t *testing.T) {
	for _, tt := range []struct {
		name  string
		seeds []int
		dead  bool
		least size
	}{
		{"one seed", []int{0}, false, long},
		{"a seed on each side", []int{0, 1}, false, byDefault},
		{"all seeds dead", []int{0, 1}, true, byDefault},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t, tt.least)
			virtually(t, func(t *testing.T, v *virtual, n int) {
				v.gather(n, tt.seeds)
				if tt.dead {
					v.crash(tt.seeds)
					v.wait(10*time.Second, "the rest is one component", whole)
					time.Sleep(60 * time.Second)
					for _, seed := range tt.seeds {
						v.wantSplits("the seeds are dead", seed, func(int) (int, int) { return 1, 0 })
					}
				}
				v.part()
				took := v.wait(60*time.Second, "a component on each side", func(s *checker.State) bool { return len(s.Components()) == 2 })
				t.Log("one component on each side after", tenth(took))
				time.Sleep(60*time.Second - took)
				v.log.Inspect(func(s *checker.State) {
					if parts := s.Components(); len(parts) != 2 {
						t.Errorf("at the end of the cut there are %d components: %v", len(parts), parts)
					}
				})
				if !tt.dead {
					for _, seed := range tt.seeds {
						v.wantSplits("at the end of the cut", seed, func(i int) (int, int) { return v.cuts(i, seed), 0 })
					}
				}
				v.heal()
				took = v.wait(10*time.Second, "one component", whole)
				t.Logf("one component %v after the heal", tenth(took))
				time.Sleep(30 * time.Second)
				for _, seed := range tt.seeds {
					v.wantSplits("after the heal", seed, func(i int) (int, int) {
						if tt.dead {
							return 1, 0
						}
						return v.cuts(i, seed), v.cuts(i, seed)
					})
				}
				v.finish()
			})
		})
	}
}
