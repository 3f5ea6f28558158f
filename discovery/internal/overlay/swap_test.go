package overlay

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// swapRequest lets time pass until the node sends a request, and returns its description.
// All checks are answered.
func (c *script) swapRequest(alive ...peer.ID) string {
	c.Helper()
	checked := c.react
	c.react = func(o Output) Input { // checked nodes are alive
		if send, ok := o.(Send); ok && c.s.checkIndex(send.To.ID) >= 0 {
			return Received{From: send.To, Message: ShuffleReply{}}
		}
		return nil
	}
	defer func() { c.react = checked }()
	for range 60 {
		if _, got := sends[Request](c.advance(time.Second, alive...)); len(got) > 0 {
			return describe(got[0])
		}
	}
	return ""
}

// In a swap the requester leaves the neighbor that it named before the new link stands,
// so it never has more links than before.
func TestSwapLeavesOneForAnother(t *testing.T) {
	c := newSeedless(t, 2, 3, 3, "a", "b", "c")
	c.s.book.learn(node("x"))
	named := ""
	if got := c.swapRequest("a", "b", "c"); len(got) != len("request x leaving a") || got[:len(got)-1] != "request x leaving " {
		t.Fatalf("asked %q, want x in place of a neighbor", got)
	} else {
		named = got[len(got)-1:]
	}
	c.receive("x", Accept{Session: protocol.Session{2}, Exchange: true}, "pending x")
	c.step(OnTopic{Peer: "x", Present: true}, "ready x")
	moved := " (the link was handed over to another peer)"
	c.receive("x", Ready{}, "leave "+named+moved, "unlinked "+named+moved, "linked x")
	if c.s.Degree() != 3 {
		t.Errorf("%d links, want 3 as before", c.s.Degree())
	}
}

// A node with few links keeps the old ones beside the new one.
func TestSwapWithFewLinksKeepsThem(t *testing.T) {
	c := newSeedless(t, 2, 6, 5, "a", "b")
	c.s.book.learn(node("x"))
	if got := c.swapRequest("a", "b"); got != "request x" {
		t.Fatalf("asked %q, want x", got)
	}
	c.receive("x", Accept{Session: protocol.Session{2}}, "pending x")
	c.step(OnTopic{Peer: "x", Present: true}, "ready x")
	c.receive("x", Ready{}, "linked x")
}

// A neighbor with few links is not named, and one that has lost links meanwhile is not
// left.
func TestSwapLeavesNoNeighborInNeed(t *testing.T) {
	c := newSeedless(t, 2, 4, 3, "a", "b", "c")
	c.s.book.learn(node("x"))
	if got := c.swapRequest("a", "b", "c"); got != "" {
		t.Errorf("%q, though nobody can spare the link", got)
	}
	c = newSeedless(t, 2, 4, 3, "b", "c")
	c.link("a", 4)
	c.s.book.learn(node("x"))
	if got := c.swapRequest("a", "b", "c"); got != "request x leaving a" {
		t.Fatalf("asked %q, want to leave a, which has most links", got)
	}
	c.receive("a", Keepalive{Degree: 3})
	c.receive("x", Accept{Session: protocol.Session{2}}, "pending x")
	c.step(OnTopic{Peer: "x", Present: true}, "ready x")
	c.receive("x", Ready{}, "linked x")
	if c.s.Degree() != 4 {
		t.Errorf("%d links, want 4: there is room", c.s.Degree())
	}
}

// A node with Min zero sends no requests and no checks.
func TestNodeWithMinZeroAsksNobody(t *testing.T) {
	c := newSeedless(t, 0, 3, 5, "a", "b", "c")
	c.s.book.learn(node("x"))
	c.addLost("y", true)
	log := c.advance(10*time.Minute, "a", "b", "c")
	if _, got := sends[Request](log); len(got) != 0 {
		t.Errorf("asked %v", got)
	}
	if _, got := sends[Shuffle](log); len(got) != 0 {
		t.Errorf("checked %v", got)
	}
}

// swapWith is a request of x, which has two links and leaves one of them for this link.
func swapWith(leaving Contact) Request {
	return Request{Session: protocol.Session{2}, Network: "home", Record: []byte("x"), Degree: 2, Leaving: leaving}
}

// A full node accepts the requester, and sends a neighbor to the node that the requester
// leaves, before the new link stands.
func TestFullNodeExchangesANeighbor(t *testing.T) {
	c := newSeedless(t, 2, 2, 3, "a", "b")
	c.advance(minSwapAge, "a", "b")
	c.receive("x", swapWith(node("y")), "pending x", "accept x")
	c.step(OnTopic{Peer: "x", Present: true}, "ready x")
	var got []string
	for _, e := range c.feed(Received{From: Contact{ID: "x"}, Message: Ready{}}) {
		if send, ok := e.Output.(Send); ok {
			if m, ok := send.Message.(Leave); ok && (len(m.Contacts) != 1 || m.Contacts[0].ID != "y" && string(m.Contacts[0].Record) != "y") {
				t.Errorf("%s is sent to %v, want y", string(send.To.ID), m.Contacts)
			}
		}
		if !c.background(e.Output) {
			got = append(got, describe(e.Output))
		}
	}
	for _, d := range []string{"a", "b"} {
		swapped := " (the link was exchanged for one to another peer)"
		if slices.Equal(got, []string{"leave " + d + swapped, "unlinked " + d + swapped, "linked x"}) {
			return
		}
	}
	t.Errorf("got %q, want one neighbor left and then x linked", got)
}

// A swap is refused if no neighbor can be given away: all links are too new, or to nodes
// with too few links, or the named node is a neighbor already; or if none is named.
func TestExchangeIsRefused(t *testing.T) {
	for name, try := range map[string]struct {
		degree  int
		pause   time.Duration
		leaving Contact
	}{
		"too new":         {3, minSwapAge - time.Second, node("y")},
		"too few links":   {2, minSwapAge, node("y")},
		"a neighbor":      {3, minSwapAge, node("a")},
		"nobody is named": {3, minSwapAge, Contact{ID: "y"}},
		"this node":       {3, minSwapAge, node("me")},
	} {
		c := newSeedless(t, 2, 2, try.degree, "a", "b")
		c.advance(try.pause, "a", "b")
		got := ""
		for _, e := range c.feed(Received{From: node("x"), Message: swapWith(try.leaving)}) {
			got = describe(e.Output)
		}
		if got != "reject x (its peer list is full) 2" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// If no neighbor can be spared any more, the requester is sent away. If there is room by
// then, no neighbor is.
func TestExchangeAdaptsToChangedNeighbors(t *testing.T) {
	for _, try := range []struct {
		spoil Input
		want  []string
	}{
		{Received{From: Contact{ID: "a"}, Message: Keepalive{Degree: 1}}, []string{"leave x (enough peers were found meanwhile)", "given up x"}},
		{Disconnected{Peer: "a"}, []string{"linked x"}},
	} {
		c := newSeedless(t, 1, 2, 2, "a", "b")
		c.advance(minSwapAge, "a", "b")
		c.receive("b", Keepalive{Degree: 1})
		c.receive("x", swapWith(node("y")), "pending x", "accept x")
		c.feed(try.spoil)
		c.step(OnTopic{Peer: "x", Present: true}, "ready x")
		c.receive("x", Ready{}, try.want...)
		if c.s.Degree() != 2 {
			t.Errorf("%d links after %v", c.s.Degree(), try.spoil)
		}
	}
}

// A node that was given away asks the node that has lost a link as well, if there is
// exactly one contact, and room.
func TestSwappedOutNodeAsksTheOther(t *testing.T) {
	swapped := "unlinked a (the link was exchanged for one to another peer)"
	for n, want := range map[int][]string{1: {swapped, "request y0"}, 2: {swapped}, 0: {swapped}} {
		c := newSeedless(t, 1, 3, 3, "a", "b")
		var others []Contact
		for i := range n {
			others = append(others, node(peer.ID(fmt.Sprint("y", i))))
		}
		c.receive("a", Leave{Reason: ReasonSwapped, Contacts: others}, want...)
	}
}
