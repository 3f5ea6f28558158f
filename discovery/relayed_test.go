package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

const otherID = "12D3KooWJ4ct7gS3fLiVcQ7pgTTYG1kCHUEfLdmHXeWSBpwJHVJz"

// relayFor starts a relay on which h has a reservation, and returns h's address there.
func relayFor(t *testing.T, h corehost.Host) (service corehost.Host, at string) {
	t.Helper()
	service = startHost(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"))
	r, err := relay.New(service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	info := peer.AddrInfo{ID: service.ID(), Addrs: service.Addrs()}
	if _, err := client.Reserve(t.Context(), h, info); err != nil {
		t.Fatal(err)
	}
	return service, fmt.Sprintf("%v/p2p/%v/p2p-circuit/p2p/%v", service.Addrs()[0], service.ID(), h.ID())
}

// On loopback libp2p punches no holes, so the test makes the direct connection. Without it the
// error is ErrRelayed.
func TestSeedBehindARelayIsFoundOverADirectConnection(t *testing.T) {
	there := startHost(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.EnableRelay())
	service, at := relayFor(t, there)
	s := mustParse(t, at)

	h := startHost(t, libp2p.NoListenAddrs, libp2p.EnableRelay())
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := findSeed(short, h, s)
	if !errors.Is(err, ErrRelayed) || err.Error() != "only reached through a relay, no direct connection" {
		t.Errorf("without a direct connection: %v", err)
	}
	// A hole may yet be punched over the connection through the relay; when it is old
	// it makes room for the next.
	closeStale(h, there.ID(), staleAfter)
	if !addr.HasOnlyRelayed(h.Network(), there.ID()) {
		t.Error("the connection through the relay was closed")
	}
	closeStale(&dialHost{Host: h, isSpare: func(network.Conn) bool { return false }}, there.ID(), 0)
	if !addr.HasOnlyRelayed(h.Network(), there.ID()) {
		t.Error("a connection through the relay was closed that others use")
	}
	closeStale(h, there.ID(), 0)
	if len(h.Network().ConnsToPeer(there.ID())) > 0 {
		t.Error("an old connection through a relay is kept")
	}
	h = startHost(t, libp2p.NoListenAddrs, libp2p.EnableRelay()) // which does not know its addresses yet
	found := make(chan error, 1)
	go func() {
		_, err := findSeed(t.Context(), h, s)
		found <- err
	}()
	select {
	case err := <-found:
		t.Fatalf("found through a relay: %v", err)
	case <-time.After(100 * time.Millisecond): // nothing may happen
	}
	direct := network.WithForceDirectDial(t.Context(), "test")
	if err := h.Connect(direct, peer.AddrInfo{ID: there.ID(), Addrs: there.Addrs()}); err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Errorf("with a direct connection: %v", err)
	}
	closeStale(h, there.ID(), 0)
	if !addr.HasDirect(h.Network(), there.ID()) {
		t.Error("a direct connection was closed")
	}

	unknown := mustParse(t, strings.Replace(at, there.ID().String(), otherID, 1))
	for name, c := range map[string]struct {
		host corehost.Host
		from *seed.Seed
		kind error
		text string
	}{
		"by a host without relays": {startHost(t, libp2p.NoListenAddrs, libp2p.DisableRelay()), s, ErrUnreachable, "it is behind a relay, and this node punches no holes"},
		"by itself":                {there, s, ErrSelf, "this is the node itself"},
		"without a reservation":    {startHost(t, libp2p.NoListenAddrs, libp2p.EnableRelay()), unknown, ErrUnreachable, "its relay does not know it"},
		"by its relay":             {service, unknown, ErrUnreachable, "this node is its relay, and it is not connected"},
	} {
		if _, err := findSeed(t.Context(), c.host, c.from); !errors.Is(err, c.kind) || err.Error() != c.text {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The direct address of a seed is dialed although libp2p knows a way through a relay.
func TestSeedIsNotReachedThroughARelayOnly(t *testing.T) {
	there := startHost(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.EnableRelay())
	_, at := relayFor(t, there)
	relayed, err := peer.AddrInfoFromString(at)
	if err != nil {
		t.Fatal(err)
	}
	direct := there.Addrs()[0].String()
	withID := direct + "/p2p/" + there.ID().String()
	refused := "/ip4/127.0.0.1/tcp/" + closedPort(t) + "/p2p/" + there.ID().String()
	for _, connected := range []bool{false, true} {
		newDialer := func() corehost.Host {
			h := startHost(t, libp2p.NoListenAddrs, libp2p.EnableRelay())
			h.Peerstore().AddAddrs(there.ID(), relayed.Addrs, peerstore.PermanentAddrTTL)
			if connected {
				if err := h.Connect(t.Context(), *relayed); err != nil {
					t.Fatal(err)
				}
				if !addr.HasOnlyRelayed(h.Network(), there.ID()) {
					t.Fatal("no connection through the relay")
				}
			}
			return h
		}
		for _, text := range []string{direct, withID} {
			h := newDialer()
			if _, err := findSeed(t.Context(), h, mustParse(t, text)); err != nil {
				t.Errorf("%s, connected through the relay %v: %v", text, connected, err)
			}
			if !addr.HasDirect(h.Network(), there.ID()) {
				t.Errorf("%s, connected through the relay %v: no direct connection", text, connected)
			}
			if !ma.Contains(h.Peerstore().Addrs(there.ID()), relayed.Addrs[0]) {
				t.Error("the address behind the relay was forgotten")
			}
		}
		// An address that does not answer costs no connection through the relay, by which
		// libp2p may yet punch a hole.
		h := newDialer()
		if _, err := findSeed(t.Context(), h, mustParse(t, refused)); !errors.Is(err, ErrUnreachable) || err.Error() != "connection refused" {
			t.Errorf("a closed port, connected through the relay %v: %v", connected, err)
		}
		if addr.HasOnlyRelayed(h.Network(), there.ID()) != connected {
			t.Errorf("a closed port: connected through the relay before %v, and not after", connected)
		}
	}
}

// A driver neither asks nor answers over a relay, and says why there is no link.
func TestNoLinkIsMadeOverARelay(t *testing.T) {
	b := newTester(t, testConfig{max: 5}).start()
	_, at := relayFor(t, b.d.host)
	a := newTester(t, testConfig{min: 3, max: 5, seeds: []string{at}}).start()
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := a.d.Connect(short, at); !errors.Is(err, ErrRelayed) {
		t.Errorf("Connect: %v", err)
	}
	// The state machine's own dials say the same.
	s := &peerWriter{d: a.d, peer: b.d.host.ID()}
	opened := make(chan error, 1)
	go func() {
		_, err := s.openStream(nil, a.d.dials)
		opened <- err
	}()
	a.until("the seed error", a.hasLine("seed "+at+": only reached through a relay, no direct connection"))
	if err := <-opened; !errors.Is(err, ErrRelayed) {
		t.Errorf("a stream over the relay: %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(a.linked) > 0 || len(b.linked) > 0 {
		t.Error("there is a link over the relay")
	}
}

// A peer that sends over a relay all the same is refused at once.
func TestNothingIsReadOverARelay(t *testing.T) {
	b := newTester(t, testConfig{max: 5}).start()
	_, at := relayFor(t, b.d.host)
	info, err := peer.AddrInfoFromString(at)
	if err != nil {
		t.Fatal(err)
	}
	h := startHost(t, libp2p.NoListenAddrs, libp2p.EnableRelay())
	if err := h.Connect(t.Context(), *info); err != nil {
		t.Fatal(err)
	}
	stream, err := h.NewStream(network.WithAllowLimitedConn(t.Context(), "test"), info.ID, protocol.Overlay)
	if err != nil {
		t.Fatal(err)
	}
	stream.SetReadDeadline(time.Now().Add(firstTimeout / 2))
	if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
		t.Errorf("the error is %v", err)
	}
}
