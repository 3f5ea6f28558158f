package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	"go.uber.org/goleak"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// newHost returns a host that listens on the given multiaddrs and closes with the test.
func newHost(t *testing.T, listen ...string) corehost.Host {
	t.Helper()
	opts := []libp2p.Option{libp2p.DisableRelay(), libp2p.DisableMetrics()}
	if len(listen) == 0 {
		opts = append(opts, libp2p.NoListenAddrs)
	} else {
		opts = append(opts, libp2p.ListenAddrStrings(listen...))
	}
	return startHost(t, opts...)
}

func startHost(t *testing.T, opts ...libp2p.Option) corehost.Host {
	t.Helper()
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// portOf returns the port on which a host listens for a protocol ("tcp", "udp").
func portOf(t *testing.T, h corehost.Host, code int) string {
	t.Helper()
	for _, a := range h.Network().ListenAddresses() {
		if v, err := a.ValueForProtocol(code); err == nil {
			return v
		}
	}
	t.Fatalf("%v listens on no such port", h.Addrs())
	return ""
}

func mustParse(t *testing.T, text string) *seed.Seed {
	t.Helper()
	s, err := seed.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantFound finds the seed, and checks its id and that a connection to it stays.
func wantFound(t *testing.T, h, want corehost.Host, s *seed.Seed) peer.AddrInfo {
	t.Helper()
	info, err := findSeed(t.Context(), h, s)
	if err != nil {
		t.Fatalf("seed %s: %v", s, err)
	}
	if info.ID != want.ID() || len(info.Addrs) == 0 {
		t.Fatalf("seed %s is %v, want %s", s, info, want.ID())
	}
	if c := h.Network().Connectedness(want.ID()); c != network.Connected {
		t.Fatalf("seed %s: %v after Find", s, c)
	}
	wantNoJunk(t, h, want.ID())
	return info
}

// wantNoJunk fails if the peerstore knows other peers than h and the given ones.
func wantNoJunk(t *testing.T, h corehost.Host, known ...peer.ID) {
	t.Helper()
	for _, p := range h.Peerstore().Peers() {
		if p != h.ID() && !slices.Contains(known, p) {
			t.Errorf("peer %s was left in the peerstore with addresses %v", p, h.Peerstore().Addrs(p))
		}
	}
}

// wantFails fails to find a seed and returns the error, which must be one line.
func wantFails(t *testing.T, h corehost.Host, s *seed.Seed, kind error) error {
	t.Helper()
	info, err := findSeed(t.Context(), h, s)
	if err == nil {
		t.Fatalf("seed %s: found %v, want %v", s, info, kind)
	}
	if !errors.Is(err, kind) {
		t.Errorf("seed %s: %v (%T), want %v", s, err, err, kind)
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 200 {
		t.Errorf("seed %s: the text is not one short line: %q", s, err)
	}
	wantNoJunk(t, h)
	return err
}

// A seed is found over each transport.
func TestFindOnEveryTransport(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, listen string }{
		{"tcp", "/ip4/127.0.0.1/tcp/0"},
		{"quic", "/ip4/127.0.0.1/udp/0/quic-v1"},
		{"websocket", "/ip4/127.0.0.1/tcp/0/ws"},
		{"webtransport", "/ip4/127.0.0.1/udp/0/quic-v1/webtransport"},
		{"webrtc-direct", "/ip4/127.0.0.1/udp/0/webrtc-direct"},
	} {
		t.Run(c.name, func(t *testing.T) {
			there := newHost(t, c.listen)
			addr := there.Addrs()[0].String()
			wantFound(t, newHost(t), there, mustParse(t, addr))
			wantFound(t, newHost(t), there, mustParse(t, addr+"/p2p/"+there.ID().String()))

			other := testID
			_, err := findSeed(t.Context(), newHost(t), mustParse(t, addr+"/p2p/"+other))
			wrong, ok := errors.AsType[*WrongIDError](err)
			if !ok || wrong.Actual != there.ID() || wrong.Expected.String() != other {
				t.Errorf("the wrong id: %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), there.ID().String())) {
				t.Errorf("%q does not name both ids", err)
			}
		})
	}
}

// A seed given as host and port is found over TCP and over QUIC.
func TestFindHostPortTriesTCPAndQUIC(t *testing.T) {
	t.Parallel()
	tcp := newHost(t, "/ip4/127.0.0.1/tcp/0")
	quic := newHost(t, "/ip4/127.0.0.1/udp/0/quic-v1")
	both := newHost(t, "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1")
	wantFound(t, newHost(t), tcp, mustParse(t, "127.0.0.1:"+portOf(t, tcp, ma.P_TCP)))
	wantFound(t, newHost(t), quic, mustParse(t, "127.0.0.1:"+portOf(t, quic, ma.P_UDP)))
	wantFound(t, newHost(t), both, mustParse(t, "127.0.0.1:"+portOf(t, both, ma.P_TCP)))
	wantFound(t, newHost(t), both, mustParse(t, "127.0.0.1:"+portOf(t, both, ma.P_UDP)))
}

// A seed is found at an IPv6 address.
func TestFindWithIPv6(t *testing.T) {
	t.Parallel()
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("no IPv6 loopback here: ", err)
	} else {
		l.Close()
	}
	there := newHost(t, "/ip6/::1/tcp/0")
	wantFound(t, newHost(t), there, mustParse(t, "[::1]:"+portOf(t, there, ma.P_TCP)))
}

// closedPort returns a port without a listener. It is below the range from which the system chooses
// ports by itself, since another process could get the port next.
func closedPort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10_000 + mathrand.IntN(10_000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// Without care the error of the second try is "dial backoff", and a closed port takes QUIC's 5 s
// although TCP was refused at once.
func TestFindSaysRefusedEachTimeAndSoon(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := closedPort(t)
	id := testID
	for _, text := range []string{
		"127.0.0.1:" + port,
		"/ip4/127.0.0.1/tcp/" + port,
		"/ip4/127.0.0.1/tcp/" + port + "/p2p/" + id,
	} {
		for range 3 {
			start := time.Now()
			s := mustParse(t, text)
			_, err := findSeed(t.Context(), h, s)
			if !errors.Is(err, ErrUnreachable) || !errors.Is(err, syscall.ECONNREFUSED) || err.Error() != "connection refused" {
				t.Errorf("%s: %v", text, err)
			}
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("%s: took %v to say so", text, d)
			}
		}
	}
}

// A seed without an id in its text is found again with a new identity.
func TestSeedWithANewIdentityIsFound(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	first := newHost(t, "/ip4/127.0.0.1/tcp/0")
	s := mustParse(t, "127.0.0.1:"+portOf(t, first, ma.P_TCP))
	wantFound(t, h, first, s)
	first.Close()
	second := newHost(t, "/ip4/127.0.0.1/tcp/"+portOf2(s))
	info, err := findSeed(t.Context(), h, s)
	if err != nil || info.ID != second.ID() {
		t.Fatalf("found %v, %v, want %s", info, err, second.ID())
	}
}

func portOf2(s *seed.Seed) string { return strconv.Itoa(int(s.Targets()[0].At.Port())) }

// The error of a seed that is this node is ErrSelf.
func TestFindKnowsItself(t *testing.T) {
	t.Parallel()
	h := newHost(t, "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1")
	tcp := portOf(t, h, ma.P_TCP)
	for _, text := range []string{
		"127.0.0.1:" + tcp,
		"127.0.0.1:" + portOf(t, h, ma.P_UDP),
		"/ip4/127.0.0.1/tcp/" + tcp,
		"/ip4/127.0.0.1/tcp/" + tcp + "/p2p/" + h.ID().String(),
		"/ip4/192.0.2.1/tcp/1/p2p/" + h.ID().String(),
	} {
		wantFails(t, h, mustParse(t, text), ErrSelf)
	}
	// Behind a port that is forwarded to us, only the handshake shows that the node is this one.
	wantFails(t, h, mustParse(t, forward(t, "127.0.0.1:"+tcp)), ErrSelf)

	s := mustParse(t, "localhost:"+tcp)
	s.DNS = &madns.MockResolver{IP: map[string][]net.IPAddr{"localhost": {{IP: net.IPv6loopback}, {IP: net.IPv4(127, 0, 0, 1)}}}}
	wantFails(t, h, s, ErrSelf)
}

// forward returns the address of a TCP relay to addr.
func forward(t *testing.T, addr string) string {
	return serveTCP(t, func(c net.Conn) {
		to, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer to.Close()
		go func() { io.Copy(to, c); to.Close() }()
		io.Copy(c, to)
	})
}

// serveTCP runs f for each connection and closes it then, until the test ends.
func serveTCP(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			tasks.Go(func() { f(c); c.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		tasks.Wait()
	})
	return l.Addr().String()
}

// The error of a seed that is not a node says what answered there.
func TestFindSaysWhatAnsweredInsteadOfANode(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	hangup := serveTCP(t, func(net.Conn) {})
	wantFails(t, h, mustParse(t, strings.TrimPrefix(web.URL, "http://")), ErrNotSmokesignal)
	if err := wantFails(t, h, mustParse(t, hangup), ErrUnreachable); err.Error() != "it closed the connection" {
		t.Errorf("hung up: %q", err)
	}
	host, port, _ := net.SplitHostPort(strings.TrimPrefix(web.URL, "http://"))
	wantFails(t, h, mustParse(t, "/ip4/"+host+"/tcp/"+port+"/ws"), ErrNotSmokesignal)
}

// The search for a seed ends with its context.
func TestFindEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	silent := mustParse(t, serveTCP(t, func(c net.Conn) { io.Copy(io.Discard, c) }))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := findSeed(ctx, h, silent)
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || err.Error() != "timeout" {
		t.Errorf("after the deadline: %v", err)
	}
	gone := errors.New("gone")
	canceled, stop := context.WithCancelCause(t.Context())
	stop(gone)
	if _, err := findSeed(canceled, h, silent); err != gone {
		t.Errorf("canceled: %v", err)
	}
	wantNoJunk(t, h)
}

// The search for a silent seed ends after five seconds.
func TestFindEndsAfterFiveSeconds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the limit")
	}
	h := newHost(t)
	silent := mustParse(t, serveTCP(t, func(c net.Conn) { io.Copy(io.Discard, c) }))
	start := time.Now()
	err := wantFails(t, h, silent, ErrUnreachable)
	if d := time.Since(start); d < 4*time.Second || d > 7*time.Second || err.Error() != "timeout" {
		t.Errorf("%v after %v", err, d)
	}
}

// A seed is found by DNS names, at each of their addresses.
func TestFindNames(t *testing.T) {
	t.Parallel()
	there := newHost(t, "/ip4/127.0.0.1/tcp/0")
	port := portOf(t, there, ma.P_TCP)
	lo := net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}
	dead := net.IPAddr{IP: net.IPv4(127, 0, 0, 99)}
	text := func(s string) []string { return []string{"dnsaddr=" + s} }
	dns := &madns.MockResolver{
		IP: map[string][]net.IPAddr{"seed.test": {lo}, "seeds.test": {dead, lo}, "dead.test": {dead}, "odd.test": {{IP: net.IPv4zero}}},
		TXT: map[string][]string{
			"_dnsaddr.one.test":   text("/ip4/127.0.0.1/tcp/" + port + "/p2p/" + there.ID().String()),
			"_dnsaddr.two.test":   text("/dnsaddr/one.test"),
			"_dnsaddr.name.test":  text("/dns4/seed.test/tcp/" + port),
			"_dnsaddr.round.test": text("/dnsaddr/round.test"),
			"_dnsaddr.wrong.test": text("/ip4/127.0.0.1/tcp/" + port + "/p2p/" + testID),
		},
	}
	with := func(text string) *seed.Seed {
		s := mustParse(t, text)
		s.DNS = dns
		return s
	}
	for _, text := range []string{
		"seed.test:" + port,
		"seeds.test:" + port,
		"/dns4/seed.test/tcp/" + port,
		"/dns/seeds.test/tcp/" + port,
		"/dns4/seeds.test/tcp/" + port + "/p2p/" + there.ID().String(),
		"/dnsaddr/one.test",
		"/dnsaddr/one.test/p2p/" + there.ID().String(),
		"/dnsaddr/two.test",
		"/dnsaddr/name.test",
	} {
		wantFound(t, newHost(t), there, with(text))
	}
	h := newHost(t)
	wantFails(t, h, with("dead.test:"+port), syscall.ECONNREFUSED)
	for _, text := range []string{"odd.test:" + port, "/dns6/seed.test/tcp/" + port, "/dnsaddr/round.test", "/dnsaddr/none.test", "/dnsaddr/one.test/p2p/" + testID} {
		wantFails(t, h, with(text), ErrUnresolvable)
	}
	if _, err := findSeed(t.Context(), h, with("/dnsaddr/wrong.test")); err == nil {
		t.Error("a record that names another id led to a node")
	} else if _, ok := errors.AsType[*WrongIDError](err); !ok {
		t.Errorf("a record that names another id: %v", err)
	}
	for _, c := range []struct {
		err  *net.DNSError
		text string
	}{
		{&net.DNSError{Err: "no such host", Name: "x.test", IsNotFound: true}, "no such host"},
		{&net.DNSError{Err: "i/o timeout", Name: "x.test", IsTimeout: true}, "the name server does not answer"},
		{&net.DNSError{Err: "server misbehaving", Name: "x.test"}, "the name cannot be looked up"},
	} {
		for _, seed := range []string{"x.test:1", "/dns4/x.test/tcp/1", "/dns4/x.test/tcp/1/wss", "/dnsaddr/x.test"} {
			s := mustParse(t, seed)
			s.DNS = brokenDNS{c.err}
			if err := wantFails(t, h, s, ErrUnresolvable); err.Error() != c.text {
				t.Errorf("%s: %q, want %q", seed, err, c.text)
			}
		}
	}
}

type brokenDNS struct{ err error }

func (b brokenDNS) LookupIPAddr(context.Context, string) ([]net.IPAddr, error) { return nil, b.err }
func (b brokenDNS) LookupTXT(context.Context, string) ([]string, error)        { return nil, b.err }

// A wrapped host hides the swarm; that must not bring back "dial backoff".
func TestFindThroughAWrappedHost(t *testing.T) {
	t.Parallel()
	there := newHost(t, "/ip4/127.0.0.1/tcp/0")
	h := wrapped{newHost(t)}
	wantFound(t, h, there, mustParse(t, "127.0.0.1:"+portOf(t, there, ma.P_TCP)))
	refused := mustParse(t, "/ip4/127.0.0.1/tcp/"+closedPort(t)+"/p2p/"+testID)
	for range 3 {
		if _, err := findSeed(t.Context(), h, refused); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
	}
	// The swarm's back-off cannot be cleared. It begins if other parts of the driver dial the node.
	at := peer.AddrInfo{ID: there.ID(), Addrs: there.Addrs()}
	there.Close()
	other := wrapped{newHost(t)}
	if err := other.Connect(t.Context(), at); err == nil {
		t.Fatal("connected to a closed host")
	}
	failed := connect(t.Context(), other, seed.Target{}, at.ID, at.Addrs)
	if !errors.Is(failed.err, ErrUnreachable) || failed.err.Error() != failedBefore {
		t.Errorf("during the back-off: %v", failed.err)
	}
}

type wrapped struct{ corehost.Host }

func (w wrapped) Network() network.Network { return hidden{w.Host.Network()} }

type hidden struct{ network.Network }

// The search for a seed leaves no goroutine.
func TestFindLeavesNoGoroutine(t *testing.T) {
	there := newHost(t, "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1")
	h := newHost(t)
	s := mustParse(t, "127.0.0.1:"+portOf(t, there, ma.P_TCP))
	wantFound(t, h, there, s) // what libp2p keeps for a connection is there now
	refused := mustParse(t, "127.0.0.1:"+closedPort(t))
	findSeed(t.Context(), h, refused)
	noneLeft := leaks.Watch(t, goleak.IgnoreAnyFunction("github.com/libp2p/go-libp2p/p2p/net/swarm.(*dialSync).getActiveDial"))
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := findSeed(t.Context(), h, s); err != nil {
				t.Error(err)
			}
			findSeed(t.Context(), h, refused)
		})
	}
	all.Wait()
	noneLeft()
}

// The text of a SeedError is one line with the seed, the cause and the next try.
func TestSeedErrorReadsAsOneLine(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := mustParse(t, "127.0.0.1:"+closedPort(t))
	_, err := findSeed(t.Context(), h, s)
	e := &SeedError{Seed: s.String(), Err: err, Next: time.Now().Add(4100 * time.Millisecond)}
	if want := "seed " + s.String() + ": connection refused, next try in 4s"; e.Error() != want {
		t.Errorf("%q, want %q", e, want)
	}
	if !errors.Is(e, ErrUnreachable) || !errors.Is(e, syscall.ECONNREFUSED) {
		t.Error("the cause is lost")
	}
}

// The text of a SeedError says when the next try is.
func TestSeedErrorSaysWhenTheNextTryIs(t *testing.T) {
	bubble.Test(t, testNextTry)
}

func testNextTry(t *testing.T) {
	const noNext = -time.Hour
	for _, c := range []struct {
		next time.Duration
		want string
	}{
		{noNext, "seed x: this is the node itself"},
		{20 * time.Millisecond, "seed x: this is the node itself, next try in 20ms"},
		{1, "seed x: this is the node itself, next try in 10ms"},
		{8400 * time.Millisecond, "seed x: this is the node itself, next try in 8s"},
	} {
		e := &SeedError{Seed: "x", Err: ErrSelf}
		if c.next != noNext {
			e.Next = time.Now().Add(c.next)
		}
		if got := e.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// The error of another network is one short line with both names.
func TestOtherNetworkIsNamedInOneLine(t *testing.T) {
	t.Parallel()
	if got := otherNetwork("lab", "home").Error(); got != `the peer belongs to another network: "lab", not "home"` {
		t.Error(got)
	}
	long := otherNetwork(strings.Repeat("\n", 1000), "home")
	if !errors.Is(long, ErrOtherNetwork) || strings.Contains(long.Error(), "\n") || len(long.Error()) > 250 {
		t.Errorf("%q", long)
	}
}

// An explained error still matches the original one.
func TestExplainKeepsWhatItExplained(t *testing.T) {
	t.Parallel()
	if explain(nil) != nil {
		t.Error("nil became an error")
	}
	for _, err := range []error{ErrSelf, ErrFull} {
		if got := explain(err); !errors.Is(got, err) || got.Error() != errs.Text(err) {
			t.Errorf("%v became %v", err, got)
		}
	}
	for _, err := range []error{fmt.Errorf("x: %w", ErrOtherNetwork), &WrongIDError{}} {
		if got := explain(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	once := explain(syscall.ECONNREFUSED)
	if explain(fmt.Errorf("outer: %w", once)) != once {
		t.Error("explained twice")
	}
	if got := explain(errors.New("first\nsecond")).Error(); got != "first" {
		t.Errorf("%q", got)
	}
	if got := explain(errors.New(strings.Repeat("ä", 500))).Error(); len([]rune(got)) > 110 {
		t.Errorf("%d runes", len([]rune(got)))
	}
}

func idOf(t testing.TB, key crypto.PrivKey) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
