package overlay

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A link stands only when each node sees the other on the topic, and both have said so.
func TestLinkNeedsBothSides(t *testing.T) {
	c := newScript(t, 1, 5)
	c.step(Tick{}, "ask seed")
	c.step(SeedFound{Contact: Contact{ID: "a", Addrs: somewhere}}, "request a")
	c.receive("a", Accept{Session: protocol.Session{2}}, "pending a")
	c.receive("a", Ready{Greeting: []byte("g")}) // the peer is ready before this node
	c.step(OnTopic{Peer: "a", Present: true}, "ready a", "linked a")
	c.step(OnTopic{Peer: "a", Present: true})
	c.receive("a", Ready{})
	if c.s.Degree() != 1 {
		t.Errorf("degree %d", c.s.Degree())
	}
}

// Two requests that cross are both accepted, and make one link.
func TestCrossedRequestsMakeOneLink(t *testing.T) {
	c := newScript(t, 1, 5)
	c.step(Tick{}, "ask seed")
	c.step(SeedFound{Contact: Contact{ID: "a", Addrs: somewhere}}, "request a")
	c.receive("a", Request{Session: protocol.Session{2}, Network: "home"}, "pending a", "accept a")
	c.receive("a", Accept{Session: protocol.Session{2}})
	c.step(OnTopic{Peer: "a", Present: true}, "ready a")
	c.receive("a", Ready{}, "linked a")
}

// A handshake is given up after five seconds without the topic. Meanwhile probes ask
// whether pubsub has missed the peer.
func TestStalledHandshakeIsGivenUp(t *testing.T) {
	c := newScript(t, 0, 5)
	c.receive("a", Request{Session: protocol.Session{2}, Network: "home"}, "pending a", "accept a")
	c.tick(probeInterval, "probe a")
	c.tick(acceptTimeout-probeInterval, "leave a (the handshake was not completed in time)", "given up a")
}

// A request from another network, from this node itself, or without room is refused, the
// last one with other contacts. A node without links is accepted beyond Max.
func TestRequestsThatAreRefused(t *testing.T) {
	c := newScript(t, 0, 1)
	c.receive("a", Request{Session: protocol.Session{2}, Network: "lab"}, "reject a (it belongs to another network) 0")
	c.receive("me", Request{Session: protocol.Session{2}, Network: "home"})
	c.link("b", 1)
	c.receive("a", Request{Session: protocol.Session{2}, Network: "home", Degree: 2}, "reject a (its peer list is full) 1")
	c.receive("a", Request{Session: protocol.Session{2}, Network: "home", Degree: 0}, "pending a", "accept a")

	none := newScript(t, 0, 0)
	none.receive("a", Request{Session: protocol.Session{2}, Network: "home", Degree: 0}, "reject a (its peer list is full) 0")

	all := newScript(t, 0, -1)
	for i := range 50 {
		all.link(peer.ID(fmt.Sprint("p", i)), 3)
	}
}

// After a link ended without a fault, the same pair does not link for thirty seconds,
// unless the requester has no link.
func TestPairIsNotLinkedDuringTheCooldown(t *testing.T) {
	c := newScript(t, 0, 5)
	c.link("a", 1)
	c.link("b", 1)
	c.receive("a", Leave{Reason: ReasonMoved}, "unlinked a (the link was handed over to another peer)")
	ask := Request{Session: protocol.Session{2}, Network: "home", Degree: 1}
	c.receive("a", ask, "reject a (the two nodes parted a moment ago) 1")
	lone := ask
	lone.Degree = 0
	c.receive("a", lone, "pending a", "accept a")
	c.receive("a", Leave{Reason: ReasonEnough}, "given up a")
	for range 6 { // the time of the cooldown, while b is alive
		c.now = c.now.Add(relinkCooldown / 6)
		c.s.Step(c.now, Received{From: Contact{ID: "b"}, Message: Keepalive{}})
	}
	c.receive("a", ask, "pending a", "accept a")
}

// A keepalive for an unknown link is answered with Leave, and a new request from a
// neighbor replaces its link.
func TestHalfLinkEnds(t *testing.T) {
	c := newScript(t, 0, 5)
	c.receive("a", Keepalive{}, "leave a (the other side does not know the link)")
	c.link("a", 1)
	c.receive("a", Request{Session: protocol.Session{3}, Network: "home"}, "unlinked a (it was restarted)", "pending a", "accept a")
	c.receive("b", Ready{}, "leave b (the other side does not know the link)")
	c.receive("b", Accept{}, "leave b (the handshake was not completed in time)")
	c.receive("b", Leave{})
}

// A link ends after 12.5 seconds of silence, but not if this machine was asleep.
func TestSilenceEndsTheLink(t *testing.T) {
	c := newScript(t, 0, 5)
	c.link("a", 1)
	c.tick(3*time.Second, "keepalive a")
	c.tick(5*time.Second, "keepalive a")
	c.tick(4400 * time.Millisecond)
	c.tick(100*time.Millisecond, "leave a (it was silent for too long)", "unlinked a (it was silent for too long)")

	c = newScript(t, 0, 5)
	c.link("a", 1)
	c.tick(3*time.Second, "keepalive a")
	c.tick(time.Hour, "keepalive a") // asleep
	c.tick(time.Second)
	c.receive("a", Keepalive{})
	c.tick(4*time.Second, "keepalive a")
	c.tick(5*time.Second, "keepalive a")
}

// A neighbor that is off the topic for three seconds loses its link; a shorter absence is
// harmless.
func TestPeerOffTheTopicIsDropped(t *testing.T) {
	c := newScript(t, 0, 5)
	c.link("a", 1)
	c.step(OnTopic{Peer: "a", Present: false})
	c.step(OnTopic{Peer: "a", Present: true})
	c.now = c.now.Add(offTopicTimeout)
	c.s.Step(c.now, Tick{})
	c.step(OnTopic{Peer: "a", Present: false})
	c.tick(offTopicTimeout, "leave a (it left the topic)", "unlinked a (it left the topic)")
}

// Add makes links beyond Min up to Max and is answered once, also when the node closes. A
// peer that the user dropped is not linked again.
func TestAddIsAnsweredOnce(t *testing.T) {
	c := newScript(t, 0, 2)
	c.step(Add{Contact: Contact{ID: "me"}, Token: 1}, "added 1 (it is this node itself)")
	c.step(Add{Contact: Contact{ID: "a"}, Token: 2}, "request a")
	c.step(Add{Contact: Contact{ID: "a"}, Token: 3})
	c.receive("a", Accept{Session: protocol.Session{2}}, "pending a")
	c.step(OnTopic{Peer: "a", Present: true}, "ready a")
	c.receive("a", Ready{}, "linked a", "added 2 (no reason given)", "added 3 (no reason given)")
	c.step(Add{Contact: Contact{ID: "a"}, Token: 4}, "added 4 (no reason given)")
	c.step(Add{Contact: Contact{ID: "b"}, Token: 5}, "request b")
	c.receive("b", Reject{Reason: ReasonFull}, "refused b (its peer list is full)", "added 5 (its peer list is full)")
	c.step(Add{Contact: Contact{ID: "d"}, Token: 6}, "request d")
	c.step(Unreachable{Peer: "d", Reason: ReasonUnreachable}, "refused d (it could not be reached)", "added 6 (it could not be reached)")
	c.link("e", 1)
	c.step(Add{Contact: Contact{ID: "f"}, Token: 7}, "added 7 (its peer list is full)")
	c.step(Drop{Peer: "a"}, "leave a (the peer was closed)", "unlinked a (the peer was closed)")
	c.step(Drop{Peer: "a"})
	c.step(Add{Contact: Contact{ID: "g"}, Token: 8}, "request g")
	c.step(Close{}, "leave e (the node was closed)", "unlinked e (the node was closed)", "leave g (the node was closed)", "added 8 (the node was closed)")
	c.step(Tick{})
	c.step(Add{Contact: Contact{ID: "h"}, Token: 9}, "added 9 (the node was closed)")
	if next := c.s.Next(c.now); !next.IsZero() {
		t.Errorf("a closed state wants a tick at %v", next)
	}
}

// Two are added at once, and there is room for one.
func TestAddIsAnsweredWhenTheListFillsMeanwhile(t *testing.T) {
	c := newScript(t, 0, 1)
	c.step(Add{Contact: Contact{ID: "a"}, Token: 1}, "request a")
	c.step(Add{Contact: Contact{ID: "b"}, Token: 2}, "request b")
	c.receive("a", Accept{Session: protocol.Session{2}}, "pending a")
	c.receive("b", Accept{Session: protocol.Session{3}}, "added 2 (its peer list is full)", "leave b (enough peers were found meanwhile)")
}

// The round trip time is known after the handshake, and then measured by the stamps of
// the keepalives.
func TestRoundTripTimeIsMeasured(t *testing.T) {
	c := newScript(t, 1, 5)
	c.step(Tick{}, "ask seed")
	c.step(SeedFound{Contact: Contact{ID: "a", Addrs: somewhere}}, "request a")
	c.now = c.now.Add(40 * time.Millisecond)
	c.receive("a", Accept{Session: protocol.Session{2}}, "pending a")
	if rtt := c.s.RTT("a"); rtt != 40*time.Millisecond {
		t.Errorf("rtt of the handshake %v", rtt)
	}
	c.step(OnTopic{Peer: "a", Present: true}, "ready a")
	c.receive("a", Ready{}, "linked a")
	c.now = c.now.Add(3 * time.Second)
	out := c.s.Step(c.now, Tick{})
	sent := out[0].(Send).Message.(Keepalive)
	c.now = c.now.Add(time.Second + 20*time.Millisecond)
	c.receive("a", Keepalive{Stamp: time.Hour, Echo: sent.Stamp, Hold: time.Second})
	if rtt := c.s.RTT("a"); rtt != 20*time.Millisecond {
		t.Errorf("rtt of the keepalive %v", rtt)
	}
}
