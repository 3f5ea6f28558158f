package integration_test

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"

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
	stranger := rawHost(t)
	connect(t, stranger, a)
	protocols := 0
	for _, proto := range a.Host().Mux().Protocols() {
		if !strings.HasPrefix(string(proto), "/smokesignal/") && !strings.Contains(string(proto), "sub") {
			continue // libp2p's own
		}
		protocols++
		for name, b1 := range badBytes {
			t.Logf("%s: %s", proto, name)
			say(t, stranger, a.ID(), proto, b1, 0)
			say(t, b.Host(), a.ID(), proto, b1, 0) // by a peer, after the handshake
		}
	}
	if protocols < 4 {
		t.Errorf("only %d protocols of ours at %v", protocols, a.Host().Mux().Protocols())
	}
	in := listen(t, a.Direct(), "x")
	all := listen(t, honest.Broadcast(), "x")
	emitNumbers(t, honest.Peer(a.ID()), "x", 10)
	wantNumbers(t, "a", in.wait(10, soon), 10)
	emitNumbers(t, a.Broadcast(), "x", 10)
	wantNumbers(t, "honest", all.wait(10, soon), 10)
	if a.Peer(stranger.ID()).Linked() {
		t.Error("the stranger is a peer")
	}
	l.wantStory(honest, "connect", "peer added a", "add a")
}

// TestNobodyDialsAVictim shows that nodes dial an address that 20 attackers advertise
// as theirs only a few times.
func TestNobodyDialsAVictim(t *testing.T) {
	t.Parallel()
	// A neighbour may name any address of the machine that it speaks from, so the victim
	// is at another, where there are several for one machine. The bound is three dials
	// a node, what an address is worth that never answered; a lost neighbour is tried again.
	victim, err := net.Listen("tcp", "127.0.0.2:0")
	most := int64(3 * 5)
	if err != nil {
		victim, err = net.Listen("tcp", "127.0.0.1:0")
		most += 2 * 5
	}
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	at, err := manet.FromNetAddr(victim.Addr())
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int64
	go func() {
		for {
			c, err := victim.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			c.Close()
		}
	}()

	l := newLocal(t)
	// Nodes that want more peers than there are, so they try whom they hear of.
	hungry := &[2]int{50, smokesignal.Unlimited}
	seed := l.start(cluster.Spec{Name: "seed", Limits: hungry})
	for i := range 4 {
		l.start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Limits: hungry, Seeds: []string{addr(seed)}})
	}
	l.wait(soon, "five nodes, all linked", func(s *checker.State) bool { return s.Degrees()[4] == 5 })
	// Twenty processes join that say the victim's address is theirs. They look for
	// nobody but their seed, so that it is not themselves who dial one another.
	const requests = 20
	c := cluster.New(t)
	for i := range requests {
		c.Start(cluster.Spec{
			Name: fmt.Sprintf("attacker%d", i), Listen: []string{cluster.TCP}, Limits: manual, Seeds: []string{addr(seed)},
			// TCP alone, where a dial that is refused fails fast.
			Advertise: []string{at.String()},
		})
	}
	c.Wait(soon, "all are in", func(s *checker.State) bool { return len(s.Running()) == requests && s.Degrees()[0] == 0 })
	c.Kill() // now the five look for others among the addresses they know
	l.wait(soon, "the five are alone with each other", func(s *checker.State) bool { return s.Degrees()[4] == 5 })
	time.Sleep(10 * time.Second) // for dials that must not come; lost neighbours are tried after 8 s
	t.Logf("%d requests, %d dials to the victim", requests, dials.Load())
	if n := dials.Load(); n > most {
		t.Errorf("%d dials to a third party for %d requests, want %d at most", n, requests, most)
	}
}
