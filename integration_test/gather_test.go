package integration_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// gatherWithin is promised: one component, and everybody with at least
// min(3, N-1) peers, this long after the last node has started.
const gatherWithin = 10 * time.Second * slow

// TestGather: N processes find each other through one seed, started at once or
// one after the other, and every broadcast reaches everybody once and in order.
func TestGather(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		transport, listen string
		n                 int
		least             size
	}{
		{"tcp", cluster.TCP, 2, byDefault},
		{"tcp", cluster.TCP, 5, byDefault},
		{"tcp", cluster.TCP, 10, long},
		{"tcp", cluster.TCP, 30, full},
		{"quic", cluster.QUIC, 2, long},
		{"quic", cluster.QUIC, 5, byDefault},
		{"quic", cluster.QUIC, 10, long},
		{"quic", cluster.QUIC, 30, full},
	} {
		for _, gap := range []time.Duration{0, 100 * time.Millisecond} {
			start := "at once"
			if gap > 0 {
				start = fmt.Sprintf("%v apart", gap)
			}
			t.Run(fmt.Sprintf("%s/%d nodes/%s", tt.transport, tt.n, start), func(t *testing.T) {
				needs(t, tt.least)
				if tt.n <= 10 {
					t.Parallel() // they wait most of the time
				}
				gather(t, tt.listen, tt.n, gap)
			})
		}
	}
}

func gather(t *testing.T, listen string, n int, gap time.Duration) {
	c := cluster.New(t)
	seed := c.Start(cluster.Spec{Name: "seed", Listen: []string{listen}})
	procs := []*cluster.Proc{seed}
	addr := seed.Addr()
	for i := 1; i < n; i++ {
		if gap > 0 && i > 1 {
			time.Sleep(gap) // the gap is part of the test
		}
		procs = append(procs, c.Start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Listen: []string{listen}, Seeds: []string{addr}}))
	}
	for _, p := range procs {
		p.ID() // listens
	}
	began := time.Now()
	took := c.Wait(gatherWithin, "one component, enough peers for everybody", func(s *checker.State) bool { return s.Gathered(n) })
	c.Log.Inspect(func(s *checker.State) {
		t.Logf("gathered %v after the last of %d started; degrees %v, above max %v", took.Round(time.Millisecond), n, s.Degrees(), s.AboveMax())
	})

	mark := time.Now()
	each := many(50)
	if n > 10 {
		each = many(20)
	}
	for _, p := range procs {
		p.Broadcast("hello", each, 64)
	}
	took = c.Wait(soon, "every broadcast at every node", func(s *checker.State) bool {
		for _, p := range procs {
			for _, from := range procs {
				if p != from && s.Proc(p.Name).Heard[checker.Stream{Run: from.Name, Channel: checker.Broadcast}] < uint64(each) {
					return false
				}
			}
		}
		return true
	})
	t.Logf("%d broadcasts to %d nodes took %v", n*each, n-1, took.Round(time.Millisecond))

	// A full seed may have more than max peers for 30 s, not longer.
	c.Wait(time.Until(began.Add(31*time.Second)), "nobody above max", func(s *checker.State) bool { return len(s.AboveMax()) == 0 })
	if chosen() >= long {
		// What was well after the start is well 35 s later: no link flaps.
		c.Never(time.Until(began.Add(35*time.Second)), "above max after 31 s", func(s *checker.State) bool {
			return time.Since(began) > 31*time.Second && len(s.AboveMax()) > 0
		})
	}
	c.Wait(gatherWithin, "one component at the end", func(s *checker.State) bool { return s.Gathered(n) })
	c.Check(checker.Config{Whole: true, CompleteFrom: mark})
}

// TestNetworkGoesOnWithoutItsSeed: the network of five goes on without its
// seed, and takes it back when it is started again at the same place.
func TestNetworkGoesOnWithoutItsSeed(t *testing.T) {
	t.Parallel()
	needs(t, long)
	c := cluster.New(t)
	port := hosttest.FreePort(t)
	seed := c.Start(cluster.Spec{Name: "seed", Listen: []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)}})
	seedID := seed.ID()
	var rest []*cluster.Proc
	for i := range 4 {
		rest = append(rest, c.Start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Listen: []string{cluster.TCP}, Seeds: []string{hostPort(port)}}))
	}
	c.Wait(2*gatherWithin, "all gathered", func(s *checker.State) bool { return s.Gathered(5) })
	seed.Kill()
	took := c.Wait(gatherWithin, "the rest without the seed", func(s *checker.State) bool {
		for _, p := range s.Running() {
			if p.Has(seedID) {
				return false
			}
		}
		return s.Gathered(4)
	})
	t.Logf("the seed's death was known after %v", took.Round(time.Millisecond))
	mark := time.Now()
	for _, p := range rest {
		p.Broadcast("without seed", 20, 64)
	}
	back := c.Restart(seed)
	back.ID()
	took = c.Wait(30*time.Second, "the seed is back in the network", func(s *checker.State) bool { return s.Gathered(5) })
	t.Logf("back after %v", took.Round(time.Millisecond))
	for _, p := range rest {
		p.Ask(cluster.Command{Do: cluster.Flush, Within: soon})
	}
	c.Check(checker.Config{Whole: true, CompleteFrom: mark})
}

// TestNewLinkLosesNothing: a broadcast that is still on its way round when its
// sender becomes a neighbor arrives all the same. A neighbor says in the
// handshake how far it has counted; that is no reason to drop what is below.
func TestNewLinkLosesNothing(t *testing.T) {
	t.Parallel()
	const n = 20
	c := cluster.New(t)
	node := func(name string) *cluster.Proc {
		return c.Start(cluster.Spec{Name: name, Listen: []string{cluster.TCP}, Limits: manual})
	}
	sender, middle, receiver := node("sender"), node("middle"), node("receiver")
	add := func(from, to *cluster.Proc) {
		t.Helper()
		if answer := from.Ask(cluster.Command{Do: cluster.AddPeer, To: to.Addr(), Within: soon}); answer.Err != "" {
			t.Fatal(answer.Err)
		}
	}
	add(middle, receiver) // before the sender, of which it thus has not heard
	add(middle, sender)
	c.Wait(soon, "a line", func(s *checker.State) bool { return len(s.Components()) == 1 && len(s.Half()) == 0 })
	mark := time.Now()
	middle.Stop() // what the sender emits now waits in front of it
	sender.Answer(sender.Broadcast("x", n, 100), soon)
	add(receiver, sender)
	middle.Continue()
	c.Wait(soon, "all broadcasts at the receiver", func(s *checker.State) bool {
		return s.Proc("receiver").Heard[checker.Stream{Run: "sender", Channel: checker.Broadcast}] >= n
	})
	c.Check(checker.Config{CompleteFrom: mark})
}

// TestRestartedSeedIsBack: a seed that was killed, and comes back at the same
// place under the same id, is a peer again within ten seconds. Over QUIC the
// connection to the dead process outlives the link; it must not be used again.
func TestRestartedSeedIsBack(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"tcp/%d", "udp/%d/quic-v1"} {
		t.Run(transport[:3], func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t)
			at := "/ip4/127.0.0.1/" + fmt.Sprintf(transport, hosttest.FreePort(t))
			seed := c.Start(cluster.Spec{Name: "seed", Listen: []string{at}, Identity: filepath.Join(t.TempDir(), "key")})
			seed.ID()
			c.Start(cluster.Spec{Name: "n", Listen: []string{cluster.TCP, cluster.QUIC}, Seeds: []string{at}})
			c.Wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
			seed.Kill()
			took := c.Wait(20*slow*time.Second, "disconnect", func(s *checker.State) bool { return s.Proc("n").Counts[checker.Disconnect] == 1 })
			t.Logf("noticed after %v", took.Round(time.Millisecond))
			again := c.Restart(seed)
			if again.ID() != seed.ID() {
				t.Fatal("another id")
			}
			took = c.Wait(10*slow*time.Second, "back", func(s *checker.State) bool { return s.Gathered(2) })
			t.Logf("back after %v", took.Round(time.Millisecond))
			c.Check(checker.Config{Whole: true})
		})
	}
}
