package overlay

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// somewhere is an address; the state machine does not look at it.
var somewhere = []ma.Multiaddr{nil}

// script drives one state by hand and writes down what it wants done.
type script struct {
	*testing.T
	s     *State
	now   time.Time
	all   bool                    // compare what is in the background too
	react func(Output) (in Input) // the world's answer while time passes, or nil
}

func newScript(t *testing.T, minPeers, maxPeers int) *script {
	s := New(Config{
		Self: "me", Session: Session{1}, Network: "home", Min: minPeers, Max: maxPeers, Seeds: 1,
		Rand: rand.New(rand.NewPCG(1, 2)),
	})
	return &script{T: t, s: s, now: time.Unix(1e9, 0)}
}

// newSeedless is a script of a node that is its own seed, with a record and with
// links to neighbours that have degree links each.
func newSeedless(t *testing.T, minPeers, maxPeers, degree int, neighbours ...peer.ID) *script {
	t.Helper()
	c := newScript(t, 0, maxPeers)
	c.in(SeedSelf{})
	c.in(RecordRenewed{Record: []byte("me"), Seq: 100})
	for _, p := range neighbours {
		c.link(p, degree)
	}
	c.s.cfg.Min = minPeers // only now, or it would ask for more meanwhile
	return c
}

// node is a contact with all that others are told.
func node(id peer.ID) Contact {
	return Contact{ID: id, Record: []byte(id), Seq: 1, Addrs: somewhere}
}

// background tells what a node does beside what most tests are about: it keeps
// addresses fresh, says who owns the tag, and without a minimum asks its seeds.
func (c *script) background(o Output) bool {
	switch o := o.(type) {
	case Send:
		switch o.Message.(type) {
		case Shuffle, Beacon:
			return true
		}
	case RenewRecord:
		return true
	case AskSeed:
		return c.s.cfg.Min == 0
	}
	return false
}

// in feeds an input and compares the outputs, one word or two each.
func (c *script) in(in Input, want ...string) {
	c.Helper()
	var got []string
	for _, o := range c.s.Step(c.now, in) {
		if c.all || !c.background(o) {
			got = append(got, describe(o))
		}
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		c.Fatalf("%T: got %q, want %q", in, got, want)
	}
}

func (c *script) from(p peer.ID, m Message, want ...string) {
	c.Helper()
	c.in(Received{From: Contact{ID: p}, Message: m}, want...)
}

func (c *script) after(d time.Duration, want ...string) {
	c.Helper()
	c.now = c.now.Add(d)
	c.in(Tick{}, want...)
}

// An event is what was done in the time that passed.
type event struct {
	at time.Time
	Output
}

// feed feeds an input, and what the world answers, and returns what was done.
func (c *script) feed(in Input) (log []event) {
	c.Helper()
	for todo := []Input{in}; len(todo) > 0; todo = todo[1:] {
		for _, o := range c.s.Step(c.now, todo[0]) {
			if log = append(log, event{c.now, o}); len(log) > 1000 {
				c.Fatalf("%s, and no end", describe(o))
			}
			if c.react == nil {
				continue
			}
			if in := c.react(o); in != nil {
				todo = append(todo, in)
			}
		}
	}
	return log
}

// pass lets d pass with a Tick whenever one is due, and returns what was done. The
// neighbours named are heard every two seconds.
func (c *script) pass(d time.Duration, alive ...peer.ID) (log []event) {
	c.Helper()
	for end, beat := c.now.Add(d), c.now; ; {
		next := earlier(beat, earlier(c.s.Next(c.now), end))
		if next.Before(c.now) {
			c.Fatalf("a tick is due %v ago", c.now.Sub(next))
		}
		c.now = next
		if !c.now.Before(beat) {
			beat = c.now.Add(2 * time.Second)
			for _, p := range alive {
				if l := c.s.link(p); l != nil {
					log = append(log, c.feed(Received{From: Contact{ID: p}, Message: Keepalive{Degree: l.degree}})...)
				}
			}
		}
		log = append(log, c.feed(Tick{})...)
		if !c.now.Before(end) {
			return log
		}
	}
}

// sends returns when which messages of one kind were sent.
func sends[M Message](log []event) (times []time.Time, list []Send) {
	for _, e := range log {
		if send, ok := e.Output.(Send); ok {
			if _, ok := send.Message.(M); ok {
				times, list = append(times, e.at), append(list, send)
			}
		}
	}
	return times, list
}

// pauses compares the time between events with seconds, ± 20 % and what waiting for
// a turn may add.
func (c *script) pauses(times []time.Time, turn time.Duration, seconds ...int) {
	c.Helper()
	if len(times) <= len(seconds) {
		c.Fatalf("%d events, want more than %d", len(times), len(seconds))
	}
	for i, n := range seconds {
		want, got := time.Duration(n)*time.Second, times[i+1].Sub(times[i])
		if got < want*4/5 || got > want*6/5+turn {
			c.Errorf("pause %d is %v, want %v ± 20 %%", i, got, want)
		}
	}
}

// link makes a link with p, which asks for it.
func (c *script) link(p peer.ID, degree int) {
	c.Helper()
	c.from(p, Request{Session: Session{2}, Network: "home", Record: []byte(p), Degree: degree}, "pending "+string(p), "accept "+string(p))
	c.in(OnTopic{Peer: p, Present: true}, "ready "+string(p))
	c.from(p, Ready{Degree: degree}, "linked "+string(p))
}

// names writes a path as text.
func names(path []peer.ID) string {
	var list []string
	for _, id := range path {
		list = append(list, string(id))
	}
	return "[" + strings.Join(list, " ") + "]"
}

func describe(o Output) string {
	switch o := o.(type) {
	case Send:
		text := strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", o.Message), "overlay.")) + " " + string(o.To.ID)
		switch m := o.Message.(type) {
		case Reject:
			text += fmt.Sprintf(" (%s) %d", m.Reason, len(m.Contacts))
		case Leave:
			text += fmt.Sprintf(" (%s)", m.Reason)
		case Handover:
			text += " to " + string(m.To.Record)
		case Request:
			if m.Urgent {
				text += " urgently"
			}
			if m.Leaving.ID != "" {
				text += " leaving " + string(m.Leaving.ID)
			}
		case Beacon:
			text += fmt.Sprintf(" of %s %d", string(m.Owner.ID), m.Owner.Seq)
		case Shuffle:
			text += fmt.Sprintf(" by %s for %d", names(m.Path), m.TTL)
		case ShuffleReply:
			text += fmt.Sprintf(" by %s", names(m.Path))
		case Lookup:
			text += fmt.Sprintf(" of %s by %s for %d", string(m.Target), names(m.Path), m.TTL)
		case Found:
			text += fmt.Sprintf(" %s by %s", string(m.Target.ID), names(m.Path))
		}
		return text
	case Pending:
		return "pending " + string(o.Peer)
	case Probe:
		return "probe " + string(o.Peer)
	case Linked:
		return "linked " + string(o.Peer)
	case Unlinked:
		if !o.WasLinked {
			return "given up " + string(o.Peer)
		}
		return fmt.Sprintf("unlinked %s (%s)", string(o.Peer), o.Reason)
	case Refused:
		return fmt.Sprintf("refused %s (%s)", string(o.Peer), o.Reason)
	case AskSeed:
		return "ask seed"
	case Located:
		text := fmt.Sprintf("located %d: %s", o.Token, string(o.Contact.ID))
		if o.Done {
			text += " done"
		}
		return text
	case DialBack:
		return "call " + string(o.To.ID)
	case Added:
		return fmt.Sprintf("added %d (%s)", o.Token, o.Reason)
	}
	return fmt.Sprintf("%T", o)
}

// TestLinkNeedsBothSides: a link stands only when both see each other on the
// topic and have said so.
func TestLinkNeedsBothSides(t *testing.T) {
	c := newScript(t, 1, 5)
	c.in(Tick{}, "ask seed")
	c.in(SeedFound{Contact: Contact{ID: "a", Addrs: somewhere}}, "request a")
	c.from("a", Accept{Session: Session{2}}, "pending a")
	c.from("a", Ready{Greeting: []byte("g")}) // they see us, we do not see them yet
	c.in(OnTopic{Peer: "a", Present: true}, "ready a", "linked a")
	c.in(OnTopic{Peer: "a", Present: true})
	c.from("a", Ready{})
	if c.s.Degree() != 1 {
		t.Errorf("degree %d", c.s.Degree())
	}
}

// TestCrossedRequestsMakeOneLink: both ask at once, both accept.
func TestCrossedRequestsMakeOneLink(t *testing.T) {
	c := newScript(t, 1, 5)
	c.in(Tick{}, "ask seed")
	c.in(SeedFound{Contact: Contact{ID: "a", Addrs: somewhere}}, "request a")
	c.from("a", Request{Session: Session{2}, Network: "home"}, "pending a", "accept a")
	c.from("a", Accept{Session: Session{2}})
	c.in(OnTopic{Peer: "a", Present: true}, "ready a")
	c.from("a", Ready{}, "linked a")
}

// TestHandshakeThatStallsFiresNothing: without the topic the link is given up
// after five seconds, and probes look whether pubsub has swallowed something.
func TestHandshakeThatStallsFiresNothing(t *testing.T) {
	c := newScript(t, 0, 5)
	c.from("a", Request{Session: Session{2}, Network: "home"}, "pending a", "accept a")
	c.after(probeInterval, "probe a")
	c.after(acceptTimeout-probeInterval, "leave a (the handshake was not completed in time)", "given up a")
}

// TestRefusals: another network, no room (with redirects), this node itself; and
// a lone node is taken in beyond max.
func TestRefusals(t *testing.T) {
	c := newScript(t, 0, 1)
	c.from("a", Request{Session: Session{2}, Network: "lab"}, "reject a (it belongs to another network) 0")
	c.from("me", Request{Session: Session{2}, Network: "home"})
	c.link("b", 1)
	c.from("a", Request{Session: Session{2}, Network: "home", Degree: 2}, "reject a (its peer list is full) 1")
	c.from("a", Request{Session: Session{2}, Network: "home", Degree: 0}, "pending a", "accept a")

	none := newScript(t, 0, 0)
	none.from("a", Request{Session: Session{2}, Network: "home", Degree: 0}, "reject a (its peer list is full) 0")

	all := newScript(t, 0, -1)
	for i := range 50 {
		all.link(peer.ID(fmt.Sprint("p", i)), 3)
	}
}

// TestPartedPairStaysApart: after a link ended without a fault the same pair does
// not link again for thirty seconds, unless the asker is alone.
func TestPartedPairStaysApart(t *testing.T) {
	c := newScript(t, 0, 5)
	c.link("a", 1)
	c.link("b", 1)
	c.from("a", Leave{Reason: ReasonMoved}, "unlinked a (the link was handed over to another peer)")
	ask := Request{Session: Session{2}, Network: "home", Degree: 1}
	c.from("a", ask, "reject a (the two nodes parted a moment ago) 1")
	lone := ask
	lone.Degree = 0
	c.from("a", lone, "pending a", "accept a")
	c.from("a", Leave{Reason: ReasonEnough}, "given up a")
	for range 6 { // long enough, with b kept alive
		c.now = c.now.Add(relinkCooldown / 6)
		c.s.Step(c.now, Received{From: Contact{ID: "b"}, Message: Keepalive{}})
	}
	c.from("a", ask, "pending a", "accept a")
}

// TestHalfLinkEnds: who keeps alive a link that the other does not know is told,
// and a peer which asks anew for a link that we think stands replaces it.
func TestHalfLinkEnds(t *testing.T) {
	c := newScript(t, 0, 5)
	c.from("a", Keepalive{}, "leave a (the other side does not know the link)")
	c.link("a", 1)
	c.from("a", Request{Session: Session{3}, Network: "home"}, "unlinked a (it was restarted)", "pending a", "accept a")
	c.from("b", Ready{}, "leave b (the other side does not know the link)")
	c.from("b", Accept{}, "leave b (the handshake was not completed in time)")
	c.from("b", Leave{})
}

// TestSilenceEndsTheLink after 12.5 seconds, but not when it was us who slept.
func TestSilenceEndsTheLink(t *testing.T) {
	c := newScript(t, 0, 5)
	c.link("a", 1)
	c.after(3*time.Second, "keepalive a")
	c.after(5*time.Second, "keepalive a")
	c.after(4400 * time.Millisecond)
	c.after(100*time.Millisecond, "leave a (nothing was heard of it)", "unlinked a (nothing was heard of it)")

	c = newScript(t, 0, 5)
	c.link("a", 1)
	c.after(3*time.Second, "keepalive a")
	c.after(time.Hour, "keepalive a") // asleep
	c.after(time.Second)
	c.from("a", Keepalive{})
	c.after(4*time.Second, "keepalive a")
	c.after(5*time.Second, "keepalive a")
}

// TestDeafPeerIsDropped: a linked peer that is off the topic for three seconds is
// no peer; a short absence is none.
func TestDeafPeerIsDropped(t *testing.T) {
	c := newScript(t, 0, 5)
	c.link("a", 1)
	c.in(OnTopic{Peer: "a", Present: false})
	c.in(OnTopic{Peer: "a", Present: true})
	c.now = c.now.Add(offTopicTimeout)
	c.s.Step(c.now, Tick{})
	c.in(OnTopic{Peer: "a", Present: false})
	c.after(offTopicTimeout, "leave a (it left the topic)", "unlinked a (it left the topic)")
}

// TestAloneAsksAgain: seeds are asked at once and after 1, 2, 4, 8, 8 seconds, ±
// 20 %; the loss of the last peer starts anew.
func TestAloneAsksAgain(t *testing.T) {
	c := newScript(t, 1, 5)
	c.in(Tick{}, "ask seed")
	for _, want := range []time.Duration{1, 2, 4, 8, 8, 8} {
		pause := c.s.Next(c.now).Sub(c.now)
		if low, high := want*time.Second*4/5, want*time.Second*6/5; pause < low || pause > high {
			t.Errorf("pause %v, want %v to %v", pause, low, high)
		}
		c.in(SeedFailed{})
		c.after(pause, "ask seed")
	}
	c.in(SeedFailed{})
	c.link("a", 1)
	if got := c.s.Next(c.now); got.Sub(c.now) > keepaliveInterval {
		t.Errorf("next timer after linking: %v", got.Sub(c.now))
	}
	c.in(Disconnected{Peer: "a"}, "unlinked a (the connection was lost)", "ask seed", "request a")
	c.in(SeedFailed{})
	c.in(Unreachable{Peer: "a", Reason: ReasonUnreachable}, "refused a (it could not be reached)")
	c.after(1200*time.Millisecond, "ask seed", "request a")
}

// TestHandover: a full node that took in a lone one asks another neighbour to
// link to it; when that leaves, all is well. If nobody follows, the richest
// neighbour is dropped before thirty seconds are over. A neighbour with more than
// max links is asked to leave at once, as neither misses the link.
func TestHandover(t *testing.T) {
	lone := Request{Session: Session{2}, Network: "home", Record: []byte("j")}
	c := newScript(t, 0, 2)
	c.link("a", 2)
	c.link("b", 1)
	c.from("j", lone, "pending j", "accept j")
	c.in(OnTopic{Peer: "j", Present: true}, "ready j")
	c.from("j", Ready{}, "linked j")
	c.after(2*degreeDelay, "keepalive a", "keepalive b", "keepalive j")
	c.after(2*handoverDelay, "handover a to j")
	c.from("a", Leave{Reason: ReasonMoved}, "unlinked a (the link was handed over to another peer)")

	for _, degree := range []int{1, 4} {
		c = newScript(t, 0, 1)
		c.link("a", degree)
		c.from("j", lone, "pending j", "accept j")
		c.in(OnTopic{Peer: "j", Present: true}, "ready j")
		c.from("j", Ready{}, "linked j")
		dropped := time.Duration(0)
		for d := time.Duration(0); d < relinkCooldown && dropped == 0; d += time.Second {
			c.now = c.now.Add(time.Second)
			for _, p := range []peer.ID{"a", "j"} {
				m := Keepalive{Degree: 1}
				if p == "a" {
					m.Degree = degree
				}
				for _, o := range slices.Clone(c.s.Step(c.now, Received{From: Contact{ID: p}, Message: m})) {
					send, _ := o.(Send)
					if h, ok := send.Message.(Handover); ok && h.To.ID == "" && p == "a" && degree > 1 {
						c.from("a", Leave{Reason: ReasonFull}, "unlinked a (its peer list is full)") // it can spare the link
						dropped = d + time.Second
					}
					if _, ok := o.(Unlinked); ok {
						dropped = d + time.Second
					}
				}
			}
		}
		if c.s.Degree() != 1 || (degree > 1) != (dropped <= 2*time.Second) {
			t.Errorf("over max beside a neighbour with %d links: dropped after %v, degree %d", degree, dropped, c.s.Degree())
		}
	}
}

// TestTakeOver: asked to link to another node, a node leaves the asker only when
// that link stands.
func TestTakeOver(t *testing.T) {
	c := newScript(t, 1, 2)
	c.in(Tick{}, "ask seed")
	c.link("s", 3)
	c.from("s", Handover{To: Contact{ID: "j", Record: []byte("j")}}, "request j")
	c.from("j", Accept{Session: Session{4}}, "pending j")
	c.in(OnTopic{Peer: "j", Present: true}, "ready j")
	c.from("j", Ready{}, "linked j", "leave s (the link was handed over to another peer)", "unlinked s (the link was handed over to another peer)")
}

// TestAddAndDrop: AddPeer goes beyond min up to max and is answered once, also
// when the node closes; a peer dropped by the user stays away.
func TestAddAndDrop(t *testing.T) {
	c := newScript(t, 0, 2)
	c.in(Add{Contact: Contact{ID: "me"}, Token: 1}, "added 1 (it is this node itself)")
	c.in(Add{Contact: Contact{ID: "a"}, Token: 2}, "request a")
	c.in(Add{Contact: Contact{ID: "a"}, Token: 3})
	c.from("a", Accept{Session: Session{2}}, "pending a")
	c.in(OnTopic{Peer: "a", Present: true}, "ready a")
	c.from("a", Ready{}, "linked a", "added 2 (no reason given)", "added 3 (no reason given)")
	c.in(Add{Contact: Contact{ID: "a"}, Token: 4}, "added 4 (no reason given)")
	c.in(Add{Contact: Contact{ID: "b"}, Token: 5}, "request b")
	c.from("b", Reject{Reason: ReasonFull}, "refused b (its peer list is full)", "added 5 (its peer list is full)")
	c.in(Add{Contact: Contact{ID: "d"}, Token: 6}, "request d")
	c.in(Unreachable{Peer: "d", Reason: ReasonUnreachable}, "refused d (it could not be reached)", "added 6 (it could not be reached)")
	c.link("e", 1)
	c.in(Add{Contact: Contact{ID: "f"}, Token: 7}, "added 7 (its peer list is full)")
	c.in(Drop{Peer: "a"}, "leave a (the peer was closed)", "unlinked a (the peer was closed)")
	c.in(Drop{Peer: "a"})
	c.in(Add{Contact: Contact{ID: "g"}, Token: 8}, "request g")
	c.in(Close{}, "leave e (the node was closed)", "unlinked e (the node was closed)", "leave g (the node was closed)", "added 8 (the node was closed)")
	c.in(Tick{})
	c.in(Add{Contact: Contact{ID: "h"}, Token: 9}, "added 9 (the node was closed)")
	if next := c.s.Next(c.now); !next.IsZero() {
		t.Errorf("a closed state wants a tick at %v", next)
	}
}

// TestAddIsAnsweredWhenTheListFillsMeanwhile: two are added at once, and there is room
// for one.
func TestAddIsAnsweredWhenTheListFillsMeanwhile(t *testing.T) {
	c := newScript(t, 0, 1)
	c.in(Add{Contact: Contact{ID: "a"}, Token: 1}, "request a")
	c.in(Add{Contact: Contact{ID: "b"}, Token: 2}, "request b")
	c.from("a", Accept{Session: Session{2}}, "pending a")
	c.from("b", Accept{Session: Session{3}}, "added 2 (its peer list is full)", "leave b (enough peers were found meanwhile)")
}

// TestRoundTripTime: it is known from the handshake on and then from the stamps
// in the keepalives, without an extra message.
func TestRoundTripTime(t *testing.T) {
	c := newScript(t, 1, 5)
	c.in(Tick{}, "ask seed")
	c.in(SeedFound{Contact: Contact{ID: "a", Addrs: somewhere}}, "request a")
	c.now = c.now.Add(40 * time.Millisecond)
	c.from("a", Accept{Session: Session{2}}, "pending a")
	if rtt := c.s.RTT("a"); rtt != 40*time.Millisecond {
		t.Errorf("rtt of the handshake %v", rtt)
	}
	c.in(OnTopic{Peer: "a", Present: true}, "ready a")
	c.from("a", Ready{}, "linked a")
	c.now = c.now.Add(3 * time.Second)
	out := c.s.Step(c.now, Tick{})
	sent := out[0].(Send).Message.(Keepalive)
	c.now = c.now.Add(time.Second + 20*time.Millisecond)
	c.from("a", Keepalive{Stamp: time.Hour, Echo: sent.Stamp, Hold: time.Second})
	if rtt := c.s.RTT("a"); rtt != 20*time.Millisecond {
		t.Errorf("rtt of the keepalive %v", rtt)
	}
}

// TestWalksAreBounded: a neighbour cannot send walks through us without limit,
// and a walk of somebody who is not linked goes nowhere.
func TestWalksAreBounded(t *testing.T) {
	c := newScript(t, 0, 2)
	c.link("a", 1)
	c.link("b", 1)
	walk := Walk{Origin: Contact{ID: "z", Record: []byte("z")}, TTL: 3}
	c.from("x", walk)
	forwarded := 0
	for range 100 {
		c.now = c.now.Add(time.Millisecond)
		forwarded += len(c.s.Step(c.now, Received{From: Contact{ID: "a"}, Message: walk}))
	}
	if forwarded != walkBurst/walkCost {
		t.Errorf("%d walks forwarded, want %d", forwarded, walkBurst/walkCost)
	}
}
