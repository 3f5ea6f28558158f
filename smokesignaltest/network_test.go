package smokesignaltest_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/smokesignaltest"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// A broadcast reaches every node.
func TestBroadcastsReachEverybody(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		net := smokesignaltest.Network(t, 5)
		net.Emit(3, "chat", "hello", 1)
		net.EverybodyGot("chat", "hello", 1)
		if got := net.Got(0, "chat"); len(got) != 1 || got[0] != "hello" {
			t.Errorf("node 0 got %v", got)
		}
	})
}

// Events that were emitted during a cut arrive after it.
func TestEventsOfACutArriveAfterIt(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		net := smokesignaltest.Network(t, 6)
		net.Cut(0, 1)
		for k := range 20 {
			net.Emit(0, "count", k)
			net.Emit(5, "count", 100+k)
		}
		time.Sleep(20 * time.Second)
		for _, v := range net.Got(5, "count") {
			if v.(float64) < 100 {
				t.Fatalf("node 5 got %v through the cut", v)
			}
		}
		net.Heal()
		net.OneComponent()
		for k := range 20 {
			net.EverybodyGot("count", k)
			net.EverybodyGot("count", 100+k)
		}
		net.InOrder()
	})
}

// The other nodes notice that a node was killed and that it is back.
func TestOthersNoticeAKilledNodeAndItsRestart(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		net := smokesignaltest.Network(t, 4)
		id := net.Node(2).ID()
		var removed atomic.Int32
		for _, i := range []int{0, 1, 3} {
			net.Node(i).OnPeerRemoved(func(_ context.Context, p *smokesignal.Peer) {
				if p.ID() == id {
					removed.Add(1)
				}
			})
		}
		net.Kill(2)
		time.Sleep(30 * time.Second)
		if n := removed.Load(); n == 0 {
			t.Error("nobody removed the killed node")
		}
		if alive := fmt.Sprint(net.Alive()); alive != "[0 1 3]" {
			t.Errorf("alive are %s", alive)
		}
		net.OneComponent()
		if again := net.Restart(2); again.ID() != id {
			t.Errorf("restarted as %s, was %s", again.ID(), id)
		}
		net.OneComponent()
		net.Emit(2, "back", true)
		net.EverybodyGot("back", true)
	})
}

// Lost and slow packets delay events but lose none.
func TestLostAndSlowPacketsDelayEvents(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		net := smokesignaltest.Network(t, 4, smokesignaltest.Loss(0.05), smokesignaltest.Latency(20*time.Millisecond, 80*time.Millisecond))
		net.Latency(0, 1, 400*time.Millisecond)
		for k := range 50 {
			net.Emit(k%4, "count", k)
		}
		for k := range 50 {
			net.EverybodyGot("count", k)
		}
		net.InOrder()
	})
}

// A node whose machine slept is linked again and gets events.
func TestAMachineThatSleepsComesBack(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		net := smokesignaltest.Network(t, 4)
		net.Sleep(1, time.Minute)
		net.OneComponent()
		net.Emit(0, "awake?", "yes")
		net.EverybodyGot("awake?", "yes")
	})
}

// The ids of the nodes depend only on the seed of the test.
func TestIdsAreThoseOfTheSeed(t *testing.T) {
	ids := func(seed uint64) (text string) {
		smokesignaltest.Run(t, func(t *testing.T) {
			net := smokesignaltest.Network(t, 2, smokesignaltest.Seed(seed))
			text = fmt.Sprint(net.Node(0).ID(), net.Node(1).ID())
		})
		return text
	}
	first, again, other := ids(7), ids(7), ids(8)
	if first != again || first == other {
		t.Errorf("%s and %s with one seed, %s with another", first, again, other)
	}
}

// If the clock of a restarted sender was set back, the others treat its session as an old
// one. They ignore its events and count them.
func TestAClockThatWasSetBackShows(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		net := smokesignaltest.Network(t, 3)
		net.Emit(1, "count", 1)
		net.EverybodyGot("count", 1)
		net.Clock(1, -time.Hour)
		net.Restart(1)
		net.OneComponent()
		net.Emit(1, "count", 2)
		time.Sleep(10 * time.Second)
		if n := net.Node(0).Stats().Broadcast["old_sessions"]; n == 0 {
			t.Error("node 0 accepted a session that began before the last one")
		}
	})
}

// A network also works outside of Run, in real time.
func TestANetworkInRealTime(t *testing.T) {
	net := smokesignaltest.Network(t, 3, smokesignaltest.Latency(0, time.Millisecond))
	net.Emit(0, "chat", "hello")
	net.EverybodyGot("chat", "hello")
}
