package health

import (
	"github.com/go-smokesignal/smokesignal/internal/protocol"

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

// A signer is a node with a key, which can sign signals.
type signer struct {
	key crypto.PrivKey
	id  peer.ID
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, id}
}

func addrPorts(texts ...string) (list []netip.AddrPort) {
	for _, s := range texts {
		list = append(list, netip.MustParseAddrPort(s))
	}
	return sortUnique(list)
}

func (p signer) ping(t testing.TB, counter uint64, target pingTarget) []byte {
	t.Helper()
	b, err := ping{stamp: stamp{p.id, protocol.Session{1}, counter}, target: target, interval: interval}.seal(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p signer) pong(t testing.TB, counter uint64, addrs ...string) []byte {
	t.Helper()
	return p.answer(t, counter, stamp{}, addrs...)
}

func (p signer) answer(t testing.TB, counter uint64, to stamp, addrs ...string) []byte {
	t.Helper()
	b, err := pong{stamp: stamp{p.id, protocol.Session{1}, counter}, addrs: addrPorts(addrs...), answers: to}.seal(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seedOf returns the seed that discovery makes of a text: it knows the addresses and the
// id that stand in it.
func seedOf(text string) WatchedSeed {
	s := WatchedSeed{Text: text}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		s.Addrs = []netip.AddrPort{ap}
	} else if a, err := ma.NewMultiaddr(text); err == nil {
		addr, id := peer.SplitAddr(a)
		s.ID = id
		if ap, ok := endpoint(addr); ok {
			s.Addrs = []netip.AddrPort{ap}
		}
	}
	return s
}

// scene drives a core: time goes on only by after.
type scene struct {
	t     *testing.T
	w     *watchCore
	me    signer
	begin time.Time
	now   time.Time
	next  time.Time
	log   []string // changes, in order
	sent  [][]byte // floods since the last call of floods
}

func newScene(t *testing.T, interval time.Duration, seeds ...string) *scene {
	me := newSigner(t)
	begin := time.Unix(1_000_000_000, 0)
	var watched []WatchedSeed
	for _, text := range seeds {
		watched = append(watched, seedOf(text))
	}
	return &scene{
		t: t, me: me, begin: begin, now: begin,
		w: newWatchCore(me.key, me.id, protocol.Session{7}, 1000, interval, timeout, watched, mathrand.New(mathrand.NewPCG(1, 2))),
	}
}

// record notes the floods and changes that the core has put out.
func (s *scene) record(out []effect) {
	s.t.Helper()
	for _, o := range out {
		switch o := o.(type) {
		case flood:
			s.sent = append(s.sent, o.msg)
		case netsplitChange:
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
	s.record(out)
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

func (s *scene) neighbors(list ...peer.ID) *scene {
	s.record(s.w.setNeighbors(s.now, list))
	s.advance()
	return s
}

// heard lets something come over the link to p, as its keepalives do.
func (s *scene) heard(p signer) *scene {
	s.record(s.w.heardPeer(s.now, p.id))
	return s
}

func (s *scene) found(seed string, p signer, addrs ...string) *scene {
	var list []ma.Multiaddr
	for _, a := range addrs {
		list = append(list, ma.StringCast(a))
	}
	s.record(s.w.seedFound(s.now, seed, p.id, list))
	return s
}

// hears receives a signal from a neighbor and returns the floods that follow.
func (s *scene) hears(msg []byte) [][]byte {
	s.floods()
	s.record(s.w.receive(s.now, "neighbor", msg))
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

// A silent seed is reported lost once, and back once.
func TestASeedIsLostOnceAndBackOnce(t *testing.T) {
	seed := newSigner(t)
	s := newScene(t, interval, seedAddr)
	s.neighbors("neighbor").found(seedAddr, seed).want()
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

// A seed is reported lost only after two pings without an answer.
func TestASeedIsPingedTwiceBeforeItIsLost(t *testing.T) {
	for range 50 {
		s := newScene(t, interval, seedAddr)
		s.w.rand = mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 1))
		s.neighbors("neighbor").found(seedAddr, newSigner(t))
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

// A seed that was never heard is not reported lost.
func TestASeedNeverHeardIsNotLost(t *testing.T) {
	s := newScene(t, interval, seedAddr, "seed.test:8495")
	s.neighbors("neighbor").after(time.Hour).want()
	if n := len(s.pings()); n == 0 {
		t.Error("nobody asked for it: it may well be in the overlay")
	}
	s.hears(newSigner(t).pong(t, 1, seedAddr)) // it is
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
}

// A node without neighbors reports no seed lost.
func TestNothingIsReportedWithoutNeighbors(t *testing.T) {
	seed := newSigner(t)
	s := newScene(t, interval, seedAddr)
	s.found(seedAddr, seed)
	s.after(time.Hour).want()
	s.neighbors("neighbor")
	s.after(patience - 1).want() // the clock began with the neighbor
	s.neighbors()
	s.after(time.Hour).want()
	if len(s.pings()) == 0 || s.next != (time.Time{}) {
		t.Error("it asks with a neighbor, and has nothing to do without")
	}
	s.neighbors("neighbor")
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
	s.neighbors()
	s.after(time.Hour).neighbors("neighbor").after(time.Hour).want() // still the same loss
	s.hears(seed.pong(t, 1))
	s.want("back " + seedAddr)
}

// A neighbor is heard when something comes over the link, and needs no pings while
// it keeps coming. Whether the link stands makes no difference: one that was cut
// stands until its keepalives are missed.
func TestANeighborIsHeardOverItsLink(t *testing.T) {
	const keepalive = 5 * time.Second
	seed, other := newSigner(t), newSigner(t)
	s := newScene(t, interval, seedAddr)
	s.found(seedAddr, seed).neighbors("neighbor", other.id, seed.id)
	for range 100 {
		s.after(keepalive).heard(seed)
	}
	s.want()
	if n := len(s.pings()); n > 0 {
		t.Errorf("%d pings for a neighbor that speaks", n)
	}
	for range 4 {
		s.after(keepalive).heard(other).want()
	}
	s.after(patience - 4*keepalive - 1).want()
	if n := len(s.pings()); n < 2 {
		t.Errorf("%d pings for a neighbor that fell silent", n)
	}
	s.after(1).want("lost " + seedAddr)
	s.neighbors("neighbor", other.id).neighbors("neighbor", other.id, seed.id).want("back " + seedAddr)

	s.after(7*time.Second).neighbors("neighbor", other.id)
	s.after(patience - 7*time.Second - 1).want()
	s.after(1).want("lost " + seedAddr)
	s.neighbors("neighbor", other.id, seed.id).want("back " + seedAddr)
	s.after(patience).want("lost " + seedAddr)
	s.heard(seed).want("back " + seedAddr)

	// With a shorter interval its keepalives alone would come too late.
	s = newScene(t, keepalive/5, seedAddr)
	s.found(seedAddr, seed).neighbors("neighbor", seed.id)
	for i := range uint64(100) {
		for range 4 {
			s.after(keepalive / 4)
			if n := len(s.pings()); n > 0 {
				s.hears(seed.pong(t, 4*i+1, seedAddr))
			}
		}
		s.heard(seed)
	}
	s.want()
}

// Bytes that a link carried before this machine slept do not count after the sleep.
func TestAfterSleepANeighborGetsAFullRound(t *testing.T) {
	seed := newSigner(t)
	s := newScene(t, interval, seedAddr)
	s.found(seedAddr, seed).neighbors("neighbor", seed.id)
	s.after(4 * time.Second).heard(seed)
	s.now = s.now.Add(time.Hour)
	s.advance()
	s.after(patience - 1).want()
	s.after(1).want("lost " + seedAddr)
}

// A node that slept or ran late waits longer before it reports a seed lost.
func TestSleepAndLatenessPutOffTheVerdict(t *testing.T) {
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
			s.neighbors("neighbor").found(seedAddr, newSigner(t))
			s.after(patience - 1).want()
			// The verdict is due in a nanosecond, and we come late.
			s.now = s.next.Add(c.late)
			out, next := s.w.advance(s.now, c.drift)
			s.record(out)
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

// TestUsualLatenessPutsOffNoVerdict: timers fire a little late at every call. If a
// timeout or interval is shorter than that, a bound taken from it alone would put the
// verdict off for ever, and the node would never report a netsplit.
func TestUsualLatenessPutsOffNoVerdict(t *testing.T) {
	for _, c := range []struct{ interval, timeout, late time.Duration }{
		{interval, timeout, time.Millisecond},
		{interval, time.Millisecond, time.Millisecond},
		{interval, 1, 1},
		{interval, 1, 20 * time.Millisecond},
		{interval, 1, usualLateness},
		{time.Second, 1, usualLateness},
		{10 * time.Millisecond, 1, 20 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("interval %v, timeout %v, late by %v", c.interval, c.timeout, c.late), func(t *testing.T) {
			s := newScene(t, c.interval, seedAddr)
			s.w.timeout = c.timeout
			s.neighbors("neighbor").found(seedAddr, newSigner(t))
			due := s.begin.Add(2*c.interval + c.timeout)
			for s.now.Before(due) {
				s.want()
				s.now = s.next.Add(c.late)
				s.advance()
			}
			// The ping before the verdict was late, too.
			for calls := 0; len(s.log) == 0 && calls < 4; calls++ {
				s.now = s.next.Add(c.late)
				s.advance()
			}
			s.want("lost " + seedAddr)
			if late := s.now.Sub(due); late > 4*c.late {
				t.Errorf("lost %v too late", late)
			}
		})
	}
}

// TestUnusualLatenessPutsOffTheVerdict: with a timeout of almost nothing, signals that
// arrived while this machine was busy are still read before a seed is lost.
func TestUnusualLatenessPutsOffTheVerdict(t *testing.T) {
	s := newScene(t, interval, seedAddr)
	s.w.timeout = 1
	s.neighbors("neighbor").found(seedAddr, newSigner(t))
	s.after(2 * interval).want()
	s.now = s.next.Add(usualLateness + 1) // the verdict is due
	s.advance()
	s.want()
	s.after(2*usualLateness - 1).want()
	s.after(1).want("lost " + seedAddr)
}

// A machine that is late again and again, by more than usual, gives no verdict.
func TestAMachineThatIsAlwaysTooBusyLosesNoSeed(t *testing.T) {
	s := newScene(t, interval, seedAddr)
	s.neighbors("neighbor").found(seedAddr, newSigner(t))
	for range 100 {
		s.now = s.next.Add(2 * time.Second)
		s.advance()
	}
	s.want()
}

// A node does not watch a seed that is the node itself.
func TestNodeDoesNotWatchItself(t *testing.T) {
	s := newScene(t, interval, seedAddr, "seed.test:8495", "other.test:8495", "10.0.0.9:1")
	s.w.seeds = append(s.w.seeds, newSeedRecord(WatchedSeed{Text: "by id", ID: s.me.id, Addrs: addrPorts("10.0.0.1:1")}))
	s.w.setOwnAddrs(addrPorts(seedAddr))
	s.neighbors("neighbor")
	s.found("seed.test:8495", s.me)
	s.record(s.w.seedIsSelf("other.test:8495"))
	s.record(s.w.seedIsSelf("unknown:1"))
	s.hears(newSigner(t).pong(t, 1, seedAddr))
	s.after(time.Hour).want()
	for _, p := range s.pings() {
		if p.target.key() != (pingTarget{addrs: addrPorts("10.0.0.9:1")}).key() {
			t.Errorf("asked for itself: %+v", p.target)
		}
	}
	// A lost seed whose address became ours is over, and so is one we turn out to be.
	other := newSigner(t)
	s = newScene(t, interval, "seed.test:8495")
	s.neighbors("neighbor").found("seed.test:8495", other, "/ip4/10.0.0.1/tcp/1").after(patience).want("lost seed.test:8495")
	s.record(s.w.seedIsSelf("seed.test:8495"))
	s.want("back seed.test:8495")
	s.after(time.Hour).want()
}

// One seed in two spellings is reported under each of them.
func TestOneSeedInTwoSpellingsIsTwoReports(t *testing.T) {
	seed := newSigner(t)
	second := "/ip4/192.168.2.100/tcp/8495"
	s := newScene(t, interval, seedAddr, second, seedAddr)
	s.neighbors("neighbor").found(seedAddr, seed)
	s.hears(seed.pong(t, 1, seedAddr))
	s.after(patience).want("lost "+seedAddr, "lost "+second)
	s.hears(seed.pong(t, 2, seedAddr))
	s.want("back "+seedAddr, "back "+second)
}

// Whatever happens, the reports of a seed alternate, and none is against the
// rules. The rules are written down here a second time, as simply as can be.
func TestReportsKeepTheRulesInAnyOrder(t *testing.T) {
	for run := range 50 {
		r := mathrand.New(mathrand.NewPCG(uint64(run), 7))
		seed := newSigner(t)
		s := newScene(t, interval, "/ip4/192.168.2.100/tcp/8495/p2p/"+seed.id.String())
		s.w.rand = r
		var heard, joined, woke time.Time
		lost, linked := false, false
		counter := uint64(0)
		for range 400 {
			was := s.now
			switch r.IntN(9) {
			case 0:
				linked = !linked
				if linked {
					joined = s.now
					s.neighbors("neighbor")
				} else {
					s.neighbors()
				}
			case 1:
				counter++
				s.hears(seed.pong(t, counter, seedAddr))
				heard = s.now
			case 2:
				s.heard(seed)
				heard = s.now
			case 3: // asleep
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
func TestANodeThatCannotSignLosesNoSeed(t *testing.T) {
	s := newScene(t, interval, seedAddr)
	s.w.key = brokenKey{s.me.key}
	s.neighbors("neighbor").found(seedAddr, newSigner(t)).after(time.Hour).want()
	if s.w.counts.unsigned == 0 {
		t.Error("not counted")
	}
	s.w.setOwnAddrs(addrPorts("10.0.0.1:1"))
	if sent := s.hears(newSigner(t).ping(t, 1, pingTarget{addrs: addrPorts("10.0.0.1:1")})); len(sent) > 0 {
		t.Errorf("an answer without signature: %x", sent)
	}
}

type brokenKey struct{ crypto.PrivKey }

func (brokenKey) Sign([]byte) ([]byte, error) { return nil, errors.New("broken") }
