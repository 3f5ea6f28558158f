package peers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// script feeds a core fact by fact and looks at the changes that follow.
type script struct {
	t   *testing.T
	c   *core
	now time.Time
	got []Transition
}

func newScript(t *testing.T) *script {
	return &script{t: t, c: newCore(maxGuests), now: time.Unix(1_000_000, 0)}
}

var errReason = errors.New("the reason")

// Abilities of the kinds of peers.
var (
	nodeAbilities  = Abilities{Overlay: true, Repair: true, PubSub: true}
	leafAbilities  = Abilities{Repair: true, PubSub: true}
	guestAbilities = Abilities{PubSub: true}
)

// do gives the facts, words separated by a space: what happened, and to which peer.
func (s *script) do(facts ...string) *script {
	s.got = nil
	for _, fact := range facts {
		verb, p, _ := strings.Cut(fact, " ")
		s.got = append(s.got, s.step(verb, peer.ID(p))...)
	}
	return s
}

func (s *script) step(verb string, p peer.ID) []Transition {
	switch verb {
	case "node":
		return s.c.spoke(p, nodeAbilities)
	case "leaf":
		return s.c.spoke(p, leafAbilities)
	case "guest":
		return s.c.spoke(p, guestAbilities)
	case "relayed":
		return s.c.spoke(p, Abilities{Overlay: true})
	case "stranger":
		return s.c.spoke(p, Abilities{})
	case "disconnected":
		return s.c.disconnected(p)
	case "pending":
		return s.c.pending(p)
	case "linked":
		return s.c.linked(p, []byte(p))
	case "broken":
		return s.c.unlinked(s.now, p, errReason, Broken)
	case "ended":
		return s.c.unlinked(s.now, p, errReason, OnPurpose)
	case "joined":
		return s.c.joined(p)
	case "left":
		return s.c.left(p)
	case "open":
		return s.c.openPubSub()
	case "wait":
		d, err := time.ParseDuration(string(p))
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(d)
		return s.c.advance(s.now)
	case "release":
		s.c.release(p, s.c.serial)
		return nil
	case "close":
		return s.c.close()
	}
	s.t.Fatalf("no fact %q", verb)
	return nil
}

// want compares the changes, each written as "p: was -> is", with the marks of show.
func (s *script) want(changes ...string) *script {
	s.t.Helper()
	var got []string
	for i := range s.got {
		got = append(got, show(&s.got[i]))
	}
	if strings.Join(got, "\n") != strings.Join(changes, "\n") {
		s.t.Fatalf("changes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(changes, "\n"))
	}
	return s
}

func show(c *Transition) string {
	text := fmt.Sprintf("%s: %s -> %s", string(c.Peer), showState(c.Was), showState(c.Is))
	for _, mark := range []struct {
		word string
		true bool
	}{
		{"first", c.First()}, {"added", c.Added()}, {"last", c.Last()}, {"removed", c.Removed()}, {"ended", c.Ended()}, {"unclear", c.Unclear()},
	} {
		if mark.true {
			text += " " + mark.word
		}
	}
	return text
}

func showState(s Standing) string {
	text := s.Role.String() + " " + s.Link.String()
	if s.OnTopic {
		text += " topic"
	}
	if s.Place {
		text += " place"
	}
	return text
}

// A neighbor is pending, linked and gone; the first and the last are marked.
func TestNeighbors(t *testing.T) {
	s := newScript(t)
	s.do("pending a").want("a: unknown none -> node pending")
	s.do("joined a").want("a: node pending -> node pending topic unclear")
	s.do("linked a").want("a: node pending topic -> node linked topic first added")
	if string(s.got[0].Greeting) != "a" || s.got[0].Neighbors != 1 {
		t.Errorf("greeting %q, %d neighbors", s.got[0].Greeting, s.got[0].Neighbors)
	}
	s.do("linked a", "pending a", "joined a").want()
	s.do("node a", "disconnected a").want()
	s.do("pending b", "linked b").want("b: unknown none -> node pending", "b: node pending -> node linked added")
	s.do("broken a").want("a: node linked topic -> unknown none topic removed ended")
	if s.got[0].Reason != errReason {
		t.Errorf("the reason is %v", s.got[0].Reason)
	}
	s.do("left a").want("a: unknown none topic -> unknown none")
	s.do("broken b").want("b: node linked -> unknown none last removed ended")
	s.do("broken b", "left b", "disconnected c").want()
	s.empty()
}

// A half link adds nobody, and does not drain.
func TestHalfLinks(t *testing.T) {
	s := newScript(t)
	s.do("pending a", "ended a").want("a: unknown none -> node pending", "a: node pending -> unknown none ended")
	s.do("pending a", "broken a").want("a: unknown none -> node pending", "a: node pending -> unknown none ended")
	s.empty()
}

// A link that ended on purpose drains for ten seconds, unless it is made anew.
func TestDraining(t *testing.T) {
	s := newScript(t)
	s.do("pending a", "linked a", "ended a")
	s.want("a: unknown none -> node pending", "a: node pending -> node linked first added", "a: node linked -> node draining last removed ended")
	s.do("broken a", "ended a", "wait 9s").want()
	s.do("wait 1s").want("a: node draining -> unknown none")
	s.empty()
	s.do("pending a", "linked a", "ended a", "wait 5s", "pending a")
	s.do("wait 5s").want()
	s.do("linked a").want("a: node pending -> node linked first added")
	s.do("wait 5m").want()
	if next := s.c.next(); !next.IsZero() {
		t.Errorf("the next advance is at %v, while nothing drains", next)
	}
}

// A leaf is linked when it is on the topic and has said what it speaks, in either order.
func TestLeaves(t *testing.T) {
	s := newScript(t)
	s.do("leaf c", "joined c").want("c: unknown none -> leaf none place", "c: leaf none place -> leaf linked topic place")
	s.do("left c").want("c: leaf linked topic place -> leaf none place")
	s.do("disconnected c").want("c: leaf none place -> unknown none")
	s.empty()
	s.do("joined c", "leaf c").want("c: unknown none -> unknown none topic unclear", "c: unknown none topic -> leaf linked topic place")
	s.do("node c").want("c: leaf linked topic place -> node none topic")
	s.do("leaf c").want("c: node none topic -> leaf linked topic place")
}

// A leaf that the overlay links is a node for that time, and may become a leaf again.
func TestLeafThatBecomesANode(t *testing.T) {
	s := newScript(t)
	s.do("leaf c", "joined c")
	s.do("pending c").want("c: leaf linked topic place -> node pending topic")
	s.do("linked c").want("c: node pending topic -> node linked topic first added")
	s.do("broken c").want("c: node linked topic -> leaf linked topic place last removed ended")
}

// There are 16 places for leaves. The one that waits longest gets the next.
func TestLeavesHavePlaces(t *testing.T) {
	s := newScript(t)
	for i := range maxLeaves {
		s.do(fmt.Sprint("leaf ", i), fmt.Sprint("joined ", i))
		if len(s.got) != 2 || !s.got[1].Is.LinkedLeaf() {
			t.Fatalf("leaf %d has no place: %v", i, s.got)
		}
	}
	s.do("leaf x", "joined x").want("x: unknown none -> leaf none place", "x: leaf none place -> leaf none topic place unclear")
	s.do("leaf y", "joined y", "leaf z", "joined z")
	s.do("left x", "disconnected x") // it gives up waiting
	s.do("left 3").want("3: leaf linked topic place -> leaf none place", "y: leaf none topic place -> leaf linked topic place")
	s.do("joined 3").want("3: leaf none place -> leaf none topic place unclear")
	s.do("node 4").want("4: leaf linked topic place -> node none topic", "z: leaf none topic place -> leaf linked topic place")
}

// There are 64 places for guests, until pubsub is open to all.
func TestGuestsHavePlaces(t *testing.T) {
	s := newScript(t)
	for i := range maxGuests {
		s.do(fmt.Sprint("guest ", i)).want(fmt.Sprintf("%d: unknown none -> guest none place", i))
	}
	s.do("guest x").want("x: unknown none -> guest none")
	s.do("guest x", "node n", "relayed r").want("n: unknown none -> node none", "r: unknown none -> node none")
	if n := s.c.guests.turnedAway; n != 1 {
		t.Errorf("%d were turned away", n)
	}
	s.do("disconnected 5").want("5: guest none place -> unknown none", "x: guest none -> guest none place")
	s.do("guest y").want("y: unknown none -> guest none")
	s.do("open").want("y: guest none -> guest none place", "n: node none -> node none place")
	s.do("guest z").want("z: unknown none -> guest none place")
	s.do("stranger z").want("z: guest none place -> unknown none")
}

// The direct events of a peer are held from the handshake on, until the callbacks of its
// adding have run or there is no link.
func TestAdmission(t *testing.T) {
	s := newScript(t)
	held := func(want bool) {
		t.Helper()
		if got := s.c.held("a"); got != want {
			t.Fatalf("held: %v, want %v", got, want)
		}
	}
	held(false)
	s.do("pending a")
	held(true)
	s.do("pending a", "linked a")
	held(true)
	admission := s.got[len(s.got)-1].Admission
	s.do("release a")
	held(false)
	s.do("broken a", "pending a")
	s.c.release("a", admission)
	held(true) // an old release ends nothing
	s.do("broken a")
	held(false)
	s.empty()
}

// Close ends leaves, guests and draining links, and nothing changes afterwards.
func TestCloseOfTheRecords(t *testing.T) {
	s := newScript(t)
	s.do("leaf c", "joined c", "guest g", "pending a", "linked a", "ended a")
	s.do("close").want("a: node draining -> unknown none", "c: leaf linked topic place -> unknown none", "g: guest none place -> unknown none")
	s.do("leaf c", "joined c", "pending b", "linked b", "open", "wait 1h").want()
	s.empty()
}

func (s *script) empty() {
	s.t.Helper()
	if len(s.c.records) > 0 || len(s.c.leaves.has)+len(s.c.guests.has)+len(s.c.leaves.waiting)+len(s.c.guests.waiting) > 0 {
		s.t.Fatalf("of peers that are gone %d records are left, leaves %+v, guests %+v", len(s.c.records), s.c.leaves, s.c.guests)
	}
}

// Whatever happens in whatever order: the changes of a peer follow on each other, the
// first and the last neighbor are marked once, places have bounds and are not left free
// while peers wait, and nothing is left when everybody is gone.
func TestRandomFacts(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	verbs := []string{
		"node", "leaf", "leaf", "guest", "stranger", "relayed", "disconnected", "pending", "pending", "linked", "broken", "ended",
		"joined", "joined", "left", "release",
	}
	for range 300 {
		s := newScript(t)
		s.c.leaves.max, s.c.guests.max = 2, 3
		w := &watcher{states: map[peer.ID]Standing{}}
		for range 300 {
			p := strconv.Itoa(rnd.IntN(8))
			fact := verbs[rnd.IntN(len(verbs))] + " " + p
			switch rnd.IntN(300) {
			case 0:
				fact = "open"
			case 1, 2, 3, 4, 5, 6:
				fact = "wait 4s"
			}
			s.do(fact)
			w.follow(t, fact, s)
		}
		for i := range 8 {
			for _, verb := range []string{"broken", "left", "disconnected"} {
				fact := fmt.Sprint(verb, " ", i)
				s.do(fact)
				w.follow(t, fact, s)
			}
		}
		s.do("wait 10s")
		w.follow(t, "wait 10s", s)
		s.empty()
		if w.neighbors != 0 {
			t.Fatalf("%d neighbors are left", w.neighbors)
		}
	}
}

// watcher follows changes and looks whether they fit together.
type watcher struct {
	states    map[peer.ID]Standing
	neighbors int
}

func (w *watcher) follow(t *testing.T, fact string, s *script) {
	t.Helper()
	fail := func(c *Transition, what string) {
		t.Helper()
		t.Fatalf("after %q: %s: %s", fact, show(c), what)
	}
	for i := range s.got {
		c := &s.got[i]
		switch {
		case c.Was != w.states[c.Peer]:
			fail(c, "it does not follow on the change before")
		case c.Was == c.Is:
			fail(c, "it changes nothing")
		case c.Is.Link == Linked && c.Is.Role != Node && c.Is.Role != Leaf:
			fail(c, "only nodes and leaves are linked")
		case (c.Is.Link == Pending || c.Is.Link == Draining) && c.Is.Role != Node:
			fail(c, "only links of nodes are made and drain")
		case c.Is.LinkedLeaf() && !c.Is.OnTopic:
			fail(c, "a leaf that is not on the topic is linked")
		case c.Is.Link == Draining && !c.Removed() && c.Was.Link != Draining:
			fail(c, "a half link drains")
		case s.c.held(c.Peer) && !c.Is.bound():
			fail(c, "it is held without a link")
		}
		w.states[c.Peer] = c.Is
		if c.Added() {
			w.neighbors++
		}
		if c.Removed() {
			w.neighbors--
		}
		if c.Neighbors != w.neighbors || c.First() != (c.Added() && w.neighbors == 1) || c.Last() != (c.Removed() && w.neighbors == 0) {
			fail(c, fmt.Sprintf("there are %d neighbors", w.neighbors))
		}
	}
	for name, places := range map[string]*quota{"leaves": &s.c.leaves, "guests": &s.c.guests} {
		if len(places.has) > places.max || len(places.has) < places.max && len(places.waiting) > 0 {
			t.Fatalf("after %q: %s: %d of %d places are taken while %d wait", fact, name, len(places.has), places.max, len(places.waiting))
		}
	}
	for p, r := range s.c.records {
		if r.standing != w.states[p] {
			t.Fatalf("after %q: %s is %v, and was told to be %v", fact, string(p), r.standing, w.states[p])
		}
	}
}
