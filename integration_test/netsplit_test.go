package integration_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestNetsplit: a line of three processes whose seed, at one end, is killed.
// Each of the others reports exactly one netsplit, and exactly one end of it when
// the seed is back; also the one that never was linked to the seed.
func TestNetsplit(t *testing.T) {
	t.Parallel()
	const (
		interval = time.Second
		timeout  = time.Second
		due      = 2*interval + timeout // promise 4
	)
	c := cluster.New(t)
	port := hosttest.FreePort(t)
	at := hostPort(port)
	node := func(name string, limits [2]int, seeds ...string) *cluster.Proc {
		return c.Start(cluster.Spec{
			Name: name, Listen: []string{cluster.TCP}, Seeds: seeds, Limits: &limits,
			PingInterval: interval, PingTimeout: timeout,
		})
	}
	// The seed finds the middle, and the far end has no room beside the middle, so
	// the line stands. Both have the seed as their seed.
	middle := node("middle", [2]int{1, 2}, at)
	far := node("far", [2]int{1, 1}, at)
	if answer := far.Ask(cluster.Command{Do: cluster.AddPeer, To: middle.Addr(), Within: soon}); answer.Err != "" {
		t.Fatal(answer.Err)
	}
	spec := cluster.Spec{
		// Over QUIC the link of the middle to the killed seed stands for 12.5 s more.
		Name: "seed", Listen: []string{fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port)}, Seeds: []string{middle.Addr()}, Limits: &[2]int{1, 2},
		PingInterval: interval, PingTimeout: timeout,
	}
	seed := c.Start(spec)
	seed.ID()
	c.Wait(soon, "the line", func(s *checker.State) bool {
		return len(s.Running()) == 3 && len(s.Components()) == 1 && len(s.Half()) == 0
	})
	count := func(s *checker.State, k checker.Kind) (middle, far int) {
		return s.Proc("middle").Counts[k], s.Proc("far").Counts[k]
	}
	quiet := func(when string, netsplits, resolved int) {
		t.Helper()
		c.Never(due+time.Second, when, func(s *checker.State) bool {
			m, f := count(s, checker.Netsplit)
			rm, rf := count(s, checker.Resolved)
			return m != netsplits || f != netsplits || rm != resolved || rf != resolved
		})
	}
	quiet("with everybody alive", 0, 0)

	seed.Kill()
	took := c.Wait(due+5*slow*time.Second, "a netsplit at both", func(s *checker.State) bool {
		m, f := count(s, checker.Netsplit)
		return m >= 1 && f >= 1
	})
	t.Logf("netsplit %v after the kill, %v are promised", took.Round(time.Millisecond), due)
	if took < interval {
		t.Errorf("netsplit %v after the loss, before one ping interval of %v", took, interval)
	}
	quiet("the seed is dead", 1, 0)
	for _, p := range []*cluster.Proc{middle, far} {
		if text := p.Ask(cluster.Command{Do: cluster.Seeds}).Text; text == "" {
			t.Errorf("%s reports nothing of its seeds", p.Name)
		} else {
			t.Logf("%s says of its seed: %s", p.Name, text)
		}
	}

	again := c.Restart(seed)
	again.ID()
	took = c.Wait(soon, "resolved at both", func(s *checker.State) bool {
		m, f := count(s, checker.Resolved)
		return m >= 1 && f >= 1
	})
	t.Logf("resolved %v after the restart", took.Round(time.Millisecond))
	quiet("the seed is back", 1, 1)
	c.Log.Inspect(func(s *checker.State) {
		for _, name := range []string{"middle", "far"} {
			if n := s.Proc(name).Counts[checker.Disconnect]; n != 0 {
				t.Errorf("%s disconnected %d times, it always had a peer", name, n)
			}
		}
	})
	c.Check(checker.Config{})
}
