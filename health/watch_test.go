package health

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	interval = 10 * time.Second
	timeout  = 3 * time.Second
	patience = 2*interval + timeout
	seedAddr = "192.168.2.100:8495"
)

// person is somebody with a key, who can sign.
type person struct {
	key crypto.PrivKey
	id  peer.ID
}

func newPerson(t testing.TB) person {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return person{key, id}
}

func at(texts ...string) (list []netip.AddrPort) {
	for _, s := range texts {
		list = append(list, netip.MustParseAddrPort(s))
	}
	return tidy(list)
}

func (p person) ping(t testing.TB, counter uint64, target target) []byte {
	t.Helper()
	b, err := ping{stamp: stamp{p.id, session{1}, counter}, target: target, interval: interval}.seal(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p person) pong(t testing.TB, counter uint64, addrs ...string) []byte {
	t.Helper()
	return p.answer(t, counter, stamp{}, addrs...)
}

func (p person) answer(t testing.TB, counter uint64, to stamp, addrs ...string) []byte {
	t.Helper()
	b, err := pong{stamp: stamp{p.id, session{1}, counter}, at: at(addrs...), answers: to}.seal(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// scene drives a core: time goes on only by after.
type scene struct {
	t     *testing.T
	w     *watch
	me    person
	begin time.Time
	now   time.Time
	next  time.Time
	log   []string // changes, in order
	sent  [][]byte // floods since the last call of floods
}

func newScene(t *testing.T, interval time.Duration, seeds ...string) *scene {
	me := newPerson(t)
	begin := time.Unix(1_000_000_000, 0)
	return &scene{
		t: t, me: me, begin: begin, now: begin,
		w: newWatch(me.key, me.id, session{7}, 1000, interval, timeout, seeds, mathrand.New(mathrand.NewPCG(1, 2))),
	}
}

func (s *scene) take(out []output) {
	s.t.Helper()
	for _, o := range out {
		switch o := o.(type) {
		case flood:
			s.sent = append(s.sent, o.msg)
		case change:
			verb := "back"
			if o.lost {
				verb = "lost"
			}
			s.log = append(s.log, fmt.Sprintf("%s %s", verb, o.seed))
		}
	}
}

func (s *scene) advance() {
	s.t.Helper()
	out, next := s.w.advance(s.now, 0)
	if !next.IsZero() && !next.After(s.now) {
		s.t.Fatalf("at %v it wants to be called at %v again", s.now.Sub(s.begin), next.Sub(s.begin))
	}
	s.next = next
	s.take(out)
}

// after lets d pass, calling the core whenever it asked for that.
func (s *scene) after(d time.Duration) *scene {
	s.t.Helper()
	end := s.now.Add(d)
	s.advance()
	for !s.next.IsZero() && !s.next.After(end) {
		s.now = s.next
		s.advance()
	}
	s.now = end
	return s
}

func (s *scene) neighbours(list ...peer.ID) *scene {
	s.w.setNeighbours(s.now, list)
	s.advance()
	return s
}

func (s *scene) found(seed string, p person, addrs ...string) *scene {
	var list []ma.Multiaddr
	for _, a := range addrs {
		list = append(list, ma.StringCast(a))
	}
	s.take(s.w.found(s.now, seed, p.id, list))
	return s
}

// hears receives a signal from a neighbour and returns what is sent on.
func (s *scene) hears(msg []byte) [][]byte {
	s.floods()
	s.take(s.w.receive(s.now, "neighbour", msg))
	s.advance()
	return s.floods()
}

func (s *scene) floods() [][]byte {
	sent := s.sent
	s.sent = nil
	return sent
}

// pings returns the own pings among the floods.
func (s *scene) pings() (list []*ping) {
	for _, msg := range s.floods() {
		if sig, err := parseSignal(msg); err != nil {
			s.t.Error(err)
		} else if sig.ping != nil && sig.ping.sender == s.me.id {
			list = append(list, sig.ping)
		}
	}
	return list
}

// want checks the changes since the last call.
func (s *scene) want(changes ...string) *scene {
	s.t.Helper()
	if !slices.Equal(s.log, changes) {
		s.t.Errorf("at %v: %q, want %q", s.now.Sub(s.begin), s.log, changes)
	}
	s.log = nil
	return s
}

func TestASeedIsLostOnceAndBackOnce(t *testing.T) {
	seed := newPerson(t)
	s := newScene(t, interval, seedAddr)
	s.neighbours("neighbour").found(seedAddr, seed).want()
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
	s.after(time.Hour).want()
	s.hears(seed.pong(t, 1))
	s.want("back " + seedAddr)
	s.after(patience - 1).want()
	s.hears(seed.pong(t, 2))
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
	s.found(seedAddr, seed).want("back " + seedAddr)
}

func TestItAsksBeforeItAccuses(t *testing.T) {
	for range 50 {
		s := newScene(t, interval, seedAddr)
		s.w.rand = mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 1))
		s.neighbours("neighbour").found(seedAddr, newPerson(t))
		s.after(interval - 1).want()
		if n := len(s.pings()); n > 0 {
			t.Fatalf("%d pings within an interval after it was heard", n)
		}
		s.after(interval + timeout)
		if n := len(s.pings()); n < 2 {
			t.Fatalf("%d pings before the verdict: one may get lost", n)
		}
		s.after(1).want("lost " + seedAddr)
		s.floods()
		s.after(10 * interval)
		if n := len(s.pings()); n < 9 || n > 20 {
			t.Fatalf("%d pings in ten intervals for a lost seed; a flood in half an interval at most", n)
		}
	}
}

func TestASeedNeverHeardIsNotLost(t *testing.T) {
	s := newScene(t, interval, seedAddr, "seed.test:8495")
	s.neighbours("neighbour").after(time.Hour).want()
	if n := len(s.pings()); n == 0 {
		t.Error("nobody asked for it: it may well be in the overlay")
	}
	s.hears(newPerson(t).pong(t, 1, seedAddr)) // it is
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
}

func TestNothingIsReportedWithoutNeighbours(t *testing.T) {
	seed := newPerson(t)
	s := newScene(t, interval, seedAddr)
	s.found(seedAddr, seed)
	s.after(time.Hour).want()
	s.neighbours("neighbour")
	s.after(patience - 1).want() // the clock began with the neighbour
	s.neighbours()
	s.after(time.Hour).want()
	if len(s.pings()) == 0 || s.next != (time.Time{}) {
		t.Error("it asks with a neighbour, and has nothing to do without")
	}
	s.neighbours("neighbour")
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
	s.neighbours()
	s.after(time.Hour).neighbours("neighbour").after(time.Hour).want() // still the same loss
	s.hears(seed.pong(t, 1))
	s.want("back " + seedAddr)
}

func TestANeighbourIsHeard(t *testing.T) {
	seed := newPerson(t)
	s := newScene(t, interval, seedAddr)
	s.found(seedAddr, seed).neighbours("neighbour", seed.id)
	s.after(time.Hour).want()
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings for a neighbour", n)
	}
	s.after(7 * time.Second).neighbours("neighbour")
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
	s.neighbours("neighbour", seed.id).want("back " + seedAddr)
}

func TestOurOwnLatenessAccusesNobody(t *testing.T) {
	for _, c := range []struct {
		name  string
		late  time.Duration
		drift time.Duration
		lost  time.Duration // after the wake-up
	}{
		{"asleep for an hour, the clock saw it", time.Hour, 0, patience},
		{"asleep, only the wall clock went on", 0, time.Hour, patience},
		{"the clock was set back", 0, -time.Hour, patience},
		{"late by more than an interval", interval + 1, 0, patience},
		{"late by an interval", interval, 0, timeout},
		{"late by a little", timeout/2 + 1, 0, timeout},
		{"on time", 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, interval, seedAddr)
			s.neighbours("neighbour").found(seedAddr, newPerson(t))
			s.after(patience - 1).want()
			// The verdict is due in a nanosecond, and we come late.
			s.now = s.next.Add(c.late)
			out, next := s.w.advance(s.now, c.drift)
			s.take(out)
			s.next = next
			if c.lost > 0 {
				s.want()
				s.after(c.lost - 1).want()
				s.after(1)
			}
			s.want("lost " + seedAddr)
		})
	}
}

// Late again and again, as on a machine that is too busy, there is no verdict.
func TestABusyMachineAccusesNobody(t *testing.T) {
	s := newScene(t, interval, seedAddr)
	s.neighbours("neighbour").found(seedAddr, newPerson(t))
	for range 100 {
		s.now = s.next.Add(2 * time.Second)
		s.advance()
	}
	s.want()
}

func TestAnotherPingKeepsThisNodeSilent(t *testing.T) {
	seed, other := newPerson(t), newPerson(t)
	s := newScene(t, interval, seedAddr)
	s.neighbours("neighbour").found(seedAddr, seed)
	whom := s.w.seeds[0].target()
	counter := uint64(0)
	// Somebody else asks each interval, and the seed answers.
	for range 100 {
		s.after(interval - 1)
		counter++
		if sent := s.hears(other.ping(t, counter, whom)); len(sent) != 1 {
			t.Fatalf("the ping was passed on %d times", len(sent))
		}
		s.after(1)
		if sent := s.hears(seed.pong(t, counter, seedAddr)); len(sent) != 1 {
			t.Fatalf("the pong was passed on %d times", len(sent))
		}
	}
	s.want()
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings although somebody else asked", n)
	}
	// Now nobody answers the other: this node waits for that, then asks itself.
	s.after(interval - 1).hears(other.ping(t, 1000, whom))
	s.after(interval / 2)
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings while the other's may be answered", n)
	}
	s.after(interval/2 + 1)
	if n := len(s.pings()); n == 0 {
		t.Error("no ping although the other's was in vain")
	}
}

func TestPingsArePassedOnOnceInHalfAnInterval(t *testing.T) {
	other, third := newPerson(t), newPerson(t)
	s := newScene(t, interval)
	s.neighbours("neighbour")
	whom := target{at: at(seedAddr)}
	first := other.ping(t, 1, whom)
	if sent := s.hears(first); len(sent) != 1 || string(sent[0]) != string(first) {
		t.Fatalf("passed on as %x, want %x", sent, first)
	}
	for name, msg := range map[string][]byte{
		"the same":                 first,
		"one more":                 other.ping(t, 2, whom),
		"a third's":                third.ping(t, 1, whom),
		"one with the same target": third.ping(t, 2, target{at: at(seedAddr)}),
	} {
		if sent := s.hears(msg); len(sent) > 0 {
			t.Errorf("%s was passed on at once", name)
		}
	}
	if sent := s.hears(third.ping(t, 3, target{at: at("10.0.0.1:1")})); len(sent) != 1 {
		t.Error("a ping for another was not passed on")
	}
	s.after(interval/2 - 1)
	if sent := s.hears(other.ping(t, 3, whom)); len(sent) > 0 {
		t.Error("passed on too soon")
	}
	s.after(1)
	if sent := s.hears(other.ping(t, 4, whom)); len(sent) != 1 {
		t.Error("not passed on after half an interval")
	}
	if sent := s.hears(first); len(sent) > 0 {
		t.Error("a known ping was passed on")
	}

	// Who has a shorter interval is served in his time.
	hasty, err := ping{stamp{third.id, session{}, 9}, target{at: at("10.0.0.2:1")}, time.Second}.seal(third.key)
	if err != nil {
		t.Fatal(err)
	}
	s.hears(hasty)
	s.after(time.Second / 2)
	hasty, _ = ping{stamp{third.id, session{}, 10}, target{at: at("10.0.0.2:1")}, time.Second}.seal(third.key)
	if sent := s.hears(hasty); len(sent) != 1 {
		t.Error("a node with a shorter interval was not served")
	}
}

func TestTheTargetAnswersInsteadOfPassingOn(t *testing.T) {
	other := newPerson(t)
	for _, interval := range []time.Duration{interval, 0} { // also with the watchdog off
		s := newScene(t, interval)
		s.neighbours("neighbour")
		var own []string
		for i := range 30 {
			own = append(own, fmt.Sprintf("10.0.0.%d:8495", i+1))
		}
		own = append(own, seedAddr)
		s.w.setOwn(at(own...))
		counter := uint64(0)
		for name, whom := range map[string]target{
			"by id":                     {id: s.me.id},
			"by address":                {at: at(seedAddr)},
			"by one of its addresses":   {at: at("172.16.0.1:1", seedAddr)},
			"by address, id of another": {id: other.id, at: at(seedAddr)},
		} {
			s.after(5 * time.Second)
			counter++
			sent := s.hears(other.ping(t, counter, whom))
			if len(sent) != 1 {
				t.Fatalf("%s: %d signals", name, len(sent))
			}
			sig, err := parseSignal(sent[0])
			if err != nil || sig.pong == nil || !sig.verified() {
				t.Fatalf("%s: %+v, %v", name, sig, err)
			}
			p := sig.pong
			if p.sender != s.me.id || p.answers != (stamp{other.id, session{1}, counter}) || len(p.at) != maxSignalAddrs {
				t.Errorf("%s: %+v", name, p)
			}
			if len(whom.at) > 0 && !slices.Contains(p.at, netip.MustParseAddrPort(seedAddr)) {
				t.Errorf("%s: the answer %v does not hold the address asked for", name, p.at)
			}
			if sent := s.hears(other.ping(t, counter+1000, whom)); len(sent) > 0 {
				t.Errorf("%s: answered twice at once", name)
			}
		}
		if sent := s.hears(other.ping(t, 2000, target{id: other.id, at: at("172.16.0.1:1")})); len(sent) != 1 {
			t.Error("a ping for another was not passed on")
		}
	}
}

func TestWhoIsMeant(t *testing.T) {
	seed, other := newPerson(t), newPerson(t)
	pinned := "/ip4/192.168.2.100/tcp/8495/p2p/" + seed.id.String()
	const name, maddr, dnsaddr = "seed.test:8495", "/ip4/192.168.2.100/udp/8495/quic-v1", "/dnsaddr/seed.test"
	all := []string{seedAddr, pinned, name, maddr, dnsaddr}
	lost := func(seeds ...string) (list []string) {
		for _, s := range seeds {
			list = append(list, "lost "+s)
		}
		return list
	}
	for _, c := range []struct {
		what string
		pong []byte
		not  []string // those not heard by it
	}{
		{"the seed with its address", seed.pong(t, 9, seedAddr), nil},
		{"the seed elsewhere", seed.pong(t, 9, "10.0.0.1:1"), nil},
		{"another at its address", other.pong(t, 9, "10.0.0.1:1", seedAddr), []string{pinned}},
		{"another elsewhere", other.pong(t, 9, "192.168.2.100:8496", "192.168.2.101:8495"), all},
		{"another nowhere", other.pong(t, 9), all},
	} {
		s := newScene(t, interval, all...)
		s.neighbours("neighbour")
		for _, text := range all {
			s.found(text, seed, "/ip4/192.168.2.100/tcp/8495")
		}
		s.after(5 * time.Second).hears(c.pong)
		s.after(patience - 1)
		slices.Sort(s.log)
		want := lost(c.not...)
		slices.Sort(want)
		s.want(want...)
		if t.Failed() {
			t.Fatal(c.what)
		}
	}

	// What discovery says about a pinned seed that is another's is ignored.
	s := newScene(t, interval, pinned)
	s.neighbours("neighbour").found(pinned, other).after(time.Hour).want()
	if s.w.seeds[0].id != seed.id {
		t.Error("the pinned id was replaced")
	}
	// A name is meant where discovery found it last.
	s = newScene(t, interval, name)
	s.neighbours("neighbour").found(name, seed, "/ip4/10.0.0.1/tcp/8495").found(name, other, "/ip4/10.0.0.2/tcp/8495/ws")
	s.after(5 * time.Second)
	s.hears(newPerson(t).pong(t, 1, "10.0.0.1:8495"))
	s.after(patience - 5*time.Second).want("lost " + name)
	s.hears(newPerson(t).pong(t, 1, "10.0.0.2:8495"))
	s.want("back " + name)
}

func TestAskingSaysWhoIsMeant(t *testing.T) {
	seed := newPerson(t)
	pinned := "/ip4/192.168.2.100/tcp/8495/p2p/" + seed.id.String()
	for _, c := range []struct {
		seed  string
		found bool
		want  target
	}{
		{seedAddr, false, target{at: at(seedAddr)}},
		{seedAddr, true, target{id: seed.id, at: at(seedAddr)}},
		{pinned, false, target{id: seed.id}},
		{pinned, true, target{id: seed.id}},
		{"seed.test:8495", true, target{id: seed.id, at: at("10.0.0.1:8495")}},
		{"[2001:db8::1]:8495", false, target{at: at("[2001:db8::1]:8495")}},
		{"[::ffff:10.0.0.1]:8495", false, target{at: at("10.0.0.1:8495")}},
	} {
		s := newScene(t, interval, c.seed)
		s.neighbours("neighbour")
		if c.found {
			s.found(c.seed, seed, "/ip4/10.0.0.1/udp/8495/quic-v1", "/dns4/x.test/tcp/1")
		}
		s.after(2 * interval)
		pings := s.pings()
		if len(pings) == 0 {
			t.Errorf("%s: nobody was asked", c.seed)
			continue
		}
		if got := pings[0].target; got.key() != c.want.key() || pings[0].interval != interval {
			t.Errorf("%s: asked for %+v, want %+v", c.seed, got, c.want)
		}
	}
	s := newScene(t, interval, "seed.test:8495")
	s.neighbours("neighbour").after(time.Hour)
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings for a name that nobody has looked up", n)
	}
}

func TestItDoesNotWatchItself(t *testing.T) {
	s := newScene(t, interval)
	byID := "/ip4/10.0.0.1/tcp/1/p2p/" + s.me.id.String()
	s.w.seeds = []*seed{parseSeed(byID), parseSeed(seedAddr), parseSeed("seed.test:8495"), parseSeed("other.test:8495"), parseSeed("10.0.0.9:1")}
	s.w.setOwn(at(seedAddr))
	s.neighbours("neighbour")
	s.found("seed.test:8495", s.me)
	s.take(s.w.foundSelf("other.test:8495"))
	s.take(s.w.foundSelf("unknown:1"))
	s.hears(newPerson(t).pong(t, 1, seedAddr))
	s.after(time.Hour).want()
	for _, p := range s.pings() {
		if p.target.key() != (target{at: at("10.0.0.9:1")}).key() {
			t.Errorf("asked for itself: %+v", p.target)
		}
	}
	// A lost seed whose address became ours is over, and so is one we turn out to be.
	other := newPerson(t)
	s = newScene(t, interval, "seed.test:8495")
	s.neighbours("neighbour").found("seed.test:8495", other, "/ip4/10.0.0.1/tcp/1").after(patience).want("lost seed.test:8495")
	s.take(s.w.foundSelf("seed.test:8495"))
	s.want("back seed.test:8495")
	s.after(time.Hour).want()
}

func TestOneSeedInTwoSpellingsIsTwoReports(t *testing.T) {
	seed := newPerson(t)
	second := "/ip4/192.168.2.100/tcp/8495"
	s := newScene(t, interval, seedAddr, second, seedAddr)
	s.neighbours("neighbour").found(seedAddr, seed)
	s.hears(seed.pong(t, 1, seedAddr))
	s.after(patience).want("lost "+seedAddr, "lost "+second)
	s.hears(seed.pong(t, 2, seedAddr))
	s.want("back "+seedAddr, "back "+second)
}

func TestAnOldAnswerIsNotTheSeed(t *testing.T) {
	seed := newPerson(t)
	s := newScene(t, interval, seedAddr)
	s.neighbours("neighbour").found(seedAddr, seed)
	s.hears(seed.pong(t, 1_000_000, seedAddr))
	s.after(patience).want("lost " + seedAddr)
	for _, counter := range []uint64{1, 999_999, 1_000_000} {
		old := seed.answer(t, counter, stamp{newPerson(t).id, session{3}, 5}, seedAddr)
		if sent := s.hears(old); len(sent) > 0 {
			t.Errorf("answer %d of an earlier run was passed on", counter)
		}
	}
	s.want()
	if s.w.stats.Replayed != 2 || s.w.stats.Duplicate != 1 {
		t.Errorf("%+v", s.w.stats)
	}
	// A seed whose clock went back, restarted, answers what we have just asked.
	s.floods()
	s.after(interval)
	pings := s.pings()
	s.hears(seed.answer(t, 50, pings[len(pings)-1].stamp, seedAddr))
	s.want("back " + seedAddr)
	// And with the next answer it goes on from there.
	s.after(patience).want("lost " + seedAddr)
	s.hears(seed.pong(t, 51, seedAddr))
	s.want("back " + seedAddr)
}

func TestBadSignalsDoNothing(t *testing.T) {
	seed, other := newPerson(t), newPerson(t)
	good := seed.pong(t, 5, seedAddr)
	ask := other.ping(t, 5, target{at: at(seedAddr)})
	forged := func(p pong, key crypto.PrivKey) []byte {
		b, err := p.seal(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// Signed as a pong, sent as a ping.
	crossed, _ := sealSignal(seed.key, fieldPong, pingDomain, appendStamp(nil, stamp{seed.id, session{1}, 6}), fieldPongSignature)
	var flips [][]byte
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 0x01
		flips = append(flips, b)
	}
	for i := range ask {
		b := slices.Clone(ask)
		b[i] ^= 0x80
		flips = append(flips, b)
	}
	for i := range good {
		flips = append(flips, good[:i])
	}
	cases := map[string][][]byte{
		"bits flipped, and cut": flips,
		"in another's name":     {forged(pong{stamp: stamp{seed.id, session{1}, 6}, at: at(seedAddr)}, other.key)},
		"for another purpose":   {crossed},
		"of itself":             nil, // below
		"too large":             {append(slices.Clone(good), make([]byte, maxSignalBytes)...)},
		"both kinds":            {append(slices.Clone(good), ask...)},
		"twice":                 {append(slices.Clone(good), good...)},
		"empty":                 {nil, {}, {0}},
	}
	for name, msgs := range cases {
		s := newScene(t, interval, seedAddr)
		s.neighbours("neighbour").found(seedAddr, seed).after(patience).want("lost " + seedAddr)
		s.floods()
		before := s.w.stats
		if name == "of itself" {
			msgs = [][]byte{s.me.pong(t, 5, seedAddr), s.me.ping(t, 5, target{at: at(seedAddr)})}
		}
		asked := s.w.seeds[0].next
		for i, msg := range msgs {
			s.take(s.w.receive(s.now, "neighbour", msg))
			if len(s.log) > 0 || len(s.sent) > 0 {
				t.Fatalf("%s, %d: %v, %d floods: %x", name, i, s.log, len(s.sent), msg)
			}
		}
		if s.w.seeds[0].next != asked {
			t.Errorf("%s: it changed when the next ping is due", name)
		}
		counted := s.w.stats.Malformed + s.w.stats.Forged + s.w.stats.Duplicate - before.Malformed - before.Forged - before.Duplicate
		if int(counted) != len(msgs) {
			t.Errorf("%s: %d of %d counted: %+v", name, counted, len(msgs), s.w.stats)
		}
		// The true one still counts: no forgery took its place.
		s.hears(good)
		s.want("back " + seedAddr)
	}
}

// Whatever happens, the reports of a seed alternate, and none is against the
// rules. The rules are written down here a second time, as simply as can be.
func TestReportsKeepTheRulesInAnyOrder(t *testing.T) {
	for run := range 100 {
		r := mathrand.New(mathrand.NewPCG(uint64(run), 7))
		seed := newPerson(t)
		s := newScene(t, interval, seedAddr)
		s.w.rand = r
		var heard, joined, woke time.Time
		lost, linked := false, false
		counter := uint64(0)
		for range 400 {
			was := s.now
			switch r.IntN(8) {
			case 0:
				linked = !linked
				if linked {
					joined = s.now
					s.neighbours("neighbour")
				} else {
					s.neighbours()
				}
			case 1:
				counter++
				s.hears(seed.pong(t, counter, seedAddr))
				heard = s.now
			case 2: // asleep
				s.now = s.now.Add(interval + interval/2 + 1 + time.Duration(r.Int64N(int64(time.Minute))))
				woke = s.now
				s.advance()
			default:
				s.after(time.Duration(r.Int64N(int64(interval))))
			}
			for _, entry := range s.log {
				isLost := strings.HasPrefix(entry, "lost")
				if isLost == lost {
					t.Fatalf("run %d: %q twice", run, entry)
				}
				lost = isLost
				since := heard
				for _, other := range []time.Time{joined, woke} {
					if other.After(since) {
						since = other
					}
				}
				if isLost && (!linked || heard.IsZero() || s.now.Sub(since) < patience) {
					t.Fatalf("run %d: lost at %v, heard %v, joined %v, woke %v, linked %v", run, s.now, heard, joined, woke, linked)
				}
				if !isLost && heard.Before(was) {
					t.Fatalf("run %d: back at %v, heard %v", run, s.now, heard)
				}
			}
			s.log = nil
			if quiet := s.now.Sub(heard); linked && !lost && !heard.IsZero() && quiet > patience &&
				s.now.Sub(joined) > patience+interval && s.now.Sub(woke) > patience+interval {
				t.Fatalf("run %d: not lost at %v, heard %v, joined %v, woke %v", run, s.now, heard, joined, woke)
			}
		}
	}
}

// A node that cannot ask (its key fails, say) has no right to a verdict.
func TestWhoCannotAskAccusesNobody(t *testing.T) {
	s := newScene(t, interval, seedAddr)
	s.w.key = brokenKey{s.me.key}
	s.neighbours("neighbour").found(seedAddr, newPerson(t)).after(time.Hour).want()
	if s.w.stats.Unsigned == 0 {
		t.Error("not counted")
	}
	s.w.setOwn(at("10.0.0.1:1"))
	if sent := s.hears(newPerson(t).ping(t, 1, target{at: at("10.0.0.1:1")})); len(sent) > 0 {
		t.Errorf("an answer without signature: %x", sent)
	}
}

type brokenKey struct{ crypto.PrivKey }

func (brokenKey) Sign([]byte) ([]byte, error) { return nil, errors.New("broken") }
