package integration_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

func ticket(t *testing.T, n *smokesignal.Node) string {
	t.Helper()
	text, err := n.Ticket()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestJoinByTicket: a ticket is all that is needed to join, network included, in
// whatever letters it came over; a broadcast then passes.
func TestJoinByTicket(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		listen []string
	}{
		{"tcp and quic", []string{"127.0.0.1:0"}},
		{"websocket alone", []string{"/ip4/127.0.0.1/tcp/0/ws"}},
		{"webtransport alone", []string{"/ip4/127.0.0.1/udp/0/quic-v1/webtransport"}},
		{"three transports", []string{"/ip4/127.0.0.1/udp/0/webrtc-direct", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t)
			host := l.start(cluster.Spec{Name: "host", Listen: c.listen, Limits: manual}, smokesignal.Network("kitchen"))
			in := listen(t, host.Broadcast(), "*")
			text := strings.ToUpper(ticket(t, host))
			guest := l.start(cluster.Spec{Name: "guest", Limits: joins, Seeds: []string{text}})
			l.wait(soon, "joined", func(s *checker.State) bool { return s.Gathered(2) })
			emitNumbers(t, guest.Broadcast(), "n", 1)
			wantNumbers(t, "host", in.wait(1, soon), 1)
			if st := guest.Seeds(); len(st) != 1 || st[0].Seed != text || st[0].ID != host.ID() || !st[0].Linked || st[0].Err != nil {
				t.Errorf("the state of the seed is %+v", st)
			}
		})
	}
}

// TestTicketPinsTheNode: another node at the address of a ticket is not joined,
// and OnSeedError reports it; the one that the ticket is for is, at another address in it.
func TestTicketPinsTheNode(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	host := l.start(cluster.Spec{Name: "host", Limits: manual})
	other := l.start(cluster.Spec{Name: "other", Limits: manual})
	encode := func(addrs ...ma.Multiaddr) string {
		t.Helper()
		text, err := seed.Ticket{ID: host.ID(), Addrs: addrs}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}

	deceived := l.create(cluster.Spec{Name: "deceived", Limits: joins, Seeds: []string{encode(other.Addrs()...)}})
	reported := make(chan error, 8)
	deceived.OnSeedError(func(_ context.Context, e *smokesignal.SeedError) { reported <- e })
	if err := deceived.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-reported:
		if wrong, ok := errors.AsType[*smokesignal.WrongIDError](err); !ok || wrong.Expected != host.ID() || wrong.Actual != other.ID() {
			t.Errorf("reported %v", err)
		}
	case <-time.After(soon):
		t.Error("no error was reported")
	}
	if deceived.Connected() {
		t.Error("joined another node")
	}

	l.start(cluster.Spec{Name: "guest", Limits: joins, Seeds: []string{encode(append(other.Addrs(), host.Addrs()...)...)}})
	l.wait(soon, "joined the right one", func(s *checker.State) bool { return s.Proc("guest").Has(host.ID().String()) })
}

// TestConnectAcceptsATicket, also one of another network, about which the other
// node has the last word.
func TestConnectAcceptsATicket(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	elsewhere := l.start(cluster.Spec{Name: "elsewhere", Limits: manual}, smokesignal.Network("elsewhere"))
	ctx := within(t, soon)
	p, err := a.Connect(ctx, ticket(t, b))
	if err != nil || p.ID() != b.ID() {
		t.Errorf("%v, %v", p, err)
	}
	_, err = a.Connect(ctx, ticket(t, elsewhere))
	if !errors.Is(err, smokesignal.ErrOtherNetwork) || !strings.Contains(err.Error(), `"elsewhere", not "default"`) {
		t.Errorf("of another network: %v", err)
	}
	if _, err = a.Connect(ctx, ticket(t, a)); !errors.Is(err, smokesignal.ErrSelf) {
		t.Errorf("its own: %v", err)
	}
}
