package integration_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// TestNoBytesEndANode shows that a node survives all kinds of bad bytes on each of its
// protocols, from a peer and from a host without a handshake.
func TestNoBytesEndANode(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	honest := l.start(cluster.Spec{Name: "honest", Limits: manual})
	l.link(a, honest)
	outsider := rawHost(t)
	connect(t, outsider, a)
	protocols := 0
	var all sync.WaitGroup
	for _, proto := range a.Host().Mux().Protocols() {
		if !strings.HasPrefix(string(proto), "/smokesignal/") && !strings.Contains(string(proto), "sub") {
			continue // one of libp2p's own protocols
		}
		protocols++
		for _, bytes := range badBytes {
			// At once, since the node takes seconds to refuse some of them.
			all.Go(func() { say(t, outsider, a.ID(), proto, bytes) })
			all.Go(func() { say(t, b.Host(), a.ID(), proto, bytes) }) // from a neighbor
		}
	}
	all.Wait()
	if protocols < 4 {
		t.Errorf("only %d of our protocols at %v", protocols, a.Host().Mux().Protocols())
	}
	in := listen(t, a.Direct(), "x")
	broadcasts := listen(t, honest.Broadcast(), "x")
	emitNumbers(t, honest.Peer(a.ID()), "x", 10)
	wantNumbers(t, "a", in.wait(10, soon), 10)
	emitNumbers(t, a.Broadcast(), "x", 10)
	wantNumbers(t, "honest", broadcasts.wait(10, soon), 10)
	if a.Peer(outsider.ID()).Linked() {
		t.Error("the outsider is a peer")
	}
	l.wantStory(honest, "connect", "peer added a", "add a")
}

// TestNobodyDialsAVictim shows that nodes dial an address only a few times that 20
// attackers advertise as theirs.
func TestNobodyDialsAVictim(t *testing.T) {
	parallelInVirtualTime(t)
	const (
		nodes     = 5
		attackers = 20
		victim    = 100       // a machine of its own: a peer may name any address of its own machine
		most      = 3 * nodes // a node dials an address that never answered three times
	)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		var dials atomic.Int64
		v.refuse(v.net.Machine(machineIP(victim)), func() { dials.Add(1) })
		// Nodes that want more peers than there are try every address that they learn.
		hungry := &[2]int{50, smokesignal.Unlimited}
		for i := range nodes {
			v.startOn(i, cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: hungry, Seeds: []string{at(0)}})
		}
		v.wait(soon, "five nodes, all linked", func(s *checker.State) bool { return s.Degrees()[nodes-1] == nodes })
		// The attackers want only their seed, so that they do not dial each other.
		var crash []int
		for i := nodes; i < nodes+attackers; i++ {
			v.startOn(i, cluster.Spec{Name: fmt.Sprintf("attacker%d", i), Limits: manual, Seeds: []string{at(0)}, Advertise: []string{at(victim)}})
			crash = append(crash, i)
		}
		v.wait(soon, "all attackers are linked", func(s *checker.State) bool { return s.Degrees()[0] == 0 })
		v.crash(crash) // now the nodes look for new peers among the addresses that they know
		v.wait(soon, "the nodes have only each other", func(s *checker.State) bool { return s.Degrees()[nodes-1] == nodes })
		time.Sleep(time.Minute) // for dials that must not come; a lost peer is tried again after 8 s
		t.Logf("%d dials to the victim", dials.Load())
		if n := dials.Load(); n > most {
			t.Errorf("%d dials to a third party for %d attackers, want %d at most", n, attackers, most)
		}
	})
}
