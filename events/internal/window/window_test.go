package window

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// script drives the core of the node "me" step by step. Each batch holds one event of a
// hundred bytes, so batch n covers the events [n, n+1).
type script struct {
	t    *testing.T
	core *Controller
	now  time.Time
}

func newScript(t *testing.T, cfg Config, neighbors ...peer.ID) *script {
	s := &script{t, New("me", cfg), time.Unix(1000, 0)}
	for _, id := range neighbors {
		s.core.AddNeighbor(id)
	}
	return s
}

func life(n int) order.SessionKey { return order.SessionKey{Start: uint64(n)} }

// receiveBatch receives batch n of an author from giver, with no batch before it missing.
func (s *script) receiveBatch(author peer.ID, n uint64, giver peer.ID) {
	s.core.AddBatch(s.now, author, life(1), n, n+1, 100, giver)
	s.core.SetReceived(s.now, author, life(1), n+1)
}

// publish publishes the batches from from to to.
func (s *script) publish(from, to uint64) {
	for n := from; n <= to; n++ {
		s.receiveBatch("me", n, "")
	}
}

// acknowledge receives an acknowledgment that a neighbor, and every node behind it, has
// all events below next.
func (s *script) acknowledge(id, author peer.ID, next uint64) {
	s.core.ReceiveAck(s.now, id, Ack{Sender: author, Session: life(1), Next: next, Through: next})
}

// advance moves the clock forward by d and performs everything that becomes due.
func (s *script) advance(d time.Duration) {
	end := s.now.Add(d)
	for next := s.core.Next(); !next.IsZero() && !next.After(end); next = s.core.Next() {
		if next.After(s.now) {
			s.now = next
		}
		s.core.Advance(s.now)
		s.core.Due(s.now)
		if again := s.core.Next(); !again.IsZero() && !again.After(s.now) {
			s.t.Fatalf("at %v there is always something more to do", s.now)
		}
	}
	s.now = end
}

func (s *script) wantCanPublish(author peer.ID, want bool) {
	s.t.Helper()
	if got := s.core.CanPublish(author); got != want {
		s.t.Errorf("room for %s: %v, want %v", author, got, want)
	}
}

// wantAcks collects the acknowledgments for a neighbor and compares them, like "a 5/3"
// if this node has all events of a below 5 and the nodes behind it have all below 3, with
// "?" if the neighbor is asked for its mark.
func (s *script) wantAcks(id peer.ID, want string) {
	s.t.Helper()
	var got []string
	for _, a := range s.core.CollectAcks(s.now, id, 100) {
		text := fmt.Sprintf("%s %d/%d", string(a.Sender), a.Next, a.Through)
		if a.Ask {
			text += "?"
		}
		got = append(got, text)
	}
	slices.Sort(got)
	if text := fmt.Sprint(got); text != "["+want+"]" {
		s.t.Errorf("%s is told %s, want [%s]", string(id), text, want)
	}
}

func (s *script) wantDue(want ...peer.ID) {
	s.t.Helper()
	got := s.core.Due(s.now)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.t.Errorf("due are %v, want %v", got, want)
	}
}

// A full window opens again when the slowest neighbor acknowledges or leaves.
func TestPublishingWaitsForTheSlowestNeighbor(t *testing.T) {
	s := newScript(t, Config{Batches: 4}, "a", "b")
	s.publish(1, 3)
	s.wantCanPublish("me", true)
	s.publish(4, 4)
	s.wantCanPublish("me", false)
	s.acknowledge("a", "me", 5)
	s.wantCanPublish("me", false)
	s.acknowledge("b", "me", 2)
	s.wantCanPublish("me", true)
	s.publish(5, 5)
	s.wantCanPublish("me", false)
	s.core.RemoveNeighbor(s.now, "b")
	s.wantCanPublish("me", true)
}

// The window is full when the unacknowledged batches exceed its limit in bytes.
func TestWindowCountsBytes(t *testing.T) {
	s := newScript(t, Config{Bytes: 250}, "a")
	s.publish(1, 2)
	s.wantCanPublish("me", true)
	s.publish(3, 3)
	s.wantCanPublish("me", false)
	s.acknowledge("a", "me", 2)
	s.wantCanPublish("me", true)
}

// A new neighbor has to acknowledge only batches that were published after its link was
// made.
func TestNewNeighborNeedNotAcknowledgeEarlierBatches(t *testing.T) {
	s := newScript(t, Config{Batches: 2})
	s.publish(1, 100)
	s.wantCanPublish("me", true)
	s.core.AddNeighbor("a")
	s.wantCanPublish("me", true)
	s.publish(101, 101)
	if got := s.core.NeighborsLacking("me", 102); !slices.Equal(got, []peer.ID{"a"}) {
		t.Errorf("lacking %v", got)
	}
	s.publish(102, 102)
	s.wantCanPublish("me", false)
	s.acknowledge("a", "me", 103)
	s.wantCanPublish("me", true)
	if got := s.core.NeighborsLacking("me", 103); got != nil {
		t.Errorf("lacking %v", got)
	}
}

// A new neighbor need not acknowledge an earlier batch, even if another neighbor has yet
// to acknowledge it.
func TestNewNeighborNeedNotAcknowledgeBatchesUnderWay(t *testing.T) {
	s := newScript(t, Config{Batches: 3}, "old")
	s.publish(1, 2)
	s.core.AddNeighbor("new")
	s.publish(3, 3)
	s.wantCanPublish("me", false)
	s.acknowledge("old", "me", 4)
	s.wantCanPublish("me", true)
	s.acknowledge("new", "me", 4)
	if len(s.core.busy) != 0 {
		t.Error("somebody still lacks something")
	}
}

// A neighbor that acknowledges nothing delays the sender for five seconds once, and again
// only after it has acknowledged something.
func TestSilentNeighborIsWaitedForOnce(t *testing.T) {
	s := newScript(t, Config{Batches: 2}, "a")
	s.publish(1, 2)
	s.advance(5*time.Second - 1)
	s.wantCanPublish("me", false)
	s.advance(1)
	s.wantCanPublish("me", true)
	s.publish(3, 100)
	s.wantCanPublish("me", true)
	s.advance(time.Hour)
	s.publish(101, 200)
	s.wantCanPublish("me", true)
	s.acknowledge("a", "me", 150)
	s.publish(201, 202)
	s.wantCanPublish("me", false)
	s.acknowledge("a", "me", 203)
	s.wantCanPublish("me", true)
}

// A neighbor is waited for as long as each acknowledgment comes within five seconds of
// the last.
func TestSlowNeighborThatAcknowledgesIsWaitedFor(t *testing.T) {
	s := newScript(t, Config{Batches: 4}, "a")
	s.publish(1, 4)
	for n := uint64(2); n <= 4; n++ {
		s.advance(4 * time.Second)
		s.wantCanPublish("me", n > 2)
		s.acknowledge("a", "me", n)
	}
	s.publish(5, 7)
	s.wantCanPublish("me", false)
}

// A neighbor that does not acknowledge is asked for its mark at intervals that double, for
// the last time after about a minute.
func TestSilentNeighborIsAskedAtGrowingIntervals(t *testing.T) {
	s := newScript(t, Config{}, "a")
	s.publish(1, 1)
	start := s.now
	var at []time.Duration
	for next := s.core.Next(); !next.IsZero(); next = s.core.Next() {
		s.now = next
		s.core.Advance(s.now)
		if slices.Contains(s.core.Due(s.now), "a") {
			at = append(at, s.now.Sub(start).Round(100*time.Millisecond))
			s.wantAcks("a", "me 2/2?")
		}
	}
	if want := "[300ms 900ms 2.1s 4.5s 9.3s 18.9s 38.1s 1m16.5s]"; fmt.Sprint(at) != want {
		t.Errorf("told at %v, want %s", at, want)
	}
	s.acknowledge("a", "me", 2)
	s.publish(2, 2)
	s.advance(300 * time.Millisecond)
	s.wantAcks("a", "me 3/3?")
	s.acknowledge("a", "me", 3)
	s.advance(time.Minute)
	if next := s.core.Next(); !next.IsZero() {
		t.Errorf("next is %v although nobody lacks anything", next)
	}
}

// A relay acknowledges a batch in full to the neighbor that gave it only after its other
// neighbors have acknowledged it; to those it acknowledges at once.
func TestRelayAcknowledgesToTheGiverLast(t *testing.T) {
	s := newScript(t, Config{}, "giver", "leaf", "other")
	s.receiveBatch("author", 1, "giver")
	s.advance(10 * time.Millisecond)
	s.wantAcks("giver", "author 2/1")
	s.wantAcks("other", "author 2/2")
	s.acknowledge("leaf", "author", 2)
	s.advance(10 * time.Millisecond)
	s.wantAcks("giver", "")
	s.acknowledge("other", "author", 2)
	s.wantAcks("giver", "author 2/2")
}

// A relay does not wait for the author of a batch to acknowledge that batch.
func TestRelayDoesNotWaitForTheAuthor(t *testing.T) {
	s := newScript(t, Config{}, "author", "other")
	s.receiveBatch("author", 1, "author")
	s.acknowledge("other", "author", 2)
	s.wantAcks("author", "author 2/2")
}

// A relay acknowledges in full when a neighbor has been silent for five seconds, and does
// not wait for that neighbor again.
func TestRelayWaitsForASilentNeighborOnce(t *testing.T) {
	s := newScript(t, Config{}, "giver", "frozen")
	s.receiveBatch("author", 1, "giver")
	s.wantAcks("giver", "author 2/1")
	s.advance(5 * time.Second)
	s.wantAcks("giver", "author 2/2")
	s.receiveBatch("author", 2, "giver")
	s.wantAcks("giver", "author 3/3")
}

// An acknowledgment ends below the first missing batch until that batch is repaired.
func TestAcknowledgmentStopsAtAMissingBatch(t *testing.T) {
	s := newScript(t, Config{}, "giver")
	s.receiveBatch("author", 1, "giver")
	s.core.AddBatch(s.now, "author", life(1), 3, 4, 100, "giver")
	s.wantAcks("giver", "author 2/2")
	s.core.AddBatch(s.now, "author", life(1), 2, 3, 100, "") // repaired
	s.core.SetReceived(s.now, "author", life(1), 4)
	s.wantAcks("giver", "author 4/4")
}

// An acknowledgment is due at once after AckBatches batches, and otherwise after a delay.
func TestAcknowledgmentsAreCollected(t *testing.T) {
	s := newScript(t, Config{AckBatches: 3}, "giver")
	s.receiveBatch("author", 1, "giver")
	s.receiveBatch("author", 2, "giver")
	s.wantDue()
	s.receiveBatch("author", 3, "giver")
	s.wantDue("giver")
	s.wantAcks("giver", "author 4/4")
	s.receiveBatch("author", 4, "giver")
	s.now = s.now.Add(10 * time.Millisecond)
	s.wantDue("giver")
}

// A neighbor whose acknowledgments are still being written is not reported as due again,
// so a slow write does not make the caller spin.
func TestNeighborIsDueOnceUntilItsAcksAreCollected(t *testing.T) {
	s := newScript(t, Config{}, "giver")
	s.receiveBatch("author", 1, "giver")
	s.now = s.now.Add(10 * time.Millisecond)
	s.wantDue("giver")
	s.receiveBatch("author", 2, "giver")
	s.wantDue()
	if next := s.core.Next(); !next.IsZero() {
		t.Errorf("next is %v although it is being told", next)
	}
	s.wantAcks("giver", "author 3/3")
	s.receiveBatch("author", 3, "giver")
	s.now = s.now.Add(10 * time.Millisecond)
	s.wantDue("giver")
}

// Acknowledgments that could not be written are due again, with their newest values.
func TestRequeuedAcksAreNotLost(t *testing.T) {
	s := newScript(t, Config{}, "n")
	for _, author := range []peer.ID{"a", "b", "c"} {
		s.receiveBatch(author, 1, "n")
	}
	s.core.ReceiveAck(s.now, "n", Ack{Sender: "d", Session: life(1), Next: 1, Ask: true})
	s.now = s.now.Add(10 * time.Millisecond)
	first := s.core.CollectAcks(s.now, "n", 3)
	s.wantDue("n")
	s.wantAcks("n", "d 0/0")
	s.core.RequeueAcks(s.now, "n", first)
	s.receiveBatch("a", 2, "n")
	s.wantAcks("n", "a 3/3 b 2/2 c 2/2")
	s.wantAcks("n", "")

	s.core.AddNeighbor("x")
	s.receiveBatch("me", 1, "")
	s.advance(300 * time.Millisecond)
	asked := s.core.CollectAcks(s.now, "x", 1)
	s.core.RequeueAcks(s.now, "x", asked)
	s.wantAcks("x", "me 2/2?")
}

// A neighbor that asks for a mark gets it even if the mark has not changed.
func TestAskIsAnsweredWithoutAChange(t *testing.T) {
	s := newScript(t, Config{}, "n")
	s.receiveBatch("author", 1, "n")
	s.wantAcks("n", "author 2/2")
	s.core.ReceiveAck(s.now, "n", Ack{Sender: "author", Session: life(1), Next: 2, Through: 2, Ask: true})
	s.advance(10 * time.Millisecond)
	s.wantAcks("n", "author 2/2")
}

// Progress without a new batch, as when missing events are given up, is also sent to a
// neighbor that linked after the last batch.
func TestNewNeighborGetsProgressWithoutABatch(t *testing.T) {
	s := newScript(t, Config{}, "n")
	s.receiveBatch("author", 1, "n")
	s.core.AddNeighbor("new")
	s.core.SetReceived(s.now, "author", life(1), 5)
	s.wantAcks("new", "author 5/5")
}

// A new neighbor gets the marks of authors that were active while the greetings were
// exchanged.
func TestNewNeighborGetsMarksOfTheGreetingTime(t *testing.T) {
	s := newScript(t, Config{}, "n")
	s.receiveBatch("old", 1, "n")
	s.core.Announce(s.now, "old too")
	s.advance(catchUpAge)
	s.receiveBatch("new", 1, "n")
	s.core.Announce(s.now, "new too")
	s.core.AddNeighbor("x")
	s.core.CatchUp(s.now, "x")
	s.wantAcks("x", "new 2/2 new too 0/0")
	if len(s.core.announced) != 1 {
		t.Errorf("%d authors are remembered as told", len(s.core.announced))
	}
}

// A later session replaces the earlier one, and a neighbor that acknowledges a still later
// session has no more to acknowledge of this one.
func TestLaterSessionReplacesTheEarlier(t *testing.T) {
	s := newScript(t, Config{}, "giver", "n")
	s.receiveBatch("author", 1, "giver")
	s.core.AddBatch(s.now, "author", life(2), 1, 2, 100, "giver")
	s.core.SetReceived(s.now, "author", life(2), 2)
	s.receiveBatch("author", 2, "giver") // of the earlier
	s.acknowledge("n", "author", 3)
	s.wantAcks("giver", "author 2/1")
	// Who has come to a later session yet has done with this one.
	s.core.ReceiveAck(s.now, "n", Ack{Sender: "author", Session: life(3), Next: 1, Through: 1})
	s.wantAcks("giver", "author 2/2")
}

// The number of authors that the core remembers is bounded, with and without
// acknowledgments.
func TestAuthorsAreBounded(t *testing.T) {
	s := newScript(t, Config{MaxSenders: 20}, "n", "m")
	for i := range 1000 {
		author := peer.ID(fmt.Sprint("author ", i))
		s.receiveBatch(author, 1, "n") // m never acknowledges
		s.core.ReceiveAck(s.now, "n", Ack{Sender: peer.ID(fmt.Sprint("ghost ", i)), Session: life(1), Next: 1 << 60, Through: 1 << 60})
		s.core.CollectAcks(s.now, "n", 100)
		s.core.CollectAcks(s.now, "m", 100)
	}
	if len(s.core.flows) > 20 || len(s.core.busy) > 20 || len(s.core.neighbors["n"].pairs) > 20 || len(s.core.neighbors["m"].pairs) > 20 {
		t.Errorf("%d flows, %d busy, %d and %d pairs", len(s.core.flows), len(s.core.busy), len(s.core.neighbors["n"].pairs), len(s.core.neighbors["m"].pairs))
	}
}

// In any graph whose links lose nothing, in any order of messages and acknowledgments,
// the author can always publish again, no neighbor is given up, and no queue holds more
// than a window of batches that its receiver lacks.
func TestNoDeadlockAndNoOverrun(t *testing.T) {
	for seed := range uint64(300) {
		noDeadlock(t, rand.New(rand.NewPCG(seed, 0)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// noDeadlock runs one random graph of nodes until all batches have arrived everywhere.
func noDeadlock(t *testing.T, rnd *rand.Rand) {
	const window, batches = 4, 40
	type link struct{ from, to int }
	type message struct {
		n     uint64
		giver int
	}
	type node struct {
		core *Controller
		got  map[uint64]bool
		next uint64
	}
	nodes := make([]*node, 2+rnd.IntN(8))
	name := func(i int) peer.ID { return peer.ID(fmt.Sprint(i)) }
	for i := range nodes {
		nodes[i] = &node{New(name(i), Config{Batches: window}), map[uint64]bool{}, 1}
	}
	var links []link
	join := func(i, j int) {
		if i != j && !slices.Contains(links, link{i, j}) {
			links = append(links, link{i, j}, link{j, i})
			nodes[i].core.AddNeighbor(name(j))
			nodes[j].core.AddNeighbor(name(i))
		}
	}
	for i := 1; i < len(nodes); i++ {
		join(i, rnd.IntN(i)) // a tree, and then cycles
	}
	for range rnd.IntN(2 * len(nodes)) {
		join(rnd.IntN(len(nodes)), rnd.IntN(len(nodes)))
	}
	queues := make(map[link][]message)
	acks := make(map[link][]Ack)
	now := time.Unix(0, 0)
	take := func(i int, m message) {
		v := nodes[i]
		if v.got[m.n] {
			return
		}
		v.got[m.n] = true
		giver := peer.ID("")
		if m.giver >= 0 {
			giver = name(m.giver)
		}
		v.core.AddBatch(now, "0", life(1), m.n, m.n+1, 1, giver)
		for v.got[v.next] {
			v.next++
		}
		v.core.SetReceived(now, "0", life(1), v.next)
		for _, l := range links {
			if l.from == i && l.to != m.giver && l.to != 0 {
				queues[l] = append(queues[l], message{m.n, i})
				news := 0
				for _, m := range queues[l] {
					if !nodes[l.to].got[m.n] { // else it does not matter if it is dropped
						news++
					}
				}
				if news > window {
					t.Fatalf("%d batches wait on the link from %d to %d", news, l.from, l.to)
				}
			}
		}
	}
	for published := uint64(0); ; {
		now = now.Add(time.Duration(rnd.IntN(100)) * time.Microsecond)
		var ready []func()
		if published < batches && nodes[0].core.CanPublish("0") {
			ready = append(ready, func() { published++; take(0, message{published, -1}) })
		}
		for _, l := range links {
			if q := queues[l]; len(q) > 0 {
				ready = append(ready, func() { queues[l] = q[1:]; take(l.to, q[0]) })
			}
			acks[l] = append(acks[l], nodes[l.from].core.CollectAcks(now, name(l.to), 10)...)
			if q := acks[l]; len(q) > 0 {
				ready = append(ready, func() { acks[l] = q[1:]; nodes[l.to].core.ReceiveAck(now, name(l.from), q[0]) })
			}
		}
		if len(ready) == 0 {
			if published < batches {
				t.Fatalf("stuck after %d batches", published)
			}
			break
		}
		ready[rnd.IntN(len(ready))]()
	}
	for i, v := range nodes {
		if v.next != batches+1 || len(v.core.busy) != 0 {
			t.Fatalf("node %d has %d of %d, %d busy", i, v.next-1, batches, len(v.core.busy))
		}
	}
}
