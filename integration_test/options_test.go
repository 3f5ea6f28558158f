package integration_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// TestListenOnABusyPortIsAnError shows that Start names the port that it cannot use,
// and works once the port is free.
func TestListenOnABusyPortIsAnError(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	l := newLocal(t)
	a := l.create(cluster.Spec{Name: "a", Listen: []string{busy.Addr().String()}})
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	if err := a.Start(t.Context()); err == nil || !strings.Contains(err.Error(), port) {
		t.Fatalf("Start on a port in use returned %v", err)
	}
	busy.Close()
	if err := a.Start(t.Context()); err != nil { // after a failure, Start may be called again
		t.Errorf("Start once the port is free: %v", err)
	}
}

// TestPortZeroListensOnTCPAndQUIC shows that a node on a free port has addresses for
// TCP and QUIC.
func TestPortZeroListensOnTCPAndQUIC(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Listen: []string{"127.0.0.1:0"}})
	b := l.start(cluster.Spec{Name: "b", Listen: []string{"127.0.0.1:0"}, Seeds: []string{addr(a)}})
	l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	tcp, quic := false, false
	for _, m := range b.Addrs() {
		tcp = tcp || strings.Contains(m.String(), "/tcp/")
		quic = quic || strings.Contains(m.String(), "/quic-v1")
	}
	if !tcp || !quic {
		t.Errorf("addresses %v, want TCP and QUIC", b.Addrs())
	}
}

// TestPortZeroIsAdvertisedAsTheRealPort shows that each address of a node has its real
// port and its id, and that others join by it.
func TestPortZeroIsAdvertisedAsTheRealPort(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Listen: []string{"127.0.0.1:0"}})
	if len(a.Addrs()) == 0 {
		t.Fatal("no address")
	}
	for _, m := range a.Addrs() {
		if text := m.String(); strings.Contains(text, "/0/") || strings.Contains(text, "0.0.0.0") || !strings.HasSuffix(text, "/p2p/"+a.ID().String()) {
			t.Errorf("address %s", text)
		}
		b := l.start(cluster.Spec{Name: "b" + m.String(), Limits: manual})
		if _, err := b.Connect(within(t, soon), m.String()); err != nil {
			t.Errorf("Connect to %s: %v", m, err)
		}
	}
}

// TestListenBindsOnlyTheGivenAddress shows that a node on 127.0.0.1 listens at no other
// address.
func TestListenBindsOnlyTheGivenAddress(t *testing.T) {
	t.Parallel()
	port := hosttest.FreePort(t)
	a := newLocal(t).start(cluster.Spec{Name: "a", Listen: []string{hostPort(port)}})
	for _, m := range a.Host().Network().ListenAddresses() {
		if !strings.HasPrefix(m.String(), "/ip4/127.0.0.1/") {
			t.Errorf("bound %s", m)
		}
	}
	// On Linux, all of 127.0.0.0/8 is this machine. On other systems, nothing answers at
	// 127.0.0.2 in any case.
	if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.2:%d", port), time.Second); err == nil {
		c.Close()
		t.Error("the port is bound on 127.0.0.2 as well")
	}
}

// TestSubnetBindsOneAddress shows that Subnet makes a node listen only at its address
// in that subnet.
func TestSubnetBindsOneAddress(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.create(cluster.Spec{Name: "a", Listen: []string{":0"}}, smokesignal.Subnet("127.0.0.0/8"))
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range append(a.Host().Network().ListenAddresses(), a.Addrs()...) {
		if !strings.HasPrefix(m.String(), "/ip4/127.0.0.1/") {
			t.Errorf("bound or advertised %s", m)
		}
	}
}

// TestLocalIPFindsTheAddressInASubnet shows the forms of a subnet, and that the error
// for a wrong one lists the addresses of the machine.
func TestLocalIPFindsTheAddressInASubnet(t *testing.T) {
	t.Parallel()
	for _, subnet := range []string{"127.0.0.1/255.0.0.0", "127.0.0.1/8", "127.8.9.10/255.0.0.0"} {
		if ip, err := smokesignal.LocalIP(subnet); err != nil || ip.String() != "127.0.0.1" {
			t.Errorf("LocalIP(%q) returned %v, %v", subnet, ip, err)
		}
	}
	// This range is reserved for documentation, so no machine has an address in it.
	_, err := smokesignal.LocalIP("203.0.113.0/24")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("the error for a subnet without an address does not list the addresses of the machine: %v", err)
	}
}

// TestErrorOfNewNamesTheWrongOption shows that each wrong option is an error of New
// that names it.
func TestErrorOfNewNamesTheWrongOption(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		word string
		opt  smokesignal.Option
	}{
		{"Seeds", smokesignal.Seeds("127.0.0.1")},
		{"Seeds", smokesignal.Seeds("127.0.0.1:eighty")},
		{"Seeds", smokesignal.Seeds("127.0.0.1:70000")},
		{"Seeds", smokesignal.Seeds("")},
		{"Seeds", smokesignal.Seeds("/ip4/127.0.0.1/tcp/1/p2p/nobody")},
		{"Listen", smokesignal.Listen("here")},
		{"Listen", smokesignal.Listen("127.0.0.1:-1")},
		{"Listen", smokesignal.Listen("/ip4/127.0.0.1/carrier/pigeon")},
		{"PeerLimits", smokesignal.PeerLimits(-1, 5)},
		{"PeerLimits", smokesignal.PeerLimits(5, 3)},
		{"PeerLimits", smokesignal.PeerLimits(0, -2)},
		{"PingInterval", smokesignal.PingInterval(-time.Second)},
		{"PingTimeout", smokesignal.PingTimeout(-time.Second)},
		{"Network", smokesignal.Network("")},
		{"Subnet", smokesignal.Subnet("the one over there")},
		{"Advertise", smokesignal.Advertise("nowhere")},
		{"MaxEventSize", smokesignal.MaxEventSize(-1)},
		{"LAN", smokesignal.LAN()},
		{"IdentityFile", smokesignal.IdentityFile("")},
	} {
		n, err := smokesignal.New(tt.opt)
		if err == nil {
			n.Close()
			t.Errorf("a wrong %s is not an error", tt.word)
		} else if !strings.Contains(err.Error(), tt.word) {
			t.Errorf("the error %q does not name %s", err, tt.word)
		}
	}
}

// TestLoggerGetsTheLog shows that the handler of Logger gets the lines that the node
// logs.
func TestLoggerGetsTheLog(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	var log logSink
	a := l.start(cluster.Spec{Name: "a", Limits: manual}, smokesignal.Logger(&log))
	l.link(a, l.start(cluster.Spec{Name: "b", Limits: manual}))
	if text := log.String(); !strings.Contains(text, "linked") {
		t.Errorf("the log of a node that linked is %q", text)
	}
}

// TestNodesOfOtherNetworksDoNotLink shows that a node of another network is refused
// with an error that names the network, at Connect and as seed.
func TestNodesOfOtherNetworksDoNotLink(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual, Network: "one"})
	b := l.start(cluster.Spec{Name: "b", Limits: joins, Network: "two", Seeds: []string{addr(a)}})
	_, err := b.Connect(within(t, soon), addr(a))
	if !errors.Is(err, smokesignal.ErrOtherNetwork) || !strings.Contains(err.Error(), "one") {
		t.Errorf("Connect of a node of network one returned %v", err)
	}
	l.wait(soon, "the seed error", func(s *checker.State) bool { return s.Proc("b").Counts[checker.SeedError] > 0 })
	if r := l.log.RecordsOf("b", checker.SeedError)[0]; r.Code != "ErrOtherNetwork" {
		t.Errorf("the seed error is %v", r)
	}
	l.wantStory(a)
	l.wantStory(b)
}

// A logSink gathers the messages of a log.
type logSink struct {
	mu    sync.Mutex
	lines []string
}

func (s *logSink) Enabled(context.Context, slog.Level) bool { return true }
func (s *logSink) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *logSink) WithGroup(string) slog.Handler            { return s }
func (s *logSink) Handle(_ context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, r.Message)
	return nil
}

func (s *logSink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}
