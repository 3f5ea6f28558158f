package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/forward"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// behind starts a node that can be reached through the forwarder alone: it
// listens on a port of the loopback interface and announces the forwarder's
// address in its place, so that neither seeds nor identify nor signed records
// spread the true one. Of two such nodes neither finds a way around.
func (l *local) behind(name string, spec cluster.Spec, more ...smokesignal.Option) (*smokesignal.Node, *forward.Forwarder) {
	l.t.Helper()
	at := hosttest.FreeAddress(l.t)
	f, err := forward.New(at)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(f.Close)
	host, port, _ := strings.Cut(f.Addr(), ":")
	_, own, _ := strings.Cut(at, ":")
	spec.Name = name
	spec.Listen = []string{"/ip4/127.0.0.1/tcp/" + own} // TCP alone, as the forwarder is
	spec.Advertise = []string{fmt.Sprintf("/ip4/%s/tcp/%s", host, port)}
	return l.start(spec, more...), f
}

// TestLinkThroughForwarders: two nodes that know each other only through
// forwarders are linked through them, lose nothing in a pause that is shorter
// than the keepalives' patience, and find each other again after a cut.
func TestLinkThroughForwarders(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a, toA := l.behind("a", cluster.Spec{Limits: joins})
	b, toB := l.behind("b", cluster.Spec{Limits: joins, Seeds: []string{toA.Addr()}})
	linked := func(s *checker.State) bool { return s.Gathered(2) }
	l.wait(soon, "linked", linked)
	if s := toA.Stats(); s.Open == 0 {
		t.Fatalf("the link goes past the forwarder: %+v", s)
	}
	for _, n := range []struct {
		*smokesignal.Node
		through string
	}{{a, toB.Addr()}, {b, toA.Addr()}} {
		other := a
		if n.Node == a {
			other = b
		}
		known := n.Host().Peerstore().Addrs(other.ID())
		if len(known) == 0 {
			t.Errorf("%s was sent no address of %s", l.name(n.Node), l.name(other))
		}
		for _, m := range known {
			if _, port, _ := strings.Cut(n.through, ":"); !strings.HasSuffix(m.String(), "/tcp/"+port) {
				t.Errorf("%s learned %s of %s", l.name(n.Node), m, l.name(other))
			}
		}
	}
	broadcasts, directs := listen(t, b.Broadcast(), "x"), listen(t, b.Peer(a.ID()), "x")

	for _, f := range []*forward.Forwarder{toA, toB} {
		f.Up.Pause()
		f.Down.Pause()
	}
	const n = 200
	emitNumbers(t, a.Broadcast(), "x", n)
	emitNumbers(t, a.Peer(b.ID()), "x", n)
	if err := l.log.Never(300*time.Millisecond, func(*checker.State) bool { return broadcasts.count()+directs.count() > 0 }); err != nil {
		t.Fatalf("events came through a pause: %v", err)
	}
	for _, f := range []*forward.Forwarder{toA, toB} {
		f.Up.Resume()
		f.Down.Resume()
	}
	wantNumbers(t, "b, broadcast", broadcasts.wait(n, soon), n)
	wantNumbers(t, "b, direct", directs.wait(n, soon), n)
	l.wantStory(a, "connect", "peer added b", "add b")

	l.fault(a, checker.FaultLink)
	l.fault(b, checker.FaultLink)
	for _, f := range []*forward.Forwarder{toA, toB} {
		f.Refuse(true)
		f.Cut(forward.Reset)
	}
	l.wait(soon, "both are alone", func(s *checker.State) bool {
		return s.Proc("a").Counts[checker.Disconnect] == 1 && s.Proc("b").Counts[checker.Disconnect] == 1
	})
	for _, f := range []*forward.Forwarder{toA, toB} {
		f.Refuse(false)
	}
	took := l.wait(soon, "linked again", linked)
	t.Logf("linked again %v after the cut was mended", took.Round(time.Millisecond))
	emitNumbers(t, a.Broadcast(), "x", 1)
	broadcasts.wait(n+1, soon)
	l.check(checker.Config{Whole: true})
}

// TestBlackHoleEndsTheLink: a path that swallows everything, with no reset and no
// end, is noticed by silence, and the link is made anew when there is one again.
func TestBlackHoleEndsTheLink(t *testing.T) {
	t.Parallel()
	needs(t, long)
	l := newLocal(t)
	_, toA := l.behind("a", cluster.Spec{Limits: joins})
	_, toB := l.behind("b", cluster.Spec{Limits: joins, Seeds: []string{toA.Addr()}})
	l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	flows := []*forward.Flow{toA.Up, toA.Down, toB.Up, toB.Down}
	l.log.Add(checker.Record{Proc: "a", Kind: checker.Fault, Text: checker.FaultLink})
	for _, f := range flows {
		f.Drop(true)
	}
	took := l.wait(20*slow*time.Second, "both are alone", func(s *checker.State) bool {
		return s.Proc("a").Counts[checker.Disconnect] == 1 && s.Proc("b").Counts[checker.Disconnect] == 1
	})
	t.Logf("noticed after %v", took.Round(time.Millisecond))
	for _, f := range flows {
		f.Drop(false)
	}
	took = l.wait(soon, "linked again", func(s *checker.State) bool { return s.Gathered(2) })
	t.Logf("linked again after %v", took.Round(time.Millisecond))
	l.check(checker.Config{Whole: true})
}
