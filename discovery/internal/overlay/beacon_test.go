package overlay

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ranked returns nodes whose hash is lower than that of the scripted one, and nodes
// whose is higher, the lowest first.
func ranked() (lower, higher []peer.ID) {
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

// newFlood is a script of a node with neighbours a, b and c which compares beacons.
func newFlood(t *testing.T) *script {
	c := newSeedless(t, 0, 5, 1, "a", "b", "c")
	c.all = true
	return c
}

// TestLowestHashOwnsTheBeacon: a better beacon is taken and flooded, but not back,
// and so is a newer one of its owner. What is heard twice goes nowhere.
func TestLowestHashOwnsTheBeacon(t *testing.T) {
	lower, _ := ranked()
	best, good := lower[0], lower[1]
	c := newFlood(t)
	if got := c.s.Tag(); got != (Tag{"me", 100}) {
		t.Errorf("at first the tag is %v, want its own", got)
	}
	flooded := func(id peer.ID, seq int, to ...string) (want []string) {
		for _, p := range to {
			want = append(want, fmt.Sprintf("beacon %s of %s %d", p, string(id), seq))
		}
		return want
	}
	c.from("a", beaconOf(good, 5), flooded(good, 5, "b", "c")...)
	c.from("b", beaconOf(good, 5))
	c.from("b", beaconOf(good, 4))
	c.from("b", beaconOf(good, 6), flooded(good, 6, "a", "c")...)
	c.from("c", beaconOf(best, 1), flooded(best, 1, "a", "b")...)
	c.from("x", beaconOf(good, 7)) // of a stranger
	c.from("a", beaconOf("me", 999))
	if got := c.s.Tag(); got != (Tag{best, 1}) {
		t.Errorf("the tag is %v, want %v as of 1", got, best)
	}
	if got := c.s.View().Since; !got.Equal(c.now) {
		t.Errorf("since %v, want now", got)
	}
}

// TestWorseBeaconIsAnswered with our better one, once in ten seconds.
func TestWorseBeaconIsAnswered(t *testing.T) {
	_, higher := ranked()
	worse := beaconOf(higher[0], 5)
	c := newFlood(t)
	c.now = c.now.Add(beaconInterval) // they were told when they were linked
	c.s.Step(c.now, RecordRenewed{Record: []byte("me"), Seq: 101})
	c.s.Step(c.now, Tick{})
	c.from("a", worse, "beacon a of me 101")
	c.from("a", worse)
	c.from("b", worse, "beacon b of me 101")
	if got := c.s.Tag().ID; got != "me" {
		t.Errorf("the tag is %s's", got)
	}
}

// TestOwnerRepeatsItsBeacon every ten seconds, with a new record.
func TestOwnerRepeatsItsBeacon(t *testing.T) {
	c := newFlood(t)
	seq := uint64(100)
	c.react = func(o Output) Input {
		if _, ok := o.(RenewRecord); ok {
			seq++
			return RecordRenewed{Record: []byte("me"), Seq: seq}
		}
		return nil
	}
	times, got := sends[Beacon](c.pass(30*time.Second, "a", "b", "c"))
	if len(got) != 9 {
		t.Fatalf("%d beacons to three neighbours in half a minute, want 9", len(got))
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

// TestOwnerIsFollowed: when its beacon is not heard for 35 seconds and until the
// node's turn, this node takes its place, and what is still under way of the old
// beacon does not bring it back. A new one does.
func TestOwnerIsFollowed(t *testing.T) {
	lower, _ := ranked()
	c := newFlood(t)
	c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: beaconOf(lower[0], 5)})
	turn := time.Duration(float64(beaconTurn) * float64(rank("me")) / (1 << 64))
	c.pass(beaconLife+turn-time.Millisecond, "a", "b", "c")
	if got := c.s.Tag().ID; got != lower[0] {
		t.Fatalf("%s took over too early", got)
	}
	c.pass(time.Millisecond, "a", "b", "c")
	if got := c.s.Tag().ID; got != "me" {
		t.Fatalf("the tag is still %s's", got)
	}
	c.in(RecordRenewed{Record: []byte("me"), Seq: 102}, "beacon a of me 102", "beacon b of me 102", "beacon c of me 102")
	c.from("b", beaconOf(lower[0], 5))
	c.from("b", beaconOf(lower[0], 6), fmt.Sprintf("beacon a of %s 6", string(lower[0])), fmt.Sprintf("beacon c of %s 6", string(lower[0])))
}

// TestOthersTurn: once its owner's beacon is overdue, a node follows whoever takes the
// place first, also one it would not follow otherwise.
func TestOthersTurn(t *testing.T) {
	lower, higher := ranked()
	c := newFlood(t)
	c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: beaconOf(lower[0], 5)})
	c.pass(beaconLife-time.Millisecond, "a", "b", "c")
	c.s.Step(c.now, Received{From: Contact{ID: "b"}, Message: beaconOf(higher[0], 1)})
	if got := c.s.Tag().ID; got != lower[0] {
		t.Fatalf("%s took over too early", got)
	}
	c.pass(time.Millisecond, "a", "b", "c")
	c.from("b", beaconOf(higher[0], 1), fmt.Sprintf("beacon a of %s 1", string(higher[0])), fmt.Sprintf("beacon c of %s 1", string(higher[0])))
	c.from("c", beaconOf(lower[0], 5)) // under way for long
	if got := c.s.Tag().ID; got != higher[0] {
		t.Errorf("the tag is %s's", got)
	}
}

// TestTurns: among those that wait, the lowest hash follows first, all within five
// seconds.
func TestTurns(t *testing.T) {
	lower, higher := ranked()
	var last time.Time
	for _, id := range append(lower[1:], higher...) {
		s := New(Config{Self: id})
		s.beacon.owner, s.beacon.heard = node(lower[0]), time.Unix(1e9, 0)
		due := s.beaconDue()
		if late := due.Sub(s.beacon.heard); late < beaconLife || late > beaconLife+beaconTurn || due.Before(last) {
			t.Errorf("the turn of %s comes after %v", id, late)
		}
		last = due
	}
}

// TestForeign: another part has another owner, or one clock that differs by more
// than 15 seconds.
func TestForeign(t *testing.T) {
	c := newSeedless(t, 0, 5, 0)
	c.in(RecordRenewed{Record: []byte("me"), Seq: 1e12})
	c.settle()
	lag := uint64(beaconLag)
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
			t.Errorf("foreign(%v) is %v", tag, got)
		}
	}
}

// TestForeignNodeIsTakenIn beyond max, unless the user asked for it.
func TestForeignNodeIsTakenIn(t *testing.T) {
	c := newSeedless(t, 0, 1, 1, "a")
	c.settle()
	ask := Request{Session: Session{2}, Network: "home", Degree: 1, Tag: Tag{"z", 1}}
	c.from("x", ask, "pending x", "accept x")
	ask.Tag = Tag{"me", 100}
	c.from("y", ask, "reject y (its peer list is full) 1")
	ask.Tag, ask.Manual = Tag{"z", 1}, true
	c.from("y", ask, "reject y (its peer list is full) 1")
}

// TestNewTag: for two seconds a tag is neither told nor held against others, so that
// nobody makes room for a node which has not heard yet where it is.
func TestNewTag(t *testing.T) {
	c := newSeedless(t, 0, 1, 1, "a")
	foreign := Request{Session: Session{2}, Network: "home", Degree: 1, Tag: Tag{"z", 1}}
	tag := func() Tag {
		t.Helper()
		for _, o := range slices.Clone(c.s.Step(c.now, Received{From: Contact{ID: "x"}, Message: foreign})) {
			if send, ok := o.(Send); ok {
				if m, ok := send.Message.(Reject); ok {
					return m.Tag
				}
			}
		}
		return Tag{"accepted", 0}
	}
	if got := tag(); got != (Tag{}) {
		t.Errorf("at first the tag told is %v", got)
	}
	c.pass(beaconSettle, "a")
	if got := tag(); got.ID != "accepted" {
		t.Errorf("a node of another part is refused, with tag %v", got)
	}
}

// settle lets the tag be an old one.
func (c *script) settle() { c.s.beacon.since = c.now.Add(-beaconSettle) }

// TestForeignNodeMet: one that a check or a refusal shows to be in another part is
// asked urgently, though the node is full. If it refuses that too, it is not asked
// over and over.
func TestForeignNodeMet(t *testing.T) {
	foreign := Tag{"z", 1}
	for name, own := range map[string]Tag{"own": {"me", 100}, "foreign": foreign} {
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
		_, got := sends[Request](c.pass(24*time.Second, "a"))
		want := 0
		if own == foreign {
			want = 1
		}
		if checked != 1 || len(got) != want {
			t.Errorf("%s tag: asked %d times after %d checks, want %d", name, len(got), checked, want)
		}
	}

	c := newSeedless(t, 2, 5, 1, "a")
	c.s.nextWalks = c.now.Add(time.Hour)
	c.settle()
	c.in(Learned{Contact: node("x")}, "request x")
	c.from("x", Reject{Reason: ReasonFull, Tag: foreign}, "refused x (its peer list is full)", "request x urgently")
	c.from("x", Reject{Reason: ReasonFull, Tag: foreign}, "refused x (its peer list is full)")
}

// TestForeignNodeThatParted is left alone for thirty seconds.
func TestForeignNodeThatParted(t *testing.T) {
	c := newSeedless(t, 1, 2, 1, "a")
	c.s.book.learn(node("x"))
	met := func() (n int) {
		from := node("x")
		log := c.feed(Received{From: from, Message: Shuffle{Path: []peer.ID{"x"}, Origin: from, Tag: Tag{"z", 1}}})
		_, got := sends[Request](log)
		return len(got)
	}
	c.link("x", 1)
	c.from("x", Leave{Reason: ReasonMoved}, "unlinked x (the link was handed over to another peer)")
	c.pass(relinkCooldown-time.Millisecond, "a")
	if met() != 0 {
		t.Error("asked within thirty seconds")
	}
	c.pass(time.Millisecond, "a")
	if met() != 1 {
		t.Error("not asked after thirty seconds")
	}
}
