package health

import (
	"github.com/go-smokesignal/smokesignal/internal/protocol"

	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// A node does not ping a seed while another node does so and the seed answers.
func TestAnotherPingKeepsThisNodeSilent(t *testing.T) {
	seed, other := newSigner(t), newSigner(t)
	s := newScene(t, interval, seedAddr)
	s.neighbors("neighbor").found(seedAddr, seed)
	asked := s.w.seeds[0].target()
	counter := uint64(0)
	// Somebody else asks each interval, and the seed answers.
	for range 100 {
		s.after(interval - 1)
		counter++
		if sent := s.hears(other.ping(t, counter, asked)); len(sent) != 1 {
			t.Fatalf("the ping was forwarded %d times", len(sent))
		}
		s.after(1)
		if sent := s.hears(seed.pong(t, counter, seedAddr)); len(sent) != 1 {
			t.Fatalf("the pong was forwarded %d times", len(sent))
		}
	}
	s.want()
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings although somebody else asked", n)
	}
	// Now nobody answers the other: this node waits for that, then asks itself.
	s.after(interval - 1).hears(other.ping(t, 1000, asked))
	s.after(interval / 2)
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings while the other's may be answered", n)
	}
	s.after(interval/2 + 1)
	if n := len(s.pings()); n == 0 {
		t.Error("no ping although the other's was in vain")
	}
}

// Of the pings for one target, one in half an interval is forwarded.
func TestPingsAreForwardedOnceInHalfAnInterval(t *testing.T) {
	other, third := newSigner(t), newSigner(t)
	s := newScene(t, interval)
	s.neighbors("neighbor")
	asked := pingTarget{addrs: addrPorts(seedAddr)}
	first := other.ping(t, 1, asked)
	if sent := s.hears(first); len(sent) != 1 || string(sent[0]) != string(first) {
		t.Fatalf("forwarded as %x, want %x", sent, first)
	}
	for name, msg := range map[string][]byte{
		"the same":                 first,
		"one more":                 other.ping(t, 2, asked),
		"a third's":                third.ping(t, 1, asked),
		"one with the same target": third.ping(t, 2, pingTarget{addrs: addrPorts(seedAddr)}),
	} {
		if sent := s.hears(msg); len(sent) > 0 {
			t.Errorf("%s was forwarded at once", name)
		}
	}
	if sent := s.hears(third.ping(t, 3, pingTarget{addrs: addrPorts("10.0.0.1:1")})); len(sent) != 1 {
		t.Error("a ping for another was not forwarded")
	}
	s.after(interval/2 - 1)
	if sent := s.hears(other.ping(t, 3, asked)); len(sent) > 0 {
		t.Error("forwarded too soon")
	}
	s.after(1)
	if sent := s.hears(other.ping(t, 4, asked)); len(sent) != 1 {
		t.Error("not forwarded after half an interval")
	}
	if sent := s.hears(first); len(sent) > 0 {
		t.Error("a known ping was forwarded")
	}

	// A node with a shorter interval is served in its own time.
	hasty, err := ping{stamp{third.id, protocol.Session{}, 9}, pingTarget{addrs: addrPorts("10.0.0.2:1")}, time.Second}.seal(third.key)
	if err != nil {
		t.Fatal(err)
	}
	s.hears(hasty)
	s.after(time.Second / 2)
	hasty, _ = ping{stamp{third.id, protocol.Session{}, 10}, pingTarget{addrs: addrPorts("10.0.0.2:1")}, time.Second}.seal(third.key)
	if sent := s.hears(hasty); len(sent) != 1 {
		t.Error("a node with a shorter interval was not served")
	}
}

// The seed that a ping names answers it and does not forward it, also with the watchdog off.
func TestTheTargetAnswersInsteadOfForwarding(t *testing.T) {
	other := newSigner(t)
	for _, interval := range []time.Duration{interval, 0} { // also with the watchdog off
		s := newScene(t, interval)
		s.neighbors("neighbor")
		var own []string
		for i := range 30 {
			own = append(own, fmt.Sprintf("10.0.0.%d:8495", i+1))
		}
		own = append(own, seedAddr)
		s.w.setOwnAddrs(addrPorts(own...))
		counter := uint64(0)
		for name, asked := range map[string]pingTarget{
			"by id":                     {id: s.me.id},
			"by address":                {addrs: addrPorts(seedAddr)},
			"by one of its addresses":   {addrs: addrPorts("172.16.0.1:1", seedAddr)},
			"by address, id of another": {id: other.id, addrs: addrPorts(seedAddr)},
		} {
			s.after(5 * time.Second)
			counter++
			sent := s.hears(other.ping(t, counter, asked))
			if len(sent) != 1 {
				t.Fatalf("%s: %d signals", name, len(sent))
			}
			sig, err := parseSignal(sent[0])
			if err != nil || sig.pong == nil || !sig.verified() {
				t.Fatalf("%s: %+v, %v", name, sig, err)
			}
			p := sig.pong
			if p.sender != s.me.id || p.answers != (stamp{other.id, protocol.Session{1}, counter}) || len(p.addrs) != maxSignalAddrs {
				t.Errorf("%s: %+v", name, p)
			}
			if len(asked.addrs) > 0 && !slices.Contains(p.addrs, netip.MustParseAddrPort(seedAddr)) {
				t.Errorf("%s: the answer %v does not hold the address asked for", name, p.addrs)
			}
			if sent := s.hears(other.ping(t, counter+1000, asked)); len(sent) > 0 {
				t.Errorf("%s: answered twice at once", name)
			}
		}
		if sent := s.hears(other.ping(t, 2000, pingTarget{id: other.id, addrs: addrPorts("172.16.0.1:1")})); len(sent) != 1 {
			t.Error("a ping for another was not forwarded")
		}
	}
}

// A pong counts as a sign of life of each seed text that names its sender.
func TestAPongCountsForTheSeedsThatItStandsFor(t *testing.T) {
	seed, other := newSigner(t), newSigner(t)
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
		s.neighbors("neighbor")
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
	s.neighbors("neighbor").found(pinned, other).after(time.Hour).want()
	if s.w.seeds[0].id != seed.id {
		t.Error("the pinned id was replaced")
	}
	// So it is with a seed whose text does not show the id, as a ticket.
	s = newScene(t, interval)
	s.w.seeds = append(s.w.seeds, newSeedRecord(WatchedSeed{Text: "ticket", ID: seed.id}))
	s.neighbors("neighbor").found("ticket", other, "/ip4/192.168.2.100/tcp/8495").after(time.Hour).want()
	s.found("ticket", seed, "/ip4/192.168.2.100/tcp/8495").after(5 * time.Second)
	s.hears(other.pong(t, 9, seedAddr))
	s.after(patience - 1).want("lost ticket")
	// A name is meant where discovery found it last.
	s = newScene(t, interval, name)
	s.neighbors("neighbor").found(name, seed, "/ip4/10.0.0.1/tcp/8495").found(name, other, "/ip4/10.0.0.2/tcp/8495/ws")
	s.after(5 * time.Second)
	s.hears(newSigner(t).pong(t, 1, "10.0.0.1:8495"))
	s.after(patience - 5*time.Second).want("lost " + name)
	s.hears(newSigner(t).pong(t, 1, "10.0.0.2:8495"))
	s.want("back " + name)
}

// A ping names its seed by id if the id is known, and else by address.
func TestAPingNamesTheSeedByIDOrAddress(t *testing.T) {
	seed := newSigner(t)
	pinned := "/ip4/192.168.2.100/tcp/8495/p2p/" + seed.id.String()
	for _, c := range []struct {
		seed  string
		found bool
		want  pingTarget
	}{
		{seedAddr, false, pingTarget{addrs: addrPorts(seedAddr)}},
		{seedAddr, true, pingTarget{id: seed.id, addrs: addrPorts(seedAddr)}},
		{pinned, false, pingTarget{id: seed.id}},
		{pinned, true, pingTarget{id: seed.id}},
		{"seed.test:8495", true, pingTarget{id: seed.id, addrs: addrPorts("10.0.0.1:8495")}},
		{"[2001:db8::1]:8495", false, pingTarget{addrs: addrPorts("[2001:db8::1]:8495")}},
		{"[::ffff:10.0.0.1]:8495", false, pingTarget{addrs: addrPorts("10.0.0.1:8495")}},
	} {
		s := newScene(t, interval, c.seed)
		s.neighbors("neighbor")
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
	s.neighbors("neighbor").after(time.Hour)
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings for a name that nobody has looked up", n)
	}
}

// A replayed answer of a lost seed does not bring the seed back.
func TestAnOldAnswerIsNotTheSeed(t *testing.T) {
	seed := newSigner(t)
	s := newScene(t, interval, seedAddr)
	s.neighbors("neighbor").found(seedAddr, seed)
	s.hears(seed.pong(t, 1_000_000, seedAddr))
	s.after(patience).want("lost " + seedAddr)
	for _, counter := range []uint64{1, 999_999, 1_000_000} {
		old := seed.answer(t, counter, stamp{newSigner(t).id, protocol.Session{3}, 5}, seedAddr)
		if sent := s.hears(old); len(sent) > 0 {
			t.Errorf("answer %d of an earlier run was forwarded", counter)
		}
	}
	s.want()
	if s.w.counts.replayed != 2 || s.w.counts.duplicate != 1 {
		t.Errorf("%+v", s.w.counts)
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

// Forged, malformed and replayed signals change nothing and are not forwarded.
func TestBadSignalsDoNothing(t *testing.T) {
	seed, other := newSigner(t), newSigner(t)
	good := seed.pong(t, 5, seedAddr)
	ask := other.ping(t, 5, pingTarget{addrs: addrPorts(seedAddr)})
	forged := func(p pong, key crypto.PrivKey) []byte {
		b, err := p.seal(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// Signed as a pong, sent as a ping.
	crossed, _ := sealSignal(seed.key, fieldPong, pingDomain, appendStamp(nil, stamp{seed.id, protocol.Session{1}, 6}), fieldPongSignature)
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
		"in another's name":     {forged(pong{stamp: stamp{seed.id, protocol.Session{1}, 6}, addrs: addrPorts(seedAddr)}, other.key)},
		"for another purpose":   {crossed},
		"of itself":             nil, // below
		"too large":             {append(slices.Clone(good), make([]byte, maxSignalBytes)...)},
		"both kinds":            {append(slices.Clone(good), ask...)},
		"twice":                 {append(slices.Clone(good), good...)},
		"empty":                 {nil, {}, {0}},
	}
	for name, msgs := range cases {
		s := newScene(t, interval, seedAddr)
		s.neighbors("neighbor").found(seedAddr, seed).after(patience).want("lost " + seedAddr)
		s.floods()
		before := s.w.counts
		if name == "of itself" {
			msgs = [][]byte{s.me.pong(t, 5, seedAddr), s.me.ping(t, 5, pingTarget{addrs: addrPorts(seedAddr)})}
		}
		asked := s.w.seeds[0].nextPing
		for i, msg := range msgs {
			s.record(s.w.receive(s.now, "neighbor", msg))
			if len(s.log) > 0 || len(s.sent) > 0 {
				t.Fatalf("%s, %d: %v, %d floods: %x", name, i, s.log, len(s.sent), msg)
			}
		}
		if s.w.seeds[0].nextPing != asked {
			t.Errorf("%s: it changed when the next ping is due", name)
		}
		counted := s.w.counts.malformed + s.w.counts.forged + s.w.counts.duplicate - before.malformed - before.forged - before.duplicate
		if int(counted) != len(msgs) {
			t.Errorf("%s: %d of %d counted: %+v", name, counted, len(msgs), s.w.counts)
		}
		// The true one still counts: no forgery replaced it.
		s.hears(good)
		s.want("back " + seedAddr)
	}
}

// Neighbors would not pass a second ping on within half an interval, so none is
// wasted, even where this node woke up and is in a hurry.
func TestNoPingIsWasted(t *testing.T) {
	for i := range 20 {
		seed, other := newSigner(t), newSigner(t)
		s := newScene(t, interval, seedAddr)
		s.w.rand = mathrand.New(mathrand.NewPCG(uint64(i), 1))
		s.neighbors("neighbor").found(seedAddr, seed).after(interval - 1)
		s.hears(other.ping(t, 1, s.w.seeds[0].target()))
		out, _ := s.w.advance(s.now, time.Hour)
		s.record(out)
		s.after(interval/2 - 1)
		if n := len(s.pings()); n > 0 {
			t.Fatalf("%d pings within half an interval of another's", n)
		}
		s.after(1)
		if n := len(s.pings()); n != 1 {
			t.Fatalf("%d pings after half an interval", n)
		}
	}
}
