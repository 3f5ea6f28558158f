package discovery

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// fill uses up all slots.
func (s slots) fill() {
	for range cap(s) {
		s <- struct{}{}
	}
}

// Unconnected requesters can keep all dials busy. A connected peer is answered without a free dial.
func TestConnectedPeersNeedNoSlot(t *testing.T) {
	t.Parallel()
	a := newTester(t, testConfig{max: 5}).start()
	b := newTester(t, testConfig{max: 5}).start()
	b.d.dials.fill()
	b.d.answers.fill()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if _, err := a.d.Connect(ctx, b.addr()); err != nil {
		t.Error(err)
	}
}

// A peer that has asked and hung up is answered, and does not use up the dials with which this node
// looks for others.
func TestAnswersHaveSlotsOfTheirOwn(t *testing.T) {
	t.Parallel()
	x, h := newTester(t, testConfig{}).start(), targetHost(t)
	x.d.dials.fill()
	connected := make(chan struct{}, 1)
	defer whenConnected(h.Network(), x.d.host.ID(), func(network.Conn) {
		select {
		case connected <- struct{}{}:
		default:
		}
	})()
	x.d.ask(t.Context(), func() {
		x.d.send(overlay.Contact{ID: h.ID(), Addrs: h.Addrs()}, overlay.Reject{Reason: overlay.ReasonFull})
	})
	select {
	case <-connected:
	case <-time.After(15 * time.Second):
		t.Error("the peer was not answered")
	}
	began := time.Now()
	if err := x.d.reach(t.Context(), idOf(t, newKey(t)), h.Addrs(), x.d.dials); !errors.Is(err, errBusy) {
		t.Errorf("without a slot: %v", err)
	}
	if d := time.Since(began); d > 2*dialTimeout {
		t.Errorf("it waited %v", d)
	}
}

// The addresses that an unknown peer named while it was connected stay in the peerstore for a quarter
// of an hour. They are not dialed later.
func TestOnlyAddressesThatTheGuardAllowsAreDialed(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{}).start()
	victim, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	dialed := make(chan struct{})
	go func() {
		if c, err := victim.Accept(); err == nil {
			c.Close()
			close(dialed)
		}
	}()
	at, err := manet.FromNetAddr(victim.Addr())
	if err != nil {
		t.Fatal(err)
	}
	unknown := idOf(t, newKey(t))
	for _, ttl := range []time.Duration{peerstore.RecentlyConnectedAddrTTL, peerstore.TempAddrTTL} {
		x.d.host.Peerstore().AddAddr(unknown, at, ttl)
		if err := x.d.reach(t.Context(), unknown, []ma.Multiaddr{deserted(t)}, x.d.dials); err == nil {
			t.Error("an unknown peer was reached at an address without a node")
		}
	}
	select {
	case <-dialed:
		t.Error("a third party was dialed")
	default:
	}
}

// It does not take a link for that. When the seed is gone the next time, the error is reported
// again.
func TestErrorOfASeedEndsWhenTheSeedIsFound(t *testing.T) {
	t.Parallel()
	a := newTester(t, testConfig{max: 5}).start()
	x := newTester(t, testConfig{seeds: []string{"127.0.0.1:1"}}).start()
	x.until("the seed's error", x.hasLine("refused"))
	gone := errors.New("gone again")
	reports := func() (n int) {
		for _, line := range x.log {
			if strings.Contains(line, gone.Error()) {
				n++
			}
		}
		return n
	}
	for i := range 2 {
		x.d.ask(t.Context(), func() {
			x.d.seedFailed(0, gone)
			x.d.seedFound(0, x.d.seeds[0], peer.AddrInfo{ID: a.d.host.ID(), Addrs: a.d.host.Addrs()})
		})
		x.until("the error is reported", func() bool { return reports() > i })
		x.d.ask(t.Context(), func() {
			if err := x.d.seeds[0].err; err != nil {
				t.Errorf("found, and the error is %v", err)
			}
		})
	}
	x.d.ask(t.Context(), func() {
		x.d.seedFailed(0, ErrFull)
		x.d.seedFound(0, x.d.seeds[0], peer.AddrInfo{ID: a.d.host.ID(), Addrs: a.d.host.Addrs()})
		if err := x.d.seeds[0].err; !errors.Is(err, ErrFull) {
			t.Errorf("it was full, and the error is %v", err)
		}
	})
}

// A node that has dialed us and was linked may be dialed after a cut as often as the overlay
// likes, even if no dial has proved yet where it is. Other nodes may not be dialed there.
func TestNeighborsMayBeDialedAgain(t *testing.T) {
	t.Parallel()
	a := newTester(t, testConfig{max: 4}).start()
	b := newTester(t, testConfig{max: 4}).start()
	if _, err := b.d.Connect(t.Context(), a.addr()); err != nil {
		t.Fatal(err)
	}
	a.until("linked", a.hasLinks(1))
	for i := range 2 * dialguard.MaxUnproved {
		if n := len(a.d.allowed(b.d.host.ID(), b.d.host.Addrs())); n != 1 {
			t.Fatalf("dial %d: %d of the neighbor's addresses may be dialed, want 1", i+1, n)
		}
	}
	allowed := 0
	for range 2 * dialguard.MaxUnproved {
		allowed += len(a.d.allowed("unknown", b.d.host.Addrs()))
	}
	if allowed != dialguard.MaxUnproved {
		t.Errorf("%d dials to an unknown peer at the neighbor's address, want %d", allowed, dialguard.MaxUnproved)
	}
}
