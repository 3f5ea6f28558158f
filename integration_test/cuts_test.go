package integration_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/forward"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestEventsOfACutLinkAreDeliveredOrReported: the last link of a line is cut in the middle of
// 100 broadcasts a second. The nodes behind it get everything when it is back, unless the cut
// was longer than events are kept: then the delivered and the reported events add up.
func TestEventsOfACutLinkAreDeliveredOrReported(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cut, keep time.Duration
		least     size
	}{
		{time.Second, time.Minute, byDefault},
		{3 * time.Second, time.Second, byDefault},
		{10 * time.Second, time.Minute, long},
		{50 * time.Second, time.Minute, full},
		{80 * time.Second, time.Minute, full},
	} {
		t.Run(fmt.Sprintf("%v, kept for %v", tt.cut, tt.keep), func(t *testing.T) {
			t.Parallel()
			needs(t, tt.least)
			cutLink(t, tt.cut, tt.keep)
		})
	}
}

func cutLink(t *testing.T, cut, keep time.Duration) {
	l := newLocal(t)
	sender, toSender := l.behind("sender", cluster.Spec{Limits: joins}, smokesignal.KeepFor(keep))
	relay, toRelay := l.behind("relay", cluster.Spec{Limits: joins, Seeds: []string{toSender.Addr()}}, smokesignal.KeepFor(keep))
	l.wait(soon, "sender and relay", func(s *checker.State) bool { return s.Proc("relay").Has(sender.ID().String()) })
	last, toLast := l.behind("last", cluster.Spec{Limits: joins, Seeds: []string{toRelay.Addr()}}, smokesignal.KeepFor(keep))
	near := newTally(t, "relay", relay, sender.ID(), nil)
	far := newTally(t, "last", last, sender.ID(), nil)
	l.wait(soon, "a line", func(s *checker.State) bool { return len(s.Components()) == 1 && len(s.Half()) == 0 })

	tick := time.NewTicker(10 * time.Millisecond) // the rate is part of the test
	defer tick.Stop()
	var sent uint64
	during := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
			if err := emitNumbered(within(t, soon), sender, sent+1, sent+2, 100); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	during(time.Second)
	l.fault(relay, checker.FaultLink)
	l.fault(last, checker.FaultLink)
	toSender.Refuse(true) // the one way round
	around := []*forward.Forwarder{toRelay, toLast}
	for _, f := range around {
		f.Refuse(true)
		f.Cut(forward.Reset)
	}
	during(cut)
	for _, f := range append(around, toSender) {
		f.Refuse(false)
	}
	during(time.Second)
	l.wait(soon, "linked again", func(s *checker.State) bool { return len(s.Components()) == 1 })
	near.all(sent+1, soon)
	if cut < keep {
		far.all(sent+1, soon)
	} else if delivered, reported := far.wait(sent+1, soon); delivered+reported != sent || reported == 0 {
		t.Errorf("%d delivered and %d reported of %d", delivered, reported, sent)
	} else {
		t.Logf("%d delivered and %d reported of %d", delivered, reported, sent)
	}
}

// TestRestartedRelayLosesNothing: the relay in a line of three is killed and started anew, with
// nothing of what it had, in the middle of 100 broadcasts a second. Nothing is lost.
func TestRestartedRelayLosesNothing(t *testing.T) {
	t.Parallel()
	away := 2 * time.Second
	if chosen() == full {
		away = 15 * time.Second
	}
	c := cluster.New(t)
	port := hosttest.FreePort(t)
	at := hostPort(port)
	// TCP alone, over which it is noticed at once that a process was killed.
	relay := c.Start(cluster.Spec{Name: "relay", Listen: []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)}, Limits: joins})
	relay.ID()
	// The others have no room but for one, so they stay apart.
	one := &[2]int{1, 1}
	sender := c.Start(cluster.Spec{Name: "sender", Listen: []string{cluster.TCP}, Limits: one, Seeds: []string{at}})
	last := c.Start(cluster.Spec{Name: "last", Listen: []string{cluster.TCP}, Limits: one, Seeds: []string{at}})
	line := func(s *checker.State) bool {
		return len(s.Running()) == 3 && len(s.Components()) == 1 && len(s.Half()) == 0
	}
	c.Wait(soon, "a line", line)
	const every = 10 * time.Millisecond
	count := int((away + 4*time.Second) / every)
	emitting := sender.Send(cluster.Command{Do: cluster.Emit, Name: "x", Seq: 1, Count: count, Size: 100, Every: every})
	heard := func(s *checker.State) uint64 {
		return s.Proc(last.Name).Heard[checker.Stream{Run: "sender", Channel: checker.Broadcast}]
	}
	c.Wait(soon, "some arrive", func(s *checker.State) bool { return heard(s) > 50 })
	relay.Kill()
	time.Sleep(away) // how long it is away is part of the test
	c.Restart(relay).ID()
	c.Wait(soon, "a line again", line)
	sender.Answer(emitting, away+soon)
	took := c.Wait(soon, "everything at the last", func(s *checker.State) bool { return heard(s) >= uint64(count) })
	t.Logf("everything %v after the last was emitted", took.Round(time.Millisecond))
	c.Check(checker.Config{Accounted: true})
}

// TestEventsOfAFrozenNeighborAreDeliveredOrReported: one of three neighbors is frozen while
// 50,000 events are broadcast. The others get everything; the frozen one gets everything if it
// was not frozen for long, and else what it gets and what it reports add up.
func TestEventsOfAFrozenNeighborAreDeliveredOrReported(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		frozen time.Duration
		least  size
	}{{3 * time.Second, byDefault}, {60 * time.Second, full}} {
		t.Run(tt.frozen.String(), func(t *testing.T) {
			t.Parallel()
			needs(t, tt.least)
			testFrozenNeighbor(t, tt.frozen)
		})
	}
}

func testFrozenNeighbor(t *testing.T, frozen time.Duration) {
	events := many(50_000)
	c := cluster.New(t)
	at := hosttest.FreeAddress(t)
	sender := c.Start(cluster.Spec{Name: "sender", Listen: []string{at}, Limits: manual})
	senderID := sender.ID()
	one := &[2]int{1, 1}
	var ice *cluster.Proc
	for i := range 3 {
		ice = c.Start(cluster.Spec{Name: fmt.Sprintf("n%d", i), Listen: []string{cluster.TCP}, Limits: one, Seeds: []string{at}})
		ice.ID()
	}
	c.Wait(soon, "a star", func(s *checker.State) bool {
		return len(s.Components()) == 1 && len(s.Half()) == 0 && len(s.Proc("sender").Peers) == 3
	})
	heard := func(s *checker.State, name string) uint64 {
		return s.Proc(name).Heard[checker.Stream{Run: "sender", Channel: checker.Broadcast}]
	}
	ice.Stop()
	began := time.Now()
	emitting := sender.Broadcast("x", events, 64)
	go func() {
		time.Sleep(frozen) // how long it is frozen is part of the test
		ice.Continue()
	}()
	c.Wait(soon, "everything at those that are awake", func(s *checker.State) bool {
		return heard(s, "n0") >= uint64(events) && heard(s, "n1") >= uint64(events)
	})
	t.Logf("everything at those that are awake after %v", time.Since(began).Round(time.Millisecond))
	sender.Answer(emitting, soon)
	c.Wait(soon+frozen, "it goes on", func(s *checker.State) bool { return !s.Proc("n2").Frozen })
	c.Wait(soon, "a star again", func(s *checker.State) bool {
		return len(s.Components()) == 1 && len(s.Half()) == 0
	})
	took := c.Wait(soon, "everything at the frozen one", func(s *checker.State) bool {
		return heard(s, "n2")+s.Proc("n2").Lost[senderID] >= uint64(events)
	})
	c.Log.Inspect(func(s *checker.State) {
		t.Logf("the frozen one has %d after %v", heard(s, "n2"), took.Round(time.Millisecond))
		if frozen < 10*time.Second && heard(s, "n2") != uint64(events) {
			t.Errorf("%d of %d", heard(s, "n2"), events)
		}
	})
	c.Check(checker.Config{Accounted: true})
}
