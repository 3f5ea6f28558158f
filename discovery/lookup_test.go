package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// targetHost returns a libp2p host to be found, which is not a node.
func targetHost(t *testing.T) corehost.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// silent returns an address with a listener that says nothing.
func silent(t *testing.T) ma.Multiaddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))
}

// deserted returns an address without a listener.
func deserted(t *testing.T) ma.Multiaddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))
}

func findPeer(x *tester, p peer.ID) (peer.AddrInfo, error) {
	ctx, cancel := context.WithTimeout(x.Context(), 15*time.Second)
	defer cancel()
	return x.d.FindPeer(ctx, p)
}

// FindPeer dials the addresses that the overlay knows, and returns the one that answered.
func TestFindPeerConnects(t *testing.T) {
	t.Parallel()
	x, h := newTester(t, testConfig{}).start(), targetHost(t)
	x.d.learn(overlay.Contact{ID: h.ID(), Record: []byte{1}, Addrs: h.Addrs()})
	for _, when := range []string{"first", "connected"} {
		info, err := findPeer(x, h.ID())
		if err != nil {
			t.Fatal(err)
		}
		if info.ID != h.ID() || len(info.Addrs) == 0 || !info.Addrs[0].Equal(h.Addrs()[0]) {
			t.Errorf("%s: found %v, want %v first", when, info, h.Addrs()[0])
		}
	}
	if info, err := findPeer(x, x.d.host.ID()); err != nil || len(info.Addrs) == 0 || strings.Contains(info.Addrs[0].String(), "p2p") {
		t.Errorf("itself: %v, %v", info, err)
	}
}

// The error of FindPeer says what was tried.
func TestFindPeerSaysWhatWasTried(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{}).start()
	unknown := idOf(t, newKey(t))
	_, err := findPeer(x, unknown)
	if !errors.Is(err, ErrUnknownPeer) || !errors.Is(err, routing.ErrNotFound) || !strings.Contains(err.Error(), "no peers to ask") {
		t.Errorf("alone: %v", err)
	}
	if _, err := findPeer(x, ""); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("no id: %v", err)
	}

	at := deserted(t)
	x.d.learn(overlay.Contact{ID: unknown, Record: []byte{1}, Addrs: []ma.Multiaddr{at}})
	_, err = findPeer(x, unknown)
	if !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrUnknownPeer) {
		t.Errorf("without a listener: %v", err)
	}
	if want := fmt.Sprintf("unreachable: it was last seen at %s: connection refused", at); err == nil || err.Error() != want {
		t.Errorf("without a listener: %v, want %s", err, want)
	}
	gone := newTester(t, testConfig{})
	gone.d.Start()
	gone.d.Close()
	if _, err := findPeer(gone, unknown); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// However many calls look for a peer, the network is asked once.
func TestCallsForOnePeerShareASearch(t *testing.T) {
	t.Parallel()
	x, h := newTester(t, testConfig{}).start(), targetHost(t)
	at := silent(t)
	x.d.learn(overlay.Contact{ID: h.ID(), Record: []byte{1}, Addrs: []ma.Multiaddr{at}})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if _, err := findPeer(x, h.ID()); err != nil {
				t.Error(err)
			}
		})
	}
	joined := func() (n int) {
		x.d.lookups.mu.Lock()
		defer x.d.lookups.mu.Unlock()
		if l := x.d.lookups.byTarget[h.ID()]; l != nil {
			n = l.waiters
		}
		return n
	}
	asked := func() (tokens uint64) {
		x.d.ask(t.Context(), func() { tokens = x.d.token })
		return tokens
	}
	hosttest.Eventually(t, "all wait for one search, which has begun", func() bool { return joined() == 10 && asked() > 0 })
	// The peer calls by itself, which ends the search.
	x.connectFrom(h)
	all.Wait()
	if n := asked(); n != 1 {
		t.Errorf("the overlay was asked %d times, want once", n)
	}
	if n := joined(); n != 0 {
		t.Errorf("%d still wait", n)
	}
}

func (x *tester) connectFrom(h corehost.Host) {
	x.Helper()
	if err := h.Connect(x.Context(), peer.AddrInfo{ID: x.d.host.ID(), Addrs: x.d.host.Addrs()}); err != nil {
		x.Fatal(err)
	}
}

// The context of a call ends its wait, and that of the last call ends the search.
func TestFindPeerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{}).start()
	unknown := idOf(t, newKey(t))
	x.d.learn(overlay.Contact{ID: unknown, Record: []byte{1}, Addrs: []ma.Multiaddr{silent(t)}})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := x.d.FindPeer(ctx, unknown)
		result <- err
	}()
	var l *peerLookup
	for l == nil {
		time.Sleep(time.Millisecond)
		x.d.lookups.mu.Lock()
		l = x.d.lookups.byTarget[unknown]
		x.d.lookups.mu.Unlock()
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "looking for it over 0 links") {
		t.Errorf("FindPeer returned %v", err)
	}
	select {
	case <-l.done:
	case <-time.After(15 * time.Second):
		t.Error("the search goes on")
	}
}

// An address that is out of date costs time, and nothing else.
func TestSearchGoesOnAfterAWrongAnswer(t *testing.T) {
	t.Parallel()
	for name, remembered := range map[string]func(*testing.T) ma.Multiaddr{
		"nothing is remembered":          nil,
		"remembered, without a listener": deserted,
		"remembered, silence there":      silent,
	} {
		t.Run(name, func(t *testing.T) {
			x, h := newTester(t, testConfig{}).start(), targetHost(t)
			if remembered != nil {
				x.d.host.Peerstore().AddAddr(h.ID(), remembered(t), peerstore.TempAddrTTL)
			}
			l := &peerLookup{target: h.ID(), answers: make(chan overlay.Contact, 3)}
			l.ctx, l.cancel = context.WithTimeout(t.Context(), 15*time.Second)
			defer l.cancel()
			asked, began := 0, time.Now()
			info, err := x.d.search(l, func() {
				asked++
				l.answers <- overlay.Contact{ID: h.ID(), Addrs: []ma.Multiaddr{silent(t)}}
				l.answers <- overlay.Contact{ID: h.ID(), Addrs: []ma.Multiaddr{deserted(t)}}
				l.answers <- overlay.Contact{ID: h.ID(), Addrs: h.Addrs()}
				close(l.answers)
			})
			if err != nil || len(info.Addrs) == 0 || !info.Addrs[0].Equal(h.Addrs()[0]) {
				t.Errorf("found %v, %v", info, err)
			}
			if asked != 1 {
				t.Errorf("asked %d times", asked)
			}
			if d := time.Since(began); d > dialTimeout*4/5 { // as long as a dial to an address without an answer
				t.Errorf("it took %v", d)
			}
		})
	}
}

// The network is not asked for a peer that answers at once where it was before.
func TestSearchPrefersRememberedAddresses(t *testing.T) {
	t.Parallel()
	x, h := newTester(t, testConfig{}).start(), targetHost(t)
	x.d.host.Peerstore().AddAddrs(h.ID(), h.Addrs(), peerstore.TempAddrTTL)
	l := &peerLookup{target: h.ID(), answers: make(chan overlay.Contact)}
	l.ctx, l.cancel = context.WithTimeout(t.Context(), 15*time.Second)
	defer l.cancel()
	if _, err := x.d.search(l, func() { t.Error("the network was asked") }); err != nil {
		t.Error(err)
	}
}

// An address from other nodes is dialed three times, and then not for a while, however many
// calls ask for it.
func TestSearchObeysTheGuard(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{}).start()
	at := deserted(t)
	for i := range dialguard.MaxUnproved + 1 {
		unknown := idOf(t, newKey(t)) // of one id, libp2p remembers the failure
		l := &peerLookup{target: unknown, answers: make(chan overlay.Contact, 1)}
		l.ctx, l.cancel = context.WithTimeout(t.Context(), 15*time.Second)
		_, err := x.d.search(l, func() {
			l.answers <- overlay.Contact{ID: unknown, Addrs: []ma.Multiaddr{at}}
			close(l.answers)
		})
		l.cancel()
		want := "connection refused"
		if i == dialguard.MaxUnproved {
			want = "not dialed again so soon"
		}
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), want) {
			t.Errorf("dial %d: %v, want %q", i+1, err, want)
		}
	}
}

// A dial without an answer does not hold up a caller once the peer itself has connected. The dial
// goes on until the driver is closed.
func TestReachEndsWhenThePeerConnects(t *testing.T) {
	t.Parallel()
	x, h := newTester(t, testConfig{}).start(), targetHost(t)
	began := time.Now()
	result := make(chan error, 1)
	slots := make(slots, 1)
	go func() { result <- x.d.reach(t.Context(), h.ID(), []ma.Multiaddr{silent(t)}, slots) }()
	for x.d.host.Peerstore().Addrs(h.ID()) == nil { // until it dials
		time.Sleep(time.Millisecond)
	}
	x.connectFrom(h)
	if err := <-result; err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("it took %v", d)
	}
	select {
	case slots <- struct{}{}:
		t.Error("the dial was given up")
	case <-time.After(100 * time.Millisecond):
	}
	x.d.Close()
	if len(slots) > 0 {
		t.Error("the dial outlives the driver")
	}
}
