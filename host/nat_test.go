package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/leaks"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// On loopback nobody has a public address, so no hole is ever punched: a peer that is
// connected through a relay stays so. The rest is in integration_test.

func natHost(t *testing.T, cfg NAT, listen ...string) *Host {
	t.Helper()
	if len(listen) == 0 {
		listen = []string{"127.0.0.1:0"}
	}
	h, err := New(Config{Listen: listen, NAT: cfg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	return h
}

// overQUIC returns the address of h over QUIC, with its id.
func overQUIC(t *testing.T, h *Host) ma.Multiaddr {
	t.Helper()
	for _, a := range h.Dialable() {
		if strings.Contains(a.String(), "/quic-v1/") && !addr.IsRelayed(a) {
			return a
		}
	}
	t.Fatalf("no QUIC among %v", h.Dialable())
	return nil
}

func relayed(h *Host) []ma.Multiaddr { return onlyRelayed(h.Dialable()) }

// The error of a bad relay address names the option and the mistake.
func TestErrorOfABadRelayIsASentence(t *testing.T) {
	key, id := mustIdentity(t)
	other := "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
	for text, want := range map[string]string{
		"":                                               "want a multiaddr",
		"192.168.2.100:8495":                             "want a multiaddr",
		"/ip4/192.168.2.100/tcp/8495":                    "want a multiaddr with the relay's id",
		"/p2p/" + other:                                  "want a multiaddr",
		"/ip4/192.168.2.100/p2p/" + other:                "want a multiaddr",
		"/unix/tmp/socket/x/p2p/" + other:                "want a multiaddr",
		"/ip4/0.0.0.0/tcp/8495/p2p/" + other:             "all interfaces",
		"/ip4/192.168.2.100/tcp/0/p2p/" + other:          "port is missing",
		"/ip4/192.168.2.100/tcp/8495/p2p/" + id.String(): "this node itself",
		"/ip4/192.168.2.1/tcp/8495/p2p/" + other + "/p2p-circuit/p2p/" + other: "behind a relay",
	} {
		_, err := New(Config{Key: key, NAT: NAT{Relays: []string{text}}})
		if bad, ok := errors.AsType[*configError](err); !ok || bad.Option != "Relays" || bad.Value != text || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestAReservationIsKeptAtEachRelay: a host is announced and reached behind its relay, which is
// asked again when it comes back; a refusal is logged as a sentence.
func TestAReservationIsKeptAtEachRelay(t *testing.T) {
	key, id := mustIdentity(t)
	open := func(listen string) *Host {
		r, err := New(Config{Key: key, Listen: []string{listen}, NAT: NAT{RelayService: true}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if err := r.Listen(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open("127.0.0.1:0")
	at := overQUIC(t, r)
	plain := listening(t)
	gone := listening(t, "/ip4/127.0.0.1/tcp/0")
	at2 := gone.Dialable()[0].String()
	gone.Close()
	h := natHost(t, NAT{Relays: []string{at.String(), overQUIC(t, plain).String(), at2}})
	want := ma.StringCast(fmt.Sprintf("%v/p2p-circuit/p2p/%v", at, h.Host().ID()))
	announced := func() bool { return ma.Contains(h.Dialable(), want) }
	hosttest.Eventually(t, "the address behind the relay is announced", announced)
	if list := relayed(h); len(list) != 1 {
		t.Errorf("behind relays: %v, want %v", list, want)
	}
	hosttest.Eventually(t, "all were asked", func() bool {
		return !slices.ContainsFunc(h.relays(), func(r wiring.RelayStatus) bool { return errors.Is(r.Err, errNotAsked) })
	})
	if s := h.relays(); s[0].Err != nil || time.Until(s[0].Until) < time.Minute || !s[0].Relay.Equal(at) ||
		fmt.Sprint(s[1].Err, ", ", s[2].Err) != "it is not a relay, connection refused" {
		t.Errorf("relays: %+v", s)
	}

	d := natHost(t, NAT{HolePunching: true})
	if err := d.Host().Connect(t.Context(), peer.AddrInfo{ID: h.Host().ID(), Addrs: []ma.Multiaddr{want}}); err != nil {
		t.Fatal(err)
	}
	if c := d.Host().Network().Connectedness(h.Host().ID()); c != network.Limited || addr.HasDirect(d.Host().Network(), h.Host().ID()) {
		t.Errorf("connected through a relay it is %v", c)
	}
	if list := addr.RelayedPeers(d.Host().Network()); !slices.Equal(list, []peer.ID{h.Host().ID()}) {
		t.Errorf("reached through a relay only: %v", list)
	}

	r.Close()
	hosttest.Eventually(t, "the address is not announced any more", func() bool { return len(relayed(h)) == 0 })
	addr, _ := peer.SplitAddr(at)
	open(addr.String())
	hosttest.Eventually(t, "the relay is found again", announced)
	if s := h.relays()[0]; s.Err != nil || !strings.HasSuffix(at.String(), id.String()) {
		t.Errorf("then it is %+v", s)
	}
}

// Advertised addresses do not replace the addresses through relays.
func TestAdvertiseKeepsRelays(t *testing.T) {
	r := natHost(t, NAT{RelayService: true})
	h, err := New(Config{Listen: []string{"127.0.0.1:0"}, Advertise: []string{"192.0.2.7:8495"}, NAT: NAT{Relays: []string{overQUIC(t, r).String()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	hosttest.Eventually(t, "both are announced", func() bool { return len(relayed(h)) == 1 && len(h.Dialable()) == 3 })
}

// TestNATOptionsServeOnlyTheirProtocols: each option adds its own protocols, none of them nothing.
func TestNATOptionsServeOnlyTheirProtocols(t *testing.T) {
	const dial, back, hop, stop protocol.ID = autonatv2.DialProtocol, autonatv2.DialBackProtocol, proto.ProtoIDv2Hop, proto.ProtoIDv2Stop
	all := []protocol.ID{dial, back, hop, stop}
	for name, c := range map[string]struct {
		cfg  NAT
		want []protocol.ID
	}{
		"nothing":       {NAT{}, nil},
		"hole punching": {NAT{HolePunching: true}, []protocol.ID{back, stop}},
		"relay service": {NAT{RelayService: true}, all},
	} {
		h := natHost(t, c.cfg)
		for _, id := range all {
			if got, want := slices.Contains(h.Host().Mux().Protocols(), id), slices.Contains(c.want, id); got != want {
				t.Errorf("%s: %s is spoken: %v, want %v", name, id, got, want)
			}
		}
		listens := ma.Contains(h.Host().Network().ListenAddresses(), circuitListen)
		if listens != c.cfg.punches() {
			t.Errorf("%s: it listens behind relays: %v", name, listens)
		}
	}
}

// TestQUICIsDialedFirst: the port for which holes are punched is QUIC's.
func TestQUICIsDialedFirst(t *testing.T) {
	tcp, quic := ma.StringCast("/ip4/192.52.193.1/tcp/1"), ma.StringCast("/ip4/192.52.193.1/udp/1/quic-v1")
	behind := quic.Encapsulate(ma.StringCast("/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf/p2p-circuit"))
	delays := func(cfg NAT, addrs ...ma.Multiaddr) (d [3]time.Duration) {
		for _, r := range cfg.ranker()(slices.Clone(addrs)) {
			d[slices.IndexFunc([]ma.Multiaddr{quic, tcp, behind}, r.Addr.Equal)] = r.Delay
		}
		return d
	}
	usual, ours := delays(NAT{}, tcp, quic, behind), delays(NAT{HolePunching: true}, tcp, quic, behind)
	if usual[1] >= tcpHandicap || ours != [3]time.Duration{usual[0], usual[1] + tcpHandicap, usual[2]} {
		t.Errorf("QUIC, TCP and relay are dialed after %v, without holes to punch after %v", ours, usual)
	}
	if d := delays(NAT{HolePunching: true}, tcp, behind); d[1] != 0 {
		t.Errorf("without QUIC, TCP is dialed after %v", d[1])
	}
}

// Close ends the goroutines of the NAT options in every state.
func TestCloseLeavesNothingOfNAT(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, h *Host){
		"new":    func(t *testing.T, h *Host) {},
		"listen": func(t *testing.T, h *Host) { h.Listen() }, // closed while it dials the relay
		"reached": func(t *testing.T, h *Host) {
			h.Listen()
			hosttest.Eventually(t, "a place", func() bool { return len(relayed(h)) == 1 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			noneLeft := leaks.Watch(t)
			r := natHost(t, NAT{RelayService: true})
			h, err := New(Config{Listen: []string{"127.0.0.1:0"}, NAT: NAT{Relays: []string{overQUIC(t, r).String()}, RelayService: true}})
			if err != nil {
				t.Fatal(err)
			}
			use(t, h)
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			hosttest.Eventually(t, "the relay has noticed", func() bool { return len(r.Host().Network().Peers()) == 0 })
			r.Close()
			noneLeft()
		})
	}
}

// TestALossEndsThePauseBeforeTheNextReservation: the pause between two attempts ends at once
// when the host closes, whatever was lost before, and when a place is lost.
func TestALossEndsThePauseBeforeTheNextReservation(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &reservations{}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		lost := make(chan struct{}, 1)
		began := time.Now()
		if s.wait(time.Minute, lost); time.Since(began) != time.Minute {
			t.Errorf("waited %v instead of a minute", time.Since(began))
		}
		lost <- struct{}{}
		began = time.Now()
		if !s.wait(time.Minute, lost) || time.Since(began) != 0 {
			t.Errorf("a loss was noticed after %v", time.Since(began))
		}
		time.AfterFunc(time.Second, s.cancel)
		if s.wait(time.Minute, nil) || time.Since(began) != time.Second {
			t.Errorf("waited %v for a host that closed after a second", time.Since(began))
		}
	})
}

func mustIdentity(t *testing.T) (crypto.PrivKey, peer.ID) {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}
