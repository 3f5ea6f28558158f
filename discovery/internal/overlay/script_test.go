package overlay

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// somewhere stands for the addresses of a node; the state machine does not look at them.
var somewhere = []ma.Multiaddr{nil}

// A script feeds inputs to one State and compares its outputs.
type script struct {
	*testing.T
	s     *State
	now   time.Time
	all   bool                    // compare outputs of the background, too
	react func(Output) (in Input) // the answer to an output while time passes, or nil
}

func newScript(t *testing.T, minPeers, maxPeers int) *script {
	s := New(Config{
		Self: "me", Session: protocol.Session{1}, Network: "home", Min: minPeers, Max: maxPeers, Seeds: 1,
		Rand: rand.New(rand.NewPCG(1, 2)),
	})
	return &script{T: t, s: s, now: time.Unix(1e9, 0)}
}

// newSeedless is a script of a node that is its own seed, has a record, and is linked to
// neighbors that have degree links each.
func newSeedless(t *testing.T, minPeers, maxPeers, degree int, neighbors ...peer.ID) *script {
	t.Helper()
	c := newScript(t, 0, maxPeers)
	c.step(SeedSelf{})
	c.step(RecordRenewed{Record: []byte("me"), Seq: 100})
	for _, p := range neighbors {
		c.link(p, degree)
	}
	c.s.cfg.Min = minPeers // only now, or the node would have asked for links before
	return c
}

// node returns a contact with a record and addresses.
func node(id peer.ID) Contact {
	return Contact{ID: id, Record: []byte(id), Seq: 1, Addrs: somewhere}
}

// background reports whether o is an output that most tests ignore: addresses are kept
// fresh, beacons are flooded, and seeds are asked.
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

// step feeds an input and compares the outputs, one word or two for each.
func (c *script) step(in Input, want ...string) {
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

func (c *script) receive(p peer.ID, m Message, want ...string) {
	c.Helper()
	c.step(Received{From: Contact{ID: p}, Message: m}, want...)
}

func (c *script) tick(d time.Duration, want ...string) {
	c.Helper()
	c.now = c.now.Add(d)
	c.step(Tick{}, want...)
}

// An event is an output at a time.
type event struct {
	at time.Time
	Output
}

// feed feeds an input, and then the answers of react, and returns the outputs.
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

// advance lets d pass, with a Tick whenever one is due, and returns the outputs. The
// neighbors in alive send a keepalive every two seconds.
func (c *script) advance(d time.Duration, alive ...peer.ID) (log []event) {
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

// sends returns the messages of one type and their times.
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

// wantPauses compares the time between events with seconds, ± 20 %, and up to turn more.
func (c *script) wantPauses(times []time.Time, turn time.Duration, seconds ...int) {
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

// link makes a link with p, at the request of p.
func (c *script) link(p peer.ID, degree int) {
	c.Helper()
	c.receive(p, Request{Session: protocol.Session{2}, Network: "home", Record: []byte(p), Degree: degree}, "pending "+string(p), "accept "+string(p))
	c.step(OnTopic{Peer: p, Present: true}, "ready "+string(p))
	c.receive(p, Ready{Degree: degree}, "linked "+string(p))
}

// names returns a path as text.
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
