package integration_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestBusyMachine: twenty processes on a machine all of whose cores are busy with
// something else report no disconnect and no netsplit: that a machine is slow
// is not the network's fault. It runs beside no other test.
func TestBusyMachine(t *testing.T) {
	needs(t, long)
	const nodes = 20
	busy := 30 * time.Second
	if chosen() == full {
		busy = 10 * time.Minute
	}
	c := cluster.New(t)
	seed := hosttest.FreeAddress(t)
	for i := range nodes {
		listen := [...]string{cluster.TCP, cluster.QUIC}[i%2]
		if i == 0 {
			listen = seed
		}
		c.Start(cluster.Spec{Name: fmt.Sprint("n", i), Listen: []string{listen}, Seeds: []string{seed}})
	}
	c.Wait(soon, "all gathered", func(s *checker.State) bool { return s.Gathered(nodes) })

	var stop atomic.Bool
	defer stop.Store(true)
	for range runtime.NumCPU() {
		go func() {
			for !stop.Load() {
			}
		}()
	}
	c.Never(busy, "reported something that was not so", func(s *checker.State) bool {
		for _, p := range s.Running() {
			if p.Counts[checker.Disconnect]+p.Counts[checker.Netsplit] > 0 {
				return true
			}
		}
		return false
	})
	stop.Store(true)
	c.Log.Inspect(func(s *checker.State) {
		unlinked := 0
		for _, p := range s.Running() {
			unlinked += p.Counts[checker.PeerRemoved]
		}
		t.Logf("%d ends of links in %v", unlinked, busy)
	})
	c.Wait(gatherWithin, "enough peers for everybody, nobody too many", func(s *checker.State) bool {
		return s.Gathered(nodes) && len(s.AboveMax()) == 0
	})
	c.Check(checker.Config{Whole: true})
}
