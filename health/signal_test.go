package health

import (
	"github.com/go-smokesignal/smokesignal/internal/protocol"

	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Parsing a sealed signal returns the signal.
func TestSignalsSurviveSealAndParse(t *testing.T) {
	me, other := newSigner(t), newSigner(t)
	var many []string
	for i := range maxSignalAddrs {
		many = append(many, fmt.Sprintf("[2001:db8::%x]:65535", i))
	}
	for _, p := range []ping{
		{stamp{me.id, protocol.Session{1, 2, 3, 4, 5, 6, 7, 8}, 1}, pingTarget{id: other.id}, interval},
		{stamp{me.id, protocol.Session{}, 1<<64 - 1}, pingTarget{addrs: addrPorts(seedAddr)}, time.Millisecond},
		{stamp{me.id, protocol.Session{}, 1}, pingTarget{id: other.id, addrs: addrPorts(many...)}, protocol.MaxPingInterval},
	} {
		b, err := p.seal(me.key)
		if err != nil || len(b) > maxSignalBytes {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		s, err := parseSignal(b)
		if err != nil || s.ping == nil || s.pong != nil || !s.verified() {
			t.Fatalf("%+v: %+v, %v", p, s, err)
		}
		if got := s.ping; got.stamp != p.stamp || got.target.key() != p.target.key() || got.interval != p.interval {
			t.Errorf("%+v became %+v", p, got)
		}
	}
	for _, p := range []pong{
		{stamp{me.id, protocol.Session{1}, 1}, addrPorts(seedAddr, "[2001:db8::1]:1"), stamp{other.id, protocol.Session{2}, 77}},
		{stamp{me.id, protocol.Session{1}, 1}, nil, stamp{other.id, protocol.Session{2}, 77}},
		{stamp{me.id, protocol.Session{1}, 1}, addrPorts(many...), stamp{other.id, protocol.Session{2}, 77}},
	} {
		b, err := p.seal(me.key)
		if err != nil || len(b) > maxSignalBytes {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		s, err := parseSignal(b)
		if err != nil || s.pong == nil || s.ping != nil || !s.verified() {
			t.Fatalf("%+v: %+v, %v", p, s, err)
		}
		if got := s.pong; got.stamp != p.stamp || !slices.Equal(got.addrs, p.addrs) || got.answers != p.answers {
			t.Errorf("%+v became %+v", p, got)
		}
	}
}

// A fixed key and fixed numbers: what goes over the wire does not change
// unnoticed. Ed25519 signatures are the same each time.
func TestTheWireFormatIsFixed(t *testing.T) {
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 64)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ping{stamp{id, protocol.Session{1, 2, 3, 4, 5, 6, 7, 8}, 1000}, pingTarget{addrs: addrPorts("192.168.2.100:8495")}, interval}.seal(key)
	if err != nil {
		t.Fatal(err)
	}
	const want = "0a8401" + // Ping
		"1208" + "04c0a80264" + "06212f" + // /ip4/192.168.2.100/tcp/8495
		"1a26" + "0024080112203b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29" +
		"2208" + "0102030405060708" +
		"28e807" + "30904e" +
		"3a40" + "4809e25c44c6b94cdf5569792944f8cdaa7aba682eaf337d9c5f61cc6699daa6" +
		"72f30ad632f4d59996a86c3b641afd4f52858cfddbd50a2fa0fa7c723182d90a"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// Later versions may add fields. They are skipped, but signed.
func TestUnknownFieldsAreSigned(t *testing.T) {
	me := newSigner(t)
	unsigned := appendStamp(nil, stamp{me.id, protocol.Session{1}, 1})
	unsigned = frame.AppendBytes(unsigned, 100, "news")
	b, err := sealSignal(me.key, fieldPong, pongDomain, unsigned, fieldPongSignature)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := parseSignal(b); err != nil || !s.verified() {
		t.Errorf("%+v, %v", s, err)
	}
	b = bytes.Replace(b, []byte("news"), []byte("olds"), 1)
	if s, err := parseSignal(b); err != nil || s.verified() {
		t.Errorf("changed: %+v, %v", s, err)
	}
	later := frame.AppendUint(nil, 50, 1)
	if s, err := parseSignal(append(later, me.pong(t, 1)...)); err != nil || !s.verified() {
		t.Errorf("a field beside the signal: %v", err)
	}
}

// A malformed signal is refused.
func TestMalformedSignalsAreRefused(t *testing.T) {
	me := newSigner(t)
	seal := func(build func([]byte) []byte) []byte {
		b, err := sealSignal(me.key, fieldPing, pingDomain, build(nil), fieldPingSignature)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	whole := func(b []byte) []byte {
		return appendStamp(appendAddrs(b, addrPorts(seedAddr)), stamp{me.id, protocol.Session{1}, 1})
	}
	if s, err := parseSignal(seal(whole)); err != nil || !s.verified() {
		t.Fatal("the model of all cases is bad itself: ", err)
	}
	addr := func(text string) func([]byte) []byte {
		return func(b []byte) []byte {
			return whole(frame.AppendMessage(b, fieldAddrs, ma.StringCast(text).Bytes()))
		}
	}
	for name, b := range map[string][]byte{
		"no sender":        seal(func(b []byte) []byte { return appendAddrs(b, addrPorts(seedAddr)) }),
		"no target":        seal(func(b []byte) []byte { return appendStamp(b, stamp{me.id, protocol.Session{1}, 1}) }),
		"a long id":        seal(func(b []byte) []byte { return whole(frame.AppendBytes(b, fieldTarget, make([]byte, maxIDBytes+1))) }),
		"no id":            seal(func(b []byte) []byte { return whole(frame.AppendBytes(b, fieldTarget, "noise")) }),
		"a short session":  seal(func(b []byte) []byte { return frame.AppendBytes(whole(b), fieldSession, "short") }),
		"a name":           seal(addr("/dns4/seed.test/tcp/1")),
		"no port":          seal(addr("/ip4/10.0.0.1")),
		"port 0":           seal(addr("/ip4/10.0.0.1/tcp/0")),
		"unspecified":      seal(addr("/ip4/0.0.0.0/tcp/1")),
		"no multiaddr":     seal(func(b []byte) []byte { return whole(frame.AppendBytes(b, fieldAddrs, "\xff\xff")) }),
		"a long multiaddr": seal(func(b []byte) []byte { return whole(frame.AppendBytes(b, fieldAddrs, make([]byte, 300))) }),
		"17 addresses": seal(func(b []byte) []byte {
			for range maxSignalAddrs {
				b = appendAddrs(b, addrPorts("10.0.0.1:1"))
			}
			return whole(b)
		}),
		"no signature":     frame.AppendMessage(nil, fieldPing, whole(nil)),
		"an empty one":     frame.AppendMessage(nil, fieldPing, frame.AppendMessage(whole(nil), fieldPingSignature, "")),
		"a long one":       frame.AppendMessage(nil, fieldPing, frame.AppendMessage(whole(nil), fieldPingSignature, make([]byte, maxSignatureBytes+1))),
		"a field after it": frame.AppendMessage(nil, fieldPing, append(seal(whole)[3:], 0x28, 1)),
		"not a message":    frame.AppendUint(nil, fieldPing, 7),
		"neither":          frame.AppendBytes(nil, 3, "x"),
		"a group":          {0x0b, 0x0c},
	} {
		if s, err := parseSignal(b); err == nil {
			t.Errorf("%s: read as %+v %+v", name, s.ping, s.pong)
		}
	}
}

// A ping for one target also serves every narrower target.
func TestATargetCoversNarrowerOnes(t *testing.T) {
	a, b := newSigner(t).id, newSigner(t).id
	for _, c := range []struct {
		t, u pingTarget
		want bool
	}{
		{pingTarget{id: a}, pingTarget{id: a}, true},
		{pingTarget{id: a, addrs: addrPorts(seedAddr)}, pingTarget{id: a}, true},
		{pingTarget{id: a, addrs: addrPorts(seedAddr)}, pingTarget{addrs: addrPorts(seedAddr)}, true},
		{pingTarget{addrs: addrPorts(seedAddr, "10.0.0.1:1")}, pingTarget{addrs: addrPorts(seedAddr)}, true},
		{pingTarget{id: a}, pingTarget{id: a, addrs: addrPorts(seedAddr)}, false},
		{pingTarget{addrs: addrPorts(seedAddr)}, pingTarget{id: a, addrs: addrPorts(seedAddr)}, false},
		{pingTarget{id: b}, pingTarget{id: a}, false},
		{pingTarget{addrs: addrPorts("192.168.2.100:8496")}, pingTarget{addrs: addrPorts(seedAddr)}, false},
	} {
		if got := c.t.covers(c.u); got != c.want {
			t.Errorf("%v covers %v: %v", c.t, c.u, got)
		}
	}
}

// The limit of signals applies to the neighbor that exceeds it and to no other.
func TestOnlyAFloodingNeighborIsLimited(t *testing.T) {
	m, now := neighborLimits{}, time.Unix(1, 0)
	accepted := 0
	for range 10_000 {
		if m.allow("loud", now) {
			accepted++
		}
		now = now.Add(time.Millisecond)
	}
	if most := signalBurst + 10*signalsPerSecond; accepted > most || accepted < most-10 {
		t.Errorf("%d accepted in ten seconds", accepted)
	}
	if !m.allow("quiet", now) {
		t.Error("another is refused")
	}
	for i := range 2 * maxLimiters {
		m.allow(peer.ID(fmt.Sprint(i)), now)
	}
	if len(m) > maxLimiters {
		t.Errorf("%d neighbors remembered", len(m))
	}
	now = now.Add(time.Minute)
	if !m.allow("new", now) || len(m) != 1 {
		t.Errorf("%d remembered after a pause", len(m))
	}
}

// FuzzSignal: no input panics; a parsed signal is bounded, and a verified one was
// signed by the sender that it names.
func FuzzSignal(f *testing.F) {
	me, other := newSigner(f), newSigner(f)
	f.Add(me.ping(f, 1, pingTarget{id: other.id, addrs: addrPorts(seedAddr, "[2001:db8::1]:1")}))
	f.Add(me.pong(f, 2, seedAddr))
	f.Add([]byte{0x0a, 0x00})
	known := map[string]bool{}
	for _, b := range [][]byte{me.ping(f, 1, pingTarget{id: other.id, addrs: addrPorts(seedAddr, "[2001:db8::1]:1")}), me.pong(f, 2, seedAddr)} {
		s, err := parseSignal(b)
		if err != nil {
			f.Fatal(err)
		}
		known[string(s.signed)] = true
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSignal(b)
		if err != nil {
			return
		}
		if (s.ping == nil) == (s.pong == nil) || s.stamp().sender == "" || len(s.signature) == 0 {
			t.Fatalf("%+v", s)
		}
		var list []netip.AddrPort
		if s.ping != nil {
			list = s.ping.target.addrs
		} else {
			list = s.pong.addrs
		}
		if len(list) > maxSignalAddrs || !slices.IsSortedFunc(list, netip.AddrPort.Compare) {
			t.Fatalf("addresses %v", list)
		}
		if s.verified() && s.stamp().sender == me.id && !known[string(s.signed)] {
			t.Fatalf("forged: %x", b)
		}
	})
}
