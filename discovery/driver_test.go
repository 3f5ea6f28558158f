package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/discovery/internal/peerrecord"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// A tester is a driver over a real host. It sees a peer on the topic as soon as the link is
// pending.
type tester struct {
	*testing.T
	cfg Config
	d   *Driver

	mu      sync.Mutex
	linked  []peer.ID
	pending map[peer.ID]bool
	log     []string
	changed chan struct{}
	signals []string
	heard   []peer.ID
}

type testConfig struct {
	network  string
	min, max int
	seeds    []string
	listen   string
	opts     []libp2p.Option // of the host
	host     corehost.Host   // instead of a new one
}

func newTester(t *testing.T, cfg testConfig) *tester {
	t.Helper()
	if cfg.listen == "" {
		cfg.listen = "/ip4/127.0.0.1/tcp/0"
	}
	if cfg.network == "" {
		cfg.network = "home"
	}
	h := cfg.host
	if h == nil {
		var err error
		if h, err = libp2p.New(append(cfg.opts, libp2p.ListenAddrStrings(cfg.listen), libp2p.DisableMetrics())...); err != nil {
			t.Fatal(err)
		}
	}
	x := &tester{T: t, pending: map[peer.ID]bool{}, changed: make(chan struct{})}
	x.cfg = Config{
		Host: h, Network: cfg.network, Min: cfg.min, Max: cfg.max, Seeds: cfg.seeds,
		OnUnlinked:  func(_ peer.ID, reason error) { x.note("unlinked "+reason.Error(), nil) },
		OnSignal:    func(_ peer.ID, b []byte) { x.note("", func() { x.signals = append(x.signals, string(b)) }) },
		OnSeedError: func(e *SeedError) { x.note(e.Error(), nil) },
		Node: &wiring.Overlay{
			Session: protocol.Session([]byte(h.ID())[len(h.ID())-8:]),
			Addrs: func() (list []ma.Multiaddr) {
				for _, a := range h.Addrs() {
					list = append(list, a.Encapsulate(ma.StringCast("/p2p/"+h.ID().String())))
				}
				return list
			},
			Pending: func(p peer.ID) { x.note("", func() { x.pending[p] = true }) },
			Linked: func(p peer.ID, greeting []byte) {
				x.note("linked "+string(greeting), func() { x.linked = append(x.linked, p) })
			},
			Unlinked: func(p peer.ID, _ error, _ peers.Ending) {
				x.note("", func() {
					delete(x.pending, p)
					x.linked = slices.DeleteFunc(x.linked, func(q peer.ID) bool { return p == q })
				})
			},
			OnTopic: func(p peer.ID) (on bool) {
				x.note("", func() { on = x.pending[p] })
				return on
			},
			Greeting:   func() []byte { return []byte("hello") },
			Heard:      func(p peer.ID) { x.note("", func() { x.heard = append(x.heard, p) }) },
			SeedIsSelf: func(string) { x.note("self", nil) },
		},
	}
	x.build(x.cfg)
	t.Cleanup(func() { h.Close() })
	return x
}

// build makes the driver.
func (x *tester) build(cfg Config) {
	x.Helper()
	d, err := New(cfg)
	if err != nil {
		x.Fatal(err)
	}
	x.d = d
}

func (x *tester) start() *tester {
	x.Helper()
	x.d.Start()
	x.Cleanup(func() {
		if err := x.d.Close(); err != nil {
			x.Error(err)
		}
	})
	return x
}

func (x *tester) note(text string, f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f != nil {
		f()
	}
	if text != "" {
		x.log = append(x.log, text)
	}
	close(x.changed)
	x.changed = make(chan struct{})
}

// until waits for a condition on the reports of the hooks.
func (x *tester) until(what string, ok func() bool) {
	x.Helper()
	timeout := time.After(15 * time.Second)
	for {
		x.mu.Lock()
		done, changed := ok(), x.changed
		x.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			x.Fatalf("%s: waited 15 s in vain; reported: %q", what, x.log)
		}
	}
}

func (x *tester) addr() string { return x.d.node.Addrs()[0].String() }

func (x *tester) hasLine(part string) func() bool {
	return func() bool {
		return slices.ContainsFunc(x.log, func(line string) bool { return strings.Contains(line, part) })
	}
}

func (x *tester) hasLinks(n int) func() bool { return func() bool { return len(x.linked) >= n } }

// Two nodes link through a seed: both sides report the link and the other's greeting, measure the
// round trip time, pass on signals, and report the farewell when one leaves.
func TestTwoNodesLinkThroughASeed(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		a := newTester(t, testConfig{max: 5, listen: listen}).start()
		b := newTester(t, testConfig{min: 3, max: 5, listen: listen, seeds: []string{a.addr()}}).start()
		a.until("link", a.hasLinks(1))
		b.until("link", b.hasLinks(1))
		if a.log[0] != "linked hello" || b.log[0] != "linked hello" {
			t.Errorf("reported %q and %q", a.log, b.log)
		}
		if rtt := b.d.RTT(a.d.host.ID()); rtt <= 0 || rtt > 5*time.Second {
			t.Errorf("rtt %v", rtt)
		}
		b.d.Flood([]byte("boo"), "")
		a.until("signal", func() bool { return len(a.signals) == 1 })
		a.until("signal heard", func() bool { return slices.Contains(a.heard, b.d.host.ID()) })
		b.until("keepalive heard", func() bool { return slices.Contains(b.heard, a.d.host.ID()) })
		if err := b.d.leave(t.Context()); err != nil {
			t.Error(err)
		}
		a.until("farewell", a.hasLine("the node was closed"))
	}
}

// A seed without an id in its text is linked.
func TestSeedWithoutIDIsFound(t *testing.T) {
	t.Parallel()
	a := newTester(t, testConfig{max: 5}).start()
	port, _ := a.d.host.Addrs()[0].ValueForProtocol(ma.P_TCP)
	b := newTester(t, testConfig{min: 1, max: 5, seeds: []string{"127.0.0.1:" + port}}).start()
	b.until("link", b.hasLinks(1))
	if s := b.d.Seeds(); s[0].ID != a.d.host.ID() || s[0].Err != nil {
		t.Errorf("status %+v", s)
	}
}

// The error is reported within three seconds, and once for each cause.
func TestEachFaultOfASeedHasItsOwnError(t *testing.T) {
	t.Parallel()
	lab := newTester(t, testConfig{network: "lab", max: 5}).start()
	full := newTester(t, testConfig{}).start() // max 0
	plain, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	addrOf := func(x *tester) string { a, _, _ := strings.Cut(x.addr(), "/p2p/"); return a }

	for name, c := range map[string]struct {
		seed string
		want error
	}{
		"closed port":      {"127.0.0.1:1", ErrUnreachable},
		"unresolvable":     { /* refused by Go's resolver without asking anybody, RFC 7686 */ "nowhere.onion:1", ErrUnresolvable},
		"other network":    {lab.addr(), ErrOtherNetwork},
		"everybody full":   {full.addr(), ErrFull},
		"not smokesignal":  {plain.Addrs()[0].String(), ErrNotSmokesignal},
		"another identity": {addrOf(lab) + "/p2p/" + plain.ID().String(), &WrongIDError{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newTester(t, testConfig{min: 1, max: 5, seeds: []string{c.seed}})
			reports := make(chan *SeedError, 10)
			x.d.cfg.OnSeedError = func(e *SeedError) { reports <- e }
			x.start()
			select {
			case e := <-reports:
				if _, ok := errors.AsType[*WrongIDError](c.want); ok {
					if _, ok := errors.AsType[*WrongIDError](e); !ok {
						t.Errorf("got %v, want a WrongIDError", e)
					}
				} else if !errors.Is(e, c.want) {
					t.Errorf("got %v, want %v", e, c.want)
				}
				if e.Seed != c.seed || strings.Contains(e.Error(), "\n") {
					t.Errorf("text %q", e)
				}
				if s := x.d.Seeds()[0]; s.Err == nil || s.Next.IsZero() {
					t.Errorf("status %+v", s)
				}
			case <-time.After(3 * time.Second):
				t.Error("nothing reported within 3 s")
			}
			select {
			case e := <-reports: // the next attempt fails for the same reason
				t.Errorf("reported again without a change: %v", e)
			case <-time.After(1300 * time.Millisecond):
			}
		})
	}
}

// It is reported once, and not tried again.
func TestSeedThatIsThisNodeIsLeftAlone(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{min: 1, max: 5})
	x.cfg.Seeds = []string{x.addr()} // which is known only now
	x.build(x.cfg)
	x.start()
	x.until("self", x.hasLine("self"))
	if s := x.d.Seeds()[0]; !s.Self || !errors.Is(s.Err, ErrSelf) || !s.Next.IsZero() {
		t.Errorf("status %+v", s)
	}
}

// Connect links beyond Min.
func TestEachFailureOfConnectHasItsOwnError(t *testing.T) {
	t.Parallel()
	a := newTester(t, testConfig{max: 1}).start()
	b := newTester(t, testConfig{max: 5}).start()
	lab := newTester(t, testConfig{network: "lab", max: 5}).start()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if id, err := a.d.Connect(ctx, b.addr()); err != nil || id != b.d.host.ID() {
		t.Fatalf("add: %v, %v", id, err)
	}
	if _, err := a.d.Connect(ctx, b.addr()); err != nil {
		t.Errorf("add a peer that is linked: %v", err)
	}
	if _, err := a.d.Connect(ctx, lab.addr()); !errors.Is(err, ErrFull) {
		t.Errorf("beyond max: %v", err)
	}
	if _, err := b.d.Connect(ctx, lab.addr()); !errors.Is(err, ErrOtherNetwork) {
		t.Errorf("other network: %v", err)
	}
	if _, err := b.d.Connect(ctx, b.addr()); !errors.Is(err, ErrSelf) {
		t.Errorf("self: %v", err)
	}
	if _, err := b.d.Connect(ctx, "nonsense"); err == nil {
		t.Error("nonsense was accepted")
	}
	if err := a.d.Remove(ctx, b.d.host.ID()); err != nil {
		t.Error(err)
	}
	b.until("drop", b.hasLine("the peer was closed"))
	lab.mu.Lock()
	defer lab.mu.Unlock()
	if len(lab.heard) > 0 {
		t.Errorf("heard %v, to which it was never linked", lab.heard)
	}
}

// Ten nodes that know one seed each get at least three links.
func TestTenNodesThroughOneSeedHaveThreeLinksEach(t *testing.T) {
	t.Parallel()
	n := 10
	seed := newTester(t, testConfig{min: 3, max: 5}).start()
	all := []*tester{seed}
	for range n - 1 {
		all = append(all, newTester(t, testConfig{min: 3, max: 5, seeds: []string{seed.addr()}}))
	}
	for _, x := range all[1:] {
		x.start()
	}
	for i, x := range all {
		x.until(fmt.Sprint("node ", i), x.hasLinks(3))
	}
}

// Garbage, oversized frames and records of other nodes end the stream, and nothing more.
func TestHostileFramesEndTheirStream(t *testing.T) {
	t.Parallel()
	a := newTester(t, testConfig{max: 5}).start()
	evil := newTester(t, testConfig{max: 5})
	other := newTester(t, testConfig{max: 5})
	h := evil.d.host
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: a.d.host.ID(), Addrs: a.d.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	record, err := peerrecord.Seal(other.d.key, other.d.node.Addrs(), uint64(time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	request := overlay.Append(nil, overlay.Request{Network: "home", Record: record})
	for name, b := range map[string][]byte{
		"garbage":          {3, 0xff, 0xff, 0xff},
		"endless length":   {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"oversize":         {0xff, 0xff, 0xff, 0x7f},
		"another's record": append([]byte{byte(len(request)&0x7f) | 0x80, byte(len(request) >> 7)}, request...),
	} {
		s, err := h.NewStream(t.Context(), a.d.host.ID(), protocol.Overlay)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
			t.Errorf("%s: the stream ended with %v, want a reset", name, err)
		}
	}
	if len(a.linked) > 0 || len(a.pending) > 0 {
		t.Errorf("linked %v, pending %v", a.linked, a.pending)
	}
}

// Close leaves no goroutine and no handler, with links and unreachable seeds, and without Start.
func TestCloseLeavesNothing(t *testing.T) {
	noneLeft := leaks.Watch(t)
	func() {
		a := newTester(t, testConfig{max: 5})
		b := newTester(t, testConfig{min: 3, max: 5, seeds: []string{a.addr(), "127.0.0.1:1", "nowhere.onion:1"}})
		never := newTester(t, testConfig{max: 5})
		for _, x := range []*tester{a, b} {
			x.d.Start()
		}
		b.until("link", b.hasLinks(1))
		for _, x := range []*tester{b, a, never} {
			x.d.Close()
			for _, p := range x.d.host.Mux().Protocols() {
				if p == protocol.Overlay {
					t.Error("the handler is still there")
				}
			}
			x.d.host.Close()
		}
	}()
	noneLeft()
}

// The error of a link reports whether the neighbor ended the link on purpose.
func TestLinkErrorDistinguishesPurposeFromFault(t *testing.T) {
	t.Parallel()
	for reason, want := range map[overlay.Reason]bool{
		overlay.ReasonMoved: true, overlay.ReasonSwapped: true, overlay.ReasonFull: true, overlay.ReasonEnough: true, overlay.ReasonDropped: true,
		overlay.ReasonSilent: false, overlay.ReasonGone: false, overlay.ReasonClosed: false, overlay.ReasonRestarted: false,
	} {
		if got := (&linkError{Reason: reason}).ending() == peers.OnPurpose; got != want {
			t.Errorf("%q is on purpose: %v", reason, got)
		}
	}
}
