package overlay

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// idsByRank returns ids with a lower rank than the node of the script, and ids with a
// higher one, each in the order of their ranks.
func idsByRank() (lower, higher []peer.ID) {
	for i := range 20 {
		id := peer.ID(fmt.Sprint("r", i))
		if rank(id) < rank("me") {
			lower = append(lower, id)
		} else {
			higher = append(higher, id)
		}
	}
	by := func(a, b peer.ID) int { return cmp.Compare(rank(a), rank(b)) }
	slices.SortFunc(lower, by)
	slices.SortFunc(higher, by)
	return lower, higher
}

func beaconOf(id peer.ID, seq uint64) Beacon {
	return Beacon{Contact{ID: id, Record: []byte(id), Seq: seq}}
}

// newBeaconScript is a script of a node with neighbors a, b and c that compares beacons,
// too.
func newBeaconScript(t *testing.T) *script {
	c := newSeedless(t, 0, 5, 1, "a", "b", "c")
	c.all = true
	return c
}

// A beacon of a better owner, and a newer one of the same owner, is passed on to all
// neighbors but the one it came from. A beacon that was heard before is not.
func TestLowestRankOwnsTheTag(t *testing.T) {
	lower, _ := idsByRank()
	best, good := lower[0], lower[1]
	c := newBeaconScript(t)
	if got := c.s.Tag(); got != (Tag{"me", 100}) {
		t.Errorf("at first the tag is %v, want its own", got)
	}
	flooded := func(id peer.ID, seq int, to ...string) (want []string) {
		for _, p := range to {
			want = append(want, fmt.Sprintf("beacon %s of %s %d", p, string(id), seq))
		}
		return want
	}
	c.receive("a", beaconOf(good, 5), flooded(good, 5, "b", "c")...)
	c.receive("b", beaconOf(good, 5))
	c.receive("b", beaconOf(good, 4))
	c.receive("b", beaconOf(good, 6), flooded(good, 6, "a", "c")...)
	c.receive("c", beaconOf(best, 1), flooded(best, 1, "a", "b")...)
	c.receive("x", beaconOf(good, 7)) // x is not a neighbor
	c.receive("a", beaconOf("me", 999))
	if got := c.s.Tag(); got != (Tag{best, 1}) {
		t.Errorf("the tag is %v, want %v as of 1", got, best)
	}
	if got := c.s.View().Since; !got.Equal(c.now) {
		t.Errorf("since %v, want now", got)
	}
}

// A worse beacon is answered with the better one, once in ten seconds.
func TestWorseBeaconIsAnsweredWithTheBetterOne(t *testing.T) {
	_, higher := idsByRank()
	worse := beaconOf(higher[0], 5)
	c := newBeaconScript(t)
	c.now = c.now.Add(beaconInterval) // they got it with the link
	c.s.Step(c.now, RecordRenewed{Record: []byte("me"), Seq: 101})
	c.s.Step(c.now, Tick{})
	c.receive("a", worse, "beacon a of me 101")
	c.receive("a", worse)
	c.receive("b", worse, "beacon b of me 101")
	if got := c.s.Tag().ID; got != "me" {
		t.Errorf("the tag is %s's", got)
	}
}

// The owner floods its beacon every ten seconds, each time with a new record.
func TestOwnerRepeatsItsBeacon(t *testing.T) {
	c := newBeaconScript(t)
	seq := uint64(100)
	c.react = func(o Output) Input {
		if _, ok := o.(RenewRecord); ok {
			seq++
			return RecordRenewed{Record: []byte("me"), Seq: seq}
		}
		return nil
	}
	times, got := sends[Beacon](c.advance(30*time.Second, "a", "b", "c"))
	if len(got) != 9 {
		t.Fatalf("%d beacons to three neighbors in half a minute, want 9", len(got))
	}
	for i, send := range got {
		if m := send.Message.(Beacon); m.Owner.Seq != uint64(101+i/3) {
			t.Errorf("beacon %d has number %d", i, m.Owner.Seq)
		}
	}
	if pause := times[3].Sub(times[0]); pause != beaconInterval {
		t.Errorf("repeated after %v", pause)
	}
}

// If the beacon of the owner is not heard for 35 seconds and until the turn of this node,
// this node becomes the owner. A late copy of the old beacon does not change that; a new
// beacon of the old owner does.
func TestSilentOwnerIsReplaced(t *testing.T) {
	lower, _ := idsByRank()
	c := newBeaconScript(t)
	c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: beaconOf(lower[0], 5)})
	turn := time.Duration(float64(takeoverSpan) * float64(rank("me")) / (1 << 64))
	c.advance(beaconTimeout+turn-time.Millisecond, "a", "b", "c")
	if got := c.s.Tag().ID; got != lower[0] {
		t.Fatalf("%s took over too early", got)
	}
	c.advance(time.Millisecond, "a", "b", "c")
	if got := c.s.Tag().ID; got != "me" {
		t.Fatalf("the tag is still %s's", got)
	}
	c.step(RecordRenewed{Record: []byte("me"), Seq: 102}, "beacon a of me 102", "beacon b of me 102", "beacon c of me 102")
	c.receive("b", beaconOf(lower[0], 5))
	c.receive("b", beaconOf(lower[0], 6), fmt.Sprintf("beacon a of %s 6", string(lower[0])), fmt.Sprintf("beacon c of %s 6", string(lower[0])))
}

// Once its owner is overdue, a node accepts any other owner, even one with a higher rank.
func TestOverdueOwnerGivesWayToAnyOther(t *testing.T) {
	lower, higher := idsByRank()
	c := newBeaconScript(t)
	c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: beaconOf(lower[0], 5)})
	c.advance(beaconTimeout-time.Millisecond, "a", "b", "c")
	c.s.Step(c.now, Received{From: Contact{ID: "b"}, Message: beaconOf(higher[0], 1)})
	if got := c.s.Tag().ID; got != lower[0] {
		t.Fatalf("%s took over too early", got)
	}
	c.advance(time.Millisecond, "a", "b", "c")
	c.receive("b", beaconOf(higher[0], 1), fmt.Sprintf("beacon a of %s 1", string(higher[0])), fmt.Sprintf("beacon c of %s 1", string(higher[0])))
	c.receive("c", beaconOf(lower[0], 5)) // an old copy
	if got := c.s.Tag().ID; got != higher[0] {
		t.Errorf("the tag is %s's", got)
	}
}

// Of the nodes that wait for a silent owner, the one with the lowest rank comes first,
// and all turns are within five seconds.
func TestLowestRankFollowsFirst(t *testing.T) {
	lower, higher := idsByRank()
	var last time.Time
	for _, id := range append(lower[1:], higher...) {
		s := New(Config{Self: id})
		s.beacon.owner, s.beacon.heard = node(lower[0]), time.Unix(1e9, 0)
		due := s.beaconDue()
		if late := due.Sub(s.beacon.heard); late < beaconTimeout || late > beaconTimeout+takeoverSpan || due.Before(last) {
			t.Errorf("the turn of %s comes after %v", id, late)
		}
		last = due
	}
}

// Another part has another owner, or a beacon of the same owner that differs by more than
// 15 seconds.
func TestTagsOfPartsDiffer(t *testing.T) {
	c := newSeedless(t, 0, 5, 0)
	c.step(RecordRenewed{Record: []byte("me"), Seq: 1e12})
	c.settleTag()
	lag := uint64(maxBeaconLag)
	for tag, want := range map[Tag]bool{
		{}:                     false,
		{"z", 1e12}:            true,
		{"me", 1e12}:           false,
		{"me", 1e12 + lag}:     false,
		{"me", 1e12 + lag + 1}: true,
		{"me", 1e12 - lag}:     false,
		{"me", 1e12 - lag - 1}: true,
		{"me", 1<<64 - 1}:      true,
	} {
		if got := c.s.inOtherPart(tag); got != want {
			t.Errorf("inOtherPart(%v) is %v", tag, got)
		}
	}
}

// A node of another part is accepted beyond Max, but not if the user asked for that link.
func TestNodeOfAnotherPartIsAcceptedBeyondMax(t *testing.T) {
	c := newSeedless(t, 0, 1, 1, "a")
	c.settleTag()
	ask := Request{Session: protocol.Session{2}, Network: "home", Degree: 1, Tag: Tag{"z", 1}}
	c.receive("x", ask, "pending x", "accept x")
	ask.Tag = Tag{"me", 100}
	c.receive("y", ask, "reject y (its peer list is full) 1")
	ask.Tag, ask.Manual = Tag{"z", 1}, true
	c.receive("y", ask, "reject y (its peer list is full) 1")
}

// For two seconds a new tag is neither sent nor compared, so that nobody makes room for a
// node that has not heard yet which part it is in.
func TestNewTagIsNotCompared(t *testing.T) {
	c := newSeedless(t, 0, 1, 1, "a")
	other := Request{Session: protocol.Session{2}, Network: "home", Degree: 1, Tag: Tag{"z", 1}}
	tag := func() Tag {
		t.Helper()
		for _, o := range slices.Clone(c.s.Step(c.now, Received{From: Contact{ID: "x"}, Message: other})) {
			if send, ok := o.(Send); ok {
				if m, ok := send.Message.(Reject); ok {
					return m.Tag
				}
			}
		}
		return Tag{"accepted", 0}
	}
	if got := tag(); got != (Tag{}) {
		t.Errorf("at first the tag sent is %v", got)
	}
	c.advance(newOwnerDelay, "a")
	if got := tag(); got.ID != "accepted" {
		t.Errorf("a node of another part is refused, with tag %v", got)
	}
}

// settleTag makes the tag old enough to be compared.
func (c *script) settleTag() { c.s.beacon.since = c.now.Add(-newOwnerDelay) }

// A node that a check or a refusal shows to be in another part is asked urgently, even if
// this node is full. If it refuses that, too, it is not asked again and again.
func TestNodeOfAnotherPartIsAskedUrgently(t *testing.T) {
	other := Tag{"z", 1}
	for name, own := range map[string]Tag{"own": {"me", 100}, "other": other} {
		c := newSeedless(t, 1, 1, 1, "a")
		c.s.book.learn(node("x"))
		checked := 0
		c.react = func(o Output) Input {
			send, _ := o.(Send)
			switch m := send.Message.(type) {
			case Shuffle:
				if send.To.ID == "x" {
					checked++
					return Received{From: Contact{ID: "x"}, Message: ShuffleReply{Tag: own}}
				}
			case Request:
				if !m.Urgent {
					t.Error("not asked urgently")
				}
				return Received{From: Contact{ID: "x"}, Message: Reject{Reason: ReasonFull, Tag: own}}
			}
			return nil
		}
		_, got := sends[Request](c.advance(24*time.Second, "a"))
		want := 0
		if own == other {
			want = 1
		}
		if checked != 1 || len(got) != want {
			t.Errorf("%s tag: asked %d times after %d checks, want %d", name, len(got), checked, want)
		}
	}

	c := newSeedless(t, 2, 5, 1, "a")
	c.s.nextWalks = c.now.Add(time.Hour)
	c.settleTag()
	c.step(Learned{Contact: node("x")}, "request x")
	c.receive("x", Reject{Reason: ReasonFull, Tag: other}, "refused x (its peer list is full)", "request x urgently")
	c.receive("x", Reject{Reason: ReasonFull, Tag: other}, "refused x (its peer list is full)")
}

// A node of another part whose link has just ended is not asked for thirty seconds.
func TestNodeOfAnotherPartHonorsTheCooldown(t *testing.T) {
	c := newSeedless(t, 1, 2, 1, "a")
	c.s.book.learn(node("x"))
	requests := func() (n int) {
		from := node("x")
		log := c.feed(Received{From: from, Message: Shuffle{Path: []peer.ID{"x"}, Origin: from, Tag: Tag{"z", 1}}})
		_, got := sends[Request](log)
		return len(got)
	}
	c.link("x", 1)
	c.receive("x", Leave{Reason: ReasonMoved}, "unlinked x (the link was handed over to another peer)")
	c.advance(relinkCooldown-time.Millisecond, "a")
	if requests() != 0 {
		t.Error("asked within thirty seconds")
	}
	c.advance(time.Millisecond, "a")
	if requests() != 1 {
		t.Error("not asked after thirty seconds")
	}
}
